"""OpenVINO's conversion of diffusers' modules: what a user of a CPU would really pick."""

import numpy as np
import openvino
import torch

from benchmarks.peers import of_diffusers


class Parts(torch.nn.Module):
    """A module whose output is a tensor, which OpenVINO can follow."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *arguments):
        return self.call(*arguments)


def convert(call, example, precision):
    """`call` of tensors, traced, as OpenVINO compiles it for this CPU; called with arrays."""
    with torch.no_grad():
        converted = openvino.convert_model(Parts(call).eval(), example_input=example)
    options = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    request = compiled.create_infer_request()

    def run(*arguments):
        return request.infer([np.asarray(argument) for argument in arguments])[0]

    return run


def prepare(workload, variant):
    """(what runs the workload once, None)."""
    sizes, precision = workload.sizes, variant.split()[-1]
    torch.manual_seed(0)
    return (_drawing if workload.name == "W4" else _unet)(sizes, precision), None


def _unet(sizes, precision):
    network, inputs = of_diffusers.make_unet(sizes).eval(), of_diffusers.unet_inputs(sizes)
    run = convert(_wrapped(network), inputs, precision)
    del network
    return lambda: run(*inputs)


def _wrapped(network):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, latents, timesteps, context):
            return self.network(latents, timesteps, context, return_dict=False)[0]

    return Wrapped()


def _drawing(sizes, precision):
    """diffusers' pipeline, its UNet and decoder replaced by their conversions."""
    pipeline = of_diffusers.pipeline()
    unet, vae = pipeline.unet, pipeline.vae
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    pair = (torch.randn(2, 4, side, side), torch.tensor(1), torch.randn(2, 16, width))
    denoise = convert(_wrapped(unet), pair, precision)
    decode = convert(lambda latents: vae.decode(latents, return_dict=False)[0], (pair[0],), precision)

    def call_unet(latents, t, encoder_hidden_states=None, **_):
        return (torch.from_numpy(np.array(denoise(latents, t, encoder_hidden_states))),)

    unet.forward = call_unet
    vae.decode = lambda latents, **_: (torch.from_numpy(np.array(decode(latents))),)
    return of_diffusers.drawing(pipeline, sizes)

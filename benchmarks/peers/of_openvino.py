"""OpenVINO's conversion of diffusers' modules: what a user of a CPU would really pick."""

import numpy as np
import openvino
import torch

from benchmarks.peers import of_diffusers


class Call(torch.nn.Module):
    """A method of a module, without keywords, whose result is a tensor: what OpenVINO can trace."""

    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *arguments):
        return getattr(self.module, self.method)(*arguments, return_dict=False)[0]


def convert(module, example, precision, method="forward"):
    """A module as OpenVINO compiles it for this CPU; called with arrays."""
    with torch.no_grad():
        converted = openvino.convert_model(Call(module, method).eval(), example_input=example)
    options = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()

    def run(*arguments):
        return request.infer([np.asarray(argument) for argument in arguments])[0]

    return run


def prepare(workload, variant):
    """(what runs the workload once, None)."""
    sizes, precision = workload.sizes, variant.split()[-1]
    torch.manual_seed(0)
    return (_drawing if workload.name == "W4" else _unet)(sizes, precision), None


def _unet(sizes, precision):
    inputs = of_diffusers.unet_inputs(sizes)
    run = convert(of_diffusers.make_unet(sizes).eval(), inputs, precision)
    return lambda: run(*inputs)


def _drawing(sizes, precision):
    """diffusers' pipeline, its UNet and decoder replaced by their conversions."""
    pipeline = of_diffusers.pipeline()
    unet, vae = pipeline.unet.eval(), pipeline.vae.eval()
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    latents = torch.randn(2, unet.config.in_channels, side, side)
    denoise = convert(unet, (latents, torch.tensor(1), torch.randn(2, 16, width)), precision)
    decode = convert(vae, (latents,), precision, "decode")
    unet.forward = lambda latents, t, encoder_hidden_states, **_: (
        torch.from_numpy(np.array(denoise(latents, t, encoder_hidden_states))),
    )
    vae.decode = lambda latents, **_: (torch.from_numpy(np.array(decode(latents))),)
    return of_diffusers.drawing(pipeline, sizes)

"""diffusers' own training steps, networks and pipeline, eager and compiled by torch."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

BUNDLED = Path(__file__).parents[2] / "weights" / "fashion-mnist"
COLD_START = """
import sys
from diffusers import DDIMScheduler, StableDiffusionPipeline
import torch
pipeline = StableDiffusionPipeline.from_pretrained(
    sys.argv[1], torch_dtype=torch.float32, safety_checker=None, local_files_only=True
)
pipeline.set_progress_bar_config(disable=True)
image = pipeline("a red dress", num_inference_steps=20, guidance_scale=3.0,
                 generator=torch.Generator().manual_seed(0)).images[0]
image.save(sys.argv[2])
"""


def prepare(workload, variant):
    """(what runs the workload once, its arithmetic in FLOP or None)."""
    torch.manual_seed(0)
    words = variant.split()
    dtype, compiled = getattr(torch, words[-1], None), "compiled" in words
    if workload.kind == "cascade":
        return (_cascade_drawing if "steps" in workload.sizes else _cascade_training)(
            workload, variant, dtype
        )
    prepare = {
        "peak": _product,
        "W1": _unet_training,
        "W2": _unet,
        "W3": _unet_training,
        "W4": _drawing,
        "W5": _autoencoder_training,
        "W6": _cold_start,
    }[workload.kind]
    return prepare(workload.sizes, dtype, compiled)


def _flops(run):
    """What torch counts in one run: matrix products and convolutions, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _product(sizes, dtype, compiled):
    side = sizes["side"]
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    return lambda: a @ b, 2 * side**3


def make_unet(sizes):
    """The network of a workload's sizes, of random weights."""
    import diffusers

    return diffusers.UNet2DConditionModel(**sizes["unet"])


def unet_inputs(sizes):
    """Latents, timesteps and context, channels first."""
    config, side = sizes["unet"], sizes["latents"]
    return (
        torch.randn(sizes["batch"], 4, side, side),
        torch.randint(0, 1000, (sizes["batch"],)),
        torch.randn(sizes["batch"], sizes["tokens"], config["cross_attention_dim"]),
    )


def _training(network, loss, dtype, compiled):
    """A step as diffusers' text-to-image training script takes it: clipping, AdamW and EMA."""
    from diffusers.training_utils import EMAModel

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    average = EMAModel(network.parameters(), decay=0.999, foreach=True)
    loss = torch.compile(loss) if compiled else loss

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(network.parameters())
        return value.item()

    return step, None if compiled else _flops(step)


def _unet_training(sizes, dtype, compiled):
    import diffusers

    network, schedule = make_unet(sizes).train(), diffusers.DDPMScheduler()
    latents, timesteps, context = unet_inputs(sizes)
    noise = torch.randn_like(latents)

    def loss():
        noisy = schedule.add_noise(latents, noise, timesteps)
        return F.mse_loss(network(noisy, timesteps, context).sample.float(), noise)

    return _training(network, loss, dtype, compiled)


def _autoencoder_training(sizes, dtype, compiled):
    import diffusers

    network = diffusers.AutoencoderKL.from_pretrained(BUNDLED / "vae", torch_dtype=torch.float32).train()
    images = torch.rand(sizes["batch"], 3, sizes["pictures"], sizes["pictures"]) * 2 - 1

    def loss():
        latents = network.encode(images).latent_dist
        rebuilt = network.decode(latents.sample()).sample
        kl = 0.5 * (latents.mean**2 + latents.var - 1.0 - latents.logvar).mean()
        return F.l1_loss(rebuilt.float(), images) + 1e-4 * kl.float()

    return _training(network, loss, dtype, compiled)


# -- cascades ---------------------------------------------------------------------------------------------


def cascade_unet(sizes, variant):
    """DeepFloyd IF's UNet at a workload's sizes, of random weights."""
    import dataclasses

    import diffusers

    from benchmarks import cascades

    fields = dataclasses.asdict(cascades.config(sizes, variant))
    del fields["kept"]
    return diffusers.UNet2DConditionModel(mid_block_type="UNetMidBlock2DSimpleCrossAttn", **fields)


def _cascade_training(workload, variant, dtype):
    """A step on real pictures: noise, the network, squared error, clipping, Adam."""
    import diffusers

    from benchmarks import cascades

    sizes = workload.sizes
    network, side = cascade_unet(sizes, variant).train(), 64 * (1 + sizes["stage"])
    images = (
        torch.from_numpy(cascades.pictures(side, sizes["batch"])).permute(0, 3, 1, 2).contiguous() * 2 - 1
    )
    context = torch.from_numpy(cascades.text_states(sizes))
    schedule = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=cascades.LEARNING_RATE)

    def timesteps():
        return torch.randint(0, 1000, (sizes["batch"],))

    def step():
        t, noise, more = timesteps(), torch.randn_like(images), {}
        noisy = schedule.add_noise(images, noise, t)
        if sizes["stage"]:
            small = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
            more["class_labels"] = level = timesteps()
            noisy = torch.cat([noisy, schedule.add_noise(small, torch.randn_like(small), level)], dim=1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = F.mse_loss(network(noisy, t, context, **more).sample.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cascades.CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, None


def _cascade_drawing(workload, variant, dtype):
    """Guided steps of DPM-Solver++ with dynamic thresholding, both halves of a step in one call."""
    import diffusers

    from benchmarks import cascades

    sizes = workload.sizes
    network, context = cascade_unet(sizes, variant).eval(), torch.from_numpy(cascades.text_states(sizes))
    both = torch.cat([torch.zeros_like(context), context])
    scheduler = diffusers.DPMSolverMultistepScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=100.0, timestep_spacing="trailing"
    )

    @torch.no_grad()
    def run():
        scheduler.set_timesteps(sizes["steps"])
        images = torch.randn(sizes["batch"], 3, 64, 64)
        for t in scheduler.timesteps:
            free, asked = network(torch.cat([images, images]), t, both).sample.chunk(2)
            found = free + sizes["guidance_scale"] * (asked - free)
            images = scheduler.step(found, t, images).prev_sample
        return images

    return run, None


@torch.no_grad()
def _unet(sizes, dtype, compiled):
    network = make_unet(sizes).eval().to(dtype)
    latents, timesteps, context = unet_inputs(sizes)
    latents, context = latents.to(dtype), context.to(dtype)
    call = torch.compile(network) if compiled else network

    @torch.no_grad()
    def run():
        return call(latents, timesteps, context).sample

    return run, None if compiled else _flops(run)


def pipeline():
    """The bundled model as diffusers opens it, in float32, drawing by DDIM."""
    import diffusers

    made = diffusers.StableDiffusionPipeline.from_pretrained(
        BUNDLED, torch_dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    made.set_progress_bar_config(disable=True)
    return made


def drawing(made, sizes):
    """Draws the workload's pictures, from prompts to arrays."""

    def run():
        return made(
            ["a red dress"] * sizes["pictures"],
            num_inference_steps=sizes["steps"],
            guidance_scale=sizes["guidance_scale"],
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images

    return run


def _drawing(sizes, dtype, compiled):
    made = pipeline()
    run = drawing(made, sizes)
    flops = None if compiled else _flops(run)
    if compiled:
        made.unet = torch.compile(made.unet)
        made.vae.decode = torch.compile(made.vae.decode)
    return run, flops


def _cold_start(sizes, dtype, compiled):
    folder = Path(tempfile.mkdtemp())
    (folder / "draw.py").write_text(COLD_START)
    command = [sys.executable, folder / "draw.py", BUNDLED, folder / "picture.png"]
    return lambda: subprocess.run(command, check=True, capture_output=True), None

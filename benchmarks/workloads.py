"""What is measured: the sizes, the same for every library, and how often each is run."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Workload:
    """One piece of work that several variants do.

    A variant runs in a process of its own. Where all of a workload's processes fit into memory they
    live side by side and take turns (`rounds` turns, one run each); otherwise (`alone`) one process
    at a time is started, `rounds` times over, and runs `repeats` times.
    """

    name: str
    title: str
    variants: tuple[str, ...]
    rounds: int = 10
    repeats: int = 1
    warmup: int = 2
    alone: bool = False
    sizes: dict = field(default_factory=dict)

    @property
    def kind(self):
        """What is run: W2 for both of its sizes, and cascade for all of a cascade's."""
        return self.name.split("-")[0]


TRAINING = (
    "diffusers float32",
    "diffusers compiled float32",
    "diffusers bfloat16",
    "diffusers compiled bfloat16",
    "sd_tf float32",
    "sd_tf bfloat16",
)
FORWARD = (
    *TRAINING[:4],
    "keras-cv float32",
    "keras-cv XLA float32",
    "keras-cv bfloat16",
    "openvino of diffusers float32",
    "openvino of diffusers bfloat16",
    "sd_tf tensorflow float32",
    "sd_tf tensorflow bfloat16",
    "sd_tf openvino float32",
    "sd_tf openvino bfloat16",
)
DRAWING = (
    "diffusers float32",
    "diffusers compiled float32",
    "openvino of diffusers float32",
    "sd_tf tensorflow float32",
    "sd_tf openvino float32",
)


IMAGENS = (
    "minimagen float32",
    "minimagen efficient float32",
    "minimagen efficient bfloat16",
    "imagen-pytorch float32",
    "imagen-pytorch efficient float32",
    "imagen-pytorch efficient bfloat16",
    "diffusers float32",
    "diffusers bfloat16",
    "sd_tf float32",
    "sd_tf bfloat16",
    "sd_tf remat float32",
    "sd_tf efficient float32",
    "sd_tf efficient bfloat16",
    "sd_tf efficient remat float32",
)
IMAGENS_DRAWING = (
    "minimagen float32",
    "imagen-pytorch float32",
    "diffusers float32",
    "sd_tf float32",
    "sd_tf efficient float32",
    "sd_tf efficient bfloat16",
)


@dataclass(frozen=True)
class Part:
    """A share of the work is run, and its seconds count `times` over."""

    run: Callable
    times: float

    def __call__(self):
        return self.run()


def cascade(name, title, variants, **sizes):
    """A stage of the preset `minimagen-pokemon`, in each library's own blocks."""
    usual = {"preset": "minimagen-pokemon", "tokens": 64, "width": 512}
    return Workload(
        f"cascade-{name}", title, variants, rounds=1, repeats=3, warmup=1, alone=True, sizes=usual | sizes
    )


def attending(widths, **sizes):
    """A UNet, in diffusers' words, with cross-attention on every level."""
    return {
        "block_out_channels": widths,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * len(widths),
        "up_block_types": ("CrossAttnUpBlock2D",) * len(widths),
        **sizes,
    }


def stable_diffusion(side, repeats):
    """Stable Diffusion 1.5's UNet on latents of that side."""
    unet = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
    return Workload(
        f"W2-{side}",
        f"Stable Diffusion 1.5's UNet, once, {side}x{side} latents",
        FORWARD,
        rounds=2,
        repeats=repeats,
        warmup=1,
        alone=True,
        sizes={"unet": unet, "batch": 1, "latents": side, "tokens": 77},
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "peak",
            "Matrix product of 4096 x 4096: what the others are shares of",
            ("torch float32", "torch bfloat16", "tensorflow float32", "tensorflow bfloat16"),
            rounds=5,
            sizes={"side": 4096},
        ),
        Workload(
            "W1",
            "Training step of a UNet (64, 128), 8x8 latents, batch 128, context 16 x 128",
            TRAINING,
            sizes={
                "unet": attending((64, 128), sample_size=8, attention_head_dim=4, cross_attention_dim=128),
                "batch": 128,
                "latents": 8,
                "tokens": 16,
            },
        ),
        stable_diffusion(32, repeats=4),
        stable_diffusion(64, repeats=3),
        Workload(
            "W3",
            "Training step of a UNet (128, 256, 512), 32x32 latents, batch 8, context 77 x 768",
            TRAINING,
            rounds=2,
            repeats=3,
            warmup=1,
            alone=True,
            sizes={
                "unet": attending(
                    (128, 256, 512), sample_size=32, attention_head_dim=4, cross_attention_dim=768
                ),
                "batch": 8,
                "latents": 32,
                "tokens": 77,
            },
        ),
        Workload(
            "W4",
            "64 pictures of the bundled model, 20 guided DDIM steps and the decoder",
            DRAWING,
            rounds=5,
            warmup=1,
            sizes={"pictures": 64, "steps": 20, "guidance_scale": 3.0},
        ),
        Workload(
            "W5",
            "Training step of the bundled model's autoencoder, 32x32 pictures, batch 64",
            TRAINING,
            sizes={"batch": 64, "pictures": 32},
        ),
        Workload(
            "W6",
            "Cold start: from the start of the process to the first picture on disk, 20 steps",
            ("diffusers", "sd_tf tensorflow", "sd_tf openvino"),
            rounds=5,
            warmup=1,
        ),
        Workload(
            "W7",
            "`python -m sd_tf.train`: drawn garments, 40 steps of the autoencoder and of the UNet",
            ("sd_tf batch 32", "sd_tf batch 64", "sd_tf batch 128", "sd_tf 64x64 pixels", "sd_tf 2 replicas"),
            rounds=1,
            warmup=0,
            alone=True,
            sizes={"steps": 40},
        ),
        cascade(
            "base",
            "Training step of MinImagen's base (128, 256, 512), 64x64 pictures, batch 2, text 64 x 512",
            IMAGENS,
            stage=0,
            attends=".xx",
            batch=2,
        ),
        cascade(
            "sr",
            "Training step of a super-resolution stage (128, 256, 512), 128x128 pictures, batch 4",
            IMAGENS,
            stage=1,
            attends="..x",
            batch=4,
        ),
        cascade(
            "drawing",
            "4 guided pictures of 64x64: 1000 steps of the Imagens (4 are timed), 20 of DPM-Solver++",
            IMAGENS_DRAWING,
            stage=0,
            attends=".xx",
            batch=4,
            steps=20,
            timed_steps=4,
            guidance_scale=3.0,
        ),
    )
}

"""What is the same for every library in the workloads of cascades: networks, pictures and text states."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from sd_tf.cascade.presets import levels, preset_named
from sd_tf.errors import InputError

LEARNING_RATE, CLIP, DROPPED = 1e-4, 50.0, 0.15
MINIMAGEN = {  # the arguments of `Unet`, in minimagen and in imagen-pytorch
    "dim": 128,
    "dim_mults": (1, 2, 4),
    "num_resnet_blocks": 1,
    "attn_heads": 8,
    "attend_at_middle": False,
}


def is_efficient(variant: str) -> bool:
    """Whether the levels change the resolution before their residual blocks."""
    return "efficient" in variant.split()


def config(sizes, variant):
    """Our `PixelUNetConfig` of a workload, whose fields are those of diffusers' UNet."""
    unet = preset_named(sizes["preset"]).stages[sizes["stage"]].unet
    blocks = levels(sizes["attends"], is_efficient(variant))
    return replace(unet, encoder_hid_dim=sizes["width"], **blocks)


def peer_unet(sizes, variant):
    """The arguments of the peers' `Unet`."""
    attends = tuple(mark == "x" for mark in sizes["attends"])
    return MINIMAGEN | {
        "layer_attns": attends,
        "layer_cross_attns": attends,
        "text_embed_dim": sizes["width"],
        "memory_efficient": is_efficient(variant),
    }


def pictures(side: int, number: int) -> np.ndarray:
    """The first real Pokemon, float32 (number, side, side, 3) in [0, 1].

    Raises:
        InputError: `$SD_TF_DATA_DIR` has none.
    """
    folder = Path(os.environ.get("SD_TF_DATA_DIR", ".")) / "pokemon"
    files = sorted(folder.rglob("*.png"))[:number]
    if len(files) < number:
        raise InputError(
            f"{folder} has {len(files)} pictures: set SD_TF_DATA_DIR to the folder above pokemon/"
        )
    opened = (
        PIL.Image.open(file).convert("RGB").resize((side, side), PIL.Image.Resampling.BOX) for file in files
    )
    return np.stack([np.asarray(image, np.float32) / 255 for image in opened])


def text_states(sizes) -> np.ndarray:
    """Random numbers of the shape of T5-small's states, float32 (batch, tokens, width)."""
    shape = sizes["batch"], sizes["tokens"], sizes["width"]
    return np.random.default_rng(0).standard_normal(shape).astype("float32")

"""What numbers of a configuration may be, and why no less and no more.

A file of a few kilobytes can ask for pictures of gigabytes, or for a division by zero that makes every
picture NaN. Sizes that tensors have are bounded by the file of weights, with which they must agree; for the
others this says what is far beyond any model that is supported, and still harmless.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from sd_tf.config import AutoencoderConfig, CLIPVisionConfig, UNetConfig
from sd_tf.diffusion.schedules import MOST_TIMESTEPS, NoiseSchedule
from sd_tf.errors import InputError, shown

LARGEST = 2**31 - 1  # of any number, so that none overflows further on
MOST_PIXELS = 4096  # along a side of the pictures that a model draws unless it is asked for others
MOST_MEMORY = 2**32  # bytes of one layer's result, for one picture; or, where that is more:
MEMORY_OF_WEIGHTS = 8  # times the weights' file; Stable Diffusion's at its own sizes takes up to 1.7 GB
MOST_LEVELS = 100  # more than `folder` lays out, so that it is the one to say which are too many
MOST_PATCHES = 64  # along a side; CLIP's towers have up to 37
LEAST_SIGNAL = 1e-12  # of alphas_cumprod, by whose root predictions of noise are divided


class Bound(NamedTuple):
    """The least and the most that a number may be."""

    least: float
    most: float
    why: str


OF_TENSORS = Bound(1, LARGEST, "a size of tensors, which the file of weights has to have")
TOKEN = Bound(0, LARGEST, "an id that nothing is looked up by")
EPSILON = Bound(1e-12, 1.0, "with 0, what does not vary is divided by 0; real ones are 1e-6 and 1e-5")
HEADS = Bound(1, 1024, "each has a table of all pairs of tokens in memory; real ones are up to 40")
BETA = Bound(1e-8, 0.9999, "a share of a variance; with 0 nothing is lost, with 1 nothing is left")

BOUNDS = {
    **dict.fromkeys(
        [
            *("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block"),
            *("cross_attention_dim", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_channels", "patch_size"),
        ],
        OF_TENSORS,
    ),
    "projection_dim": Bound(0, LARGEST, "as other sizes of tensors; towers without one say 0"),
    "norm_num_groups": Bound(1, LARGEST, "has to divide the channels"),
    "attention_head_dim": HEADS,
    "num_attention_heads": HEADS,
    "norm_eps": EPSILON,
    "layer_norm_eps": EPSILON,
    "sample_size": Bound(1, MOST_PIXELS, "the size of what is drawn; see `check_memory` as well"),
    "scaling_factor": Bound(1e-4, 1e4, "latents are divided by it; real ones are 0.1 to 2"),
    "freq_shift": Bound(0, 1, "the embedding's frequencies are divided by what it leaves of their number"),
    "max_position_embeddings": Bound(1, 1024, "attention takes its square; real ones are 77 and 248"),
    "image_size": Bound(1, MOST_PIXELS, "pictures are resized to it; real ones are 224 and 336"),
    **dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], TOKEN),
    "num_train_timesteps": Bound(1, MOST_TIMESTEPS, "as many levels of noise are laid out"),
    "steps_offset": Bound(0, MOST_TIMESTEPS, "a timestep"),
    "beta_start": BETA,
    "beta_end": BETA,
}


def check_number(name: str, number, value, source: str):
    """Raises `InputError` where a number of a configuration is out of its bounds.

    Args:
        name: of the field.
        number: an int or a float.
        value: the field's, of which the number is a part.
        source: what the configuration is from.
    """
    bound = BOUNDS[name]
    if not bound.least <= number <= bound.most:
        raise InputError(
            f"{source}: {name} is {shown(value)}, expected {bound.least:g} to {_plain(bound.most)}: "
            f"{bound.why}"
        )


def _plain(number):
    return str(number) if isinstance(number, int) else f"{number:g}"


def check_together(config, source: str):
    """Raises `InputError` where numbers that are well each by itself are not together."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple) and len(value) > MOST_LEVELS:
            raise InputError(f"{source}: {field.name} has {len(value)} entries, {MOST_LEVELS} are the most")
    if isinstance(config, UNetConfig):
        half = config.block_out_channels[0] // 2 if config.block_out_channels else 0
        if config.freq_shift and config.freq_shift >= half:
            raise InputError(
                f"{source}: freq_shift is {config.freq_shift}, as many as the {half} frequencies that "
                f"block_out_channels {shown(config.block_out_channels)} make: give 0"
            )
    if isinstance(config, CLIPVisionConfig):
        patches = config.image_size // config.patch_size
        if not 1 <= patches <= MOST_PATCHES:
            raise InputError(
                f"{source}: image_size is {config.image_size}, patch_size {config.patch_size}: that makes "
                f"{patches} patches along a side, 1 to {MOST_PATCHES} are expected"
            )
    if isinstance(config, (UNetConfig, AutoencoderConfig)) and isinstance(config.sample_size, tuple):
        sides = len(config.sample_size)
        if sides != 2:
            raise InputError(f"{source}: sample_size has {sides} numbers: give a side, or height and width")


def check_schedule(schedule: NoiseSchedule):
    """Raises `InputError` where drawing would divide by nothing, and every picture would be NaN."""
    config, alphas = schedule.config, schedule.alphas_cumprod
    said = f"beta_start is {config.beta_start:g}, beta_end {config.beta_end:g}, num_train_timesteps "
    said += f"{config.num_train_timesteps}"
    if not (np.diff(schedule.sigmas) > 0).all():
        raise InputError(f"{said}: no signal is left that later timesteps could lose, give less")
    if config.prediction_type == "epsilon" and alphas[-1] < LEAST_SIGNAL:
        raise InputError(f"{said}: the last timestep has no signal left, of which epsilon says nothing")


def check_memory(autoencoder: AutoencoderConfig, unet: UNetConfig, bytes_of_weights: int, source: str):
    """Raises `InputError` where a picture of the model's own size is larger than such a model draws.

    Args:
        autoencoder, unet: configurations of a model.
        bytes_of_weights: of their files.
        source: the model's folder.
    """
    levels = {len(unet.block_out_channels), len(unet.down_block_types), len(unet.up_block_types)}
    if len(levels) > 1 or not unet.block_out_channels or not autoencoder.block_out_channels:
        return  # which makes no network at all
    height, width = unet.latent_size
    pixels = max(height, width) * autoencoder.downsampling
    if pixels > MOST_PIXELS:
        raise InputError(
            f"{source}: the UNet's sample_size is {shown(unet.sample_size)}, which is {pixels} pixels along "
            f"a side: {MOST_PIXELS} are the most"
        )
    needed, most = _largest_layer(autoencoder, unet), max(MOST_MEMORY, MEMORY_OF_WEIGHTS * bytes_of_weights)
    if needed > most:
        raise InputError(
            f"{source}: the UNet's sample_size is {shown(unet.sample_size)}, at which a layer takes "
            f"{needed / 1e9:.0f} GB for one picture: {most / 1e9:.0f} GB is the most for "
            f"{bytes_of_weights:,} bytes of weights"
        )


def _largest_layer(autoencoder, unet):
    """Bytes of float32, of one picture of the model's own size."""
    height, width = unet.latent_size
    latents, levels = height * width, len(unet.block_out_channels)
    heads = unet.attention_head_dim
    heads = (heads,) * levels if isinstance(heads, int) else (*heads, *[1] * levels)
    attends = [
        "CrossAttn" in unet.down_block_types[i] + unet.up_block_types[levels - 1 - i] or i == levels - 1
        for i in range(levels)
    ]
    tables = [heads[i] * (latents // 4**i) ** 2 for i in range(levels) if attends[i]]
    pictures = latents * autoencoder.downsampling**2 * autoencoder.block_out_channels[0]
    return 4 * max(latents**2, pictures, latents * unet.block_out_channels[0], *tables)

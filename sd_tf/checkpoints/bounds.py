"""What numbers of a configuration may be, and why no less and no more.

A file of a few kilobytes can ask for pictures of gigabytes, or for a division by zero that makes every
picture NaN. Sizes that tensors have are bounded by the file of weights, with which they must agree; for the
others this says what is far beyond any model that is supported, and still harmless.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from sd_tf.diffusion.schedules import MOST_TIMESTEPS, NoiseSchedule
from sd_tf.errors import InputError, shown

LARGEST = 2**31 - 1  # of any number, so that none overflows further on
MOST_PIXELS = 4096  # along a side of the pictures that a model draws unless it is asked for others
MOST_LEVELS = 100  # more than `folder` lays out, so that it is the one to say which are too many
LEAST_SIGNAL = 1e-12  # of alphas_cumprod, by whose root predictions of noise are divided


class Bound(NamedTuple):
    """The least and the most that a number may be."""

    least: float
    most: float
    why: str


OF_TENSORS = Bound(1, LARGEST, "a size of tensors, which the file of weights has to have")
TOKEN = Bound(0, LARGEST, "an id that nothing is looked up by")
EPSILON = Bound(1e-12, 1.0, "with 0, what does not vary is divided by 0; real ones are 1e-12 to 1e-5")
HEADS = Bound(1, 1024, "each has a table of all pairs of tokens in memory; real ones are up to 40")
DIVISOR = Bound(1e-3, 1e3, "what a residual block's result is divided by; real ones are 1 and 1.414")
BETA = Bound(1e-8, 0.9999, "a share of a variance; with 0 nothing is lost, with 1 nothing is left")

BOUNDS = {
    **dict.fromkeys(
        [
            *("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block"),
            "encoder_channels",
            *("encoder_hid_dim", "time_embedding_dim"),
            *("cross_attention_dim", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_channels", "patch_size", "d_model", "d_kv", "d_ff", "num_layers", "type_vocab_size"),
            *("relative_attention_num_buckets", "latent_dim", "style_dim", "text_dim", "text_width"),
            *("vision_channels", "vision_width"),
        ],
        OF_TENSORS,
    ),
    "projection_dim": Bound(0, LARGEST, "as other sizes of tensors; towers without one say 0"),
    "mapping_layers": Bound(1, 200, "layers, which take seconds to lay out; real ones are 2 to 8"),
    "text_layers": Bound(1, 200, "layers, which take seconds to lay out; real ones are 1 to 12"),
    "num_kernels": Bound(1, 1024, "each picture takes a mean of so many kernels; real ones are up to 8"),
    "minibatch_groups": Bound(1, 4096, "has to divide the batch"),
    "norm_num_groups": Bound(1, LARGEST, "has to divide the channels"),
    "attention_head_dim": HEADS,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "addition_embed_type_num_heads": HEADS,
    "resnet_out_scale_factor": DIVISOR,
    "mid_block_scale_factor": DIVISOR,
    "norm_eps": EPSILON,
    "layer_norm_eps": EPSILON,
    "layer_norm_epsilon": EPSILON,
    "sample_size": Bound(1, MOST_PIXELS, "the size of what is drawn; a model's memory has bounds besides"),
    "scaling_factor": Bound(1e-4, 1e4, "latents are divided by it; real ones are 0.1 to 2"),
    "shift_factor": Bound(-1e4, 1e4, "latents are shifted by it; real ones are about 0.1"),
    "freq_shift": Bound(0, 1, "the embedding's frequencies are divided by what it leaves of their number"),
    "max_position_embeddings": Bound(1, 1024, "attention takes its square; real ones are 77 to 512"),
    "relative_attention_max_distance": Bound(2, 1_000_000, "tokens; real ones are 128"),
    "low_res_size": Bound(1, MOST_PIXELS, "the size of the pictures that a model enlarges"),
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


def check_lengths(config, source: str):
    """Raises `InputError` where a list of a configuration has far too many entries."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple) and len(value) > MOST_LEVELS:
            raise InputError(f"{source}: {field.name} has {len(value)} entries, {MOST_LEVELS} are the most")


MOST_MEMORY = 2**32  # bytes of one layer's result, for one picture; or, where that is more:
MEMORY_OF_WEIGHTS = 8  # times the weights' file; Stable Diffusion's at its own sizes takes up to 1.7 GB


def check_layer(needed: int, bytes_of_weights: int, sample_size, source: str):
    """Raises `InputError` where a picture of a model's own size is larger than such a model draws.

    Args:
        needed: bytes of the largest layer's result, for one picture.
        bytes_of_weights: of the model's files.
        sample_size: the UNet's.
        source: the model's folder.
    """
    most = max(MOST_MEMORY, MEMORY_OF_WEIGHTS * bytes_of_weights)
    if needed > most:
        raise InputError(
            f"{source}: the UNet's sample_size is {shown(sample_size)}, at which a layer takes "
            f"{needed / 1e9:.0f} GB for one picture: {most / 1e9:.0f} GB is the most for "
            f"{bytes_of_weights:,} bytes of weights"
        )


def check_schedule(schedule: NoiseSchedule):
    """Raises `InputError` where drawing would divide by nothing, and every picture would be NaN."""
    config, alphas = schedule.config, schedule.alphas_cumprod
    said = f"beta_start is {config.beta_start:g}, beta_end {config.beta_end:g}, num_train_timesteps "
    said += f"{config.num_train_timesteps}"
    if not (np.diff(schedule.sigmas) > 0).all():
        raise InputError(f"{said}: no signal is left that later timesteps could lose, give less")
    if config.prediction_type == "epsilon" and alphas[-1] < LEAST_SIGNAL:
        raise InputError(f"{said}: the last timestep has no signal left, of which epsilon says nothing")

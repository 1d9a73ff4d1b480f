"""The configuration files of a Stable Diffusion folder: `vae`, `unet` and `model_index.json`."""

import dataclasses

from sd_tf.checkpoints.config_files import Kind, of_diffusers
from sd_tf.checkpoints.schedulers import SCHEDULE, check_scheduler, class_of, warn_of_differences
from sd_tf.checkpoints.text_encoders import TOKENIZERS
from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.errors import InputError, shown
from sd_tf.latent.config import AutoencoderConfig, UNetConfig


def _check_sample_size(config, source):
    if isinstance(config.sample_size, tuple) and len(config.sample_size) != 2:
        sides = len(config.sample_size)
        raise InputError(f"{source}: sample_size has {sides} numbers: give a side, or height and width")


def _check_unet(config, source):
    half = config.block_out_channels[0] // 2 if config.block_out_channels else 0
    if config.freq_shift and config.freq_shift >= half:
        raise InputError(
            f"{source}: freq_shift is {config.freq_shift}, as many as the {half} frequencies that "
            f"block_out_channels {shown(config.block_out_channels)} make: give 0"
        )
    _check_sample_size(config, source)


AUTOENCODER = Kind(
    AutoencoderConfig,
    of_diffusers("AutoencoderKL"),
    {
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
    },
    check=_check_sample_size,
)

UNET = Kind(
    UNetConfig,
    of_diffusers("UNet2DConditionModel"),
    {
        "act_fn": "silu",
        "addition_embed_type": None,
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_act_fn": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "transformer_layers_per_block": 1,
    },
    check=_check_unet,
)


PARTS = {
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "text_encoder": tuple(TOKENIZERS),
    "tokenizer": tuple(f"{kind}Tokenizer{fast}" for kind in ("CLIP", "T5", "Bert") for fast in ("", "Fast")),
}


def scheduler_of(values: dict, source: str) -> str:
    """The scheduler's class that `model_index.json` names.

    Raises:
        InputError: its pipeline is none of Stable Diffusion 1.x or 2.x.
    """
    pipeline = values.get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        raise InputError(
            f"{source}: a {pipeline} is not supported, only StableDiffusionPipeline, which is Stable "
            "Diffusion 1.x and 2.x and what is trained here"
        )
    for part, supported in PARTS.items():
        name = _class_of(values.get(part))
        if name not in supported:
            raise InputError(f"{source}: {part} is {shown(name)}, only {' or '.join(supported)} is supported")
    name = _class_of(values.get("scheduler"))
    check_scheduler("scheduler", name, source)
    return name


def text_encoder_of(values: dict) -> str:
    """The text encoder's class that `model_index.json` names."""
    return _class_of(values.get("text_encoder"))


def _class_of(entry):
    """The second of a part's entry in `model_index.json`: [library, class]."""
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else entry


def read_schedule(values: dict, source: str, scheduler: str | None = None) -> ScheduleConfig:
    """`scheduler/scheduler_config.json` as diffusers' `StableDiffusionPipeline` understands it.

    Old files lack `steps_offset` and `clip_sample`, or have the values of their scheduler's class. The
    pipeline then sets them to what Stable Diffusion was made with: an offset of 1, and no clipping.

    Args:
        values: of the file.
        source: the file's name, for messages.
        scheduler: the class that `model_index.json` names, which takes precedence over the file's.

    Raises:
        InputError: the file is for another scheduler, or a value is of the wrong type or out of bounds.

    Warns:
        UserWarning: no sampler of ours draws as the scheduler does.
    """
    if "_class_name" in values:
        check_scheduler("_class_name", values["_class_name"], source)
    if scheduler is not None:
        values = values | {"_class_name": scheduler}
    config = SCHEDULE.from_json(values, source)
    warn_of_differences(config, source)
    offset = min(1, config.num_train_timesteps - 1)
    return dataclasses.replace(config, steps_offset=offset, clip_sample=False)


def autoencoder_json(config: AutoencoderConfig) -> dict:
    """`vae/config.json`."""
    levels = len(config.block_out_channels)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return AUTOENCODER.to_json(config, blocks)


def model_index(schedule: ScheduleConfig, text_encoder: str = "CLIPTextModel") -> dict:
    """`model_index.json`: which class of which library opens each folder.

    Args:
        schedule: the model's.
        text_encoder: class of transformers, one of `TOKENIZERS`.
    """
    return of_diffusers(
        "StableDiffusionPipeline",
        feature_extractor=[None, None],
        image_encoder=[None, None],
        requires_safety_checker=False,
        safety_checker=[None, None],
        scheduler=["diffusers", class_of(schedule)],
        text_encoder=["transformers", text_encoder],
        tokenizer=["transformers", TOKENIZERS[text_encoder]],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    )

"""The `config.json` of each part, as diffusers and transformers write it, to and from our dataclasses.

Each kind lists, besides the dataclass's own fields, the options of diffusers and transformers that
our networks do not vary (`fixed`): they are written as they stand, and a file that says otherwise
is refused rather than misread.
"""

import dataclasses
import json
from pathlib import Path

from sd_tf.config import AutoencoderConfig, CLIPTextConfig, CLIPVisionConfig, ScheduleConfig, UNetConfig
from sd_tf.errors import InputError

DIFFUSERS_VERSION = "0.30.0"  # the layout written; diffusers reads older layouts than its own


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one configuration stands in its file."""

    dataclass: type
    header: dict
    fixed: dict

    def to_json(self, config, extra=()) -> dict:
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(config).items()
        }
        return {**self.header, **self.fixed, **fields, **dict(extra)}

    def from_json(self, values: dict, source: str):
        for name, supported in self.fixed.items():
            if name in values and values[name] != supported:
                raise InputError(f"{source}: {name} is {values[name]!r}, only {supported!r} is supported")
        known = {field.name: field for field in dataclasses.fields(self.dataclass)}
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        for name, value in given.items():
            default = known[name].default
            number = isinstance(default, (int, float)) and not isinstance(default, bool)
            if number and not isinstance(value, (int, float, tuple)) or isinstance(value, bool) != isinstance(
                default, bool
            ):
                raise InputError(f"{source}: {name} is {value!r}, expected something like {default!r}")
        return self.dataclass(**given)


def _diffusers(name, **fields):
    return {"_class_name": name, "_diffusers_version": DIFFUSERS_VERSION, **fields}


AUTOENCODER = Kind(
    AutoencoderConfig,
    _diffusers("AutoencoderKL"),
    {
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    },
)

UNET = Kind(
    UNetConfig,
    _diffusers("UNet2DConditionModel"),
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
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
    },
)

CLIP_TEXT = Kind(CLIPTextConfig, {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}, {})
CLIP_VISION = Kind(
    CLIPVisionConfig, {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}, {}
)
SCHEDULE = Kind(
    ScheduleConfig, _diffusers("DDIMScheduler"), {"trained_betas": None, "rescale_betas_zero_snr": False}
)


def autoencoder_json(config: AutoencoderConfig) -> dict:
    """`vae/config.json`."""
    levels = len(config.block_out_channels)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return AUTOENCODER.to_json(config, blocks)


def model_index() -> dict:
    """`model_index.json`: which class of which library opens each folder."""
    return _diffusers(
        "StableDiffusionPipeline",
        feature_extractor=[None, None],
        image_encoder=[None, None],
        requires_safety_checker=False,
        safety_checker=[None, None],
        scheduler=["diffusers", "DDIMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    )


def read_json(file: Path) -> dict:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} holds a {type(values).__name__}, expected a JSON object")
    return values

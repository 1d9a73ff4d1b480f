"""The `config.json` of each part, as diffusers and transformers write it, to and from our dataclasses.

Each kind lists, besides the dataclass's own fields, the options of diffusers and transformers that
our networks do not vary (`fixed`): they are written as they stand, and a file that says otherwise
is refused rather than misread.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path

from sd_tf.config import AutoencoderConfig, CLIPTextConfig, CLIPVisionConfig, ScheduleConfig, UNetConfig
from sd_tf.errors import InputError

DIFFUSERS_VERSION = "0.30.0"  # the layout written; diffusers reads older layouts than its own


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one configuration stands in its file; `absent` is what missing fields mean, if not our default.

    `siblings` are other classes whose files say the same in the same words.
    """

    dataclass: type
    header: dict
    fixed: dict
    absent: dict = dataclasses.field(default_factory=dict)
    siblings: tuple[str, ...] = ()

    def to_json(self, config, extra=()) -> dict:
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(config).items()
        }
        return {**self.header, **self.fixed, **fields, **dict(extra)}

    def from_json(self, values: dict, source: str):
        for name in ("_class_name", "model_type"):
            names = (self.header.get(name), *self.siblings)
            if name in values and name in self.header and values[name] not in names:
                raise InputError(
                    f"{source}: {name} is {values[name]!r}, only {' or '.join(map(repr, names))} is supported"
                )
        for name, supported in self.fixed.items():
            if name in values and values[name] != supported:
                raise InputError(f"{source}: {name} is {values[name]!r}, only {supported!r} is supported")
        known = typing.get_type_hints(self.dataclass)
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        for name, value in given.items():
            if not _is_a(value, known[name]):
                default = getattr(self.dataclass, name)
                raise InputError(f"{source}: {name} is {value!r}, expected something like {default!r}")
        return self.dataclass(**{**self.absent, **given})


def _is_a(value, kind) -> bool:
    """Whether a value from a file is of the type that a configuration's field is declared to have."""
    if typing.get_origin(kind) is types.UnionType:
        return any(_is_a(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(each, typing.get_args(kind)[0]) for each in value)
    return type(value) in ((int, float) if kind is float else (kind,))


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
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_act_fn": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "transformer_layers_per_block": 1,
    },
)

# transformers leaves out of a file what its classes have as defaults, those of OpenAI's ViT-B/32.
CLIP_TEXT = Kind(
    CLIPTextConfig,
    {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    {},
    {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "projection_dim": 512,
        "num_attention_heads": 8,
        "pad_token_id": 1,
    },
)
CLIP_VISION = Kind(
    CLIPVisionConfig,
    {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"},
    {},
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
    },
)
SCHEDULE = Kind(
    ScheduleConfig,
    _diffusers("DDIMScheduler"),
    {"trained_betas": None, "rescale_betas_zero_snr": False},
    siblings=(
        "DDPMScheduler",
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ),
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

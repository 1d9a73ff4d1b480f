"""The `config.json` of each part, as diffusers and transformers write it, to and from our dataclasses.

Each kind lists, besides the dataclass's own fields, the options of diffusers and transformers that
our networks do not vary (`fixed`): they are written as they stand, and a file that says otherwise
is refused rather than misread. What else a file says is kept, and written back as it was.
"""

import dataclasses
import math
import types
import typing

from sd_tf.checkpoints.bounds import check_number, check_together
from sd_tf.config import AutoencoderConfig, CLIPTextConfig, CLIPVisionConfig, ScheduleConfig, UNetConfig
from sd_tf.errors import InputError, shown

DIFFUSERS_VERSION = "0.30.0"  # the layout written; diffusers reads older layouts than its own

# Said of the files that were read, not of those that will be written.
NOT_KEPT = {
    "_name_or_path",
    "_commit_hash",
    "_diffusers_version",
    "transformers_version",
    "dtype",
    "torch_dtype",
}


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
            if name != "kept"
        }
        if config.kept.get("_class_name") in self.siblings:  # which has not all of our fields
            read = self.from_json(config.kept, "kept")
            changed = {name: value for name, value in fields.items() if value != getattr(read, name)}
            return {**self.header, **config.kept, **changed, **dict(extra)}
        return {**self.header, **self.fixed, **fields, **config.kept, **dict(extra)}

    def from_json(self, values: dict, source: str):
        if not isinstance(values, dict):  # of a whole CLIP
            raise InputError(f"{source}: a part of it is {shown(values)}, expected an object")
        known = typing.get_type_hints(self.dataclass)
        del known["kept"]
        kept = {
            name: value
            for name, value in values.items()
            if name not in (*known, *self.fixed, *self.header, *NOT_KEPT)
        }
        for name in ("_class_name", "model_type"):
            names = (self.header.get(name), *self.siblings)
            if name in values and name in self.header and values[name] not in names:
                raise InputError(
                    f"{source}: {name} is {shown(values[name])}, "
                    f"only {' or '.join(map(repr, names))} is supported"
                )
            if values.get(name) in self.siblings:
                kept = {key: value for key, value in values.items() if key not in NOT_KEPT}
        for name, supported in self.fixed.items():
            if name in values and values[name] != supported:
                raise InputError(
                    f"{source}: {name} is {shown(values[name])}, only {supported!r} is supported"
                )
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in known
        }
        for name, value in given.items():
            if not _is_a(value, known[name]):
                default = getattr(self.dataclass, name)
                raise InputError(f"{source}: {name} is {shown(value)}, expected something like {default!r}")
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) in (int, float):
                    check_number(name, number, value, source)
        config = self.dataclass(**{**self.absent, **given}, kept=kept)
        check_together(config, source)
        return config


def _is_a(value, kind) -> bool:
    """Whether a value from a file is of the type that a configuration's field is declared to have."""
    if typing.get_origin(kind) is types.UnionType:
        return any(_is_a(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(each, typing.get_args(kind)[0]) for each in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
    return type(value) is kind


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
    {"trained_betas": None, "thresholding": False},
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


PARTS = {
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("DDIMScheduler", *SCHEDULE.siblings),
}


def check_model_index(values: dict, source: str):
    """Raises `InputError` where a pipeline is not one of Stable Diffusion 1.x or 2.x."""
    pipeline = values.get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        raise InputError(
            f"{source}: a {pipeline} is not supported, only StableDiffusionPipeline, which is Stable "
            "Diffusion 1.x and 2.x and what is trained here"
        )
    for part, supported in PARTS.items():
        found = values.get(part)
        name = found[1] if isinstance(found, list) and len(found) == 2 else found
        if name not in supported:
            raise InputError(f"{source}: {part} is {shown(name)}, only {' or '.join(supported)} is supported")


def autoencoder_json(config: AutoencoderConfig) -> dict:
    """`vae/config.json`."""
    levels = len(config.block_out_channels)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return AUTOENCODER.to_json(config, blocks)


def model_index(schedule: ScheduleConfig) -> dict:
    """`model_index.json`: which class of which library opens each folder."""
    return _diffusers(
        "StableDiffusionPipeline",
        feature_extractor=[None, None],
        image_encoder=[None, None],
        requires_safety_checker=False,
        safety_checker=[None, None],
        scheduler=["diffusers", schedule.kept.get("_class_name", "DDIMScheduler")],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    )

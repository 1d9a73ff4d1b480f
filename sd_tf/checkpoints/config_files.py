"""The `config.json` of a network, as diffusers and transformers write it, to and from our dataclasses.

Each kind lists, besides the dataclass's own fields, the options of diffusers and transformers that our
networks do not vary (`fixed`). They are written with their only supported value, and a file with another
value is refused rather than misread. All other fields of a file are kept, and written back unchanged.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable

from sd_tf.checkpoints.bounds import check_lengths, check_number
from sd_tf.errors import InputError, naming, shown
from sd_tf.text.config import BertConfig, CLIPTextConfig, CLIPVisionConfig, T5Config, check_buckets

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
    """How one configuration is written in its file.

    Attributes:
        dataclass: the configuration's.
        header: what every file of ours begins with, the class's name among it.
        fixed: options that our networks do not vary, and their only supported values.
        absent: the meaning of a missing field, where it is not the dataclass's default.
        absent_by_class: the same by the file's `_class_name`, for `header`'s class and the siblings.
        siblings: other classes whose files have the same fields.
        check: `check(config, source)` refuses numbers that are fine one by one but not together.
    """

    dataclass: type
    header: dict
    fixed: dict
    absent: dict = dataclasses.field(default_factory=dict)
    absent_by_class: dict[str, dict] = dataclasses.field(default_factory=dict)
    siblings: tuple[str, ...] = ()
    check: Callable | None = None

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
        by_class = self.absent_by_class.get(values.get("_class_name", self.header.get("_class_name")), {})
        config = self.dataclass(**{**self.absent, **by_class, **given}, kept=kept)
        check_lengths(config, source)
        if self.check is not None:
            self.check(config, source)
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


def of_diffusers(name, **fields):
    return {"_class_name": name, "_diffusers_version": DIFFUSERS_VERSION, **fields}


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

MOST_PATCHES = 64  # along a side; CLIP's towers have up to 37


def _check_patches(config, source):
    patches = config.image_size // config.patch_size
    if not 1 <= patches <= MOST_PATCHES:
        raise InputError(
            f"{source}: image_size is {config.image_size}, patch_size {config.patch_size}: that makes "
            f"{patches} patches along a side, 1 to {MOST_PATCHES} are expected"
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
    check=_check_patches,
)


def _check_t5(config, source):
    with naming(source):
        check_buckets(config)


T5 = Kind(T5Config, {"architectures": ["T5EncoderModel"], "model_type": "t5"}, {}, check=_check_t5)

BERT = Kind(
    BertConfig,
    {"architectures": ["BertModel"], "model_type": "bert"},
    {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
)

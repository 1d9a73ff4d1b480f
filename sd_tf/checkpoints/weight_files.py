"""Which files the weights of a part are in: one, or the shards that an index names."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from sd_tf.errors import InputError, shown
from sd_tf.files import is_inside, read_json

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # how each library names weights
STEMS = {"vae": DIFFUSERS, "unet": DIFFUSERS, "text_encoder": TRANSFORMERS}
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
MOST_SHARDS = 1000


class WeightFiles(NamedTuple):
    """The files of a part, and which of them its index says a key is in; None without an index."""

    files: tuple[Path, ...]
    index: Path | None = None
    weight_map: dict[str, str] | None = None


def weight_files(folder: Path, stem: str, variant: str | None = None) -> WeightFiles | None:
    """The files that the weights of a part are read from, None where there are none.

    Args:
        folder: of the part.
        stem: "diffusion_pytorch_model" in diffusers' folders, "model" in those of transformers.
        variant: as in diffusers: "fp16" looks for `<stem>.fp16.safetensors` first.

    Raises:
        InputError: an index is damaged, or names files elsewhere.
    """
    for infix in [f".{variant}", ""] if variant else [""]:
        single = folder / f"{stem}{infix}.safetensors"
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if os.path.lexists(single):  # whatever it is: who opens it says what is wrong
            return WeightFiles((single,))
        if os.path.lexists(index):
            return _of_index(index)
    return None


def _of_index(index):
    weight_map = read_json(index, root=index.parent).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} has no weight_map from keys to file names")
    names = sorted(set(weight_map.values()))
    if len(names) > MOST_SHARDS:
        raise InputError(f"{index} names {len(names)} files, {MOST_SHARDS} are the most")
    for name in names:
        if not SHARD.fullmatch(name):
            raise InputError(f"{index} names {shown(name)}, which is no safetensors file beside it")
        if not is_inside(index.parent, index.with_name(name)):
            raise InputError(f"{index.with_name(name)} is a link out of its folder: copy what it points to")
    return WeightFiles(tuple(index.with_name(name) for name in names), index, weight_map)

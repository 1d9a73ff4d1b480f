"""Tensors in safetensors files: found, checked, and read or written one file at a time.

Files come from strangers. Nothing in them is executed: a pickle is refused by its name, unopened, and
a header is checked before any tensor is read.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sd_tf.checkpoints.header import read_header, stamp_of
from sd_tf.checkpoints.names import keyed_variables, to_torch
from sd_tf.checkpoints.weight_files import weight_files
from sd_tf.errors import InputError, shown, unknown
from sd_tf.files import open_file, reason, replacing_file, write_json

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}  # read as float32
SCALES = (".scale_weight", ".weight_scale")  # of 8-bit weights: the names of ComfyUI, and of other tools
OF_SCALING = re.compile(r"(^|\.)(scale_input|input_scale|scaled_fp8)$")  # of activations, and a mark
GGUF = ".gguf"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
NOT_WEIGHTS = re.compile(r"(^|\.)embeddings\.position_ids$")  # 0, 1, 2 ... in files before transformers 4.31
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Place(NamedTuple):
    """Where in its file a tensor stands, and as what."""

    begin: int  # bytes
    shape: tuple[int, ...]
    dtype: str  # as the header has it
    stamp: tuple[int, ...]  # of the file


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is still in its file.

    Attributes:
        file: its file.
        key: its name there.
        shape: of `view`.
        place: where it stands in the file.
        view: takes what is wanted of the values that are read; None for all.
        scale: what 8-bit floats are multiplied by, a number or one for each row; None for nothing.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    place: Place
    view: Callable | None = None
    scale: "Tensor | None" = None

    def check_dtype(self):
        """Raises `InputError` for integers and other quantised values."""
        if self.place.dtype not in FLOATS | EIGHT_BITS:
            raise InputError(
                f"{self.file}: {self.key} is {self.place.dtype}, only {', '.join(FLOATS | EIGHT_BITS)} are "
                "supported: quantised weights (such as bitsandbytes') have to be dequantised first, take the "
                "model's float16 or bfloat16 files"
            )

    def read(self) -> np.ndarray:
        """The values, of the file's dtype; 8-bit floats as float32, multiplied by their scale.

        Raises:
            InputError: they are quantised, or the file is not the one any more whose header was read.
        """
        self.check_dtype()
        values = self._raw()
        if self.place.dtype in EIGHT_BITS:
            values = values.astype(np.float32)
        if self.scale is not None:
            scale = self.scale.read().astype(np.float32)
            values *= scale.reshape(-1, *(1,) * (values.ndim - 1)) if values.ndim else scale.reshape(())
        return values if self.view is None else self.view(values)

    def _raw(self):
        # Not mapped: pages of a mapping stay in memory, and a load's peak would be the model and its files.
        begin, shape, dtype, stamp = self.place
        dtype = np.dtype((FLOATS | EIGHT_BITS)[dtype])
        number = math.prod(shape)
        with open_file(self.file) as opened:  # the stamp says that it is the one that was let in
            before = stamp_of(opened)
            try:
                values = np.fromfile(opened, dtype, number, offset=begin) if before == stamp else ()
            except (OSError, ValueError) as error:
                raise InputError(f"{self.file} cannot be read: {reason(error)}") from None
            if len(values) != number or stamp_of(opened) != stamp or before != stamp:
                raise InputError(f"{self.file} was changed while it was read: load it again")
        return values.reshape(shape)


def read_file(file: Path, root=None) -> dict[str, Tensor]:
    """Every weight of one safetensors file, by its key.

    Tensors that are no floats are listed too: reading them, or `Tensor.check_dtype`, refuses them.

    Args:
        file: a path.
        root: the folder that the file must lie in; see `sd_tf.files.open_file`.

    Raises:
        InputError: the file is missing, a pickle, of GGUF, damaged, names a tensor twice or has a scale of
            8-bit floats that does not fit them.
    """
    return _scaled(_listed(file, root))


def _listed(file, root):
    """Every tensor of a file but position ids, each on its own."""
    if file.suffix in PICKLES:
        raise InputError(
            f"{file} is a pickle, which can execute code when it is read: convert it to safetensors, "
            "with diffusers' or the hub's converter, on a machine that may be lost"
        )
    if file.suffix == GGUF:
        raise InputError(
            f"{file} is quantised by GGUF, which is not supported: take the model's safetensors file in "
            "float16, bfloat16 or float8"
        )
    header = read_header(file, root)
    return {
        key: Tensor(file, key, entry.shape, Place(entry.begin, entry.shape, entry.dtype, header.stamp))
        for key, entry in header.entries.items()
        if not NOT_WEIGHTS.search(key)
    }


def _scaled(tensors):
    """The same tensors, with the scales of 8-bit floats at the weights that they belong to."""
    scales = {}
    for key in tensors:
        stem = key.rpartition(".")[0]
        weight = tensors.get(f"{stem}.weight")
        if key.endswith(SCALES) and weight is not None:
            before = scales.setdefault(weight.key, tensors[key])
            _check_scale(weight, tensors[key], before)
    if not scales:
        return tensors
    used = {scale.key for scale in scales.values()}
    return {
        key: dataclasses.replace(tensor, scale=scales.get(key))
        for key, tensor in tensors.items()
        if key not in used and not OF_SCALING.search(key)
    }


def _check_scale(weight, scale, before):
    weight.check_dtype()
    if weight.place.dtype not in EIGHT_BITS:
        raise InputError(
            f"{scale.file}: {scale.key} scales {weight.key}, which is {weight.place.dtype}: only 8-bit "
            "floats are scaled"
        )
    if scale is not before:
        raise InputError(f"{weight.file}: {before.key} and {scale.key} both scale {weight.key}: keep one")
    numbers = math.prod(scale.shape)
    rows = weight.shape[0] if weight.shape else 1
    per_row = numbers == rows and scale.shape[:1] == (rows,)
    if scale.place.dtype not in FLOATS or not (numbers == 1 or per_row):
        raise InputError(
            f"{scale.file}: {scale.key} is {scale.place.dtype} {shown(list(scale.shape))}, expected a float "
            f"for all of {weight.key}, or one for each of its {rows} rows"
        )


def find(folder: Path, stem: str, variant: str | None = None) -> dict[str, Tensor]:
    """The weights of a part, from its one file or from the shards of its index.

    Args:
        folder, stem, variant: see `weight_files`.

    Raises:
        InputError: there are none, or a file is damaged or does not fit its index.
    """
    found = weight_files(folder, stem, variant)
    if found is not None and found.index is None:
        return read_file(found.files[0], root=folder)
    if found is not None:
        return _read_shards(found)
    single = folder / f"{stem}.safetensors"
    others = sorted(folder.glob(f"{stem}.*.safetensors*")) + sorted(
        path for path in folder.glob("*.*") if path.suffix in PICKLES
    )
    if others and others[0].suffix in PICKLES:
        read_file(others[0])  # says why not
    hint = (
        f": there is {others[0].name}, which variant={others[0].name.split('.')[1]!r} reads" if others else ""
    )
    raise InputError(f"{single} is missing{hint}")


def has_variant(folder: Path, stem: str, variant: str) -> bool:
    """Whether a part has files of that variant."""
    names = (f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json")
    return any((folder / name).is_file() for name in names)


def _read_shards(found):
    tensors, (files, index, weight_map) = {}, found
    for file in files:
        for key, tensor in _listed(file, index.parent).items():
            if weight_map.get(key) != file.name:
                where = weight_map.get(key, "no file")
                raise InputError(f"{file} holds {key}, which {index.name} says is in {where}")
            tensors[key] = tensor
    lost = sorted(key for key in weight_map if key not in tensors and not NOT_WEIGHTS.search(key))
    if lost:
        raise InputError(f"{index}: {lost[0]} is not in {weight_map[lost[0]]}, where the index says it is")
    return _scaled(tensors)


def write(folder: Path, stem: str, model, dtype: str, max_shard_size):
    """Writes a model's weights as one file or, where they are larger than a shard, several and an index.

    Args:
        folder: is there.
        stem: as in `find`.
        model: a built Keras model.
        dtype: of the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of a file, a whole number or a text such as "5GB".

    Raises:
        InputError: the dtype or the size makes no sense.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    limit, itemsize = _bytes(max_shard_size), 4 if dtype == "float32" else 2
    shards, total, room = [], 0, 0
    for key, variable in keyed_variables(model).items():
        size = itemsize * math.prod(variable.shape)
        if size > room:
            shards.append({})
            room = limit
        shards[-1][key] = variable
        total, room = total + size, room - size
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, variables in zip(names, shards, strict=True):
        values = {key: to_torch(each).astype(DTYPES[dtype], order="C") for key, each in variables.items()}
        save_tensors(values, folder / name)
    if len(shards) > 1:
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def save_tensors(values: dict[str, np.ndarray], file: Path):
    """Writes a safetensors file with the rights of any new file; the library leaves it to its owner alone."""
    try:
        with replacing_file(file) as new:
            save_file(values, new, metadata={"format": "pt"})
            mask = os.umask(0)
            os.umask(mask)
            new.chmod(0o666 & ~mask)
    except SafetensorError as error:  # a full disk, in words
        raise OSError(str(error)) from None


def _bytes(size) -> int:
    number, unit = size, "B"
    if isinstance(size, str) and (found := re.fullmatch(r"(\d+) ?([KMG]?i?B)", size, re.IGNORECASE)):
        number, unit = int(found[1]), found[2]
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InputError(f"max_shard_size is {size!r}: give bytes as a whole number, or a text such as '5GB'")
    return number * UNITS[unit.upper()]

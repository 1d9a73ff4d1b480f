"""The header of a safetensors file, checked to the last byte before anything that it says is believed.

The file is read, not mapped: one that another process cuts short is then an error, and no signal that ends
ours. What is refused is what the `safetensors` library refuses, and keys that stand twice.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

from sd_tf.errors import InputError, shown
from sd_tf.files import open_file, reason

LARGEST_HEADER = 20_000_000  # bytes, of which JSON makes thirty times as many; Stable Diffusion's have 0.1 MB
METADATA = "__metadata__"
BITS = {  # of an element of each dtype that the format knows
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


class Entry(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes, from the start of the file


class Header(NamedTuple):
    """What a file says of itself."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    stamp: tuple[int, ...]  # of the file that was read: see `stamp_of`


def read_header(file: Path, root=None) -> Header:
    """The header of a file whose bytes are all accounted for.

    Args:
        file: a path.
        root: see `sd_tf.files.open_file`.

    Raises:
        InputError: the file cannot be opened, or its header or size is not as the format has it.
    """
    with open_file(file, root) as opened:
        try:
            stamp = stamp_of(opened)
            length = int.from_bytes(opened.read(8), "little")
            size = os.fstat(opened.fileno()).st_size
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError(
                    f"its header claims {length} bytes, the file has {size}, and "
                    f"{LARGEST_HEADER} are the most"
                )
            text = opened.read(length).decode("utf-8")
            if not text.startswith("{"):
                raise ValueError("its header is no JSON object")
            values = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_number)
            metadata = _metadata(values.pop(METADATA, None))
            return Header(_entries(values, 8 + length, size), metadata, stamp)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{file} is no readable safetensors file: {reason(error)}") from None


def stamp_of(opened) -> tuple[int, ...]:
    """Tells an opened file from others, and from what it was before it was written to."""
    found = os.fstat(opened.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _without_repeats(pairs):
    values = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key} stands in it twice")
        values[key] = value
    return values


def _no_number(name):
    raise ValueError(f"{name} is no JSON")


def _metadata(values):
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"its {METADATA} is {shown(values)}, expected texts by name")
    "".join([*values, *values.values()]).encode()  # raises ValueError for half a character
    return values


def _entries(values, begin, size):
    """Key -> `Entry`. Tensors lie in a row, without gaps, from the header to the end of the file."""
    entries, places = {}, []
    for key, value in values.items():
        key.encode()
        dtype, shape, (first, last) = _checked(key, value)
        bits = BITS[dtype] * math.prod(shape)
        if bits != 8 * (last - first):
            raise ValueError(f"{shown(key)} is {dtype} {shown(list(shape))}, and has {last - first} bytes")
        places.append((first, last, key))
        entries[key] = Entry(dtype, shape, begin + first)
    end = 0
    for first, last, key in sorted(places):
        if first != end:
            raise ValueError(f"{shown(key)} begins at {first}, the tensor before it ends at {end}")
        end = last
    if begin + end != size:
        raise ValueError(f"its tensors end at {begin + end}, the file has {size} bytes")
    return entries


def _checked(key, value):
    """dtype, shape and offsets of an entry, of the types that they have to be."""
    if not isinstance(value, dict):
        raise ValueError(f"{shown(key)} is {shown(value)}, expected an object")
    dtype, shape, offsets = (value.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{shown(key)} has the dtype {shown(dtype)}, which there is not")
    for name, numbers in (("shape", shape), ("data_offsets", offsets)):
        whole = isinstance(numbers, list) and all(type(each) is int and 0 <= each < 2**63 for each in numbers)
        if not whole or (name == "data_offsets" and (len(numbers) != 2 or numbers[0] > numbers[1])):
            raise ValueError(f"{shown(key)} has the {name} {shown(numbers)}")
    if len(shape) > 32 or math.prod(filter(None, shape)) >= 2**63:
        raise ValueError(f"{shown(key)} has the shape {shown(shape)}")
    return dtype, tuple(shape), offsets

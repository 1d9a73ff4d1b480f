"""JSON objects in files: from strangers, and written whole or not at all."""

import json
import os
from pathlib import Path

from sd_tf.errors import InputError

LARGEST = 20_000_000  # bytes, of which thirty times as many are made; the largest index is far smaller
DEEPEST = 50  # objects and lists within each other


def read_json(file: Path) -> dict:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing or holds no JSON object.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing")
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has {file.stat().st_size} bytes, {LARGEST} are the most")
        values = json.loads(file.read_text(encoding="utf-8"))
        if _deeper(values, DEEPEST):
            raise ValueError(f"it nests more than {DEEPEST} objects and lists")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} holds a {type(values).__name__}, expected a JSON object")
    return values


def _deeper(values, levels) -> bool:
    """Whether more objects and lists than `levels` stand within each other."""
    inner = [values]
    for _ in range(levels):
        nested = [each for each in inner if isinstance(each, (dict, list))]
        inner = [value for each in nested for value in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, (dict, list)) for each in inner)


def write_json(file: Path, values: dict):
    """Writes the file whole or, where the process is killed, not at all."""
    new = file.with_name(f".{file.name}.new-{os.getpid()}")
    try:
        new.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)

"""A word that was learned, as a file: diffusers' `learned_embeds.safetensors`, and what web interfaces write.

diffusers        <mine>        (width,) or (vectors, width)
web interfaces   emb_params    (vectors, width); the file's name is the word
"""

from pathlib import Path

import numpy as np

from sd_tf.checkpoints.tensors import read_file, save_tensors
from sd_tf.errors import InputError, shown

FILE = "learned_embeds.safetensors"
NAMELESS = "emb_params"
OF_SDXL = {"clip_l", "clip_g"}  # one tensor for each of its two text encoders


def read_word(file, token: str | None = None) -> tuple[str, np.ndarray]:
    """Reads a word and its embedding.

    Args:
        file: a safetensors file, or a folder with `FILE` in it.
        token: the word, in place of the file's own.

    Returns:
        The word, and float32 (vectors, width).

    Raises:
        InputError: the file is damaged, holds no word, or one of Stable Diffusion XL.
    """
    file = Path(file)
    root = file if file.is_dir() else None
    file = file if root is None else file / FILE
    tensors = read_file(file, root)
    if OF_SDXL & set(tensors):
        raise InputError(
            f"{file} has {' and '.join(sorted(tensors))}: it is a word for the text encoders of Stable "
            "Diffusion XL, which this model has not"
        )
    if len(tensors) != 1:
        raise InputError(
            f"{file} holds {len(tensors)} tensors, a learned word is one: is it textual inversion?"
        )
    ((name, tensor),) = tensors.items()
    values = np.asarray(tensor.read(), np.float32)
    if values.ndim not in (1, 2) or not values.size:
        raise InputError(f"{file}: {shown(name)} has the shape {values.shape}: give (vectors, width)")
    if not np.isfinite(values).all():
        raise InputError(f"{file}: {shown(name)} has values that are not finite")
    return token or (file.stem if name == NAMELESS else name), np.atleast_2d(values)


def write_word(file, token: str, embedding: np.ndarray):
    """Writes what diffusers' `load_textual_inversion` opens."""
    save_tensors({token: np.ascontiguousarray(embedding, np.float32)}, Path(file))

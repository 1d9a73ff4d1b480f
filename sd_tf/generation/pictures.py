"""Checks pictures and masks for image-to-image and inpainting, and converts pictures to uint8."""

import math
import os

import numpy as np
from PIL import Image

from sd_tf.data.opening import open_picture, to_rgb
from sd_tf.errors import InputError, naming, unknown
from sd_tf.images import as_uint8

OUTPUTS = ("array", "pil")
BLACK = (0, 0, 0)  # behind a transparent mask: nothing is drawn there


def to_uint8(images) -> np.ndarray:
    """Converts float images in about [-1, 1] to uint8, rounded and clipped."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


class Pictures(np.ndarray):
    """An array of pictures, uint8 (n, height, width, 3).

    Attributes:
        seeds: int64 (n,), the seed of each; None for a part of the array, or what was computed from it.
    """

    seeds = None


def check_output(output):
    """Raises `InputError` if pictures are not handed out in that form."""
    if output not in OUTPUTS:
        raise unknown("output", output, OUTPUTS)


def as_output(images, output: str, request):
    """What `generate` returns.

    Args:
        images: uint8 (n, height, width, 3).
        output: "array" or "pil".
        request: the `Request` that they were drawn for.
    """
    if output == "array":
        found = images.view(Pictures)
        found.seeds = request.seeds
        return found
    pictures = [Image.fromarray(image) for image in images]
    for i, picture in enumerate(pictures):
        picture.info = {"prompt": request.prompts[i // request.num_images], "seed": int(request.seeds[i])}
    return pictures


def checked_image(image, number: int, multiple: int, most: int, size=(None, None)) -> np.ndarray:
    """A picture, or one for each prompt, in any form that people hold it in.

    Args:
        image: a path, a `PIL.Image`, an array, or a list of these. Arrays are (height, width) or (height,
            width, channels), grey, RGB or RGBA, or (number, height, width, channels); uint8, or float from 0
            to 1. What is transparent becomes white.
        number: number of prompts.
        multiple: height and width must be multiples of it.
        most: pixels that a picture may have.
        size: (height, width) that pictures are scaled to; None for their own.

    Returns:
        uint8 (n, height, width, 3), n being 1 or `number`.

    Raises:
        InputError: it is no such picture, damaged, or of another size.
    """
    pictures = [_scaled(_as_picture(each), size) for each in _one_by_one(image, number)]
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        some = " and ".join(f"{width} x {height}" for width, height in sizes[:2])
        raise InputError(f"image has pictures of {some}: give height and width, which all are scaled to")
    [(width, height)] = sizes
    if not width * height or width % multiple or height % multiple:
        raise InputError(
            f"image is {width} x {height}: give sides that are multiples of {multiple}, or height and width, "
            "which it is scaled to"
        )
    if width * height > most:
        raise InputError(
            f"image is {width} x {height}, more than this model has memory for: scale it "
            f"down to {most:,} pixels, such as {math.isqrt(most)} x {math.isqrt(most)}"
        )
    return np.stack([np.asarray(picture) for picture in pictures])


def checked_mask(mask, images, number: int) -> np.ndarray:
    """An inpainting mask, or one for each prompt, in any form that people hold it in.

    Args:
        mask: a path, a `PIL.Image`, an array (height, width) or (height, width, 1), a list of these, or an
            array (number, height, width): bool, numbers from 0 to 1, or whole numbers to 255. What is above
            half of that counts as True. A mask of another size than the pictures is scaled to theirs.
        images: the result of `checked_image`.
        number: number of prompts.

    Returns:
        bool (n, height, width, 1), n being 1 or `number`: True where something new is drawn.

    Raises:
        InputError: it is no mask, or is True nowhere.
    """
    height, width = images.shape[1:3]
    found = []
    for each in _one_by_one(mask, number, "mask", channels=(1,)):
        values = _as_mask(each)
        if values.shape != (height, width):
            scaled = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
            values = np.asarray(scaled)
        found.append(values)
    if not any(values.any() for values in found):
        raise InputError("mask covers nothing: give True where something new is drawn")
    return np.stack(found)[..., np.newaxis]


def _one_by_one(given, number, name="image", channels=(1, 3, 4)):
    """One picture, or `number` of them, as a list."""
    if isinstance(given, (list, tuple)):
        found = list(given)
    elif isinstance(given, (str, os.PathLike, Image.Image)):
        found = [given]
    else:
        array = np.asarray(given)
        is_one = array.ndim == 2 or array.ndim == 3 and array.shape[-1] in channels
        found = [array] if is_one else list(array) if array.ndim in (3, 4) else []
    if len(found) not in {1, number}:
        shape = f" of the shape {np.shape(given)}" if hasattr(given, "shape") else ""
        one = "(height, width)" if name == "mask" else "(height, width, channels)"
        raise InputError(
            f"{name}{shape} is {len(found)} pictures: give one, {one}, or {number}, one for each prompt"
        )
    return found


def _as_picture(given):
    """A PIL picture of mode "RGB"."""
    if isinstance(given, (str, os.PathLike)):
        with naming(f"image {given}"):
            return open_picture(given)
    if isinstance(given, Image.Image):
        with naming("image"):
            return to_rgb(given)
    array = as_uint8(given, "image")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4) or not array.size:
        raise InputError(
            f"image has the shape {array.shape}: give (height, width), or (height, width, 1, 3 or 4)"
        )
    return to_rgb(Image.fromarray(array))


def _as_mask(given):
    """bool (height, width)."""
    if isinstance(given, (str, os.PathLike)):
        with naming(f"mask {given}"):
            given = open_picture(given, BLACK)
    if isinstance(given, Image.Image):
        with naming("mask"):
            given = np.asarray(to_rgb(given, BLACK).convert("L"))
    mask = np.asarray(given)
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[:, :, 0]
    if mask.ndim != 2 or not mask.size:
        raise InputError(f"mask has the shape {mask.shape}: give (height, width)")
    if mask.dtype == bool:
        return mask
    if not np.issubdtype(mask.dtype, np.number) or np.iscomplexobj(mask):
        raise InputError(f"mask is {mask.dtype}: give bool, or numbers of 0 and 1 or of 0 and 255")
    is_whole = not np.issubdtype(mask.dtype, np.floating)
    most = 255 if is_whole and mask.max() > 1 else 1
    if not ((mask >= 0) & (mask <= most)).all():
        raise InputError(
            f"mask has numbers outside [0, {most}]: give {most} where something new is drawn, else 0"
        )
    return mask > most / 2


def _scaled(picture, size):
    height, width = size
    size = (width or picture.width, height or picture.height)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def latent_mask(mask, factor: int) -> np.ndarray:
    """Scales a mask down to the latents: 1 where any of the pixels is masked.

    Args:
        mask: bool (n, height, width, 1).
        factor: the autoencoder's downsampling factor.

    Returns:
        float32 (n, height / factor, width / factor, 1).
    """
    n, height, width, _ = mask.shape
    blocks = mask.reshape(n, height // factor, factor, width // factor, factor, 1)
    return blocks.any(axis=(2, 4)).astype("float32")

"""Checks pictures and masks for image-to-image and inpainting, and converts pictures to uint8."""

import math

import numpy as np

from sd_tf.errors import InputError


def to_uint8(images) -> np.ndarray:
    """Converts float images in about [-1, 1] to uint8, rounded and clipped."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def checked_image(image, number: int, multiple: int, most: int) -> np.ndarray:
    """Checks a picture, or one for each prompt.

    Args:
        image: uint8 (height, width, 3) or (number, height, width, 3).
        number: number of prompts.
        multiple: height and width must be multiples of it.
        most: the most pixels, height times width.

    Returns:
        uint8 (n, height, width, 3), n being 1 or `number`.

    Raises:
        InputError: it has another dtype, shape or size.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise InputError(f"image is {image.dtype}: give uint8, 0 to 255")
    images = image[np.newaxis] if image.ndim == 3 else image
    if images.ndim != 4 or images.shape[0] not in (1, number) or images.shape[3] != 3:
        raise InputError(
            f"image has the shape {image.shape}: give (height, width, 3), or ({number}, height, width, 3), "
            "one for each prompt"
        )
    if not all(images.shape[1:3]) or any(side % multiple for side in images.shape[1:3]):
        raise InputError(
            f"image is {images.shape[2]} x {images.shape[1]}: give sides that are multiples of {multiple}"
        )
    if images.shape[1] * images.shape[2] > most:
        raise InputError(
            f"image is {images.shape[2]} x {images.shape[1]}, more than this model has memory for: scale it "
            f"down to {most:,} pixels, such as {math.isqrt(most)} x {math.isqrt(most)}"
        )
    return images


def checked_mask(mask, images, number: int) -> np.ndarray:
    """Checks an inpainting mask, or one for each prompt.

    Args:
        mask: (height, width) or (number, height, width): bool, uint8 of 0 to 255 or float of 0 to 1. Values
            above half of the largest count as True.
        images: the result of `checked_image`.
        number: number of prompts.

    Returns:
        bool (n, height, width, 1), n being 1 or `number`: True where something new is drawn.

    Raises:
        InputError: it has another size, dtype or range, or is True nowhere.
    """
    given = np.asarray(mask)
    mask = given[np.newaxis] if given.ndim == 2 else given
    if mask.ndim != 3 or mask.shape[0] not in (1, number) or mask.shape[1:] != images.shape[1:3]:
        raise InputError(
            f"mask has the shape {given.shape}: give {images.shape[1:3]}, as high and as wide as the "
            f"picture, or {number} of them, one for each prompt"
        )
    if mask.dtype == np.uint8:
        mask = mask > 127
    elif np.issubdtype(mask.dtype, np.floating):
        if not ((mask >= 0) & (mask <= 1)).all():
            raise InputError("mask has numbers outside [0, 1]: give 1 where something new is drawn, else 0")
        mask = mask > 0.5
    elif mask.dtype != bool:
        raise InputError(f"mask is {mask.dtype}: give bool, uint8 of 0 and 255, or float of 0 and 1")
    if not mask.any():
        raise InputError("mask covers nothing: give True where something new is drawn")
    return mask[..., np.newaxis]


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

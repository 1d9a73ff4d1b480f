"""Prompts for a garment and a colour, and the colour that a picture has."""

import numpy as np

from sd_tf.data.captions import CLASS_NAMES, COLOUR_NAMES, PALETTE


def prompt_for(label: int, colour: int | None) -> str:
    """The plain caption, as "an ankle boot" or "a red dress"."""
    words = f"{COLOUR_NAMES[colour]} {CLASS_NAMES[label]}" if colour is not None else CLASS_NAMES[label]
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def mean_colour(images: np.ndarray) -> np.ndarray:
    """The mean of the pixels weighted by their brightness (largest channel): float (n, 3), 0...255."""
    pixels = images.reshape(len(images), -1, 3).astype("float64")
    weight = pixels.max(axis=-1, keepdims=True)
    return (pixels * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)


def nearest_colour(images: np.ndarray) -> np.ndarray:
    """The palette's colour nearest to each picture's mean colour, int (n,).

    Both are first scaled to a largest channel of 1, since a garment's shading darkens its colour: a
    shaded orange has the brightness of brown, but not its hue.
    """
    mean, palette = mean_colour(images), np.array(PALETTE, "float64")
    mean = mean / np.maximum(mean.max(axis=1, keepdims=True), 1e-9)
    palette = palette / palette.max(axis=1, keepdims=True)
    return np.square(mean[:, None] - palette[None]).sum(axis=-1).argmin(axis=1)

"""Does a picture show what its prompt asked for: the garment, and its colour?"""

import numpy as np

from sd_tf.data.captions import CLASS_NAMES, COLOUR_NAMES, PALETTE
from sd_tf.evaluation.features import classify


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


def class_and_colour_accuracy(generate, classifier, per_class=20, per_pair=3):
    """How often the asked garment is recognised and the asked colour is the nearest.

    Args:
        generate: `generate(prompts, num_images) -> uint8 (prompts x num_images, 32, 32, 3)`.
        classifier: from `sd_tf.evaluation.features`.
        per_class: pictures of each of the ten prompts without colour.
        per_pair: pictures of each of the eighty prompts with one.

    Returns:
        (report, grey pictures, tinted pictures). The report holds `class_accuracy`,
        `class_accuracy_by_class`, `colour_accuracy`, `colour_accuracy_by_colour` and
        `tinted_class_accuracy`, all from 0 to 1.
    """
    labels = np.arange(len(CLASS_NAMES))
    grey = generate([prompt_for(label, None) for label in labels], per_class)
    right = classify(classifier, grey).reshape(len(labels), per_class) == labels[:, None]

    pairs = [(label, colour) for label in labels for colour in range(len(PALETTE))]
    tinted = generate([prompt_for(*pair) for pair in pairs], per_pair)
    asked_labels, asked_colours = np.repeat(np.array(pairs), per_pair, axis=0).T
    right_colour = nearest_colour(tinted) == asked_colours
    full_scale = np.array(PALETTE).max(axis=1)[asked_colours]
    right_tinted = classify(classifier, tinted, full_scale) == asked_labels
    report = {
        "class_accuracy": float(right.mean()),
        "class_accuracy_by_class": {
            name: float(row.mean()) for name, row in zip(CLASS_NAMES, right, strict=True)
        },
        "colour_accuracy": float(right_colour.mean()),
        "colour_accuracy_by_colour": {
            name: float(right_colour[asked_colours == i].mean()) for i, name in enumerate(COLOUR_NAMES)
        },
        "tinted_class_accuracy": float(right_tinted.mean()),
    }
    return report, grey, tinted

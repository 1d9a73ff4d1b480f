"""Drawing by a GAN: styles of noise and texts, truncation, and pictures of styles."""

import numpy as np

from sd_tf.diffusion.conditions import concatenate
from sd_tf.errors import InputError
from sd_tf.generation.pictures import to_uint8
from sd_tf.generation.text_conditions import text_conditions
from sd_tf.progress import tqdm
from sd_tf.seeding import normals
from sd_tf.text.prompts import encode_prompts

MEAN_STYLES = 5  # key of the stream of random numbers whose styles truncation averages
STYLES_IN_MEAN = 256


def texts_of(model, conditions):
    """Context and mask of each picture, or nothing for a model without a text.

    Args:
        conditions: a `Condition` of one row for each picture.
    """
    if model.text_encoder is None:
        return ()
    condition = concatenate(conditions)
    context = np.asarray(condition.context, np.float32)
    mask = np.ones(context.shape[:2]) if condition.mask is None else np.asarray(condition.mask)
    return context, mask.astype(np.int32)


def texts_of_request(model, request):
    """`texts_of` of a `Request`."""
    if model.text_encoder is None:
        return ()
    return texts_of(model, [positive for _, positive in text_conditions(request, model.text_encoder)])


def texts_of_interpolation(model, interpolation):
    """`texts_of` of an `Interpolation`."""
    if model.text_encoder is None:
        return ()
    groups = [[interpolation.negative_prompt, *interpolation.prompts]]
    [condition] = encode_prompts(groups, model.text_encoder, interpolation.batch_size, interpolation.syntax)
    return texts_of(model, [positive for _, positive in interpolation.conditions(condition)])


def checked_array(name, value, number, *shapes):
    """`value` as float32 of one of the shapes, each behind an axis of `number` pictures.

    Raises:
        InputError: it has another shape, or is not finite.
    """
    array = np.asarray(value, np.float32)
    if array.shape not in [(number, *shape) for shape in shapes]:
        said = " or ".join(str((number, *shape)) for shape in shapes)
        raise InputError(f"{name} has the shape {array.shape}: give {said}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} has values that are not finite: give numbers")
    return array


def styles_of(model, run, z, texts, truncation, batch_size):
    """w of noise and texts, brought nearer to the mean of each text's styles by `truncation`.

    Args:
        run: a `GanEngine`.
        z: float32 (n, latent dim).
        texts: of `texts_of`.
        truncation: 0 to 1.
        batch_size: the most that are computed at once.

    Returns:
        float32 (n, style dim).
    """
    found, means = [], {}
    for start in range(0, len(z), batch_size):
        text = tuple(part[start : start + batch_size] for part in texts)
        styles = np.asarray(run.styles(z[start : start + batch_size], *text))
        if truncation < 1:
            mean = np.stack([_mean_style(model, run, own, means) for own in _rows(text, len(styles))])
            styles = mean + np.float32(truncation) * (styles - mean)
        found.append(styles)
    return np.concatenate(found)


def _rows(text, number):
    return [tuple(part[i] for part in text) for i in range(number)]


def _mean_style(model, run, text, known):
    """The mean of the styles of one text, (style dim,); equal texts are computed once."""
    key = tuple(part.tobytes() for part in text)
    if key not in known:
        z = normals((MEAN_STYLES,), np.arange(STYLES_IN_MEAN), (model.generator_config.latent_dim,))
        repeated = (np.repeat(part[None], STYLES_IN_MEAN, axis=0) for part in text)
        known[key] = np.asarray(run.styles(z, *repeated)).mean(axis=0)
    return known[key]


def at_each_level(styles, levels):
    """(n, style dim), or (n, levels, style dim) -> the latter."""
    return np.repeat(styles[:, None], levels, axis=1) if styles.ndim == 2 else styles


def pictures_of(model, run, styles, texts, batch_size, progress):
    """The pictures of styles, uint8 (n, side, side, 3).

    Args:
        styles: (n, levels, style dim).
    """
    starts, images = range(0, len(styles), batch_size), []
    for start in tqdm(starts, unit="batch", disable=None if progress and len(starts) > 1 else True):
        text = (part[start : start + batch_size] for part in texts)
        images.append(to_uint8(np.asarray(run.synthesize(styles[start : start + batch_size], *text))))
    return np.concatenate(images)

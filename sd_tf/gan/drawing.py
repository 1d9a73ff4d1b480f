"""Drawing by a GAN: styles of noise and texts, truncation, and pictures of styles."""

import numpy as np

from sd_tf.diffusion.conditions import concatenate
from sd_tf.errors import InputError
from sd_tf.generation.loop import batches
from sd_tf.generation.pictures import to_uint8
from sd_tf.generation.request import Request
from sd_tf.generation.text_conditions import text_conditions
from sd_tf.progress import tqdm
from sd_tf.seeding import normals
from sd_tf.text.prompts import encode_prompts

MEAN_STYLES = 5  # key of the stream of random numbers whose styles truncation averages
STYLES_IN_MEAN = 256


class Texts:
    """What the pictures of a request are told; long prompts have more tokens than short ones.

    Args:
        conditions: a `Condition` of one row for each picture; None for a model without a text.
        number: of pictures.
    """

    def __init__(self, conditions, number):
        self._conditions, self.number = conditions, number

    def __call__(self, places):
        """Context and mask of some pictures of equally many tokens, or nothing."""
        if self._conditions is None:
            return ()
        condition = concatenate([self._conditions[place] for place in places])
        context = np.asarray(condition.context, np.float32)
        mask = np.ones(context.shape[:2]) if condition.mask is None else np.asarray(condition.mask)
        return context, mask.astype(np.int32)

    def batches(self, batch_size):
        """Indices of pictures of equally many tokens, at most `batch_size` at once."""
        tokens = [0 if self._conditions is None else self._tokens(i) for i in range(self.number)]
        return batches(tokens, batch_size)

    def _tokens(self, place):
        return self._conditions[place].context.shape[1]


def texts_of(model, request) -> Texts:
    """The `Texts` of a `Request` or an `Interpolation`."""
    is_request = isinstance(request, Request)
    return (texts_of_request if is_request else texts_of_interpolation)(model, request)


def texts_of_request(model, request) -> Texts:
    """The `Texts` of a `Request`."""
    if model.text_encoder is None:
        return Texts(None, request.number)
    pairs = text_conditions(request, model.text_encoder)
    return Texts([positive for _, positive in pairs], request.number)


def texts_of_interpolation(model, interpolation) -> Texts:
    """The `Texts` of an `Interpolation`."""
    if model.text_encoder is None:
        return Texts(None, interpolation.number)
    groups = [[interpolation.negative_prompt, *interpolation.prompts]]
    [condition] = encode_prompts(groups, model.text_encoder, interpolation.batch_size, interpolation.syntax)
    pairs = interpolation.conditions(condition)
    return Texts([positive for _, positive in pairs], interpolation.number)


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
        texts: `Texts`.
        truncation: 0 to 1.
        batch_size: the most that are computed at once.

    Returns:
        float32 (n, style dim).
    """
    found, means = np.empty((len(z), model.generator_config.style_dim), np.float32), {}
    for places in texts.batches(batch_size):
        text = texts(places)
        styles = np.asarray(run.styles(z[places], *text))
        if truncation < 1:
            rows = [tuple(part[i] for part in text) for i in range(len(places))]
            mean = np.stack([_mean_style(model, run, row, means) for row in rows])
            styles = mean + np.float32(truncation) * (styles - mean)
        found[places] = styles
    return found


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


def pictures_of(model, run, styles, texts, batch_size, progress, low_res=None):
    """The pictures of styles, uint8 (n, side, side, 3).

    Args:
        styles: (n, levels, style dim).
        low_res: float32 (n, side, side, 3), the pictures that a model enlarges.
    """
    found, all_places = np.empty((len(styles), *model.image_size, 3), np.uint8), texts.batches(batch_size)
    shows = progress and len(all_places) > 1
    for places in tqdm(all_places, unit="batch", disable=None if shows else True):
        of_picture = () if low_res is None else (low_res[places],)
        found[places] = to_uint8(np.asarray(run.synthesize(styles[places], *of_picture, *texts(places))))
    return found

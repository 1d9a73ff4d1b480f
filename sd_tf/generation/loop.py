"""The sampling loop over batches of pictures, for any network, conditions and wrappers of the denoiser."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sd_tf.diffusion.conditions import concatenate
from sd_tf.diffusion.guidance import classifier_free_guidance, levels_in_interval
from sd_tf.generation.pictures import to_uint8


class Plan(NamedTuple):
    """What to draw. `places` are the indices, from 0, of the pictures in a batch.

    Attributes:
        conditions: (negative, positive) for each picture, each a `Condition` of one row.
        start: `start(places)` -> latents at levels[0].
        noise: `noise(places, step)` -> standard normal noise of the latents' shape, for stochastic samplers.
        levels: `Settings.levels(schedule)`, or the last of them for image-to-image.
        wrappers: `wrap(denoise, places, condition)` -> denoiser, the first one innermost, such as for
            inpainting, thresholding or classifier guidance.
        finish: `finish(latents, places)` -> latents, after the last step; None for no change.
        is_inpainting: whether there is a mask, see `Settings.resamples`.
    """

    conditions: Sequence
    start: Callable
    noise: Callable
    levels: Sequence
    wrappers: Sequence[Callable] = ()
    finish: Callable | None = None
    is_inpainting: bool = False


def draw(network, decode, schedule, settings, plan, batch_size, callback=None, progress=True) -> np.ndarray:
    """Draws pictures in batches, each of pictures whose conditions have the same shapes.

    Args:
        network: `network(latents, timesteps, condition) -> output`.
        decode: latents (n, ..., channels) -> images, float (n, height, width, 3), about [-1, 1].
        schedule: the `NoiseSchedule` of the network.
        settings: `Settings`.
        plan: a `Plan`.
        batch_size: the most pictures at once.
        callback: `callback(step, latents, prediction)` after each step of each batch, and after each
            repetition of it (`Settings.resamples`).
        progress: shows a progress bar, if standard error is a terminal.

    Returns:
        uint8 (pictures, height, width, 3).
    """
    divided = batches([_shapes(positive) for _, positive in plan.conditions], batch_size)
    guided_levels = levels_in_interval(settings.levels(schedule)[:-1], settings.guidance_interval)
    images = [None] * len(plan.conditions)
    total = len(divided) * settings.callbacks(len(plan.levels) - 1, plan.is_inpainting)
    with tqdm(total=total, unit="step", disable=None if progress else True, leave=False) as bar:

        def after_step(step, latents, prediction):
            bar.update()
            if callback is not None:
                callback(step, latents, prediction)

        for places in divided:
            denoise = _denoiser(network, schedule, settings, plan, places, guided_levels)
            latents = settings.sample(
                denoise,
                plan.start(places),
                plan.levels,
                lambda step, places=places: plan.noise(places, step),
                after_step,
                plan.is_inpainting,
            )
            if plan.finish is not None:
                latents = plan.finish(latents, places)
            for i, image in zip(places, to_uint8(np.asarray(decode(latents))), strict=True):
                images[i] = image
    return np.stack(images)


def _denoiser(network, schedule, settings, plan, places, guided_levels):
    """The guided and wrapped denoiser of one batch."""
    pairs = [plan.conditions[i] for i in places]
    negative, condition = (concatenate(list(each)) for each in zip(*pairs, strict=True))
    denoise = classifier_free_guidance(
        network,
        schedule,
        condition,
        negative,
        settings.guidance_scale,
        guided_levels,
        settings.guidance_rescale,
    )
    for wrap in plan.wrappers:
        denoise = wrap(denoise, places, condition)
    return denoise


def batches(kinds, batch_size: int) -> list[np.ndarray]:
    """Divides pictures into batches of one kind each; returns the indices of each batch.

    Args:
        kinds: a hashable value for each picture, equal within a batch.
        batch_size: the most pictures in a batch.
    """
    places = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    groups = [np.array(each) for each in places.values()]
    return [each[i : i + batch_size] for each in groups for i in range(0, len(each), batch_size)]


def _shapes(condition):
    """The shapes of a condition's parts, which must be equal within a batch."""
    return tuple(None if part is None else tuple(part.shape[1:]) for part in condition)

"""Guidance, classifier-free or by the gradient of a classifier."""

from sd_tf.diffusion.arrays import operations
from sd_tf.diffusion.conditions import check_same_parts, concatenate
from sd_tf.diffusion.predictions import denoiser, split_variance
from sd_tf.errors import InputError


def classifier_free_guidance(
    network, schedule, condition, negative, guidance_scale: float, guided_levels=None, rescale=0.0
):
    """A denoiser that follows `condition` and is pushed away from `negative` (Ho & Salimans 2022).

    The output is negative + guidance_scale * (positive - negative): equation 6 of the paper with its
    w = guidance_scale - 1, the scale of Imagen and of diffusers. Both halves go through the network in
    one call on a doubled batch, the negative half first, as diffusers does. The three prediction types
    agree, because their conversions are affine in the output. A learned variance is that of `condition`.

    Args:
        network: `network(latents, timesteps, condition) -> output`.
        schedule: the `NoiseSchedule` that the network was trained on.
        condition: a `Condition` of the batch.
        negative: the `Condition` of the empty caption, or of what to avoid; with the same parts.
        guidance_scale: 1 follows `condition` alone, at the cost of a single call; more exaggerates it.
        guided_levels: `Level`s to guide at; all others follow `condition` alone (Kynkaanniemi et al. 2024:
            guidance at high noise reduces variety, and at low noise does nothing). None guides at all.
        rescale: 0 to 1. A high scale makes the standard deviation of the output too large. This share of it
            is rescaled to the deviation of the output for `condition` (Lin et al. 2023, section 3.4).

    Returns:
        `denoise(x, level) -> Prediction`, as `denoiser` does.

    Raises:
        InputError: the two conditions differ in their parts, in a shape or in their number of rows.
    """
    plain = denoiser(network, schedule, condition)
    if guidance_scale == 1:
        return plain
    names = "the condition", "the negative condition"
    check_same_parts(condition, negative, names)
    rows = condition.batch_size, negative.batch_size
    if all(isinstance(each, int) for each in rows) and rows[0] != rows[1]:
        raise InputError(f"{names[0]} has {rows[0]} rows, {names[1]} {rows[1]}: give each row a negative")

    def guided(latents, timesteps, conditions):
        ops = operations(latents)
        doubled = ops.concatenate([latents, latents])  # (2 batch, h, w, channels)
        output = network(doubled, ops.concatenate([timesteps, timesteps]), conditions)
        output, variance = split_variance(ops.cast(output, latents.dtype), latents)
        negative, positive = ops.split(output, 2)  # each (batch, h, w, channels)
        output = negative + guidance_scale * (positive - negative)
        if rescale != 0:
            axes = tuple(range(1, len(output.shape)))
            excess = ops.std(output, axis=axes, keepdims=True) / ops.std(positive, axis=axes, keepdims=True)
            output = rescale * output / excess + (1 - rescale) * output
        if variance is None:
            return output
        return ops.concatenate([output, ops.split(variance, 2)[1]], axis=-1)

    guided = denoiser(guided, schedule, concatenate([negative, condition]))
    if guided_levels is None:
        return guided
    guided_levels = frozenset(guided_levels)
    return lambda x, level: (guided if level in guided_levels else plain)(x, level)


def classifier_guidance(denoise, gradient, scale: float):
    """A denoiser that follows a classifier's gradient (Dhariwal & Nichol 2021, algorithm 2).

    The noise becomes noise - scale * noise rate * gradient.

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        gradient: `gradient(x, level)` -> like x: the gradient by x of a log probability.
        scale: 1 samples from the product of both distributions; more gives the classifier more weight.

    Returns:
        A denoiser as `denoise`. Levels without signal are left as they are: nothing can be classified there.
    """

    def guided(x, level):
        prediction = denoise(x, level)
        if level.signal == 0:
            return prediction
        noise = prediction.noise - scale * level.noise * gradient(x, level)
        return prediction._replace(x0=(x - level.noise * noise) / level.signal, noise=noise)

    return guided


def levels_in_interval(levels, interval):
    """The levels that are guided, counted as diffusers' `ClassifierFreeGuidance(start=, stop=)` does.

    Args:
        levels: where steps begin, in their order.
        interval: (start, stop), shares of the number of steps: 0 <= start <= stop <= 1.
    """
    return levels[_bounds(levels, interval)]


def with_restarts(levels, interval):
    """The same levels, marked `restart` where guidance switches on or off; arguments as above."""
    guided = _bounds(levels, interval)
    switches = {guided.start, guided.stop} - {0} if guided.start < guided.stop else ()
    return [level._replace(restart=i in switches) for i, level in enumerate(levels)]


def _bounds(levels, interval):
    return slice(*(int(share * len(levels)) for share in interval))

"""Guidance: by captions that some training goes without, and by the gradient of what judges pictures."""

from sd_tf.diffusion.arrays import operations
from sd_tf.diffusion.predictions import Prediction, denoiser
from sd_tf.errors import InputError


def drop_captions(context, empty_context, dropped):
    """Replace some captions by the empty one (Ho & Salimans 2022, algorithm 1).

    Args:
        context: (batch, tokens, width), float.
        empty_context: the text tower's states of the empty caption, (1, tokens, width); cast to
            the dtype of `context`.
        dropped: bool, (batch,): which examples train without their caption.

    Returns:
        (batch, tokens, width), of the dtype of `context`.
    """
    from keras import ops

    return ops.where(dropped[:, None, None], ops.cast(empty_context, context.dtype), context)


def classifier_free(
    network, schedule, context, negative_context, guidance_scale: float, guided_levels=None, rescale=0.0
):
    """A denoiser that follows `context` and leans away from `negative_context`.

    The output is negative + guidance_scale * (positive - negative): equation 6 of Ho & Salimans
    2022 with its w = guidance_scale - 1, the scale of Imagen and of diffusers. Both halves go
    through the network in one call on a doubled batch, the negative half first, as diffusers does.
    The three prediction types agree, because their conversions are affine in the output.

    Args:
        network: `network(latents, timesteps, context) -> output`.
        schedule: the `NoiseSchedule` that the network was trained on.
        context: (batch, tokens, width).
        negative_context: the empty caption's, or that of what to avoid; the shape of `context`.
        guidance_scale: 1 follows `context` alone, at the cost of a single call; more exaggerates it.
        guided_levels: `Level`s; all others follow `context` alone (Kynkaanniemi et al. 2024: guidance at
            high noise takes variety, and at low noise does nothing). None guides all.
        rescale: 0 to 1, the share of the output that has the deviation of the positive one in place of its
            own, which a high scale makes too large (Lin et al. 2023, section 3.4).

    Returns:
        `denoise(x, level) -> Prediction`, as `denoiser` does.

    Raises:
        InputError: where the two contexts differ in shape.
    """
    plain = denoiser(network, schedule, context)
    if guidance_scale == 1:
        return plain
    if tuple(context.shape) != tuple(negative_context.shape):
        raise InputError(
            f"negative_context has shape {tuple(negative_context.shape)}, context {tuple(context.shape)}: "
            "encode as many negative captions as captions, by the same text tower."
        )

    def guided(latents, timesteps, contexts):
        ops = operations(latents)
        doubled = ops.concatenate([latents, latents])  # (2 batch, h, w, channels)
        output = network(doubled, ops.concatenate([timesteps, timesteps]), contexts)
        negative, positive = ops.split(ops.cast(output, latents.dtype), 2)  # each (batch, h, w, channels)
        output = negative + guidance_scale * (positive - negative)
        if rescale == 0:
            return output
        axes = tuple(range(1, len(output.shape)))
        too_large = ops.std(output, axis=axes, keepdims=True) / ops.std(positive, axis=axes, keepdims=True)
        return rescale * output / too_large + (1 - rescale) * output

    leaning = denoiser(guided, schedule, operations(context).concatenate([negative_context, context]))
    if guided_levels is None:
        return leaning
    guided_levels = frozenset(guided_levels)
    return lambda x, level: (leaning if level in guided_levels else plain)(x, level)


def by_gradient(denoise, gradient, scale: float):
    """A denoiser that climbs what judges pictures (Dhariwal & Nichol 2021, algorithm 2).

    The noise becomes noise - scale * noise rate * gradient.

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        gradient: `gradient(x, level)` -> like x, of the logarithm of a probability by x.
        scale: 1 samples from the product of both distributions, more exaggerates the judge.

    Returns:
        A denoiser as `denoise`. Levels without signal are left as they are: nothing is seen there.
    """

    def leaning(x, level):
        prediction = denoise(x, level)
        if level.signal == 0:
            return prediction
        noise = prediction.noise - scale * level.noise * gradient(x, level)
        return Prediction((x - level.noise * noise) / level.signal, noise)

    return leaning


def guided_part(levels, interval):
    """The levels that guidance is for, as diffusers' `ClassifierFreeGuidance(start=, stop=)` counts them.

    Args:
        levels: where steps begin, in their order.
        interval: (start, stop), shares of the number of steps: 0 <= start <= stop <= 1.
    """
    return levels[_bounds(levels, interval)]


def turning(levels, interval):
    """Levels where steps begin, those at which the guided part begins and ends being `anew`."""
    part = _bounds(levels, interval)
    turns = {part.start, part.stop} - {0} if part.start < part.stop else ()
    return [level._replace(anew=i in turns) for i, level in enumerate(levels)]


def _bounds(levels, interval):
    return slice(*(int(share * len(levels)) for share in interval))

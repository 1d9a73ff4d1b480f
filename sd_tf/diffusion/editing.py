"""Image-to-image, inpainting and DDIM inversion: sampling that starts from a picture."""

import math
from itertools import count, pairwise

import numpy as np

from sd_tf.diffusion.levels import Level


def levels_for_strength(levels, strength: float):
    """The last `strength` of the steps, as diffusers counts them (SDEdit, Meng et al. 2022).

    Args:
        levels: of all steps.
        strength: 0 (no step) to 1 (all).
    """
    steps = len(levels) - 1
    return levels[steps - min(steps, int(steps * strength)) :]


def noised(latents, noise, level):
    """Clean latents with as much noise as `level` has."""
    return level.signal * latents + level.noise * noise


def inpainting(denoise, latents, mask):
    """A denoiser that knows the clean latents outside the mask, so that any sampler arrives at them.

    Where sampling started from these latents, noised, they stay on the straight path from that noise.
    diffusers' inpainting puts the same back after each step.

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        latents: clean ones, (batch, h, w, channels).
        mask: (batch, h, w, 1), 1 where something new is drawn, 0 where `latents` stay.

    Returns:
        A denoiser as `denoise`.
    """

    def masked(x, level):
        prediction = denoise(x, level)
        noise = (x - level.signal * latents) / level.noise
        return prediction._replace(
            x0=mask * prediction.x0 + (1 - mask) * latents,
            noise=mask * prediction.noise + (1 - mask) * noise,
        )

    return masked


def resampled(sampler, denoise, latents, levels, noise, callback, times: int):
    """Samples by walking every step but the last several times (RePaint, Lugmayr et al. 2022, algorithm 1).

    In inpainting, what is drawn is told at each step what lies around it, but has been decided without.
    Noised again and drawn again, the two come to agree. The paper's jumps are one step long here. A
    multistep sampler begins anew in each step, so it is of first order; Heun's method stays of second.

    Args:
        sampler: one of `sd_tf.diffusion.samplers`, called with two levels at a time.
        denoise, latents, levels, noise, callback: the sampler's arguments. `callback` comes after each walk,
            with the number of the step.
        times: how often each step is walked, 1 or more.

    Returns:
        The latents, as `sampler` does.
    """
    x, numbers = latents, count()
    for step, (here, there) in enumerate(pairwise(levels)):

        def after(_, x, prediction, step=step):
            if callback is not None:
                callback(step, x, prediction)

        for walk in range(times if there is not levels[-1] else 1):
            if walk:
                x = _noised_from(x, there, here, noise(next(numbers)))
            x = sampler(denoise, x, [here, there], lambda _: noise(next(numbers)), after)
    return x


def number_of_walks(steps: int, times: int) -> int:
    """How many walks `resampled` takes through so many steps."""
    return steps and (steps - 1) * times + 1


def _noised_from(x, less, more, noise):
    """Latents at a level, with the noise that leads to a level of more (RePaint, equation 8)."""
    signal = more.signal / less.signal
    return signal * x + math.sqrt(max(0.0, more.noise**2 - (signal * less.noise) ** 2)) * noise


def ddim_inversion(denoise, latents, levels):
    """The noise from which DDIM would have drawn these latents (Dhariwal & Nichol 2021, appendix F).

    As in diffusers' `DDIMInverseScheduler`, in each step the network is told the level that the step leads
    to.

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        latents: clean ones, (batch, h, w, channels).
        levels: as for sampling, from much noise to little; they are walked backwards.

    Returns:
        Noise, of the shape and dtype of `latents`.
    """
    x = latents
    for here, there in pairwise(reversed(levels)):
        prediction = denoise(x, Level(there.t, here.signal, here.noise))
        x = there.signal * prediction.x0 + there.noise * prediction.noise
    return x


def slerp(first, second, share: float):
    """Spherical linear interpolation of two arrays of normal noise (Shoemake 1985).

    Unlike a mean of the two, it keeps their standard deviation all the way.

    Args:
        first, second: of one shape, which are the results for the shares 0 and 1.
        share: 0 to 1.
    """
    cosine = float(np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second)))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < 1e-4:  # the same, or opposite: there is no arc
        return (1 - share) * first + share * second
    return (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)

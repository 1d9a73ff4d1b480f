"""Drawing that begins with a picture: some of it kept, all of it noised, or walked back to its noise."""

import math
from itertools import pairwise

import numpy as np

from sd_tf.diffusion.levels import Level
from sd_tf.diffusion.predictions import Prediction


def part_of_the_way(levels, strength: float):
    """The last `strength` of the steps, as diffusers counts them (SDEdit, Meng et al. 2022).

    Args:
        levels: of all steps.
        strength: 0 (no step) to 1 (all).
    """
    steps = len(levels) - 1
    return levels[steps - min(steps, int(steps * strength)) :]


def noised(latents, noise, level):
    """Clean latents at a level of noise."""
    return level.signal * latents + level.noise * noise


def keeping(denoise, latents, free):
    """A denoiser that knows clean latents where they are not free, so that any sampler arrives at them.

    Where drawing began with these latents, noised, they stay on the straight way from that noise: what
    diffusers' inpainting puts back after each step.

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        latents: clean ones, (batch, h, w, channels).
        free: (batch, h, w, 1), 1 where something new is drawn, 0 where `latents` stay.

    Returns:
        A denoiser as `denoise`.
    """

    def denoise_free(x, level):
        prediction = denoise(x, level)
        noise = (x - level.signal * latents) / level.noise
        return Prediction(
            free * prediction.x0 + (1 - free) * latents, free * prediction.noise + (1 - free) * noise
        )

    return denoise_free


def ddim_inversion(denoise, latents, levels):
    """The noise that DDIM would have begun with (Dhariwal & Nichol 2021, appendix F).

    As diffusers' `DDIMInverseScheduler`, in each step the network is told the level that the step leads to.

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        latents: clean ones.
        levels: as of drawing, from much noise to little; walked backwards.
    """
    x = latents
    for here, there in pairwise(reversed(levels)):
        prediction = denoise(x, Level(there.t, here.signal, here.noise))
        x = there.signal * prediction.x0 + there.noise * prediction.noise
    return x


def between_noises(first, second, share: float):
    """Normal noise on the arc from one to another (Shoemake 1985), of their deviation all the way."""
    cosine = float(np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second)))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < 1e-4:  # the same, or opposite: there is no arc
        return (1 - share) * first + share * second
    return (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)

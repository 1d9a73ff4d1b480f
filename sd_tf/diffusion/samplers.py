"""Samplers: plain functions that walk a denoiser from noise to clean latents.

All are called alike, `sampler(denoise, latents, timesteps, schedule, noise, callback=None)`:

    denoise: `denoise(x, t) -> Prediction`, with t a Python int; see `denoiser` and `guidance`.
    latents: x at timesteps[0], (batch, h, w, channels), float32; standard normal to begin from nothing.
    timesteps: ints, strictly descending; usually `schedule.inference_timesteps(steps)`, or its tail
        to begin from a noised picture.
    schedule: the `NoiseSchedule` of the denoiser.
    noise: `noise(step)` -> standard normal, like `latents`; step counts from 0. Called once in each
        step that adds noise, in no other.
    callback: `callback(step, x, prediction)` after each step, with the latents it arrived at and the
        `Prediction` it was made from.

They return the latents, of the shape and dtype given, and raise `InputError` for timesteps that do
not descend or lie outside the schedule. Nothing is ever clamped.

A step goes from one of `timesteps` to the next one. diffusers' `DDIMScheduler` goes from t to
t - num_train_timesteps // steps, which is the same in leading spacing, and in trailing spacing where
steps divides num_train_timesteps; elsewhere it lands beside the timestep that it visits next.
"""

import itertools
import math

from sd_tf.errors import InputError


def _transitions(timesteps, schedule, final_alpha_cumprod):
    """For each step: t, alphas_cumprod at t and alphas_cumprod where the step ends, as Python numbers."""
    timesteps = [int(t) for t in timesteps]
    if any(later >= earlier for earlier, later in itertools.pairwise(timesteps)):
        raise InputError(f"timesteps {timesteps} do not descend: sampling goes from high (noise) to low.")
    last = len(schedule.alphas_cumprod) - 1
    if timesteps and (timesteps[0] > last or timesteps[-1] < 0):
        raise InputError(f"timesteps {timesteps} leave the schedule: give them from 0 to {last}.")
    levels = [float(schedule.alphas_cumprod[t]) for t in timesteps] + [final_alpha_cumprod]
    return [(t, *pair) for t, pair in zip(timesteps, itertools.pairwise(levels), strict=True)]


def _posterior_variance(level, next_level):
    """Of x at `next_level` given x at `level` and x0 (Ho et al. 2020, equation 7): beta tilde."""
    return (1 - next_level) / (1 - level) * (1 - level / next_level)


def ddim(denoise, latents, timesteps, schedule, noise, callback=None, eta=0.0):
    """DDIM (Song et al. 2021, equations 12 and 16), as diffusers' `DDIMScheduler` without clipping.

    Ends at `schedule.final_alpha_cumprod`. See the module for the arguments and results.

    Args:
        eta: 0 is deterministic, 1 adds as much noise as DDPM; in between, a share of its standard
            deviation. Above 0 the last step too adds noise, unless it ends free of noise.

    Raises:
        InputError: for `eta` outside [0, 1], beside what every sampler raises.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta is {eta}: give a number from 0 (deterministic) to 1 (as noisy as DDPM).")
    x = latents
    transitions = _transitions(timesteps, schedule, schedule.final_alpha_cumprod)
    for step, (t, level, next_level) in enumerate(transitions):
        prediction = denoise(x, t)
        sigma = eta * math.sqrt(_posterior_variance(level, next_level))
        # Without signal at t and with eta 1 this is 0, and rounding must not lead below it.
        direction = math.sqrt(max(0.0, 1 - next_level - sigma**2))
        x = math.sqrt(next_level) * prediction.x0 + direction * prediction.noise
        if sigma > 0:
            x = x + sigma * noise(step)
        if callback is not None:
            callback(step, x, prediction)
    return x


def ddpm(denoise, latents, timesteps, schedule, noise, callback=None):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), as diffusers' `DDPMScheduler` without clipping.

    The variance is the posterior's ("fixed_small"), respaced to any number of steps (Nichol &
    Dhariwal 2021, equation 19). Ends free of noise. See the module for the arguments and results.
    """
    x = latents
    for step, (t, level, next_level) in enumerate(_transitions(timesteps, schedule, 1.0)):
        prediction = denoise(x, t)
        alpha = level / next_level
        x0_weight = math.sqrt(next_level) * (1 - alpha) / (1 - level)
        x_weight = math.sqrt(alpha) * (1 - next_level) / (1 - level)
        x = x0_weight * prediction.x0 + x_weight * x
        if next_level < 1:
            x = x + math.sqrt(_posterior_variance(level, next_level)) * noise(step)
        if callback is not None:
            callback(step, x, prediction)
    return x


SAMPLERS = {"ddim": ddim, "ddpm": ddpm}

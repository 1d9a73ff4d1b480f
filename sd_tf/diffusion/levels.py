"""The levels of noise that samplers step through, from the first, which has the most noise, to the last.

Each function chooses them as some of diffusers' schedulers do, so that the pictures are the same. DDIM's
levels are timesteps. Euler's may lie between two timesteps. DPM-Solver's are spaced for one step more than
is taken. `karras` spaces them evenly in the seventh root of sigma instead (Karras et al. 2022, equation 5),
from the same first to the same last.
"""

from typing import NamedTuple

import numpy as np

from sd_tf.errors import InputError

RHO = 7.0  # Karras et al. 2022, table 1


class Level(NamedTuple):
    """A level of noise: latents at it are x = signal * x0 + noise * epsilon, signal^2 + noise^2 = 1.

    Attributes:
        t: what the network is told: a timestep, or a number between two.
        signal, noise: Python floats.
        restart: multistep samplers drop their history here, since guidance switches on or off.
    """

    t: float
    signal: float
    noise: float
    restart: bool = False

    @property
    def sigma(self) -> float:
        """The noise relative to the signal: the coordinates of Karras et al. 2022."""
        return self.noise / self.signal

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio: lambda of Lu et al. 2022."""
        return float(np.log(self.signal) - np.log(self.noise))


FREE_OF_NOISE = Level(0, 1.0, 0.0)


def ddim_levels(schedule, steps: int) -> list[Level]:
    """Timesteps in the schedule's spacing, then `schedule.final_level`: those of DDIM and PNDM.

    Args:
        schedule: a `NoiseSchedule`.
        steps: how many; 1 to its number of timesteps.

    Returns:
        steps + 1 levels, of less and less noise.

    Raises:
        InputError: the schedule has too few timesteps for so many steps.
    """
    return [*map(schedule.level, schedule.inference_timesteps(steps)), schedule.final_level]


def ddpm_levels(schedule, steps: int) -> list[Level]:
    """As `ddim_levels`, but the last is free of noise: those of DDPM."""
    return [*ddim_levels(schedule, steps)[:-1], FREE_OF_NOISE]


def euler_levels(schedule, steps: int, karras: bool = False) -> list[Level]:
    """As `ddpm_levels`, but not rounded to timesteps in "linspace" spacing: those of Euler, Heun and LMS.

    With `karras` the network is told the point between two timesteps that has the level's sigma.
    """
    timesteps = schedule.inference_timesteps(steps)
    if schedule.config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, len(schedule.sigmas) - 1, steps)[::-1]
    sigmas = np.interp(timesteps, np.arange(len(schedule.sigmas)), schedule.sigmas)
    if karras:
        sigmas = _karras(sigmas[0], sigmas[-1], steps)
        timesteps = _timesteps_of(schedule, sigmas)
    return [*map(_level, timesteps, sigmas), FREE_OF_NOISE]


def dpm_solver_levels(schedule, steps: int, karras: bool = False) -> list[Level]:
    """Those of DPM-Solver++ and UniPC: "linspace" and "leading" space one step more, and leave it out.

    With `karras` they go from the schedule's largest sigma to its smallest, and the network is told the
    nearest timestep, as diffusers tells it.
    """
    timesteps, total = schedule.inference_timesteps(steps), len(schedule.sigmas)
    if schedule.config.timestep_spacing == "linspace":
        timesteps = np.round(np.linspace(0, total - 1, steps + 1))[:0:-1]
    elif schedule.config.timestep_spacing == "leading":
        timesteps = np.arange(steps, 0, -1) * (total // (steps + 1)) + schedule.config.steps_offset
    if timesteps[0] >= total:
        raise InputError(
            f"steps is {steps}, which with steps_offset {schedule.config.steps_offset} starts past the last "
            f"timestep, {total - 1}: take fewer steps or another sampler"
        )
    sigmas = schedule.sigmas[timesteps.astype(int)]
    if karras:
        sigmas = _karras(schedule.sigmas[-1], schedule.sigmas[0], steps)
        timesteps = np.round(_timesteps_of(schedule, sigmas))
    elif len(set(timesteps)) < steps:
        raise InputError(f"steps is {steps}: this sampler takes {total - 1} at most, the timesteps but one.")
    return [*map(_level, timesteps, sigmas), FREE_OF_NOISE]


def _level(t, sigma):
    signal = 1.0 / np.hypot(1.0, sigma)
    return Level(float(t), float(signal), float(sigma * signal))


def _karras(most, least, steps):
    """Equation 5 of Karras et al. 2022."""
    return np.linspace(most ** (1 / RHO), least ** (1 / RHO), steps) ** RHO


def _timesteps_of(schedule, sigmas):
    """Points between timesteps, by the logarithm of sigma."""
    return np.interp(np.log(sigmas), np.log(schedule.sigmas), np.arange(len(schedule.sigmas)))

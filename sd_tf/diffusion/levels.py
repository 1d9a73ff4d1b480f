"""Where samplers step: levels of noise, from the one that drawing begins with to the one that it ends at.

Each of the three ways to choose them is that of some of diffusers' schedulers, whose pictures ours are
then: DDIM's visits timesteps, Euler's may visit points between two of them, and DPM-Solver's spreads
one timestep more than it visits. `karras` spreads them evenly in the seventh root of sigma instead
(Karras et al. 2022, equation 5), from the same first to the same last.
"""

from typing import NamedTuple

import numpy as np

from sd_tf.errors import InputError

RHO = 7.0  # Karras et al. 2022, table 1


class Level(NamedTuple):
    """A level of noise: latents at it are x = signal * x0 + noise * epsilon, signal^2 + noise^2 = 1.

    Attributes:
        t: what a network is told of it: a timestep, or a number between two.
        signal, noise: Python floats.
        anew: whether guidance begins or ends here: what was said of the levels before is no help then, and
            samplers forget it.
    """

    t: float
    signal: float
    noise: float
    anew: bool = False

    @property
    def sigma(self) -> float:
        """Noise beside a signal of 1: the level in the coordinates of Karras et al. 2022."""
        return self.noise / self.signal

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio: lambda of Lu et al. 2022."""
        return float(np.log(self.signal) - np.log(self.noise))


FREE_OF_NOISE = Level(0, 1.0, 0.0)


def visited(schedule, steps: int) -> list[Level]:
    """Timesteps in the schedule's spacing, then `schedule.final_level`: DDIM's and PNDM's.

    Args:
        schedule: a `NoiseSchedule`.
        steps: how many; 1 to its number of timesteps.

    Returns:
        steps + 1 levels, of less and less noise.

    Raises:
        InputError: so many steps do not fit into the schedule.
    """
    return [*map(schedule.level, schedule.inference_timesteps(steps)), schedule.final_level]


def visited_to_the_end(schedule, steps: int) -> list[Level]:
    """As `visited`, to a level free of noise: DDPM's."""
    return [*visited(schedule, steps)[:-1], FREE_OF_NOISE]


def between(schedule, steps: int, karras: bool = False) -> list[Level]:
    """As `visited_to_the_end`, in "linspace" spacing not rounded: those of Euler, Heun and LMS.

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


def with_one_more(schedule, steps: int, karras: bool = False) -> list[Level]:
    """Those of DPM-Solver++ and UniPC: in "linspace" and "leading" spacing the last timestep is left out.

    With `karras` from the schedule's largest sigma to its smallest; the network is told the nearest
    timestep, as diffusers tells it.
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

"""Samplers: plain functions that go from noise to clean latents by asking a denoiser.

All are called alike, `sampler(denoise, latents, levels, noise, callback=None)`:

    denoise: `denoise(x, level) -> Prediction`; see `denoiser` and `guidance`.
    latents: x at levels[0], (batch, h, w, channels), float32. Standard normal noise to start from nothing.
    levels: `Level`s of less and less noise, where steps begin and end: those that `SAMPLERS` makes for the
        sampler, or the last of them to start from a noised picture.
    noise: `noise(step)` -> standard normal, like `latents`. Steps count from 0. It is called once in each
        step that adds noise, and in no other.
    callback: `callback(step, x, prediction)` after each step, with the latents at its end and the
        `Prediction` at its start.

They return the latents, of the shape and dtype given, and raise `InputError` for levels that do not
descend. Nothing is clipped: see `thresholding`.

A step goes from one of `levels` to the next one. diffusers' `DDIMScheduler` and `PNDMScheduler` go from
t to t - num_train_timesteps // steps, which is the same in leading spacing, and in trailing spacing
where steps divides num_train_timesteps. Elsewhere they arrive beside the timestep that they visit next.

Multistep samplers drop their history where guidance switches on or off (`Level.restart`): the jump in the
prediction there is not a slope to extrapolate.

In the coordinates of Karras et al. 2022, x / signal and sigma = noise / signal, the probability flow is
d(x / signal) / d sigma = epsilon, which Euler, Heun and LMS integrate. DPM-Solver++ and UniPC integrate
x / noise over the logarithm of 1 / sigma: the linear part exactly, x0 as a polynomial.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sd_tf.diffusion.arrays import operations
from sd_tf.diffusion.levels import Level, ddim_levels, ddpm_levels, dpm_solver_levels, euler_levels
from sd_tf.errors import InputError


def ddim(denoise, latents, levels, noise, callback=None, eta=0.0):
    """DDIM (Song et al. 2021, equations 12 and 16), as diffusers' `DDIMScheduler` without clipping.

    Args:
        eta: the noise added in each step, as a share of the standard deviation that DDPM adds: 0 is
            deterministic, 1 adds as much as DDPM. Above 0 the last step adds noise too, unless it ends free
            of noise.

    Raises:
        InputError: `eta` is outside [0, 1], beside what every sampler raises.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta is {eta}: give a number from 0 (deterministic) to 1 (as noisy as DDPM).")
    x = latents
    for step, here, there in _steps(levels):
        prediction = denoise(x, here)
        deviation = eta * _posterior_deviation(here, there)
        # Without signal here and with eta 1 this is 0; rounding must not make it negative.
        direction = math.sqrt(max(0.0, there.noise**2 - deviation**2))
        x = there.signal * prediction.x0 + direction * prediction.noise
        if deviation > 0:
            x = x + deviation * noise(step)
        if callback is not None:
            callback(step, x, prediction)
    return x


def ddpm(denoise, latents, levels, noise, callback=None):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), as diffusers' `DDPMScheduler` without clipping.

    The variance is the posterior's (`variance_type="fixed_small"`), respaced to any number of steps (Nichol &
    Dhariwal 2021, equation 19). Where the prediction brings a learned one, it takes its place, as with
    `variance_type="learned_range"`.
    """
    x = latents
    for step, here, there in _steps(levels):
        prediction = denoise(x, here)
        alpha = (here.signal / there.signal) ** 2
        of_x0 = there.signal * (1 - alpha) / here.noise**2
        of_x = math.sqrt(alpha) * (there.noise / here.noise) ** 2
        x = of_x0 * prediction.x0 + of_x * x
        if there.noise > 0:
            x = x + _ddpm_deviation(prediction, here, there) * noise(step)
        if callback is not None:
            callback(step, x, prediction)
    return x


def pndm(denoise, latents, levels, noise, callback=None):
    """Pseudo linear multistep (Liu et al. 2022), as diffusers' `PNDMScheduler` with `skip_prk_steps`.

    DDIM's step with a mean of the last epsilons, weighted as Adams and Bashforth do, up to order 4. The first
    step, and the first after a restart, asks the network a second time, at its end.

    With v-prediction too, epsilons are combined, as in the paper. diffusers combines v, and converts it to
    epsilon by x as it is before the step, which is exact to first order only.
    """
    weights = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    x, epsilons = latents, []
    for step, here, there in _steps(levels, from_no_signal=False):
        prediction = denoise(x, here)
        epsilons = [prediction.noise, *(() if here.restart else epsilons[:3])]
        if len(epsilons) == 1 and there is not levels[-1] and not there.restart:
            ahead = denoise(_ddim_step(x, prediction.noise, here, there), there)
            epsilon = (prediction.noise + ahead.noise) / 2
        else:
            of_epsilons = weights[len(epsilons) - 1]
            epsilon = sum(weight * each for weight, each in zip(of_epsilons, epsilons, strict=True))
        x = _ddim_step(x, epsilon, here, there)
        if callback is not None:
            callback(step, x, prediction)
    return x


def euler(denoise, latents, levels, noise, callback=None):
    """Euler's method (Karras et al. 2022, algorithm 1 at order 1), as diffusers' `EulerDiscreteScheduler`.

    It is DDIM's step on other levels: both assume that epsilon is constant in a step.
    """
    return ddim(denoise, latents, levels, noise, callback)


def euler_ancestral(denoise, latents, levels, noise, callback=None):
    """Euler's method to a lower level, then fresh noise (k-diffusion).

    As diffusers' `EulerAncestralDiscreteScheduler`. It is DDIM's step with an eta of 1, on other levels.
    """
    return ddim(denoise, latents, levels, noise, callback, eta=1.0)


def heun(denoise, latents, levels, noise, callback=None):
    """Heun's method (Karras et al. 2022, algorithm 1), as diffusers' `HeunDiscreteScheduler`.

    It asks the network twice in each step, except in one that ends free of noise.
    """
    x = latents
    for step, here, there in _steps(levels, from_no_signal=False):
        prediction = denoise(x, here)
        epsilon = prediction.noise
        if there.noise > 0:
            ahead = denoise(_ddim_step(x, epsilon, here, there), there)
            epsilon = (epsilon + ahead.noise) / 2
        x = _ddim_step(x, epsilon, here, there)
        if callback is not None:
            callback(step, x, prediction)
    return x


def lms(denoise, latents, levels, noise, callback=None):
    """Linear multistep of order 4 (k-diffusion), as diffusers' `LMSDiscreteScheduler`.

    It integrates over the step the polynomial in sigma through the last four epsilons, fewer at the start.
    """
    x, epsilons, sigmas = latents, [], []
    for step, here, there in _steps(levels, from_no_signal=False):
        prediction = denoise(x, here)
        if here.restart:
            epsilons, sigmas = [], []
        epsilons, sigmas = [prediction.noise, *epsilons[:3]], [here.sigma, *sigmas[:3]]
        weights = _integrals(sigmas, here.sigma, there.sigma)
        change = sum(weight * epsilon for weight, epsilon in zip(weights, epsilons, strict=True))
        x = there.signal * (x / here.signal + change)
        if callback is not None:
            callback(step, x, prediction)
    return x


def dpmpp_2m(denoise, latents, levels, noise, callback=None):
    """DPM-Solver++ (2M) (Lu et al. 2022, algorithm 2), as diffusers' `DPMSolverMultistepScheduler`."""
    return _dpmpp_2m(denoise, latents, levels, None, callback)


def dpmpp_2m_sde(denoise, latents, levels, noise, callback=None):
    """SDE-DPM-Solver++ (2M) (Lu et al. 2022, section 5), as diffusers' "sde-dpmsolver++"."""
    return _dpmpp_2m(denoise, latents, levels, noise, callback)


def _dpmpp_2m(denoise, latents, levels, noise, callback):
    x, known = latents, []
    for step, here, there in _steps(levels, from_no_signal=False):
        prediction = denoise(x, here)
        known = [(here, prediction.x0), *(() if here.restart else known[:1])]
        x0 = _extrapolated(known, there)
        left = there.sigma / here.sigma  # e^-h, where h is the step in the logarithm
        if noise is None:
            x = _exponential_step(x, x0, here, there)
        else:
            x = left * there.noise / here.noise * x + there.signal * (1 - left**2) * x0
            if there.noise > 0:
                x = x + there.noise * math.sqrt(1 - left**2) * noise(step)
        if callback is not None:
            callback(step, x, prediction)
    return x


def unipc(denoise, latents, levels, noise, callback=None):
    """UniPC-2 with B2(h) (Zhao et al. 2023, algorithms 5 and 7), as diffusers' `UniPCMultistepScheduler`.

    DPM-Solver++ (2M), each step of which is corrected by the network's prediction at its end. That prediction
    is needed for the next step anyway.
    """
    x, known, start = latents, [], None
    for step, here, there in _steps(levels, from_no_signal=False):
        prediction = denoise(x, here)
        if here.restart:
            known = []
        if known:
            x = _exponential_step(start, _interpolated(known, prediction.x0, here), known[0][0], here)
        known, start = [(here, prediction.x0), *known[:1]], x
        x = _exponential_step(x, _extrapolated(known, there), here, there)
        if callback is not None:
            callback(step, x, prediction)
    return x


def _steps(levels, from_no_signal=True):
    """(number, where it begins, where it ends) of each step."""
    pairs = list(itertools.pairwise(levels))
    for here, there in pairs:
        if here.noise < there.noise or (here.noise == there.noise and there is not levels[-1]):
            raise InputError(
                f"levels of t {here.t:g} and then {there.t:g} do not descend: sampling goes from much noise "
                "to little."
            )
    if pairs and levels[0].signal == 0 and not from_no_signal:
        raise InputError(
            f"the level of t {levels[0].t:g} has no signal, by which this sampler divides: take 'ddim', "
            "'ddpm' or 'euler', or levels that begin with some."
        )
    return [(step, *pair) for step, pair in enumerate(pairs)]


def _posterior_deviation(here, there):
    """Of x at `there` given x at `here` and x0 (Ho et al. 2020, equation 7): the root of beta tilde."""
    return there.noise / here.noise * math.sqrt(1 - (here.signal / there.signal) ** 2)


def _ddpm_deviation(prediction, here, there):
    """The standard deviation of DDPM's noise, `there` with some: the posterior's, or the learned one.

    log variance = v log beta + (1 - v) log beta tilde (Nichol & Dhariwal 2021, equation 15).
    """
    smallest = _posterior_deviation(here, there)
    v = prediction.variance_fraction
    if v is None:
        return smallest
    log_beta = math.log(1 - (here.signal / there.signal) ** 2)
    log_beta_tilde = 2 * math.log(smallest)
    return operations(v).exp(0.5 * (v * log_beta + (1 - v) * log_beta_tilde))


def _ddim_step(x, epsilon, here, there):
    """The latents at `there`, if epsilon is constant in the step (Liu et al. 2022, equation 11)."""
    return there.signal * (x / here.signal + (there.sigma - here.sigma) * epsilon)


def _exponential_step(x, x0, here, there):
    """The latents at `there`, if x0 is constant in the step (Lu et al. 2022, equation 9)."""
    return there.noise / here.noise * x + there.signal * (1 - there.sigma / here.sigma) * x0


def _extrapolated(known, there):
    """The mean of x0 over the step to `there`, by a line through the last two.

    Args:
        known: [(level where the step begins, x0 there), the same of the step before, if there is one].
    """
    (here, x0), *earlier = known
    if not earlier or there.noise == 0:
        return x0
    [(before, x0_before)] = earlier
    ratio = (here.log_snr - before.log_snr) / (there.log_snr - here.log_snr)
    return x0 + (x0 - x0_before) / (2 * ratio)


def _interpolated(known, arrived, there):
    """As `_extrapolated`, but `arrived`, the x0 at `there`, is known too: a parabola, or a line at first."""
    (here, x0), *earlier = known
    if not earlier:
        return (x0 + arrived) / 2
    [(before, x0_before)] = earlier
    h = there.log_snr - here.log_snr
    ratio = (before.log_snr - here.log_snr) / h
    phi_1 = math.expm1(-h)
    phi_2 = -phi_1 / h - 1
    phi_3 = -phi_2 / h - 1 / 2
    of_before = (phi_2 - 2 * phi_3) / phi_1 / (1 - ratio)
    of_arrived = phi_2 / phi_1 - of_before
    return x0 + of_before * (x0_before - x0) / ratio + of_arrived * (arrived - x0)


def _integrals(points, start, stop):
    """Integrals of the Lagrange polynomials, each of which is 1 at one of the points and 0 at the others."""
    found = []
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        height = np.prod([point - other for other in others])
        antiderivative = np.polyint(np.atleast_1d(np.poly(others)) / height)
        found.append(float(np.polyval(antiderivative, stop) - np.polyval(antiderivative, start)))
    return found


class Sampler(NamedTuple):
    """A sampler and the function that makes its levels.

    Attributes:
        sample: the function, called as the module explains.
        make_levels: `make_levels(schedule, steps)` -> levels, see `sd_tf.diffusion.levels`.
    """

    sample: Callable
    make_levels: Callable

    def levels(self, schedule, steps: int, karras: bool = False) -> list[Level]:
        """The levels it steps through; arguments as in `sd_tf.diffusion.levels`.

        Raises:
            InputError: the schedule has too few timesteps, or `karras` is true and this sampler cannot.
        """
        if not karras:
            return self.make_levels(schedule, steps)
        if self.make_levels not in WITH_KARRAS:
            others = [name for name, each in SAMPLERS.items() if each.make_levels in WITH_KARRAS]
            raise InputError(
                f"karras is true, but {self.sample.__name__!r} steps through timesteps: "
                f"take one of {', '.join(others)}"
            )
        return self.make_levels(schedule, steps, karras)


WITH_KARRAS = (euler_levels, dpm_solver_levels)

SAMPLERS = {
    "ddim": Sampler(ddim, ddim_levels),
    "ddpm": Sampler(ddpm, ddpm_levels),
    "pndm": Sampler(pndm, ddim_levels),
    "euler": Sampler(euler, euler_levels),
    "euler_ancestral": Sampler(euler_ancestral, euler_levels),
    "heun": Sampler(heun, euler_levels),
    "lms": Sampler(lms, euler_levels),
    "dpmpp_2m": Sampler(dpmpp_2m, dpm_solver_levels),
    "dpmpp_2m_sde": Sampler(dpmpp_2m_sde, dpm_solver_levels),
    "unipc": Sampler(unipc, dpm_solver_levels),
}

"""The noise schedule: how much signal is left at each timestep, and which timesteps sampling visits.

Training and sampling share one `NoiseSchedule`, built from the configuration saved with the model.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from sd_tf.config import kept
from sd_tf.diffusion.levels import FREE_OF_NOISE, Level
from sd_tf.errors import InputError, unknown


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule, as diffusers' schedulers store it; the defaults are Stable Diffusion 1.x."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    rescale_betas_zero_snr: bool = False
    kept: dict = kept()


def _linear(config):
    """Ho et al. 2020, section 4."""
    return np.linspace(config.beta_start, config.beta_end, config.num_train_timesteps)


def _scaled_linear(config):
    """Linear in the square root of beta (Rombach et al. 2022), as in CompVis' code."""
    return np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps) ** 2


def _squared_cosine(config):
    """Nichol & Dhariwal 2021, equation 17; the range of beta in the configuration plays no part."""
    time = np.arange(config.num_train_timesteps + 1) / config.num_train_timesteps
    alphas_cumprod = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def _leading(config, steps):
    stride = config.num_train_timesteps // steps
    return np.arange(steps)[::-1] * stride + config.steps_offset


def _trailing(config, steps):
    stride = config.num_train_timesteps / steps
    # Rounding can leave arange one element too many, a timestep of -1.
    return np.round(np.arange(config.num_train_timesteps, 0, -stride)[:steps]) - 1


def _linspace(config, steps):
    return np.round(np.linspace(0, config.num_train_timesteps - 1, steps))[::-1]


BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _squared_cosine}
SPACINGS = {"leading": _leading, "trailing": _trailing, "linspace": _linspace}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MOST_TIMESTEPS = 100_000
LEAST_SIGNAL = 2.0**-24  # of alphas_cumprod, in `sigmas`, as in diffusers


def _with_zero_terminal_snr(alphas_cumprod):
    """Signal rates shifted to end at 0 and scaled to begin as before: Lin et al. 2023, algorithm 1."""
    signal_rates = np.sqrt(alphas_cumprod)
    first, last = signal_rates[0], signal_rates[-1]
    return ((signal_rates - last) * (first / (first - last))) ** 2


class NoiseSchedule:
    """The forward process x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise.

    Args:
        config: the schedule, in the names of diffusers' `scheduler_config.json`.

    Attributes:
        config: the configuration.
        alphas_cumprod: numpy float64, (num_train_timesteps,), descending, in (0, 1); the share of
            the variance of x_t that is signal. The last is 0 where `rescale_betas_zero_snr`.
        sigmas: likewise, ascending: the noise relative to the signal. It is finite even where there is no
            signal.
        final_level: the `Level` at which DDIM ends: free of noise if `set_alpha_to_one`, otherwise that of
            timestep 0.

    Raises:
        InputError: `beta_schedule`, `timestep_spacing` or `prediction_type` is unknown, there are no or too
            many timesteps, a beta is outside (0, 1), or `rescale_betas_zero_snr` comes with epsilon
            prediction or where no signal is lost.

    Reference: Ho et al. 2020 (DDPM), equation 4; spacings as in table 2 of Lin et al. 2023, "Common
    Diffusion Noise Schedules and Sample Steps are Flawed", and diffusers' `DDIMScheduler`.
    """

    def __init__(self, config: ScheduleConfig):
        if config.beta_schedule not in BETAS:
            raise unknown("beta_schedule", config.beta_schedule, BETAS)
        if config.timestep_spacing not in tuple(SPACINGS):
            raise unknown("timestep_spacing", config.timestep_spacing, SPACINGS)
        if config.prediction_type not in PREDICTION_TYPES:
            raise unknown("prediction_type", config.prediction_type, PREDICTION_TYPES)
        if not 1 <= config.num_train_timesteps <= MOST_TIMESTEPS:
            raise InputError(
                f"num_train_timesteps is {config.num_train_timesteps}: "
                f"give at least 1 and at most {MOST_TIMESTEPS}."
            )
        if not 0 <= config.steps_offset < config.num_train_timesteps:
            raise InputError(
                f"steps_offset is {config.steps_offset}: give 0 to {config.num_train_timesteps - 1}."
            )
        if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
            raise InputError(
                "prediction_type is 'epsilon', but rescale_betas_zero_snr leaves no signal at the last "
                "timestep, where epsilon says nothing of x0: take 'v_prediction'."
            )
        betas = np.asarray(BETAS[config.beta_schedule](config))
        if np.iscomplexobj(betas) or not ((betas > 0) & (betas < 1)).all():
            raise InputError(
                f"beta_start is {config.beta_start}, beta_end {config.beta_end}: give both between 0 and 1."
            )
        self.config = config
        self.alphas_cumprod = np.cumprod(1 - betas)
        if config.rescale_betas_zero_snr:
            if self.alphas_cumprod[0] == self.alphas_cumprod[-1]:
                raise InputError(
                    f"num_train_timesteps is {config.num_train_timesteps}, beta_end {config.beta_end}: from "
                    "the first timestep to the last no signal is lost that rescale_betas_zero_snr could "
                    "rescale, give more."
                )
            self.alphas_cumprod = _with_zero_terminal_snr(self.alphas_cumprod)
        alphas = np.maximum(self.alphas_cumprod, LEAST_SIGNAL)
        self.sigmas = np.sqrt((1 - alphas) / alphas)
        self.final_level = FREE_OF_NOISE if config.set_alpha_to_one else self.level(0)

    def spaced(self, timestep_spacing: str) -> "NoiseSchedule":
        """The same schedule with another spacing of the timesteps that sampling visits.

        Raises:
            InputError: there is no such spacing.
        """
        return NoiseSchedule(dataclasses.replace(self.config, timestep_spacing=timestep_spacing))

    def level(self, t: int) -> Level:
        """The level of noise at a timestep.

        Raises:
            InputError: for one outside 0 … num_train_timesteps - 1.
        """
        last = len(self.alphas_cumprod) - 1
        if not 0 <= t <= last:
            raise InputError(f"timestep {t} is outside the schedule: give one from 0 to {last}.")
        alpha = float(self.alphas_cumprod[t])
        return Level(int(t), math.sqrt(alpha), math.sqrt(1 - alpha))

    def rates(self, t, latents):
        """Signal and noise rate at `t`: sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]).

        Args:
            t: a Python int, an int tensor (batch,), or a scalar int tensor.
            latents: the tensor that will be multiplied, (batch, ...), float.

        Returns:
            Two Python floats for a Python int; otherwise two tensors of the dtype of `latents`
            that broadcast over it.

        Raises:
            InputError: for a Python int outside 0 … num_train_timesteps - 1.
        """
        if isinstance(t, (int, np.integer)):
            level = self.level(t)
            return level.signal, level.noise

        from keras import ops

        t = ops.convert_to_tensor(t)
        shape = (-1,) + (1,) * (len(latents.shape) - 1) if len(t.shape) else ()  # (batch, 1, 1, 1)

        def at_t(table):
            # Roots are taken in float64: 1 - alphas_cumprod loses digits at small t in float32.
            table = ops.convert_to_tensor(table, dtype="float32")
            return ops.cast(ops.reshape(ops.take(table, t), shape), latents.dtype)

        return at_t(np.sqrt(self.alphas_cumprod)), at_t(np.sqrt(1 - self.alphas_cumprod))

    def add_noise(self, latents, noise, t):
        """Draw x_t given x_0 (Ho et al. 2020, equation 4).

        Args:
            latents: x_0, (batch, h, w, channels), float.
            noise: standard normal, the shape and dtype of `latents`.
            t: int, (batch,), in 0 … num_train_timesteps - 1; or one for all, an int or a scalar.

        Returns:
            x_t, the shape and dtype of `latents`.
        """
        signal_rate, noise_rate = self.rates(t, latents)
        return signal_rate * latents + noise_rate * noise

    def inference_timesteps(self, steps: int) -> np.ndarray:
        """The timesteps that a sampler of `steps` steps visits, in the configuration's spacing.

        Returns:
            int64, (steps,), strictly descending, in 0 … num_train_timesteps - 1.

        Raises:
            InputError: for fewer than one step, more steps than timesteps, or a `steps_offset`
                that leads out of the schedule.
        """
        total = self.config.num_train_timesteps
        if not 1 <= steps <= total:
            raise InputError(f"steps is {steps}: give 1 to {total}, the timesteps of the schedule.")
        timesteps = SPACINGS[self.config.timestep_spacing](self.config, steps).astype(np.int64)
        if timesteps[0] >= total:
            raise InputError(
                f"steps is {steps}, which with steps_offset {self.config.steps_offset} starts at timestep "
                f"{timesteps[0]}, past the last one, {total - 1}: take fewer steps or a smaller offset."
            )
        return timesteps

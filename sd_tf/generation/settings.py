"""Sampling settings: steps, guidance and sampler."""

import dataclasses

from sd_tf.diffusion.guidance import with_restarts
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.errors import InputError, unknown
from sd_tf.generation.checks import check_interval, check_number, check_whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sampling settings, checked when they are made.

    Attributes:
        steps: sampling steps, 1 to the schedule's number of timesteps.
        guidance_scale: of classifier-free guidance, 0 to 1000; 1 is no guidance, 0 ignores the prompt.
        guidance_interval: (start, stop), the part of the steps that is guided, as shares of all steps.
        guidance_rescale: 0 to 1, how far to undo the contrast that a high scale adds (Lin et al. 2023).
        sampler: a key of `SAMPLERS`.
        timestep_spacing: "leading", "trailing" or "linspace"; None for the schedule's.
        karras: uses the noise levels of Karras et al. 2022; not with "ddim", "ddpm" and "pndm".
        eta: 0 to 1, the noise added in each step of DDIM, as a share of DDPM's.

    Raises:
        InputError: a setting has the wrong type or is out of range.
    """

    steps: int = 20
    guidance_scale: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    timestep_spacing: str | None = None
    karras: bool = False
    eta: float = 0.0

    def __post_init__(self):
        check_number("guidance_scale", self.guidance_scale, 0, 1000)
        check_number("guidance_rescale", self.guidance_rescale, 0, 1)
        check_number("eta", self.eta, 0, 1)
        check_interval("guidance_interval", self.guidance_interval)
        if self.sampler not in tuple(SAMPLERS):
            raise unknown("sampler", self.sampler, SAMPLERS)
        if not isinstance(self.karras, bool):
            raise InputError(f"karras is {self.karras!r}: give True or False")
        if self.eta and self.sampler != "ddim":
            raise InputError(
                f"eta is {self.eta}, but sampler {self.sampler!r} takes none: leave it out, or use 'ddim'"
            )

    def levels(self, schedule):
        """The steps + 1 noise levels that the sampler visits on a `NoiseSchedule`.

        Raises:
            InputError: the schedule or sampler does not support the number of steps, the spacing or `karras`.
        """
        check_whole("steps", self.steps, 1, schedule.config.num_train_timesteps)
        if self.timestep_spacing is not None:
            schedule = schedule.spaced(self.timestep_spacing)
        *levels, last = SAMPLERS[self.sampler].levels(schedule, self.steps, self.karras)
        if self.guidance_scale != 1:
            levels = with_restarts(levels, self.guidance_interval)
        return [*levels, last]

    def sample(self, denoise, latents, levels, noise, callback):
        """Runs the sampler; see `sd_tf.diffusion.samplers` for the arguments."""
        options = {"eta": self.eta} if self.sampler == "ddim" else {}
        return SAMPLERS[self.sampler].sample(denoise, latents, levels, noise, callback, **options)

"""How pictures are drawn: steps, guidance and sampler."""

import dataclasses

from sd_tf.diffusion.guidance import with_restarts
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.errors import InputError, unknown
from sd_tf.generation.checks import check_interval, check_number, check_whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sampling settings, checked before anything is computed.

    Attributes:
        steps: sampling steps, 1 to the schedule's number of timesteps.
        guidance_scale: 0 to 1000; 1 follows the prompt plainly, more exaggerates it, 0 ignores it.
        guidance_interval: (start, stop), the part of the steps that is guided, as shares of all steps.
        guidance_rescale: 0 to 1, how far to undo the contrast that a high scale adds (Lin et al. 2023).
        sampler: a name of `SAMPLERS`.
        timestep_spacing: "leading", "trailing" or "linspace", in place of the schedule's own; None for that.
        karras: spaces the steps as Karras et al. 2022, which samplers that step through timesteps cannot.
        eta: 0 to 1, the fresh noise in each step of DDIM, as a share of DDPM's.

    Raises:
        InputError: one of the wrong type or out of range.
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
                f"eta is {self.eta}, but sampler {self.sampler!r} has none: leave it out, or take 'ddim'"
            )

    def levels(self, schedule):
        """The levels that the sampler steps through on a `NoiseSchedule`, steps + 1 of them.

        Raises:
            InputError: the number of steps, the spacing or `karras` does not go with schedule and sampler.
        """
        check_whole("steps", self.steps, 1, schedule.config.num_train_timesteps)
        if self.timestep_spacing is not None:
            schedule = schedule.spaced(self.timestep_spacing)
        *levels, last = SAMPLERS[self.sampler].levels(schedule, self.steps, self.karras)
        if self.guidance_scale != 1:
            levels = with_restarts(levels, self.guidance_interval)
        return [*levels, last]

    def sample(self, denoise, latents, levels, noise, callback):
        """Runs the sampler; arguments as `sd_tf.diffusion.samplers` explains."""
        options = {"eta": self.eta} if self.sampler == "ddim" else {}
        return SAMPLERS[self.sampler].sample(denoise, latents, levels, noise, callback, **options)

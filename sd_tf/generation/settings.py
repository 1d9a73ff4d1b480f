"""Sampling settings: steps, guidance and sampler; and those that a model's folder recommends."""

import dataclasses
import functools
import os
from pathlib import Path

from sd_tf.diffusion.editing import number_of_walks, resampled
from sd_tf.diffusion.guidance import with_restarts
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.diffusion.schedules import MOST_TIMESTEPS, SPACINGS
from sd_tf.errors import InputError, argument, naming, unknown
from sd_tf.files import read_json, write_json
from sd_tf.generation.checks import check_interval, check_number, check_whole

FILE = "generation_config.json"  # of a model's folder
ABOUT = ("found_by", "distances")  # what the file may say besides: the command, and what it found
MOST_RESAMPLES = 100
TOGETHER = {  # a setting -> those that were chosen for it
    "sampler": ("timestep_spacing", "karras", "eta"),
    "guidance_scale": ("guidance_interval", "guidance_rescale"),
}


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
        resamples: 1 to 100, how often each step of inpainting is drawn (RePaint, Lugmayr et al. 2022).

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
    resamples: int = 1

    def __post_init__(self):
        check_whole(argument("steps"), self.steps, 1, MOST_TIMESTEPS)
        check_number(argument("guidance_scale"), self.guidance_scale, 0, 1000)
        check_number(argument("guidance_rescale"), self.guidance_rescale, 0, 1)
        check_number(argument("eta"), self.eta, 0, 1)
        check_whole(argument("resamples"), self.resamples, 1, MOST_RESAMPLES)
        check_interval(argument("guidance_interval"), self.guidance_interval)
        if self.sampler not in tuple(SAMPLERS):
            raise unknown("sampler", self.sampler, SAMPLERS)
        if self.timestep_spacing is not None and self.timestep_spacing not in tuple(SPACINGS):
            raise unknown("timestep_spacing", self.timestep_spacing, SPACINGS)
        if not isinstance(self.karras, bool):
            raise InputError(f"{argument('karras')} is {self.karras!r}: give True or False")
        if self.eta and self.sampler != "ddim":
            raise InputError(
                f"{argument('eta')} is {self.eta}, but sampler {self.sampler!r} takes none: leave it out, or "
                "use 'ddim'"
            )

    def replaced(self, **given) -> "Settings":
        """These settings with those that a caller gave in their place; None is not given.

        Settings that were chosen together are left out together: a caller's sampler takes neither these
        levels nor this `eta`, a caller's guidance scale neither this interval nor this rescaling.

        Raises:
            InputError: see above.
        """
        given = {name: value for name, value in given.items() if value is not None}
        unused = set()
        for first, others in TOGETHER.items():
            if first in given:
                unused |= set(others)
        kept = {name: value for name, value in vars(self).items() if name not in unused}
        return Settings(**kept | given)

    def to_json(self) -> dict:
        """As `FILE` has them."""
        return vars(self) | {"guidance_interval": list(self.guidance_interval)}

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

    def callbacks(self, steps, is_inpainting) -> int:
        """How often `sample` calls back in so many steps."""
        return number_of_walks(steps, self.resamples) if is_inpainting else steps

    def sample(self, denoise, latents, levels, noise, callback, is_inpainting=False):
        """Runs the sampler; see `sd_tf.diffusion.samplers` for the arguments."""
        options = {"eta": self.eta} if self.sampler == "ddim" else {}
        sampler = functools.partial(SAMPLERS[self.sampler].sample, **options)
        if is_inpainting and self.resamples > 1:
            return resampled(sampler, denoise, latents, levels, noise, callback, self.resamples)
        return sampler(denoise, latents, levels, noise, callback)


def read_settings(folder: Path, usual: Settings) -> Settings:
    """The settings that a model's folder recommends; `usual` where it has no `FILE`, or the file lacks one.

    Raises:
        InputError: the file is damaged, names an unknown setting, or a value is out of range.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        return usual
    values = read_json(file, root=folder)
    with naming(file):
        return settings_of({name: value for name, value in values.items() if name not in ABOUT}, usual)


def settings_of(values: dict, usual: Settings | None = None) -> Settings:
    """Settings of a JSON object; `usual` has those that it lacks.

    Raises:
        InputError: it has an unknown setting, or a value is out of range.
    """
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in values:
        if name not in names:
            raise unknown("setting", name, names)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return (usual or Settings()).replaced(**given)


def write_settings(folder: Path, settings, about: dict | None = None):
    """Writes the settings that a model's folder recommends, of any family; `about` has values for `ABOUT`."""
    write_json(folder / FILE, settings.to_json() | (about or {}))

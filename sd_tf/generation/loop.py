"""How pictures are drawn: settings, checked before anything is computed, and the loop over batches."""

import dataclasses
import math
import numbers

import numpy as np
from tqdm import tqdm

from sd_tf.diffusion.editing import keeping
from sd_tf.diffusion.guidance import by_gradient, classifier_free, guided_part, turning
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.errors import InputError, shown, unknown

MOST_PICTURES = 2**20  # of one call


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `LatentDiffusion.generate` explains, of every way to draw.

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
    batch_size: int = 64

    def __post_init__(self):
        check_whole("batch_size", self.batch_size, 1, 2**20)
        check_number("guidance_scale", self.guidance_scale, 0, 1000)
        check_number("guidance_rescale", self.guidance_rescale, 0, 1)
        check_number("eta", self.eta, 0, 1)
        _check_interval("guidance_interval", self.guidance_interval)
        if self.sampler not in tuple(SAMPLERS):
            raise unknown("sampler", self.sampler, SAMPLERS)
        if not isinstance(self.karras, bool):
            raise InputError(f"karras is {self.karras!r}: give True or False")
        if self.eta and self.sampler != "ddim":
            raise InputError(
                f"eta is {self.eta}, but sampler {self.sampler!r} has none: leave it out, or take 'ddim'"
            )

    def levels(self, schedule):
        """Where the sampler steps on a `NoiseSchedule`.

        Raises:
            InputError: so many steps, such a spacing or `karras` does not go with schedule and sampler.
        """
        check_whole("steps", self.steps, 1, schedule.config.num_train_timesteps)
        if self.timestep_spacing is not None:
            schedule = schedule.spaced(self.timestep_spacing)
        *levels, last = SAMPLERS[self.sampler].levels(schedule, self.steps, self.karras)
        if self.guidance_scale != 1:
            levels = turning(levels, self.guidance_interval)
        return [*levels, last]


def draw(
    networks,
    schedule,
    settings,
    contexts,
    begin,
    noise,
    levels,
    keep=None,
    judge=None,
    callback=None,
    progress=True,
):
    """Draws pictures, those whose contexts are as long together.

    Args:
        networks: an `Engine`.
        schedule: the model's `NoiseSchedule`.
        settings: `Settings`.
        contexts: for each picture float32 (2, tokens, width), of the negative prompt and of the prompt.
        begin: `begin(places)` -> the latents at levels[0] of the pictures at these places.
        noise: `noise(places, step)` -> standard normal, like those.
        levels: `settings.levels(schedule)`, or their tail.
        keep: clean latents, and where they are free to change, as `keeping` takes them; None for no such.
        judge: (scale, `of(places, context)` -> `gradient(x, level)`), as `by_gradient` takes them; or None.
        callback: `callback(step, latents, prediction)` after each step of each batch.
        progress: shows a bar, if standard error is a terminal.

    Returns:
        uint8 (pictures, height, width, 3).
    """
    divided = batches([context.shape[1] for context in contexts], settings.batch_size)
    walk, options = SAMPLERS[settings.sampler].walk, {}
    if settings.sampler == "ddim":
        options["eta"] = settings.eta
    guided = guided_part(settings.levels(schedule)[:-1], settings.guidance_interval)
    images = [None] * len(contexts)
    number = len(divided) * (len(levels) - 1)
    with tqdm(total=number, unit="step", disable=None if progress else True, leave=False) as bar:

        def after_step(step, latents, prediction):
            bar.update()
            if callback is not None:
                callback(step, latents, prediction)

        for places in divided:
            negative_context, context = np.stack([contexts[i] for i in places], axis=1)
            denoise = classifier_free(
                networks.denoise,
                schedule,
                context,
                negative_context,
                settings.guidance_scale,
                guided,
                settings.guidance_rescale,
            )
            if judge is not None:
                scale, gradients = judge
                denoise = by_gradient(denoise, gradients(places, context), scale)
            if keep is not None:
                known, free = (each[places] for each in keep)
                denoise = keeping(denoise, known, free)
            final = walk(
                denoise,
                begin(places),
                levels,
                lambda step, places=places: noise(places, step),
                after_step,
                **options,
            )
            if keep is not None:  # levels may end a little before they are free of noise
                final = free * final + (1 - free) * known
            for i, image in zip(places, to_uint8(np.asarray(networks.decode(final))), strict=True):
                images[i] = image
    return np.stack(images)


def batches(kinds, batch_size):
    """The places of pictures that are drawn at once: those of one kind, in their order, the first's first."""
    of_kinds = [np.flatnonzero(np.equal(kinds, kind)) for kind in dict.fromkeys(kinds)]
    return [places[i : i + batch_size] for places in of_kinds for i in range(0, len(places), batch_size)]


def to_uint8(images):
    """float32, about [-1, 1] -> uint8."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def checked_image(image, number: int, multiple: int, most: int):
    """A picture, or one for each prompt, as uint8 (n, height, width, 3), n 1 or `number`.

    Raises:
        InputError: it is none, of another size, or has sides that are no multiple of `multiple`, or more
            than `most` pixels.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise InputError(f"image is {image.dtype}: give uint8, 0 to 255")
    images = image[np.newaxis] if image.ndim == 3 else image
    if images.ndim != 4 or images.shape[0] not in (1, number) or images.shape[3] != 3:
        raise InputError(
            f"image has the shape {image.shape}: give (height, width, 3), or ({number}, height, width, 3), "
            "one for each prompt"
        )
    if not all(images.shape[1:3]) or any(side % multiple for side in images.shape[1:3]):
        raise InputError(
            f"image is {images.shape[2]} x {images.shape[1]}: give sides that are multiples of {multiple}"
        )
    if images.shape[1] * images.shape[2] > most:
        raise InputError(
            f"image is {images.shape[2]} x {images.shape[1]}, more than this model has memory for: scale it "
            f"down to {most:,} pixels, such as {math.isqrt(most)} x {math.isqrt(most)}"
        )
    return images


def checked_mask(mask, images, number: int):
    """Where something new is drawn, as bool (n, height, width, 1), n 1 or `number`.

    Args:
        mask: bool, or numbers of which those above half of the largest possible count: uint8 or float.
        images: of `checked_image`.
        number: of prompts.

    Raises:
        InputError: it is of another size, type or range, or covers nothing.
    """
    given = np.asarray(mask)
    mask = given[np.newaxis] if given.ndim == 2 else given
    if mask.ndim != 3 or mask.shape[0] not in (1, number) or mask.shape[1:] != images.shape[1:3]:
        raise InputError(
            f"mask has the shape {given.shape}: give {images.shape[1:3]}, as high and as wide as the "
            f"picture, or {number} of them, one for each prompt"
        )
    if mask.dtype == np.uint8:
        mask = mask > 127
    elif np.issubdtype(mask.dtype, np.floating):
        if not ((mask >= 0) & (mask <= 1)).all():
            raise InputError("mask has numbers outside [0, 1]: give 1 where something new is drawn, else 0")
        mask = mask > 0.5
    elif mask.dtype != bool:
        raise InputError(f"mask is {mask.dtype}: give bool, uint8 of 0 and 255, or float of 0 and 1")
    if not mask.any():
        raise InputError("mask covers nothing: give True where something new is drawn")
    return mask[..., np.newaxis]


def free_latents(mask, factor: int):
    """Of a mask of pixels, float32 (n, h, w, 1): 1 for every latent that a pixel of it depends on."""
    n, height, width, _ = mask.shape
    blocks = mask.reshape(n, height // factor, factor, width // factor, factor, 1)
    return blocks.any(axis=(2, 4)).astype("float32")


def check_text(name: str, text: str):
    """Raises `InputError` for halves of characters, such as bytes become that are no UTF-8."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"the {name} {shown(text)} has characters that no file can hold: type it again")


def check_whole(name, value, least, most):
    """Raises `InputError` for what is no whole number of a range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}: give a whole number from {least} to {most}")


def check_number(name, value, least, most):
    """Raises `InputError` for what is no number of a range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}: give a number from {least} to {most}")


def _check_interval(name, value):
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not pair:
        raise InputError(f"{name} is {value!r}: give two shares, such as (0.2, 0.8)")
    for share in value:
        check_number(name, share, 0, 1)
    if value[0] > value[1]:
        raise InputError(f"{name} is {tuple(value)}: give the lower share first")

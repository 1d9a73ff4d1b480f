"""What a user of the page may ask for, checked before anything is drawn, whatever the fields allow."""

import dataclasses

import numpy as np
from PIL import Image, ImageOps

from sd_tf.data.opening import open_picture
from sd_tf.diffusion.thresholding import Thresholding
from sd_tf.errors import InputError
from sd_tf.generation.checks import check_number, check_text, check_whole
from sd_tf.generation.request import LARGEST_SEED, Request
from sd_tf.generation.settings import Settings
from sd_tf.options import Options, option

LONGEST_PROMPT = 2000  # characters
MOST_LAYERS = 4  # layers of strokes on a picture
BLACK = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Limits(Options):
    """Limits of one request, and of the queue; each is a flag of the command line.

    Raises:
        InputError: one is not above 0.
    """

    max_steps: int = option(100, "the most sampling steps of a request", at_least=1)
    max_images: int = option(16, "the most pictures of a request", at_least=1)
    max_seconds: float = option(120.0, "the longest that drawing one request may take", above=0)
    max_queue: int = option(20, "the most requests that wait for their turn", at_least=1)


def checked(limits: Limits, prompt, negative_prompt, seed, num_images, strength, **settings) -> dict:
    """The arguments of a model's `generate` for a request.

    Args:
        limits: of the server.
        settings: `steps`, `guidance_scale`, `guidance_interval`, `sampler` and `karras`; `thresholding` as
            well of a model that draws pixels.

    All values are JSON of any type. A number without a fraction counts as whole.

    Raises:
        InputError: one is of the wrong type, out of range, or over a limit.
    """
    for name, text in (("prompt", prompt), ("negative prompt", negative_prompt)):
        check_text(name, text, LONGEST_PROMPT)
    seed, num_images, steps = (_whole(value) for value in (seed, num_images, settings["steps"]))
    check_whole("number of pictures", num_images, 1, limits.max_images)
    check_whole("steps", steps, 1, limits.max_steps)
    check_whole("seed", seed, 0, LARGEST_SEED)
    Request(prompt, negative_prompt, num_images, seed)
    check_number("strength", strength, 0, 1)
    settings = {**settings, "steps": steps}
    Settings(**{name: value for name, value in settings.items() if name != "thresholding"})
    if "thresholding" in settings:
        Thresholding().replaced(settings["thresholding"])
    return settings | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_images": num_images,
        "strength": strength,
    }


def _whole(value):
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fitted_picture(file, size) -> np.ndarray:
    """A picture from outside, cropped around its middle and scaled to `size`, uint8 (height, width, 3).

    Args:
        file: a path.
        size: (width, height).

    Raises:
        InputError: it cannot be opened, see `sd_tf.data.opening`.
    """
    return np.asarray(_fitted(_open("the file", file), size))


def fitted_mask(files, size) -> np.ndarray:
    """Layers of strokes as a mask, bool (height, width), True where they cover a quarter or more."""
    if len(files) > MOST_LAYERS:
        raise InputError(f"the picture has {len(files)} layers of strokes: send {MOST_LAYERS} or fewer")
    mask = np.zeros(size[::-1], bool)
    for file in files:
        strokes = np.asarray(_open("the mask", file, BLACK)).max(axis=-1) > 127
        mask |= np.asarray(_fitted(Image.fromarray(strokes.astype(np.uint8) * 255), size)) > 63
    return mask


def enlarged(picture, side: int) -> np.ndarray:
    """Repeats each pixel until the longer side has about `side`; `fitted_picture` undoes it exactly."""
    factor = max(1, side // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _open(name, file, background=(255, 255, 255)):
    try:
        return open_picture(file, background)
    except InputError as error:
        raise InputError(f"{name} {error}") from None


def _fitted(picture, size):
    return ImageOps.fit(
        picture, size, Image.Resampling.BOX
    )  # means over boxes: repeated pixels give themselves

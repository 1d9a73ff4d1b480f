"""What a stranger may ask the page for, checked before anything is drawn, whatever its fields allow."""

import dataclasses

import numpy as np
from PIL import Image, ImageOps

from sd_tf.data.opening import open_picture
from sd_tf.errors import InputError, shown
from sd_tf.generation.loop import Settings, check_number, check_whole
from sd_tf.latent.model import LARGEST_SEED
from sd_tf.options import Options, option

LONGEST_PROMPT = 2000  # characters
MOST_LAYERS = 4  # of strokes on a picture
BLACK = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Limits(Options):
    """Of one request, but for the queue; each is a flag of the command.

    Raises:
        InputError: one allows nothing.
    """

    max_steps: int = option(100, "most sampling steps of a request", at_least=1)
    max_images: int = option(16, "most pictures of a request", at_least=1)
    max_seconds: float = option(120.0, "longest that drawing one request may take", above=0)
    max_queue: int = option(20, "most requests that wait for their turn", at_least=1)


def checked(limits: Limits, prompt, negative_prompt, seed, num_images, strength, **settings) -> dict:
    """What `LatentDiffusion.generate` is given for a request.

    Args:
        limits: of the server.
        settings: `steps`, `guidance_scale`, `guidance_interval`, `sampler` and `karras`.

    All values are JSON of any type. A number without a fraction counts as whole.

    Raises:
        InputError: one of the wrong type, out of range, or over a limit.
    """
    for name, text in (("prompt", prompt), ("negative prompt", negative_prompt)):
        check_text(name, text)
    if not prompt.strip():
        raise InputError("the prompt is empty: say what to draw")
    seed, num_images, steps = (_whole(value) for value in (seed, num_images, settings["steps"]))
    check_whole("number of pictures", num_images, 1, limits.max_images)
    check_whole("steps", steps, 1, limits.max_steps)
    check_whole("seed", seed, 0, LARGEST_SEED - (num_images - 1))
    check_number("strength", strength, 0, 1)
    settings = {**settings, "steps": steps}
    Settings(**settings)
    return settings | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_images": num_images,
        "strength": strength,
    }


def check_text(name: str, text):
    """Raises `InputError` where it is no text, too long, or no file could hold it."""
    if not isinstance(text, str):
        raise InputError(f"the {name} is {shown(text)}: give a text")
    if len(text) > LONGEST_PROMPT:
        raise InputError(f"the {name} has {len(text)} characters, of which {LONGEST_PROMPT} are the most")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # JSON can hold halves of a character
        raise InputError(f"the {name} has characters that no file can hold: type it anew")


def _whole(value):
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fitted_picture(file, size) -> np.ndarray:
    """A stranger's picture, its middle cropped to the shape of `size` and scaled, uint8 (height, width, 3).

    Args:
        file: a path.
        size: (width, height).

    Raises:
        InputError: it cannot be opened, see `sd_tf.data.opening`.
    """
    return np.asarray(_fitted(_open("the file", file), size))


def fitted_mask(files, size) -> np.ndarray:
    """Where layers of strokes are, bool (height, width): pixels of which a quarter is covered, or more."""
    if len(files) > MOST_LAYERS:
        raise InputError(
            f"the picture has {len(files)} layers of strokes, of which {MOST_LAYERS} are the most"
        )
    mask = np.zeros(size[::-1], bool)
    for file in files:
        strokes = np.asarray(_open("the mask", file, BLACK)).max(axis=-1) > 127
        mask |= np.asarray(_fitted(Image.fromarray(strokes.astype(np.uint8) * 255), size)) > 63
    return mask


def enlarged(picture, side: int) -> np.ndarray:
    """Each pixel repeated until the longer side has about `side`; `fitted_picture` gives back the same."""
    factor = max(1, side // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _open(name, file, background=(255, 255, 255)):
    try:
        return open_picture(file, background)
    except InputError as error:
        raise InputError(f"{name} {error}") from None


def _fitted(picture, size):
    return ImageOps.fit(picture, size, Image.Resampling.BOX)  # means, which repeated pixels are their own of

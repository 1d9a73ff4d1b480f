"""Models of any family that enlarge pictures in one call, alone or as the last stage of a cascade."""

from pathlib import Path
from typing import Protocol

import numpy as np

from sd_tf.errors import InputError, shown
from sd_tf.generation.pictures import checked_image
from sd_tf.generation.request import Request

LARGEST_PICTURE = 4096**2  # pixels


class Enlarger(Protocol):
    """What a cascade asks of the model that enlarges what its own stages draw.

    Attributes:
        image_size: (height, width) of what it makes.
        small_size: (height, width) of what it enlarges; None if it enlarges nothing.
        number_of_weights: of the network that enlarges.
    """

    image_size: tuple[int, int]
    small_size: tuple[int, int] | None
    number_of_weights: int

    def enlarge(self, images, request, draw=0, *, engine="auto", progress=True) -> np.ndarray:
        """Enlarges the pictures of a request, uint8 (number, *image_size, 3).

        Args:
            images: uint8 (number, *small_size, 3).
            request: a `Request` or an `Interpolation`, whose prompts it reads by its own text encoder.
            draw: number of the noise that it takes (`Request.noise`).
            engine: one of `sd_tf.generation.engines.ENGINES`.
            progress: whether to show a bar.

        Raises:
            InputError: it cannot read the prompts, or the pictures have another size.
        """

    def read_networks(self):
        """Reads networks that are still unread; their files may then be deleted."""

    def weights_sha256(self) -> str:
        """A hash of all weights."""

    def save(self, folder: Path, dtype="float32", max_shard_size="10GB"):
        """Writes a folder of its own, which `sd_tf.load` opens."""


def pictures_to_enlarge(image, multiple=1, most=LARGEST_PICTURE) -> np.ndarray:
    """Pictures that a user gives to be enlarged, uint8 (number, height, width, 3).

    Args:
        image, multiple, most: as of `checked_image`; several are an array of four axes or a list.

    Raises:
        InputError: there is none, or `checked_image` refuses one.
    """
    is_several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
    number = len(image) if is_several else 1
    if not number:
        raise InputError("image is an empty list: give one picture at least")
    return checked_image(image, number, multiple, most)


def request_of_pictures(prompt, number, negative_prompt, seed, batch_size) -> Request:
    """The `Request` of pictures to enlarge, one for each.

    Args:
        prompt: what they show: a string for all, or a list with one for each; "" says nothing.
        number: of pictures.
        negative_prompt, seed, batch_size: as of `Request`.

    Raises:
        InputError: an argument is of the wrong type or out of range.
    """
    prompts = [prompt] * number if isinstance(prompt, str) else prompt
    if (
        not isinstance(prompts, (list, tuple))
        or len(prompts) != number
        or not all(isinstance(each, str) for each in prompts)
    ):
        raise InputError(f"prompt is {shown(prompt)}: give one, or {number}, one for each picture")
    return Request(prompts, negative_prompt, 1, seed, batch_size, may_be_empty=True)

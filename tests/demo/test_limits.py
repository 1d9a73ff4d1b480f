"""Requests to the page: what is passed on, what is refused, and pictures of any size made to fit."""

import math

import numpy as np
import pytest
from PIL import Image

from sd_tf.demo.limits import (
    LONGEST_PROMPT,
    Limits,
    checked,
    enlarged,
    fitted_mask,
    fitted_picture,
)
from sd_tf.errors import InputError

LIMITS = Limits(max_steps=10, max_images=4)
REQUEST = {
    "prompt": "a red dress",
    "negative_prompt": "",
    "seed": 5,
    "num_images": 2,
    "strength": 0.8,
    "steps": 10,
    "sampler": "ddim",
    "karras": False,
    "guidance_scale": 3,
    "guidance_interval": [0, 1],
}


def save(file, pixels):
    Image.fromarray(pixels).save(file)
    return str(file)


def test_a_request_within_the_limits_is_passed_on_as_generate_takes_it():
    assert checked(LIMITS, **REQUEST) == REQUEST
    whole = checked(LIMITS, **REQUEST | {"steps": 10.0, "seed": 2.0})  # as JSON of some clients has it
    assert (whole["steps"], whole["seed"]) == (10, 2) and isinstance(whole["steps"], int)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("prompt", " ", "prompt is empty"),
        ("prompt", None, "the prompt is None: give a string"),
        ("prompt", ["a", "b"], "give a string"),
        ("prompt", "x" * (LONGEST_PROMPT + 1), "2001 characters: give 2000 or fewer"),
        ("prompt", "a \ud800 dress", "characters that are not valid Unicode"),
        ("negative_prompt", 3, "the negative prompt is 3: give a string"),
        ("negative_prompt", "x" * (LONGEST_PROMPT + 1), "2001 characters"),
        ("num_images", 5, "number of pictures is 5: give a whole number from 1 to 4"),
        ("num_images", 0, "from 1 to 4"),
        ("num_images", 1.5, "number of pictures is 1.5"),
        ("steps", 11, "steps is 11: give a whole number from 1 to 10"),
        ("steps", True, "steps is True"),
        ("steps", "10", "steps is '10'"),
        ("seed", 2**32 - 1, "seed is 4294967295"),  # the second picture's would be too large
        ("seed", None, "seed is None"),
        ("sampler", "dim", "did you mean 'ddim'"),
        ("sampler", {}, "unknown sampler"),
        ("guidance_scale", math.nan, "guidance_scale is nan"),
        ("guidance_scale", math.inf, "guidance_scale is inf"),
        ("guidance_scale", "3", "guidance_scale is '3'"),
        ("guidance_interval", [0.8, 0.2], "give the lower number first"),
        ("guidance_interval", [None, 1], "guidance_interval is None"),
        ("strength", 1.1, "strength is 1.1: give a number from 0 to 1"),
        ("strength", None, "strength is None"),
    ],
)
def test_what_is_over_the_limits_or_of_another_type_is_refused_by_its_name(name, value, message):
    with pytest.raises(InputError, match=message):
        checked(LIMITS, **REQUEST | {name: value})


@pytest.mark.parametrize("name", ["max_steps", "max_images", "max_seconds", "max_queue"])
def test_limits_that_allow_nothing_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is 0: give "):
        Limits(**{name: 0})


def test_a_drawn_picture_comes_back_from_its_enlargement_to_the_bit(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    large = enlarged(drawn, 512)
    assert large.shape == (512, 384, 3)
    assert (fitted_picture(save(tmp_path / "large.png", large), (24, 32)) == drawn).all()


def test_a_picture_of_another_shape_gives_its_middle(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200
    assert (fitted_picture(save(tmp_path / "wide.png", wide), (16, 16)) == 200).all()
    small = np.full((3, 2, 3), 7, np.uint8)
    assert (fitted_picture(save(tmp_path / "small.png", small), (16, 16)) == 7).all()


def test_strokes_of_any_colour_mask_the_pixels_of_which_they_cover_a_quarter(tmp_path):
    strokes = np.zeros((64, 64, 4), np.uint8)
    strokes[:8, :8] = (255, 0, 255, 178)  # four pixels of 4 x 4, as the page's own brush paints
    strokes[32:34, 32:34] = (0, 255, 0, 255)  # a quarter of one
    strokes[60, 60] = (255, 255, 255, 255)  # a sixteenth
    expected = np.zeros((16, 16), bool)
    expected[:2, :2] = expected[8, 8] = True
    assert (fitted_mask([save(tmp_path / "strokes.png", strokes)], (16, 16)) == expected).all()
    assert not fitted_mask([], (16, 16)).any()


def test_files_that_are_no_pictures_are_refused_without_their_path(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for file in (tmp_path / "text.png", tmp_path / "nothing.png"):
        with pytest.raises(InputError, match="the file cannot be read as a picture") as error:
            fitted_picture(file, (16, 16))
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(InputError, match="the mask cannot be read"):
        fitted_mask([tmp_path / "text.png"], (16, 16))
    with pytest.raises(InputError, match="5 layers of strokes: send 4 or fewer"):
        fitted_mask(["none.png"] * 5, (16, 16))

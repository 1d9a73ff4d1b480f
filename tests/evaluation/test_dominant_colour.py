"""The colour of a picture on white, against colours that are known: drawn ones, and captions of real ones."""

import numpy as np
import pytest

from sd_tf.data.open import open_data
from sd_tf.evaluation.dominant_colour import COLOURS, cielab, dominant_colour, white_ground

SRGB = {
    "black": (25, 25, 28),
    "blue": (60, 120, 200),
    "brown": (140, 95, 60),
    "gray": (140, 140, 140),
    "green": (90, 170, 80),
    "pink": (240, 150, 180),
    "purple": (130, 90, 170),
    "red": (210, 50, 50),
    "white": (225, 225, 230),
    "yellow": (240, 210, 60),
}


def drawing(colour, side=32):
    """A disc of a colour on white, with a dark outline and a bright light on it."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(x, y)
    image = np.full((side, side, 3), 255, np.uint8)
    image[radius < 12] = colour
    image[(radius >= 11) & (radius < 12)] = 20
    image[np.hypot(x + 4, y + 4) < 2] = 255
    return image


def test_a_drawing_has_the_colour_it_is_painted_in():
    found = dominant_colour(np.stack([drawing(SRGB[name]) for name in COLOURS]))
    assert [COLOURS[i] for i in found] == list(COLOURS)


def test_lights_inside_a_drawing_are_not_ground_and_an_empty_page_is_white():
    image = drawing(SRGB["red"])
    ground = white_ground(image[None])[0]
    assert ground[0, 0] and not ground[12, 12] and image[12, 12].min() == 255
    assert dominant_colour(np.full((1, 8, 8, 3), 255, np.uint8))[0] == COLOURS.index("white")


def test_cielab_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    colours = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    np.testing.assert_allclose(cielab(colours), color.rgb2lab(colours), atol=0.02)


def test_cielab_of_known_colours():
    """As published of sRGB red, and the two ends of gray."""
    found = cielab(np.array([(255, 0, 0), (255, 255, 255), (0, 0, 0)], np.uint8))
    np.testing.assert_allclose(found, [(53.24, 80.09, 67.20), (100, 0, 0), (0, 0, 0)], atol=0.03)


def test_real_drawings_have_the_colour_of_their_captions_as_often_as_is_said(data_dir, tmp_path):
    dataset = open_data("pokemon", data_dir=data_dir).at(64, tmp_path)
    dataset.decode(progress=False)
    examples = dataset.examples(range(len(dataset)), 0)
    named = [COLOURS.index(caption.split()[4]) for caption in examples.captions]
    right = dominant_colour(examples.images) == named
    assert 0.66 <= right.mean() <= 0.74

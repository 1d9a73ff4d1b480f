import numpy as np
import pytest

from sd_tf.data.captions import CLASS_NAMES, COLOUR_NAMES, PALETTE, parse
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.evaluation import alignment


def test_prompts_say_the_class_and_the_colour_they_are_for():
    for label in range(len(CLASS_NAMES)):
        for colour in (None, *range(len(COLOUR_NAMES))):
            assert parse(alignment.prompt_for(label, colour)) == (label, colour)
    assert alignment.prompt_for(9, None) == "an ankle boot"
    assert alignment.prompt_for(3, 0) == "a red dress"
    assert alignment.prompt_for(8, 1) == "an orange bag"


def test_mean_colour_weighs_pixels_by_their_brightness():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (200, 0, 0)
    image[0, 1, 1] = (0, 100, 0)
    np.testing.assert_allclose(alignment.mean_colour(image), [[200 * 200 / 300, 100 * 100 / 300, 0]])


@pytest.mark.parametrize("shade", [1.0, 0.5, 0.2])
def test_a_shaded_colour_keeps_its_name(shade):
    images = np.round(np.array(PALETTE) * shade).astype(np.uint8)[:, None, None, :].repeat(4, 1).repeat(4, 2)
    np.testing.assert_array_equal(alignment.nearest_colour(images), np.arange(len(PALETTE)))


def test_real_tinted_pictures_have_the_colour_of_their_caption(data_dir):
    examples = FashionMNIST("test", data_dir).examples(np.arange(4000), 0)
    colours = examples.groups % 9 - 1
    tinted = colours >= 0
    right = alignment.nearest_colour(examples.images[tinted]) == colours[tinted]
    assert right.mean() > 0.995

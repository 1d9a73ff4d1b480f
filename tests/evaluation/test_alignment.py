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


class _Oracle:
    """Stands for a trained classifier: reads the class from the brightness of the upper left pixel."""

    def predict(self, pictures, batch_size, verbose):
        level = np.round(pictures[:, 0, 0, 0] * 255 / 20).astype(int)
        return np.eye(13)[level][:, :10]


def _drawn(prompts, num_images, wrong_class=None, wrong_colour=None):
    images = []
    for prompt in prompts:
        label, colour = parse(prompt)
        label = wrong_class if wrong_class is not None else label
        colour = wrong_colour if colour is not None and wrong_colour is not None else colour
        rgb = np.array(PALETTE[colour] if colour is not None else (255, 255, 255), float)
        level = rgb * (20 * label / 255)
        images += [np.broadcast_to(np.round(level), (32, 32, 3)).astype(np.uint8)] * num_images
    return np.stack(images)


def test_perfect_pictures_score_one_and_wrong_ones_what_chance_gives():
    report, grey, tinted = alignment.class_and_colour_accuracy(_drawn, _Oracle(), per_class=2, per_pair=1)
    assert report["class_accuracy"] == 1.0
    assert report["class_accuracy_by_class"] == dict.fromkeys(CLASS_NAMES, 1.0)
    assert grey.shape == (20, 32, 32, 3) and tinted.shape == (80, 32, 32, 3)

    report, _, _ = alignment.class_and_colour_accuracy(
        lambda prompts, n: _drawn(prompts, n, wrong_class=4, wrong_colour=4), _Oracle(), 2, 1
    )
    assert report["class_accuracy"] == pytest.approx(0.1)
    assert report["tinted_class_accuracy"] == pytest.approx(0.1)
    assert report["colour_accuracy"] == pytest.approx(1 / 8)
    assert report["colour_accuracy_by_colour"]["blue"] == 1.0

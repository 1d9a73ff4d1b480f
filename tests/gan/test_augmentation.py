"""What a discriminator sees is moved, mirrored and cut into as the numbers say, at every size alike."""

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.gan.augmentation import NUMBERS, augmented
from sd_tf.gan.config import Augmentation

RNG = np.random.default_rng(0)
PICTURES = RNG.standard_normal((3, 8, 8, 2)).astype("float32")
MIDDLE = np.full((3, NUMBERS), 0.5, "float32")


def moved(axis, pixels, side=8, translation=0.5):
    """Numbers that move pictures by that many pixels along an axis."""
    numbers = MIDDLE.copy()
    numbers[:, axis] = (pixels / (translation * side) + 1) / 2
    return numbers


def test_numbers_in_the_middle_change_nothing():
    np.testing.assert_allclose(augmented(PICTURES, MIDDLE, Augmentation(0.5, 0.0, True)), PICTURES, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pixels", [-3, 2])
def test_whole_pixels_are_moved_and_the_edge_goes_on(axis, pixels):
    found = np.asarray(augmented(PICTURES, moved(axis, pixels), Augmentation(0.5)))
    places = np.clip(np.arange(8) - pixels, 0, 7)
    np.testing.assert_allclose(found, np.take(PICTURES, places, axis=axis + 1), atol=1e-5)


def test_half_pixels_are_means():
    found = np.asarray(augmented(PICTURES, moved(1, 0.5), Augmentation(0.5)))
    np.testing.assert_allclose(found[:, :, 1:], (PICTURES[:, :, 1:] + PICTURES[:, :, :-1]) / 2, atol=1e-5)


def test_half_of_the_pictures_are_mirrored():
    numbers = MIDDLE.copy()
    numbers[:, 2] = (0.2, 0.7, 0.4)
    found = np.asarray(augmented(PICTURES, numbers, Augmentation(0.0, 0.0, True)))
    for i, mirrored in enumerate((True, False, True)):
        np.testing.assert_allclose(found[i], PICTURES[i, :, ::-1] if mirrored else PICTURES[i], atol=1e-6)
    np.testing.assert_allclose(augmented(PICTURES, numbers, Augmentation(0.0)), PICTURES, atol=1e-6)


def test_a_square_is_blotted_out():
    found = np.asarray(augmented(np.ones((3, 8, 8, 1), "float32"), MIDDLE, Augmentation(0.0, 0.5)))
    expected = np.ones((8, 8))
    expected[2:6, 2:6] = 0
    np.testing.assert_allclose(found[..., 0], np.stack([expected] * 3), atol=1e-6)


def test_a_pyramid_is_changed_alike():
    large = np.kron(PICTURES, np.ones((1, 2, 2, 1), "float32"))
    small, big = augmented((PICTURES, large), moved(0, 2), Augmentation(0.5, 0.5, True))
    pooled = np.asarray(big).reshape(3, 8, 2, 8, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(pooled[:, 1:-1, 1:-1], np.asarray(small)[:, 1:-1, 1:-1], atol=1e-5)


def test_gradients_flow_through_twice():
    x = tf.constant(PICTURES)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            score = tf.reduce_sum(augmented(x, moved(0, 1.3), Augmentation(0.5, 0.5, True)) ** 3)
        first = inner.gradient(score, x)
    second = outer.gradient(first, x)
    assert float(tf.reduce_max(tf.abs(second))) > 0.1

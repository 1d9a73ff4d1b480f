import keras
import numpy as np
import pytest

from sd_tf.nn.perceptual import WIDTHS, PerceptualNetwork
from tests.conftest import shake_variables


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    made = PerceptualNetwork(num_classes=7)
    made.build()
    return shake_variables(made, scale=0.05)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 24, 16, 3)).astype("float32")


def test_each_level_halves_the_picture(network, images):
    shapes = [tuple(level.shape) for level in network.maps(images)]
    assert shapes == [(3, 24 // 2**i, 16 // 2**i, width) for i, width in enumerate(WIDTHS, 1)]
    assert network(images).shape == (3, 7)


def test_a_picture_is_at_no_distance_from_itself_and_from_others_at_that_of_the_formula(network, images):
    np.testing.assert_allclose(network.distance(images, images), 0, atol=1e-6)
    found = np.asarray(network.distance(images, images[::-1]))
    np.testing.assert_allclose(found, np.asarray(network.distance(images[::-1], images)), rtol=1e-5)
    assert found[1] == 0 and (found[[0, 2]] > 1e-3).all()
    expected = 0.0  # LPIPS, equation 1, with all weights 1
    for a, b in zip(network.maps(images), network.maps(images[::-1]), strict=True):
        a, b = (np.asarray(each) for each in (a, b))
        a, b = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (a, b))
        expected = expected + np.square(a - b).sum(axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=0.1)  # but for what keeps gradients finite


def test_gradients_are_finite_where_pictures_are_the_same_and_where_there_is_nothing(network):
    import tensorflow as tf

    black = tf.Variable(-tf.ones((2, 16, 16, 3)))
    for other in (black, tf.zeros_like(black)):
        with tf.GradientTape() as tape:
            distance = network.distance(black, tf.stop_gradient(other))
        assert np.isfinite(tape.gradient(distance, black)).all()

"""The losses of both players by their formulas, and R1 by a gradient that is known."""

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.errors import InputError
from sd_tf.gan.losses import (
    clip_loss,
    discriminator_loss,
    divergence,
    generator_loss,
    matching_loss,
    reconstruction_loss,
)
from sd_tf.training.gradient_penalty import gradient_penalty

RNG = np.random.default_rng(0)
REAL, FAKE = (RNG.standard_normal((3, 4)).astype("float32") for _ in range(2))


def softplus(x):
    return np.log1p(np.exp(np.asarray(x, np.float64)))


def test_non_saturating_losses_are_cross_entropies():
    found = discriminator_loss(REAL, FAKE, "non_saturating")
    np.testing.assert_allclose(found, (softplus(FAKE) + softplus(-REAL)).mean(axis=1), rtol=1e-5)
    found = generator_loss(None, FAKE, "non_saturating")
    np.testing.assert_allclose(found, softplus(-FAKE).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(matching_loss(FAKE), softplus(FAKE).mean(axis=1), rtol=1e-5)


def test_relativistic_losses_are_of_differences_and_of_nothing_else():
    for loss, sign in ((discriminator_loss, 1), (generator_loss, -1)):
        found = loss(REAL, FAKE)
        np.testing.assert_allclose(found, softplus(sign * (FAKE - REAL)).mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(loss(REAL + 7, FAKE + 7), found, rtol=1e-4)
    np.testing.assert_allclose(
        matching_loss(FAKE, REAL, "relativistic"), softplus(FAKE - REAL).mean(axis=1), rtol=1e-5
    )
    with pytest.raises(InputError, match="hinge"):
        discriminator_loss(REAL, FAKE, "hinge")


def test_the_divergence_is_that_of_torch_and_a_reconstruction_is_off_by_its_mean_difference():
    torch = pytest.importorskip("torch")
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    mean, deviation = torch.from_numpy(REAL), torch.from_numpy(np.exp(0.5 * FAKE))
    expected = kl(normal(mean, deviation), normal(0.0, 1.0)).sum(dim=1)
    np.testing.assert_allclose(divergence(REAL, FAKE), expected, rtol=1e-5)
    drawn, pictures = (RNG.standard_normal((2, 4, 4, 3)).astype("float32") for _ in range(2))
    found = reconstruction_loss(drawn, pictures)
    np.testing.assert_allclose(found, np.abs(drawn - pictures).reshape(2, -1).mean(axis=1), rtol=1e-5)


def test_the_penalty_of_a_quadratic_judge_is_known_and_so_is_its_gradient():
    pictures = RNG.standard_normal((2, 3, 3, 1)).astype("float32")
    weight = tf.Variable(1.5)

    def judge(x):  # two judgements, whose sum over the root of 2 has the gradient 3 / sqrt(2) w x
        squares = tf.reduce_sum(tf.square(x), axis=(1, 2, 3))
        return weight * tf.stack([squares, 0.5 * squares], axis=1)

    with tf.GradientTape() as tape:
        logits, penalty = gradient_penalty(judge, tf.constant(pictures))
    squares = np.square(pictures).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(logits[:, 0], 1.5 * squares, rtol=1e-5)
    np.testing.assert_allclose(penalty, (3 / np.sqrt(2) * 1.5) ** 2 * squares, rtol=1e-5)
    slope = float(tape.gradient(penalty, weight))
    assert slope == pytest.approx(9 * 1.5 * squares.sum(), rel=1e-5)


def test_the_penalty_of_a_pyramid_is_the_sum_over_its_pictures():
    pyramid = tuple(tf.constant(RNG.standard_normal((2, side, side, 1)), tf.float32) for side in (2, 4))

    def judge(pictures):
        return tf.stack([tf.reduce_sum(each, axis=(1, 2, 3)) for each in pictures], axis=1)

    _, penalty = gradient_penalty(judge, pyramid)
    np.testing.assert_allclose(penalty, [(4 + 16) / 2] * 2, rtol=1e-6)


def test_clip_is_content_where_each_picture_is_nearest_to_its_text():
    features = np.eye(4, dtype="float32")
    groups = np.arange(4)
    right = np.asarray(clip_loss(features, features, np.log(100.0), groups))
    wrong = np.asarray(clip_loss(features[::-1], features, np.log(100.0), groups))
    assert right.max() < 1e-3 and wrong.min() > 10
    same = np.asarray(clip_loss(np.ones((4, 1)), np.ones((4, 1)), np.log(100.0), np.zeros(4, int)))
    np.testing.assert_allclose(same, np.log(4), rtol=1e-5)  # one text: none of them is wrong

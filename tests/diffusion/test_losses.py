"""The loss is 0 for a perfect network, and the mean squared error of each example otherwise."""

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.config import ScheduleConfig
from sd_tf.diffusion.losses import diffusion_loss
from sd_tf.diffusion.schedules import NoiseSchedule

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
T = tf.constant([0, 350, 999])


@pytest.fixture
def pair():
    """Clean latents and noise, (3, 8, 8, 4)."""
    return [tf.constant(x) for x in np.random.default_rng(0).normal(size=(2, 3, 8, 8, 4)).astype("float32")]


def exact_target(prediction_type, latents, noise, schedule):
    level = schedule.alphas_cumprod[T.numpy()].reshape(3, 1, 1, 1)
    velocity = np.sqrt(level) * noise.numpy() - np.sqrt(1 - level) * latents.numpy()
    return {"epsilon": noise.numpy(), "sample": latents.numpy(), "v_prediction": velocity}[prediction_type]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_perfect_network_has_no_loss(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
    perfect = tf.constant(exact_target(prediction_type, *pair, schedule), "float32")
    loss = diffusion_loss(lambda x, t, context: perfect, pair[0], None, T, pair[1], schedule)
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_is_the_mean_squared_error_of_each_example_eagerly_and_compiled(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
    offsets = np.array([0.0, 0.5, 2.0], "float32").reshape(3, 1, 1, 1)
    output = exact_target(prediction_type, *pair, schedule) + offsets

    def network(x, t, context):
        return tf.constant(output, "float32")

    @tf.function
    def compiled(latents, t, noise):
        return diffusion_loss(network, latents, None, t, noise, schedule)

    for loss in (diffusion_loss(network, pair[0], None, T, pair[1], schedule), compiled(pair[0], T, pair[1])):
        assert loss.shape == (3,)
        np.testing.assert_allclose(loss, [0.0, 0.25, 4.0], rtol=1e-5, atol=1e-12)


def test_network_sees_the_noised_latents_their_timesteps_and_the_context(pair):
    schedule, seen, context = NoiseSchedule(ScheduleConfig()), [], tf.ones((3, 5, 6))

    def network(*arguments):
        seen.append(arguments)
        return arguments[0]

    diffusion_loss(network, pair[0], context, T, pair[1], schedule)
    [(noisy, t, handed)] = seen
    level = schedule.alphas_cumprod[T.numpy()].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(noisy, np.sqrt(level) * pair[0] + np.sqrt(1 - level) * pair[1], atol=1e-6)
    np.testing.assert_array_equal(t, T)
    assert handed is context


def test_half_precision_output_is_compared_in_float32(pair):
    # 300 squared is past float16's largest number, 65504.
    latents, noise = pair[0], tf.zeros_like(pair[1])
    loss = diffusion_loss(
        lambda x, t, context: tf.fill(x.shape, tf.constant(300.0, "float16")),
        latents, None, T, noise, NoiseSchedule(ScheduleConfig()),
    )  # fmt: skip
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, [90000.0] * 3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_gradient_is_that_of_the_mean_squared_error(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
    bias = tf.Variable(np.full((1, 1, 1, 4), 0.3, "float32"))
    with tf.GradientTape() as tape:
        loss = diffusion_loss(lambda x, t, context: 0 * x + bias, pair[0], None, T, pair[1], schedule)
    target = exact_target(prediction_type, *pair, schedule)
    expected = 2 / 4 * np.mean(0.3 - target, axis=(1, 2)).sum(axis=0)  # 4 channels share each mean
    np.testing.assert_allclose(tf.reshape(tape.gradient(loss, bias), -1), expected, rtol=1e-4)

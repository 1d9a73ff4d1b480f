"""Noise, velocity and clean latents convert into one another without loss."""

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.conditions import Condition
from sd_tf.diffusion.levels import Level
from sd_tf.diffusion.predictions import denoiser, to_prediction, training_target
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
TIMESTEPS = np.array([0, 1, 300, 999])


def schedule_of(prediction_type):
    return NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))


def predicted(output, noisy, t, schedule):
    return to_prediction(output, noisy, *schedule.rates(t, noisy), schedule.config.prediction_type)


@pytest.fixture
def pair():
    """Clean latents and noise, (4, 3, 3, 2), one example for each of TIMESTEPS."""
    return [tf.constant(x) for x in np.random.default_rng(0).normal(size=(2, 4, 3, 3, 2)).astype("float32")]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_perfect_output_gives_back_the_latents_and_the_noise(prediction_type, pair):
    schedule, (latents, noise) = schedule_of(prediction_type), pair
    noisy = schedule.add_noise(latents, noise, TIMESTEPS)
    output = training_target(latents, noise, TIMESTEPS, schedule)
    prediction = predicted(output, noisy, TIMESTEPS, schedule)
    # At t = 0 noise is 0.03 of x, at t = 999 latents are 0.07 of it: float32's 1e-7 grows by that much.
    np.testing.assert_allclose(prediction.x0, latents, atol=1e-5)
    np.testing.assert_allclose(prediction.noise, noise, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_output_to_parts_and_back_is_the_identity(prediction_type, pair):
    schedule, (output, noisy) = schedule_of(prediction_type), pair
    prediction = predicted(output, noisy, TIMESTEPS, schedule)
    again = training_target(prediction.x0, prediction.noise, TIMESTEPS, schedule)
    np.testing.assert_allclose(again, output, atol=1e-6)
    mixed = schedule.add_noise(prediction.x0, prediction.noise, TIMESTEPS)
    np.testing.assert_allclose(mixed, noisy, atol=1e-5)


@pytest.mark.parametrize("rescaled", [False, True])
def test_velocity_target_is_that_of_diffusers(rescaled, pair):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    reference = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=rescaled
    )
    expected = reference.get_velocity(*(torch.tensor(x.numpy()) for x in pair), torch.tensor(TIMESTEPS))
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=rescaled))
    np.testing.assert_allclose(training_target(*pair, TIMESTEPS, schedule), expected.numpy(), atol=2e-6)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_latents_come_back_from_a_timestep_without_signal(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type, rescale_betas_zero_snr=True))
    latents, noise = pair
    for t in (999, tf.fill((4,), 999)):
        noisy = schedule.add_noise(latents, noise, t)
        np.testing.assert_array_equal(noisy, noise)
        prediction = predicted(training_target(latents, noise, t, schedule), noisy, t, schedule)
        np.testing.assert_array_equal(prediction.x0, latents)
        np.testing.assert_array_equal(prediction.noise, noise)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_int_scalar_and_batched_timestep_give_the_same_prediction_eagerly_and_compiled(prediction_type, pair):
    schedule, (output, noisy) = schedule_of(prediction_type), pair
    expected = predicted(output, noisy, 600, schedule)
    compiled = tf.function(lambda t: predicted(output, noisy, t, schedule))
    for t in (tf.constant(600), tf.fill((4,), 600)):
        for prediction in (predicted(output, noisy, t, schedule), compiled(t)):
            np.testing.assert_allclose(prediction.x0, expected.x0, atol=2e-6)
            np.testing.assert_allclose(prediction.noise, expected.noise, atol=2e-6)


def test_half_precision_output_is_converted_in_the_precision_of_the_latents(pair):
    # At t = 999 of the cosine schedule the signal rate is 5e-5: in float16, x0 would overflow.
    schedule = NoiseSchedule(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))
    output, noisy = tf.cast(pair[0], "float16"), 10 * pair[1]
    prediction = predicted(output, noisy, 999, schedule)
    level = schedule.alphas_cumprod[999]
    expected = (noisy.numpy() - np.sqrt(1 - level) * output.numpy().astype("float32")) / np.sqrt(level)
    assert prediction.x0.dtype == prediction.noise.dtype == "float32"
    np.testing.assert_allclose(prediction.x0, expected, rtol=1e-5, atol=1.0)  # x0 is of the order of 2e5


@pytest.mark.parametrize("t", [7, 7.25])
def test_denoiser_hands_the_network_a_timestep_for_each_example_and_the_condition(t, pair):
    schedule, seen = schedule_of("epsilon"), []

    def network(latents, timesteps, condition):
        seen.append((timesteps, condition))
        return 0.5 * latents

    condition = Condition(tf.ones((4, 5, 6)))
    prediction = denoiser(network, schedule, condition)(pair[0], Level(t, 0.8, 0.6))
    [(timesteps, handed)] = seen
    assert timesteps.dtype == "float32"
    np.testing.assert_array_equal(timesteps, [t] * 4)
    assert handed is condition
    np.testing.assert_allclose(prediction.noise, 0.5 * pair[0])
    np.testing.assert_allclose(prediction.x0, (pair[0] - 0.3 * pair[0]) / 0.8, rtol=1e-5)

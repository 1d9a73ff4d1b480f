"""Noise and timesteps of a graph, and of what draws with exported networks, are the model's, to the bit."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sd_tf import seeding as noise
from sd_tf.diffusion.predictions import to_prediction
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.exporting import draw
from sd_tf.exporting.sampling import inference_timesteps, normals, rates

SEEDS = [0, 1, 7, 2**31 - 1]


@pytest.mark.parametrize("shape", [(8, 8, 4), (3, 5, 1)])
def test_noise_is_the_pictures_own(shape):
    expected = noise.normals((1, 0), SEEDS, shape)
    np.testing.assert_array_equal(normals((1, 0), tf.constant(SEEDS), shape), expected)
    for seed, of_seed in zip(SEEDS, expected, strict=True):
        np.testing.assert_array_equal(draw.normals((1, 0), seed, shape), of_seed)


@pytest.mark.parametrize(
    "spacing, offset", [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
@pytest.mark.parametrize("timesteps", [1000, 77])
def test_timesteps_are_the_schedules(spacing, offset, timesteps):
    config = ScheduleConfig(num_train_timesteps=timesteps, timestep_spacing=spacing, steps_offset=offset)
    schedule = NoiseSchedule(config)
    visited = tf.function(lambda steps: inference_timesteps(config, steps), [tf.TensorSpec([], tf.int32)])
    for steps in range(1, timesteps + 1 - offset):
        expected = schedule.inference_timesteps(steps)
        np.testing.assert_array_equal(visited(steps), expected, f"{steps} steps")
        np.testing.assert_array_equal(draws(config).timesteps(steps), expected, f"{steps} steps")


def draws(config):
    """A `draw.Stage` of this schedule, without a network."""
    settings = dataclasses.asdict(config) | {"alphas_cumprod": [0.5] * config.num_train_timesteps}
    return draw.Stage(settings, None)


@pytest.mark.parametrize("steps", [0, 78, 77])
def test_steps_that_do_not_fit_are_refused(steps):
    config = ScheduleConfig(num_train_timesteps=77, timestep_spacing="leading", steps_offset=1)
    with pytest.raises(InputError):
        NoiseSchedule(config).inference_timesteps(steps)
    with pytest.raises(SystemExit, match=f"error: steps is {steps}: give "):
        draws(config).timesteps(steps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_networks_say_is_read_as_by_the_model(kind):
    output, x = np.random.default_rng(0).standard_normal((2, 1, 8, 8, 4), "float32")
    expected = to_prediction(output, x, 0.6, 0.8, kind)
    found = draws(ScheduleConfig(prediction_type=kind))._parts(output, x, 0.6, 0.8)
    for ours, theirs in zip(found, (expected.x0, expected.noise), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("to_one", [True, False])
def test_rates_end_where_ddim_ends(to_one):
    schedule = NoiseSchedule(ScheduleConfig(set_alpha_to_one=to_one))
    signals, noises = rates(schedule, tf.constant([999, 500]))
    levels = [schedule.level(999), schedule.level(500), schedule.final_level]
    np.testing.assert_array_equal(signals, np.float32([level.signal for level in levels]))
    np.testing.assert_array_equal(noises, np.float32([level.noise for level in levels]))


@pytest.mark.parametrize("maximum, bound", [(None, 2.5), (1.5, 1.5)])
def test_thresholding_is_read_by_its_names(maximum, bound):
    """Whatever the order in which a settings.json has them."""
    x0 = np.linspace(-2.5, 2.5, 8 * 8 * 3, dtype="float32").reshape(1, 8, 8, 3)
    stage = draw.Stage({"thresholding": {"maximum": maximum, "percentile": 1.0, "kind": "dynamic"}}, None)
    np.testing.assert_allclose(stage._in_range(x0), np.clip(x0, -bound, bound) / bound, rtol=1e-6)

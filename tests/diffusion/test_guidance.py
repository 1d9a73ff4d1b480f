"""Guidance is its formula, at the price of one network call."""

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.conditions import Condition
from sd_tf.diffusion.guidance import (
    classifier_free_guidance,
    classifier_guidance,
    levels_in_interval,
    with_restarts,
)
from sd_tf.diffusion.levels import Level, ddim_levels
from sd_tf.diffusion.predictions import Prediction, denoiser
from sd_tf.diffusion.samplers import ddim
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError

SCHEDULE = NoiseSchedule(ScheduleConfig())
LEVEL, NEXT = SCHEDULE.level(400), SCHEDULE.level(399)


class CountedNetwork:
    """A network that depends on all it is given, and remembers the size of each batch it saw."""

    def __init__(self, dtype="float32"):
        self.batches, self.dtype = [], dtype

    def __call__(self, latents, timesteps, condition):
        context = condition.context
        self.batches.append(int(latents.shape[0]))
        assert latents.shape[0] == timesteps.shape[0] == context.shape[0]
        caption = tf.reduce_mean(context, axis=(1, 2))[:, None, None, None]
        time = tf.cast(timesteps, "float32")[:, None, None, None] / 1000
        return tf.cast(tf.sin(latents + caption) + time * caption, self.dtype)


@pytest.fixture
def parts():
    """Noisy latents (2, 3, 3, 2), the conditions of two captions and of two negative ones, (2, 4, 5)."""
    rng = np.random.default_rng(0)
    shapes = (2, 3, 3, 2), (2, 4, 5), (2, 4, 5)
    x, *contexts = [tf.constant(rng.normal(size=shape), "float32") for shape in shapes]
    return [x, *map(Condition, contexts)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5])
def test_guidance_is_its_formula_for_noise_and_for_clean_latents(prediction_type, scale, parts):
    x, context, negative = parts
    schedule, network = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type)), CountedNetwork()
    guided = classifier_free_guidance(network, schedule, context, negative, scale)(x, LEVEL)
    cond, uncond = (
        denoiser(network, schedule, context)(x, LEVEL),
        denoiser(network, schedule, negative)(x, LEVEL),
    )
    for ours, c, u in zip(guided[:2], cond[:2], uncond[:2], strict=True):
        np.testing.assert_allclose(ours, u + scale * (c - u), atol=5e-6 * max(1, scale))


def test_guided_step_is_one_call_on_the_doubled_batch(parts):
    network = CountedNetwork()
    x, context, negative = parts
    classifier_free_guidance(network, NoiseSchedule(ScheduleConfig()), context, negative, 3.0)(x, LEVEL)
    assert network.batches == [4]


def test_scale_one_is_one_call_on_the_batch_itself_and_ignores_the_negative_condition(parts):
    network, schedule = CountedNetwork(), NoiseSchedule(ScheduleConfig())
    x, context, negative = parts
    guided = classifier_free_guidance(network, schedule, context, negative, 1)(x, LEVEL)
    assert network.batches == [2]
    np.testing.assert_array_equal(guided.noise, denoiser(network, schedule, context)(x, LEVEL).noise)


def test_steps_that_are_not_guided_follow_the_prompt_by_a_call_on_the_batch_itself(parts):
    network, schedule = CountedNetwork(), NoiseSchedule(ScheduleConfig())
    x, context, negative = parts
    some = classifier_free_guidance(network, schedule, context, negative, 3.0, guided_levels=[LEVEL])
    every = classifier_free_guidance(network, schedule, context, negative, 3.0)
    network.batches.clear()
    np.testing.assert_array_equal(some(x, LEVEL).x0, every(x, LEVEL).x0)
    np.testing.assert_array_equal(some(x, NEXT).x0, denoiser(network, schedule, context)(x, NEXT).x0)
    assert network.batches == [4, 4, 2, 2]


@pytest.mark.parametrize("steps", [1, 7, 25])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8), (0.15, 0.5), (0.5, 0.5), (0.0, 0.99)])
def test_an_interval_has_the_steps_that_diffusers_guides(steps, interval):
    guider = pytest.importorskip("diffusers.guiders").ClassifierFreeGuidance(3.0, 0.0, False, *interval)
    guided = []
    for step in range(steps):
        guider.set_state(step, steps, None)
        guided += [step] if guider.num_conditions == 2 else []
    assert levels_in_interval(list(range(steps)), interval) == guided


@pytest.mark.parametrize(
    ("interval", "switches"),
    [
        ((0, 1), []),
        ((0.35, 1), [3]),
        ((0.2, 0.8), [2, 8]),
        ((0, 0.5), [5]),
        ((0.5, 0.5), []),
        ((0.95, 1), [9]),
    ],
)
def test_samplers_restart_where_guidance_switches_on_and_off(interval, switches):
    levels = ddim_levels(SCHEDULE, 10)[:-1]
    marked = with_restarts(levels, interval)
    assert [i for i, level in enumerate(marked) if level.restart] == switches
    assert [level[:3] for level in marked] == [level[:3] for level in levels]


@pytest.mark.parametrize("numpy", [True, False])
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(rescale, numpy, parts):
    pipelines = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    torch = pytest.importorskip("torch", reason="diffusers runs on torch")
    x, context, negative = parts
    if numpy:
        x, context, negative = x.numpy(), context.map(np.asarray), negative.map(np.asarray)
    network = CountedNetwork()
    given = np.asarray if numpy else tf.convert_to_tensor

    def answer(*arguments):
        return given(network(*arguments))

    guide = classifier_free_guidance(answer, SCHEDULE, context, negative, 7.5, rescale=rescale)
    guided = guide(x, LEVEL).noise
    timesteps = tf.fill((2,), 400)
    cond, uncond = (torch.tensor(network(x, timesteps, c).numpy()) for c in (context, negative))
    reference = pipelines.rescale_noise_cfg(uncond + 7.5 * (cond - uncond), cond, rescale)
    np.testing.assert_allclose(guided, reference, atol=2e-5)


def test_same_captions_on_both_sides_leave_nothing_to_guide(parts):
    network, schedule = CountedNetwork(), NoiseSchedule(ScheduleConfig())
    x, context, _ = parts
    guided = classifier_free_guidance(network, schedule, context, context, 7.5)(x, LEVEL)
    np.testing.assert_allclose(guided.noise, denoiser(network, schedule, context)(x, LEVEL).noise, atol=1e-6)


def test_half_precision_network_is_guided_in_the_precision_of_the_latents(parts):
    x, context, negative = parts
    network = CountedNetwork("float16")
    guided = classifier_free_guidance(network, SCHEDULE, context, negative, 7.5)(x, LEVEL)
    timesteps = tf.fill((2,), 400)
    cond, uncond = (network(x, timesteps, c).numpy().astype("float64") for c in (context, negative))
    assert guided.noise.dtype == "float32"
    np.testing.assert_allclose(guided.noise, uncond + 7.5 * (cond - uncond), atol=1e-5)


def test_guidance_compiles_to_what_it_does_eagerly(parts):
    x, context, negative = parts
    denoise = classifier_free_guidance(CountedNetwork(), SCHEDULE, context, negative, 3.0)
    compiled = tf.function(lambda x: denoise(x, LEVEL).x0)
    np.testing.assert_allclose(compiled(x), denoise(x, LEVEL).x0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.rows(slice(1)), "the condition has 2 rows, the negative condition 1"),
        (lambda c: Condition(c.context[:, :3]), r"context has the shapes \(2, 4, 5\) and \(2, 3, 5\)"),
        (
            lambda c: c._replace(pooled=c.context[:, 0]),
            "negative condition has pooled, the condition has",
        ),
    ],
)
def test_conditions_that_differ_in_rows_shapes_or_parts_are_refused(change, message, parts):
    _, context, negative = parts
    with pytest.raises(InputError, match=message):
        classifier_free_guidance(CountedNetwork(), SCHEDULE, context, change(negative), 3.0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_learned_variance_is_that_of_the_caption_whatever_the_scale(scale, parts):
    """As in diffusers' pipelines of DeepFloyd IF, which guide epsilon alone."""
    x, context, negative = parts
    network = CountedNetwork()

    def learned(latents, timesteps, condition):
        output = network(latents, timesteps, condition)
        return tf.concat([output, 0.5 * output], axis=-1)

    guided = classifier_free_guidance(learned, SCHEDULE, context, negative, scale)(x, LEVEL)
    plain = classifier_free_guidance(network, SCHEDULE, context, negative, scale)(x, LEVEL)
    of_caption = (0.5 * denoiser(network, SCHEDULE, context)(x, LEVEL).noise + 1) / 2
    np.testing.assert_array_equal(guided.noise, plain.noise)
    np.testing.assert_allclose(guided.variance_fraction, of_caption, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_gradient_of_a_likelihood_draws_from_the_posterior(scale):
    """Data N(1, 2^2), of which 3 is seen with a deviation of 1: N(2.6, 0.8) by Bayes, N(1, 4) without."""
    prior_mean, prior_variance, seen, error = 1.0, 4.0, 3.0, 1.0

    def known(level):
        """Of x0 given x at a level: what it grows by with x, and its variance."""
        variance = (level.signal**2) * prior_variance + level.noise**2
        return level.signal * prior_variance / variance, prior_variance * level.noise**2 / variance

    def mean(x, level):
        return prior_mean + known(level)[0] * (x - level.signal * prior_mean)

    def denoise(x, level):
        x0 = mean(x, level)
        return Prediction(x0, (x - level.signal * x0) / level.noise)

    def gradient(x, level):
        growth, variance = known(level)
        return growth * (seen - mean(x, level)) / (variance + error)

    schedule = NoiseSchedule(ScheduleConfig(timestep_spacing="trailing", set_alpha_to_one=True))
    levels = ddim_levels(schedule, 1000)
    expected_mean, expected_variance = (2.6, 0.8) if scale else (prior_mean, prior_variance)
    deviation = (levels[0].signal ** 2 * expected_variance + levels[0].noise ** 2) ** 0.5
    x = levels[0].signal * expected_mean + np.array([-1.0, 1.0]) * deviation
    final = ddim(classifier_guidance(denoise, gradient, scale), x, levels, None)
    assert final.mean() == pytest.approx(expected_mean, abs=0.02)
    assert (final[1] - final[0]) / 2 == pytest.approx(expected_variance**0.5, rel=0.02)  # affine in x


def test_a_level_without_signal_is_not_guided_by_a_gradient():
    prediction = Prediction(np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
    guided = classifier_guidance(lambda x, level: prediction, None, 1.0)
    assert guided(np.ones((1, 2, 2, 1)), Level(999, 0.0, 1.0)) is prediction

"""Drawing that begins with a picture keeps what it is told to keep, and finds its way back."""

from types import SimpleNamespace

import numpy as np
import pytest

from sd_tf.diffusion.editing import (
    _noised_from,
    ddim_inversion,
    inpainting,
    levels_for_strength,
    noised,
    number_of_walks,
    resampled,
    slerp,
)
from sd_tf.diffusion.predictions import Prediction, to_prediction
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig

SHAPE = (2, 4, 4, 3)


def denoise(x, level):
    """A smooth network, of v-prediction."""
    output = np.tanh(x * np.float32(0.3 + level.t / 2000)) * np.float32(0.5)
    return to_prediction(output, x, level.signal, level.noise, "v_prediction")


@pytest.fixture
def pair():
    """Clean latents and noise."""
    return np.random.default_rng(0).standard_normal((2, *SHAPE), "float32")


@pytest.mark.parametrize("strength", [0.0, 0.04, 0.3, 0.55, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_as_many_steps_are_taken_as_diffusers_takes(steps, strength):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(steps)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline
    _, number = pipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, "cpu")
    levels = SAMPLERS["ddim"].levels(NoiseSchedule(ScheduleConfig()), steps)
    part = levels_for_strength(levels, strength)
    assert part == levels[-1 - number :]


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_kept_comes_out_as_it_was_and_the_rest_as_if_alone(name, pair):
    latents, noise = pair
    free = np.zeros((2, 4, 4, 1), "float32")
    free[:, :2] = 1
    levels = SAMPLERS[name].levels(NoiseSchedule(ScheduleConfig(set_alpha_to_one=True)), 10)[4:]
    fresh = np.random.default_rng(1).standard_normal((10, *SHAPE), "float32")
    begun = noised(latents, noise, levels[0])
    alone = SAMPLERS[name].sample(denoise, begun, levels, fresh.__getitem__)
    kept = SAMPLERS[name].sample(inpainting(denoise, latents, free), begun, levels, fresh.__getitem__)
    np.testing.assert_allclose(kept[:, 2:], latents[:, 2:], atol=1e-5)
    np.testing.assert_allclose(kept[:, :2], alone[:, :2], atol=1e-5)  # the network looks at each place alone
    assert np.abs(alone[:, 2:] - latents[:, 2:]).max() > 0.1


def filled_in(name, times):
    """2,000 pairs of values of correlation 0.9, of which the second is 1.5 and the first is drawn."""
    correlated = np.array([[1, 0.9], [0.9, 1]], "float32")

    def exact(x, level):  # the best guess of pairs that are normally distributed
        pairs, covariance = x[:, 0, :, 0], level.signal**2 * correlated + level.noise**2 * np.eye(2)
        x0 = level.signal * pairs @ np.linalg.solve(covariance, correlated).astype("float32")
        x0 = x0[:, np.newaxis, :, np.newaxis]
        return Prediction(x0, (x - level.signal * x0) / level.noise)

    random = np.random.default_rng(0)
    shape, free = (2000, 1, 2, 1), np.array([1, 0], "float32")[:, np.newaxis]
    known, levels = np.full(shape, 1.5, "float32"), SAMPLERS[name].levels(NoiseSchedule(ScheduleConfig()), 20)
    arguments = random.standard_normal(shape, "float32"), levels, lambda _: random.standard_normal(shape, "f")
    denoise, sampler = inpainting(exact, known, free), SAMPLERS[name].sample
    return resampled(sampler, denoise, *arguments, None, times)[:, 0, 0, 0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_resampling_draws_what_is_likely_beside_what_is_known(name):
    """By conditional normal distributions: mean 0.9 x 1.5, variance 1 - 0.9 squared."""
    off = [abs(filled_in(name, times).mean() - 1.35) for times in (1, 20)]
    assert off[1] < 0.15 and off[1] < off[0] / 3
    assert filled_in(name, 20).var() == pytest.approx(0.19, abs=0.08)


@pytest.mark.parametrize("name", SAMPLERS)
def test_resampling_calls_back_after_each_walk_and_draws_fresh_noise_every_time(name, pair):
    steps, asked, levels = [], [], SAMPLERS[name].levels(NoiseSchedule(ScheduleConfig()), 5)

    def noise(number):
        asked.append(number)
        return np.random.default_rng(number).standard_normal(SHAPE, "float32")

    resampled(SAMPLERS[name].sample, denoise, pair[1], levels, noise, lambda step, *_: steps.append(step), 3)
    assert steps == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4] and len(steps) == number_of_walks(5, 3)
    assert asked == list(range(len(asked))) and len(asked) >= 2 * 4


def test_noise_comes_back_as_by_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    scheduler = diffusers.RePaintScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(20, jump_length=1, jump_n_sample=1)
    schedule = NoiseSchedule(ScheduleConfig(beta_schedule="scaled_linear"))
    less, more = schedule.level(400), schedule.level(450)
    x = torch.ones(200_000)
    theirs = scheduler.undo_step(x, 401, torch.Generator().manual_seed(0)).numpy()
    ours = _noised_from(x.numpy(), less, more, np.random.default_rng(0).standard_normal(200_000))
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.005)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.01)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_inversion_takes_the_steps_of_diffusers(prediction_type, spacing, pair):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    config = ScheduleConfig(prediction_type=prediction_type, timestep_spacing=spacing)
    schedule = NoiseSchedule(config)

    def network(x, t):
        return np.tanh(x * np.float32(0.3 + t / 2000)) * np.float32(0.5)

    scheduler = diffusers.DDIMInverseScheduler(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=config.steps_offset,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(20)
    x = torch.from_numpy(pair[0])
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), int(t))), t, x).prev_sample

    def ours(x, level):
        return to_prediction(network(x, level.t), x, level.signal, level.noise, prediction_type)

    found = ddim_inversion(ours, pair[0], SAMPLERS["ddim"].levels(schedule, 20))
    np.testing.assert_allclose(found, x.numpy(), atol=2e-4)


def test_drawing_from_an_inversion_comes_back_the_closer_the_more_steps_there_are(pair):
    errors = []
    for steps in (25, 100, 400):
        levels = SAMPLERS["ddim"].levels(NoiseSchedule(ScheduleConfig()), steps)
        noise = ddim_inversion(denoise, pair[0].astype("float64"), levels)
        errors.append(np.abs(SAMPLERS["ddim"].sample(denoise, noise, levels, None) - pair[0]).max())
    assert errors[2] < 0.02 and errors[0] > 2 * errors[1] > 4 * errors[2], errors


def test_between_two_noises_deviation_stays_and_ends_are_the_two():
    first, second = np.random.default_rng(0).standard_normal((2, 64, 64, 4))
    np.testing.assert_allclose(slerp(first, second, 0.0), first, atol=1e-12)
    np.testing.assert_allclose(slerp(first, second, 1.0), second, atol=1e-12)
    for share in (0.25, 0.5, 0.75):
        assert slerp(first, second, share).std() == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(slerp(first, first, 0.3), first, atol=1e-12)

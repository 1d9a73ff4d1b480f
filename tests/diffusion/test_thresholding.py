"""Clipped and dynamically thresholded pictures are those of diffusers' schedulers, with consistent noise."""

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.levels import Level
from sd_tf.diffusion.predictions import Prediction, to_prediction
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.diffusion.thresholding import clip_x0, dynamic_thresholding
from sd_tf.errors import InputError

SHAPE = (3, 6, 6, 2)
LEVEL = Level(400, 0.6, 0.8)
WAYS = {  # ours, and the options of diffusers' schedulers
    "clipped": (clip_x0, {"clip_sample": True}),
    "clipped further out": (lambda d: clip_x0(d, 1.7), {"clip_sample": True, "clip_sample_range": 1.7}),
    "dynamic": (
        lambda d: dynamic_thresholding(d, 0.9, 1e6),
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1e6},
    ),
    "dynamic, DeepFloyd IF": (
        lambda d: dynamic_thresholding(d, 0.95, 1.5),
        {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5},
    ),
}


def network(x, t):
    """Says too much, as guidance does."""
    return np.tanh(x * np.float32(0.3 + t / 2000)) * np.float32(2.5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_samplers_arrive_where_the_schedulers_of_diffusers_do(name, way, prediction_type):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    wrap, options = WAYS[way]
    config = ScheduleConfig(prediction_type=prediction_type)
    shared = {k: v for k, v in vars(config).items() if k not in ("kept", "set_alpha_to_one", "clip_sample")}
    of_ddim = {"set_alpha_to_one": False} if name == "ddim" else {}
    kind = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[name]
    scheduler = kind(**shared, **of_ddim, **{"clip_sample": False} | options)
    schedule = NoiseSchedule(config)
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod)
    if name == "ddim":
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(10)
    noises = np.random.default_rng(0).standard_normal((11, *SHAPE), "float32")
    x = torch.from_numpy(noises[10])
    for step, t in enumerate(scheduler.timesteps.tolist()):
        output, noise = torch.from_numpy(network(x.numpy(), t)), torch.from_numpy(noises[step])
        use = {"use_clipped_model_output": True} if name == "ddim" else {}
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise):
            x = scheduler.step(output, t, x, **use).prev_sample

    def denoise(x, level):
        return to_prediction(network(x, level.t), x, level.signal, level.noise, prediction_type)

    sampler = SAMPLERS[name]
    levels = sampler.levels(schedule, 10)
    found = sampler.sample(wrap(denoise), noises[10], levels, noises.__getitem__)
    np.testing.assert_allclose(found, x.numpy(), rtol=0, atol=2e-5 * x.numpy().std())
    change = wrap(denoise)(noises[10], levels[0]).x0 - denoise(noises[10], levels[0]).x0
    assert np.abs(change).max() > 0.1


def test_dynamic_thresholding_is_imagens_formula_and_each_picture_has_its_own():
    """Saharia et al. 2022, section 2.3: s is a percentile of |x0|, and at least 1."""
    x0 = np.random.default_rng(0).standard_normal(SHAPE) * np.array([0.1, 1.0, 3.0])[:, None, None, None]
    x = 0.6 * x0 + 0.8
    given = Prediction(x0, np.ones(SHAPE), np.full(SHAPE, 0.3))
    found = dynamic_thresholding(lambda x, level: given, 0.9)(x, LEVEL)
    for before, after in zip(x0, found.x0, strict=True):
        s = max(1.0, np.quantile(np.abs(before), 0.9))
        np.testing.assert_allclose(after, np.clip(before, -s, s) / s, rtol=1e-12)
    np.testing.assert_array_equal(found.x0[0], x0[0])
    np.testing.assert_allclose(LEVEL.signal * found.x0 + LEVEL.noise * found.noise, x, rtol=1e-12)
    assert found.variance_fraction is given.variance_fraction


@pytest.mark.parametrize("wrap", [clip_x0, dynamic_thresholding])
def test_it_compiles_to_what_it_does_on_arrays(wrap):
    x = np.random.default_rng(0).standard_normal(SHAPE, "float32")

    def denoise(x, level):
        return Prediction(2 * x, 0 * x)

    compiled = tf.function(lambda x: wrap(denoise)(x, LEVEL))
    for found, expected in zip(compiled(x)[:2], wrap(denoise)(x, LEVEL)[:2], strict=True):
        assert found.dtype == "float32" and expected.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip_x0(None, 0), "the bound for clipping x0 is 0: give a number above 0"),
        (lambda: dynamic_thresholding(None, 99.5), "percentile is 99.5: give a number from 0 to 1"),
        (
            lambda: dynamic_thresholding(None, 0.9, 0.5),
            "dynamic thresholding is 0.5: give 1 or more",
        ),
    ],
)
def test_bounds_that_make_no_sense_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()

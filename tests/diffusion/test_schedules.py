"""Schedules hold the values of diffusers' files, and of the formulas they come from."""

import math

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError


def diffusers_scheduler(config, name="DDIMScheduler"):
    """diffusers' scheduler of the same configuration; its DDPM knows no `set_alpha_to_one`."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    fields = {
        k: v
        for k, v in vars(config).items()
        if k != "kept" and (name == "DDIMScheduler" or k != "set_alpha_to_one")
    }
    return getattr(diffusers, name)(**fields)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("total", [10, 1000])
def test_alphas_cumprod_are_those_of_diffusers(beta_schedule, total):
    config = ScheduleConfig(beta_schedule=beta_schedule, num_train_timesteps=total)
    schedule = NoiseSchedule(config)
    # diffusers' tables are float32, where 1 - 0.999, the cosine's last factor, holds five digits.
    np.testing.assert_allclose(
        schedule.alphas_cumprod, diffusers_scheduler(config).alphas_cumprod.numpy(), rtol=2e-5
    )
    assert schedule.alphas_cumprod.dtype == np.float64
    assert schedule.alphas_cumprod.shape == (total,)
    assert np.all(np.diff(schedule.alphas_cumprod) < 0)


def with_zero_terminal_snr(**fields):
    return ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True, **fields)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("total, tolerance", [(10, 1e-5), (1000, 1e-6)])
def test_alphas_cumprod_of_zero_terminal_snr_are_those_of_diffusers(beta_schedule, total, tolerance, name):
    config = with_zero_terminal_snr(beta_schedule=beta_schedule, num_train_timesteps=total)
    expected = diffusers_scheduler(config, name).alphas_cumprod.numpy()
    # Ten linear betas lose 3 % of the signal rate: rescaling enlarges float32's rounding 30 times.
    np.testing.assert_allclose(NoiseSchedule(config).alphas_cumprod, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("total", [2, 1000])
def test_zero_terminal_snr_begins_as_before_ends_without_signal_and_is_linear_between(beta_schedule, total):
    fields = {"beta_schedule": beta_schedule, "num_train_timesteps": total}
    before = np.sqrt(NoiseSchedule(ScheduleConfig(**fields)).alphas_cumprod)
    schedule = NoiseSchedule(with_zero_terminal_snr(**fields))
    after = np.sqrt(schedule.alphas_cumprod)
    assert schedule.alphas_cumprod[-1] == 0 and np.all(np.diff(schedule.alphas_cumprod) < 0)
    assert schedule.final_level.signal**2 == pytest.approx(before[0] ** 2, rel=1e-12)
    lengths = np.diff(after) / np.diff(before)
    np.testing.assert_allclose(lengths, np.full(total - 1, before[0] / (before[0] - before[-1])), rtol=1e-9)


@pytest.mark.parametrize(
    "fields", [{"num_train_timesteps": 1, "steps_offset": 0}, {"beta_start": 1e-30, "beta_end": 1e-30}]
)
def test_a_schedule_that_loses_no_signal_has_none_to_rescale(fields):
    with pytest.raises(InputError, match="no signal is lost that rescale_betas_zero_snr could"):
        NoiseSchedule(with_zero_terminal_snr(**fields))


def test_stable_diffusion_1_ends_at_its_published_signal_level():
    assert NoiseSchedule(ScheduleConfig()).alphas_cumprod[-1] == pytest.approx(0.004660, abs=5e-7)


def test_cosine_schedule_is_the_squared_cosine_before_its_cap():
    schedule = NoiseSchedule(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))
    for t in (0, 250, 500, 998):
        angle, start = [(time + 0.008) / 1.008 * math.pi / 2 for time in ((t + 1) / 1000, 0)]
        expected = math.cos(angle) ** 2 / math.cos(start) ** 2
        assert schedule.alphas_cumprod[t] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_the_final_level_is_that_of_diffusers(set_alpha_to_one):
    config = ScheduleConfig(set_alpha_to_one=set_alpha_to_one)
    reference = float(diffusers_scheduler(config).final_alpha_cumprod)
    assert NoiseSchedule(config).final_level.signal ** 2 == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_inference_timesteps_are_those_of_diffusers_for_any_number_of_steps(spacing, scheduler):
    config = ScheduleConfig(timestep_spacing=spacing)
    schedule, reference = NoiseSchedule(config), diffusers_scheduler(config, scheduler)
    for steps in range(1, 1000):
        reference.set_timesteps(steps)
        expected = reference.timesteps.numpy()
        expected = expected[expected >= 0]  # its trailing spacing rounds into a timestep -1, as at 61 steps
        timesteps = schedule.inference_timesteps(steps)
        np.testing.assert_array_equal(timesteps, expected, err_msg=f"{steps} steps")
        assert timesteps.dtype == np.int64
        assert timesteps.shape == (steps,)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_as_many_steps_as_timesteps_visit_each_once(spacing):
    schedule = NoiseSchedule(ScheduleConfig(timestep_spacing=spacing))
    np.testing.assert_array_equal(schedule.inference_timesteps(1000), np.arange(1000)[::-1])


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_number_of_steps_is_refused_by_its_value(steps):
    with pytest.raises(InputError, match=f"steps is {steps}: give 1 to 1000"):
        NoiseSchedule(ScheduleConfig()).inference_timesteps(steps)


def test_offset_that_leaves_the_schedule_is_refused():
    with pytest.raises(InputError, match="timestep 1000, past the last one, 999"):
        NoiseSchedule(ScheduleConfig(steps_offset=1)).inference_timesteps(1000)


def test_add_noise_is_that_of_diffusers_with_a_timestep_for_each_example():
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    config, rng = ScheduleConfig(), np.random.default_rng(0)
    latents, noise = rng.normal(size=(2, 5, 4, 3, 2)).astype("float32")
    t = np.array([0, 1, 500, 998, 999])
    ours = NoiseSchedule(config).add_noise(tf.constant(latents), tf.constant(noise), t)
    theirs = diffusers_scheduler(config).add_noise(
        torch.from_numpy(latents), torch.from_numpy(noise), torch.from_numpy(t)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)


@pytest.mark.parametrize("t", [0, 700, 999])
def test_rates_agree_for_an_int_a_scalar_and_a_batch_eagerly_and_compiled(t):
    schedule = NoiseSchedule(ScheduleConfig())
    latents = tf.zeros((3, 2, 2, 1))
    expected = math.sqrt(schedule.alphas_cumprod[t]), math.sqrt(1 - schedule.alphas_cumprod[t])
    assert schedule.rates(t, latents) == expected
    assert schedule.rates(np.int64(t), latents) == expected
    compiled = tf.function(schedule.rates)
    for rates in (schedule.rates, compiled):
        for signal, noise in (rates(tf.constant(t), latents), rates(tf.fill((3,), t), latents)):
            np.testing.assert_allclose(signal, np.full(signal.shape, expected[0]), rtol=1e-7)
            np.testing.assert_allclose(noise, np.full(noise.shape, expected[1]), rtol=1e-7)
    assert rates(tf.fill((3,), t), latents)[0].shape == (3, 1, 1, 1)


@pytest.mark.parametrize("t", [-1, 1000])
def test_timestep_outside_the_schedule_is_refused_by_its_value(t):
    with pytest.raises(InputError, match=f"timestep {t} is outside the schedule: give one from 0 to 999"):
        NoiseSchedule(ScheduleConfig()).rates(t, tf.zeros((1, 2, 2, 1)))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("beta_schedule", "scaled-linear", "beta_schedule 'scaled-linear': did you mean 'scaled_linear'"),
        ("timestep_spacing", "lead", "unknown timestep_spacing 'lead': did you mean 'leading'"),
        ("prediction_type", "v", "unknown prediction_type 'v'"),
        ("num_train_timesteps", 0, "num_train_timesteps is 0: give at least 1"),
        ("num_train_timesteps", 10**9, "num_train_timesteps is 1000000000: .* at most 100000"),
        ("beta_start", -0.1, "beta_start is -0.1, beta_end 0.012: give both between 0 and 1"),
        ("beta_end", 1.0, "beta_start is 0.00085, beta_end 1.0: give both between 0 and 1"),
        ("steps_offset", -1, "steps_offset is -1: give 0 to 999"),
        ("rescale_betas_zero_snr", True, "prediction_type is 'epsilon', but .* take 'v_prediction'"),
    ],
)
def test_configuration_that_means_nothing_here_is_refused_by_name(field, value, message):
    with pytest.raises(InputError, match=message):
        NoiseSchedule(ScheduleConfig(**{field: value}))

"""Samplers take diffusers' steps, and carry Gaussian data to where mathematics says."""

import itertools
import math
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.levels import FREE_OF_NOISE, Level
from sd_tf.diffusion.predictions import Prediction, to_prediction
from sd_tf.diffusion.samplers import SAMPLERS, ddim, ddpm
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError

SHAPE = (2, 4, 4, 3)
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
BETA_SCHEDULES = ["scaled_linear", "squaredcos_cap_v2"]


def diffusers_scheduler(name, config):
    """diffusers' scheduler of the same configuration, with its own betas multiplied up in float64.

    In float32 1 - alphas_cumprod loses digits at small t, which shifts samples by up to 6e-4 of their
    deviation (cosine schedule, "sample" prediction), and so does 1 - 0.999, the cosine's last factor.
    """
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    fields = {
        k: v
        for k, v in vars(config).items()
        if k != "kept" and (name == "DDIMScheduler" or k != "set_alpha_to_one")
    }
    scheduler = getattr(diffusers, name)(**fields)
    betas = getattr(diffusers, name)(**fields | {"rescale_betas_zero_snr": False}).betas.double()
    betas = torch.where(betas > 0.998999, 0.999, betas)
    if config.rescale_betas_zero_snr:
        betas = diffusers.schedulers.scheduling_ddim.rescale_zero_terminal_snr(betas)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if name == "DDIMScheduler" and not config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def step_to(scheduler, t, next_t):
    """Make diffusers' DDIM step from t to next_t, which it reckons as t - 1000 // num_inference_steps."""
    scheduler.num_inference_steps = Fraction(1000, t - next_t)


def models(steps):
    """Two networks as (x, t, step) -> output in numpy: fixed random outputs, and a smooth function."""
    outputs = np.random.default_rng(1).normal(size=(steps, *SHAPE)).astype("float32")
    return {
        "random": lambda x, t, step: outputs[step],
        "smooth": lambda x, t, step: np.tanh(x * np.float32(0.3 + t / 2000)) * np.float32(0.8),
    }


def levels_of(sampler, timesteps, schedule):
    """Those of timesteps, and where DDIM or DDPM ends."""
    return [*map(schedule.level, timesteps), FREE_OF_NOISE if sampler is ddpm else schedule.final_level]


def our_states(sampler, model, latents, noises, timesteps, schedule, **options):
    """The latents after each step of our DDIM or DDPM."""
    states, timesteps_seen = [], []

    def denoise(x, level):
        output = tf.constant(model(x.numpy(), level.t, len(timesteps_seen)))
        timesteps_seen.append(level.t)
        return to_prediction(output, x, level.signal, level.noise, schedule.config.prediction_type)

    last = sampler(
        denoise,
        tf.constant(latents),
        levels_of(sampler, timesteps, schedule),
        lambda step: tf.constant(noises[step]),
        callback=lambda step, x, prediction: states.append(x.numpy()),
        **options,
    )
    assert timesteps_seen == list(timesteps)
    np.testing.assert_array_equal(last, states[-1])
    return states


def assert_same_states(ours, theirs):
    assert len(ours) == len(theirs)
    for step, (x, reference) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(x, reference, rtol=0, atol=1e-5 * reference.std(), err_msg=f"step {step}")


def diffusers_ddim_states(config, steps, network, latents, noises, eta):
    """The timesteps, and the latents after each, of diffusers' DDIM."""
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    scheduler = diffusers_scheduler("DDIMScheduler", config)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    x, states = torch.from_numpy(latents), []
    for step, t in enumerate(timesteps):
        if config.timestep_spacing == "linspace":
            step_to(scheduler, t, timesteps[step + 1] if step + 1 < steps else -1)
        output, noise = torch.from_numpy(network(x.numpy(), t, step)), torch.from_numpy(noises[step])
        x = scheduler.step(output, t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
        states.append(x.numpy())
    return timesteps, states


def diffusers_ddpm_states(config, steps, network, latents, noises, monkeypatch):
    """The timesteps, and the latents after each, of diffusers' DDPM."""
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    scheduler = diffusers_scheduler("DDPMScheduler", config)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    x, states = torch.from_numpy(latents), []
    for step, t in enumerate(timesteps):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *_, step=step, **__: torch.from_numpy(noises[step]),
        )
        x = scheduler.step(torch.from_numpy(network(x.numpy(), t, step)), t, x).prev_sample
        states.append(x.numpy())
    return timesteps, states


def draw(steps):
    noises = np.random.default_rng(2).normal(size=(steps + 1, *SHAPE)).astype("float32")
    return noises[0], noises[1:]


@pytest.mark.parametrize("model", ["random", "smooth"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_ddim_step_is_that_of_diffusers(prediction_type, spacing, beta_schedule, steps, eta, model):
    config = ScheduleConfig(
        prediction_type=prediction_type, timestep_spacing=spacing, beta_schedule=beta_schedule
    )
    schedule = NoiseSchedule(config)
    (latents, noises), network = draw(steps), models(steps)[model]
    timesteps, theirs = diffusers_ddim_states(config, steps, network, latents, noises, eta)
    assert_same_states(our_states(ddim, network, latents, noises, timesteps, schedule, eta=eta), theirs)


@pytest.mark.parametrize("model", ["random", "smooth"])
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_ddpm_step_is_that_of_diffusers(
    prediction_type, spacing, beta_schedule, steps, model, monkeypatch
):
    config = ScheduleConfig(
        prediction_type=prediction_type, timestep_spacing=spacing, beta_schedule=beta_schedule
    )
    schedule = NoiseSchedule(config)
    (latents, noises), network = draw(steps), models(steps)[model]
    timesteps, theirs = diffusers_ddpm_states(config, steps, network, latents, noises, monkeypatch)
    assert_same_states(our_states(ddpm, network, latents, noises, timesteps, schedule), theirs)


@pytest.mark.parametrize("eta", [0.0, 0.5, None], ids=["ddim", "ddim-0.5", "ddpm"])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_every_step_from_no_signal_is_that_of_diffusers(
    prediction_type, spacing, beta_schedule, steps, eta, monkeypatch
):
    config = ScheduleConfig(
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=True,
    )
    schedule = NoiseSchedule(config)
    (latents, noises), network = draw(steps), models(steps)["smooth"]
    if eta is None:
        timesteps, theirs = diffusers_ddpm_states(config, steps, network, latents, noises, monkeypatch)
        ours = our_states(ddpm, network, latents, noises, timesteps, schedule)
    else:
        timesteps, theirs = diffusers_ddim_states(config, steps, network, latents, noises, eta)
        ours = our_states(ddim, network, latents, noises, timesteps, schedule, eta=eta)
    assert timesteps[0] == 999 and schedule.alphas_cumprod[999] == 0
    assert_same_states(ours, theirs)


@pytest.mark.parametrize("network", ["random", "smooth"])
@pytest.mark.parametrize("steps", [1, 5, 20, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_with_a_learned_variance_takes_the_steps_of_diffusers(spacing, steps, network):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    config = ScheduleConfig(timestep_spacing=spacing)
    fields = {k: v for k, v in vars(config).items() if k not in ("kept", "set_alpha_to_one")}
    scheduler = diffusers.DDPMScheduler(**fields, variance_type="learned_range")
    scheduler.alphas_cumprod = torch.from_numpy(NoiseSchedule(config).alphas_cumprod)
    scheduler.set_timesteps(steps)
    (latents, noises), network = draw(steps), models(steps)[network]
    fractions = np.random.default_rng(3).uniform(-1.5, 1.5, (steps, *SHAPE)).astype("float32")  # unbounded

    x = torch.from_numpy(latents)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        output = np.concatenate([network(x.numpy(), t, step), fractions[step]], axis=-1)
        # diffusers splits channels along axis 1
        output, given = (torch.from_numpy(each.transpose(0, 3, 1, 2).copy()) for each in (output, x.numpy()))
        noise = torch.from_numpy(noises[step].transpose(0, 3, 1, 2).copy())
        if step == steps - 1:  # which ends free of noise: the paper adds none, diffusers does where t > 0
            noise = torch.zeros_like(noise)
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise):
            x = scheduler.step(output, t, given).prev_sample.permute(0, 2, 3, 1)

    asked = []

    def denoise(x, level):
        output = np.concatenate([network(x, level.t, len(asked)), fractions[len(asked)]], axis=-1)
        asked.append(level.t)
        return to_prediction(output, x, level.signal, level.noise, "epsilon")

    levels = levels_of(ddpm, scheduler.timesteps.tolist(), NoiseSchedule(config))
    ours = ddpm(denoise, latents, levels, noises.__getitem__)
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours, x.numpy(), rtol=0, atol=2e-5 * x.numpy().std())


@pytest.mark.parametrize("v, variance", [(0.0, "beta tilde"), (1.0, "beta")])
def test_the_bounds_of_a_learned_variance_are_beta_tilde_and_beta(v, variance):
    schedule = NoiseSchedule(ScheduleConfig())
    here, there = schedule.level(500), schedule.level(400)
    beta = 1 - (here.signal / there.signal) ** 2
    expected = {"beta": beta, "beta tilde": beta * there.noise**2 / here.noise**2}[variance]
    zeros = np.zeros((1, 1, 1, 1))
    after = ddpm(
        lambda x, level: Prediction(zeros, zeros, zeros + v), zeros, [here, there], lambda step: zeros + 1
    )
    assert after.item() == pytest.approx(math.sqrt(expected), rel=1e-9)


@pytest.mark.parametrize("name, sampler", [("DDIMScheduler", ddim), ("DDPMScheduler", ddpm)])
def test_stable_diffusion_settings_agree_with_an_untouched_diffusers(name, sampler):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    config = ScheduleConfig()
    fields = {
        k: v
        for k, v in vars(config).items()
        if k != "kept" and (name == "DDIMScheduler" or k != "set_alpha_to_one")
    }
    scheduler = getattr(diffusers, name)(**fields)
    scheduler.set_timesteps(50)
    timesteps = scheduler.timesteps.tolist()
    (latents, noises), network = draw(50), models(50)["smooth"]

    generator = torch.Generator().manual_seed(0)
    if sampler is ddpm:  # the noise that diffusers is about to draw
        noises = np.stack([torch.randn(SHAPE, generator=generator).numpy() for _ in timesteps])
        generator.manual_seed(0)
    x = torch.from_numpy(latents)
    for step, t in enumerate(timesteps):
        output = torch.from_numpy(network(x.numpy(), t, step))
        x = scheduler.step(output, t, x, generator=generator).prev_sample

    ours = our_states(sampler, network, latents, noises, timesteps, NoiseSchedule(config))[-1]
    np.testing.assert_allclose(ours, x.numpy(), rtol=0, atol=2e-5 * x.numpy().std())


# Gaussian data x0 ~ N(MEAN, STD^2): the exact denoiser is linear. Every sampler is then affine in the
# noise it starts from and the noise it adds, so unit vectors of noise give its exact mean and deviation.
MEAN = 1.5


def gaussian_denoiser(std):
    def denoise(x, level):
        gain = std**2 * level.signal / (std**2 * level.signal**2 + level.noise**2)
        x0 = MEAN + gain * (x - level.signal * MEAN)
        return Prediction(x0, (x - level.signal * x0) / level.noise)

    return denoise


def distribution(sampler, schedule, steps, std, **options):
    """Mean and standard deviation of what a sampler makes of standard normal latents, in float64."""
    # One example without noise, one with a unit at the start, and one with a unit in each step.
    units = np.eye(steps + 2)[:, :, None, None, None]
    x = sampler(
        gaussian_denoiser(std),
        tf.constant(units[1]),
        levels_of(sampler, schedule.inference_timesteps(steps), schedule),
        lambda step: tf.constant(units[2 + step]),
        **options,
    )
    x = x.numpy().ravel()
    return x[0], math.sqrt(np.sum((x[1:] - x[0]) ** 2))


def alphas_of(schedule, steps, final):
    """alphas_cumprod at the start of each step, and at the end."""
    return [*schedule.alphas_cumprod[schedule.inference_timesteps(steps)], final]


def gaussian_variance(level, std):
    """Of x where a share `level` of its variance is signal."""
    return level * std**2 + 1 - level


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_of_gaussian_data_has_the_exact_mean_and_deviation(spacing, set_alpha_to_one, steps, std):
    schedule = NoiseSchedule(ScheduleConfig(timestep_spacing=spacing, set_alpha_to_one=set_alpha_to_one))
    levels = alphas_of(schedule, steps, schedule.final_level.signal**2)
    # Each step scales x - E[x] by the correlation of x before and after, as if both had the same noise.
    scale = math.prod(
        (math.sqrt(a * b) * std**2 + math.sqrt((1 - a) * (1 - b))) / gaussian_variance(a, std)
        for a, b in itertools.pairwise(levels)
    )
    mean = MEAN * (math.sqrt(levels[-1]) - scale * math.sqrt(levels[0]))  # it starts at 0, not at E[x]
    assert distribution(ddim, schedule, steps, std) == pytest.approx((mean, scale), rel=1e-9)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_of_gaussian_data_has_the_exact_mean_and_deviation(spacing, steps, std):
    schedule = NoiseSchedule(ScheduleConfig(timestep_spacing=spacing))
    levels = alphas_of(schedule, steps, 1.0)
    # The posterior means telescope: the mean is the same at any number of steps from the same level.
    mean = MEAN * (1 - levels[0] * std**2 / gaussian_variance(levels[0], std))
    variance = 1.0
    for a, b in itertools.pairwise(levels):
        scale = math.sqrt(a / b) * gaussian_variance(b, std) / gaussian_variance(a, std)
        variance = scale**2 * variance + (1 - b) / (1 - a) * (1 - a / b)
    assert distribution(ddpm, schedule, steps, std) == pytest.approx((mean, math.sqrt(variance)), rel=1e-9)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_ddim_error_shrinks_at_first_order_towards_the_probability_flow(std):
    schedule = NoiseSchedule(ScheduleConfig(timestep_spacing="trailing", set_alpha_to_one=True))
    start = schedule.alphas_cumprod[-1]
    # Along the flow (Song et al. 2021) x - E[x] grows as the standard deviation of x does.
    scale = std / math.sqrt(gaussian_variance(start, std))
    exact = np.array([MEAN * (1 - scale * math.sqrt(start)), scale])
    errors = [np.abs(distribution(ddim, schedule, steps, std) - exact) for steps in (25, 50, 100, 200)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # A logarithm stays beside 1 / steps: the noise rate goes as the root of t where t ends.
    assert np.all((orders > 0.8) & (orders < 1.2)), orders


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize("sampler, options", [(ddim, {}), (ddim, {"eta": 0.5}), (ddpm, {})])
def test_samples_converge_to_the_data_with_more_steps(sampler, options, std):
    # The cosine schedule ends in noise alone, so that no mean is lost at the start.
    schedule = NoiseSchedule(
        ScheduleConfig(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", set_alpha_to_one=True)
    )
    means, deviations = zip(
        *(distribution(sampler, schedule, steps, std, **options) for steps in (10, 40, 160)), strict=True
    )
    np.testing.assert_allclose(means, MEAN, rtol=1e-3)
    errors = np.abs(np.array(deviations) - std)
    assert errors[2] < 0.03 * std
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("sampler, options", [(ddim, {}), (ddim, {"eta": 1.0}), (ddpm, {})])
def test_drawing_from_no_signal_loses_nothing_of_the_mean(sampler, options, steps, std):
    # Lin et al. 2023: where training leaves a signal at the last timestep, drawing begins with none.
    lossy, zero = (
        NoiseSchedule(
            ScheduleConfig(
                prediction_type="v_prediction",
                timestep_spacing="trailing",
                set_alpha_to_one=True,
                rescale_betas_zero_snr=rescaled,
            )
        )
        for rescaled in (False, True)
    )
    mean, deviation = distribution(sampler, zero, steps, std, **options)
    assert mean == pytest.approx(MEAN, rel=1e-9) and math.isfinite(deviation)
    assert distribution(sampler, lossy, steps, std, **options)[0] < 0.999 * MEAN


def test_as_much_noise_as_ddpm_is_finite_from_no_signal_to_any_timestep():
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    denoise, x = gaussian_denoiser(1.0), np.ones((1, 1, 1, 1))
    for t in range(999):
        levels = [schedule.level(999), schedule.level(t), schedule.final_level]
        assert np.isfinite(ddim(denoise, x, levels, lambda step: x, eta=1.0)).all(), t


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_is_ddim_at_eta_one_that_ends_free_of_noise(spacing, rescaled):
    schedule = NoiseSchedule(
        ScheduleConfig(
            prediction_type="v_prediction",
            timestep_spacing=spacing,
            set_alpha_to_one=True,
            rescale_betas_zero_snr=rescaled,
        )
    )
    (latents, noises), network = draw(10), models(10)["smooth"]
    timesteps = schedule.inference_timesteps(10)
    ours = our_states(ddpm, network, latents, noises, timesteps, schedule)
    assert_same_states(ours, our_states(ddim, network, latents, noises, timesteps, schedule, eta=1.0))


@pytest.mark.parametrize(
    "sampler, options, set_alpha_to_one, expected",
    [
        (ddim, {}, False, []),
        (ddim, {"eta": 0.5}, True, [0, 1, 2]),
        (ddim, {"eta": 0.5}, False, [0, 1, 2, 3]),
        (ddpm, {}, False, [0, 1, 2]),
    ],
)
def test_noise_is_asked_for_in_the_steps_that_add_it_and_no_other(
    sampler, options, set_alpha_to_one, expected
):
    schedule, asked = NoiseSchedule(ScheduleConfig(set_alpha_to_one=set_alpha_to_one)), []

    def noise(step):
        asked.append(step)
        return tf.zeros((1, 2, 2, 1))

    levels = levels_of(sampler, schedule.inference_timesteps(4), schedule)
    sampler(gaussian_denoiser(1.0), tf.ones((1, 2, 2, 1)), levels, noise, **options)
    assert asked == expected


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_callback_sees_each_step_with_the_prediction_that_it_began_with(sampler):
    made, seen = {}, []
    levels = sampler.levels(NoiseSchedule(ScheduleConfig()), 4)

    def denoise(x, level):
        prediction = gaussian_denoiser(1.0)(x, level)
        made.setdefault(level, []).append(prediction)
        return prediction

    last = sampler.sample(
        denoise,
        tf.ones((1, 2, 2, 1)),
        levels,
        lambda step: tf.zeros((1, 2, 2, 1)),
        callback=lambda *arguments: seen.append(arguments),
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    for level, (_, _, prediction) in zip(levels, seen, strict=False):
        assert prediction is made[level][-1]
    assert seen[-1][1] is last


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_ancestral", "heun"])
def test_tail_of_the_levels_continues_where_the_whole_was(name):
    (latents, noises), network, states = draw(10), models(10)["smooth"], []
    levels = SAMPLERS[name].levels(NoiseSchedule(ScheduleConfig()), 10)

    def denoise(x, level):
        output = network(x, level.t, 0)
        return to_prediction(output, x, level.signal, level.noise, "epsilon")

    whole = SAMPLERS[name].sample(
        denoise, latents, levels, noises.__getitem__, lambda step, x, _: states.append(x)
    )
    tail = SAMPLERS[name].sample(denoise, states[5], levels[6:], noises[6:].__getitem__)
    np.testing.assert_array_equal(tail, whole)


@pytest.mark.parametrize("turn", [1, 3, 8, 9])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "heun"])
def test_where_guidance_begins_a_sampler_restarts(name, turn):
    """Nothing is remembered of a denoiser that says something else from there on.

    Heun, which remembers nothing either, asks about the end of a step as well.
    """
    (latents, noises), network = draw(10), models(10)["smooth"]
    levels = SAMPLERS[name].levels(NoiseSchedule(ScheduleConfig()), 10)
    levels[turn] = levels[turn]._replace(restart=True)

    def denoise(x, level):
        output = network(x, level.t, 0) + 3 * (level.noise <= levels[turn].noise)
        return to_prediction(output, x, level.signal, level.noise, "epsilon")

    sample = SAMPLERS[name].sample
    whole = sample(denoise, latents, levels, noises.__getitem__)
    before = sample(denoise, latents, levels[: turn + 1], noises.__getitem__)
    after = sample(denoise, before, levels[turn:], noises[turn:].__getitem__)
    np.testing.assert_allclose(whole, after, rtol=1e-6, atol=1e-6)


# The probability flow of Gaussian data between two levels has a closed form, and so has the flow's
# distribution for the samplers that add noise: x - E[x] grows as the deviation of x does.
ORDERS = {"ddim": 1, "pndm": 2, "euler": 1, "heun": 2, "lms": 2, "dpmpp_2m": 2, "unipc": 3}


def evenly_spread(steps, most=20.0, least=0.05):
    """Levels evenly spread in the logarithm of sigma, the last of them not free of noise."""
    sigmas = np.geomspace(most, least, steps + 1)
    signals = 1 / np.hypot(1, sigmas)
    return [Level(0, float(a), float(a * sigma)) for a, sigma in zip(signals, sigmas, strict=True)]


def errors_of(sampler, std, numbers):
    """Of x at the end of the flow, after so many steps."""
    found = []
    for steps in numbers:
        levels = evenly_spread(steps)
        deviations = [math.sqrt(gaussian_variance(levels[i].signal ** 2, std)) for i in (0, -1)]
        exact = levels[-1].signal * MEAN + deviations[1]  # from one deviation above the mean
        x = np.full((1, 1, 1, 1), levels[0].signal * MEAN + deviations[0])
        found.append(abs(float(sampler.sample(gaussian_denoiser(std), x, levels, None).item()) - exact))
    return np.array(found)


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize("name", ORDERS)
def test_errors_shrink_at_the_order_of_the_method(name, std):
    errors = errors_of(SAMPLERS[name], std, (80, 160, 320, 640))
    orders = np.log2(errors[:-1] / errors[1:])
    assert np.all(orders > ORDERS[name] - 0.25), (orders, errors)


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ORDERS])
def test_what_samplers_that_add_noise_draw_has_the_deviation_of_the_data(name, std):
    errors = []
    for steps in (40, 80, 160):
        units, levels = np.eye(steps + 2)[:, :, None, None, None], evenly_spread(steps)
        x = SAMPLERS[name].sample(gaussian_denoiser(std), units[1], levels, units[2:].__getitem__).ravel()
        deviation = math.sqrt(np.sum((x[1:] - x[0]) ** 2))
        errors.append(abs(deviation / math.sqrt(gaussian_variance(levels[-1].signal ** 2, std)) - 1))
    assert errors[2] < 0.02
    assert errors[0] > 1.7 * errors[1] > 2.5 * errors[2]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("timesteps", [[1, 501], [501, 501]], ids=str)
def test_levels_that_lead_nowhere_are_refused_before_any_work(sampler, timesteps):
    schedule = NoiseSchedule(ScheduleConfig())
    levels = [*map(schedule.level, timesteps), FREE_OF_NOISE]
    message = "levels of t {} and then {} do not descend".format(*timesteps)
    with pytest.raises(InputError, match=message):
        sampler.sample(None, np.zeros((1, 2, 2, 1)), levels, None)


@pytest.mark.parametrize("name", ["pndm", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_a_level_without_signal_is_refused_by_samplers_that_divide_by_it(name):
    levels = [Level(999, 0.0, 1.0), FREE_OF_NOISE]
    with pytest.raises(InputError, match="the level of t 999 has no signal"):
        SAMPLERS[name].sample(None, np.zeros((1, 2, 2, 1)), levels, None)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm"])
def test_karras_levels_are_refused_for_samplers_that_step_through_timesteps(name):
    message = f"karras is true, but '{name}' steps through timesteps: take one of euler, .* unipc"
    with pytest.raises(InputError, match=message):
        SAMPLERS[name].levels(NoiseSchedule(ScheduleConfig()), 10, karras=True)


def test_more_steps_than_there_are_timesteps_but_one_are_refused():
    schedule = NoiseSchedule(ScheduleConfig(steps_offset=0))
    assert len(SAMPLERS["unipc"].levels(schedule, 999)) == 1000
    with pytest.raises(InputError, match="steps is 1000: this sampler takes 999 at most"):
        SAMPLERS["unipc"].levels(schedule, 1000)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_outside_its_range_is_refused_by_its_value(eta):
    with pytest.raises(InputError, match=f"eta is {eta}: give a number from 0"):
        ddim(None, np.zeros((1, 2, 2, 1)), [FREE_OF_NOISE], None, eta=eta)

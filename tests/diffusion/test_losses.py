"""The loss is 0 for a perfect network, and the mean squared error of each example otherwise."""

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.conditions import Condition
from sd_tf.diffusion.losses import diffusion_loss, min_snr_weights, variance_bound
from sd_tf.diffusion.predictions import Prediction, to_prediction
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig

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
    loss = diffusion_loss(lambda x, t, condition: perfect, pair[0], None, T, pair[1], schedule)
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_is_the_mean_squared_error_of_each_example_eagerly_and_compiled(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
    offsets = np.array([0.0, 0.5, 2.0], "float32").reshape(3, 1, 1, 1)
    output = exact_target(prediction_type, *pair, schedule) + offsets

    def network(x, t, condition):
        return tf.constant(output, "float32")

    @tf.function
    def compiled(latents, t, noise):
        return diffusion_loss(network, latents, None, t, noise, schedule)

    for loss in (diffusion_loss(network, pair[0], None, T, pair[1], schedule), compiled(pair[0], T, pair[1])):
        assert loss.shape == (3,)
        np.testing.assert_allclose(loss, [0.0, 0.25, 4.0], rtol=1e-5, atol=1e-12)


def test_network_sees_the_noised_latents_their_timesteps_and_the_condition(pair):
    schedule, seen, condition = NoiseSchedule(ScheduleConfig()), [], Condition(tf.ones((3, 5, 6)))

    def network(*arguments):
        seen.append(arguments)
        return arguments[0]

    diffusion_loss(network, pair[0], condition, T, pair[1], schedule)
    [(noisy, t, handed)] = seen
    level = schedule.alphas_cumprod[T.numpy()].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(noisy, np.sqrt(level) * pair[0] + np.sqrt(1 - level) * pair[1], atol=1e-6)
    np.testing.assert_array_equal(t, T)
    assert handed is condition


def test_half_precision_output_is_compared_in_float32(pair):
    # 300 squared is past float16's largest number, 65504.
    latents, noise = pair[0], tf.zeros_like(pair[1])
    loss = diffusion_loss(
        lambda x, t, condition: tf.fill(x.shape, tf.constant(300.0, "float16")),
        latents, None, T, noise, NoiseSchedule(ScheduleConfig()),
    )  # fmt: skip
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, [90000.0] * 3)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize(
    "prediction_type, rescaled",
    [
        ("epsilon", False),
        ("v_prediction", False),
        ("v_prediction", True),
        ("sample", False),
        ("sample", True),
    ],
)
def test_min_snr_weights_are_those_of_diffusers_training_scripts(prediction_type, rescaled, gamma):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    training_utils = pytest.importorskip("diffusers.training_utils")
    config = ScheduleConfig(prediction_type=prediction_type, rescale_betas_zero_snr=rescaled)
    reference = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=rescaled
    )
    snr = training_utils.compute_snr(reference, torch.arange(1000))
    weights = torch.clamp(snr, max=gamma)
    if prediction_type != "sample":
        weights = weights / (snr if prediction_type == "epsilon" else snr + 1)
    # Its float32 tables hold four digits of 1 - alphas_cumprod at the first timesteps.
    ours = min_snr_weights(NoiseSchedule(config), gamma)
    np.testing.assert_allclose(ours, weights.numpy(), rtol=2e-4, atol=1e-6)


def test_min_snr_weighs_the_same_guess_of_x0_alike_whatever_the_network_predicts(pair):
    latents, noise = pair
    guess = latents + np.float32(0.1)  # whose squared error is 0.01, times min(SNR, 5)
    losses = []
    for prediction_type in PREDICTION_TYPES:
        schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
        level = schedule.alphas_cumprod[T.numpy()]
        rates = np.sqrt(level).reshape(3, 1, 1, 1), np.sqrt(1 - level).reshape(3, 1, 1, 1)
        guessed_noise = noise - rates[0] / rates[1] * np.float32(0.1)  # both add up to the noisy latents
        output = exact_target(prediction_type, guess, guessed_noise, schedule)
        losses.append(
            diffusion_loss(lambda x, t, condition, y=output: y, latents, None, T, noise, schedule, 5.0)
        )
    for loss in losses:
        np.testing.assert_allclose(loss, 0.01 * np.minimum(level / (1 - level), 5), rtol=1e-3)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_timestep_without_signal_has_a_finite_loss_and_no_min_snr_weight(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type, rescale_betas_zero_snr=True))

    @tf.function
    def compiled(latents, t, noise, gamma):
        return diffusion_loss(lambda x, t, condition: 0 * x, latents, None, t, noise, schedule, gamma)

    plain, weighted = (compiled(pair[0], T, pair[1], gamma) for gamma in (None, 5.0))
    assert weighted.dtype == "float32"
    np.testing.assert_allclose(plain[2], np.mean(pair[0][2] ** 2), rtol=1e-5)  # v is -x0 there
    np.testing.assert_allclose(weighted, plain * min_snr_weights(schedule, 5.0)[T.numpy()], rtol=1e-5)
    assert weighted[2] == 0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_gradient_is_that_of_the_mean_squared_error(prediction_type, pair):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
    bias = tf.Variable(np.full((1, 1, 1, 4), 0.3, "float32"))
    with tf.GradientTape() as tape:
        loss = diffusion_loss(lambda x, t, condition: 0 * x + bias, pair[0], None, T, pair[1], schedule)
    target = exact_target(prediction_type, *pair, schedule)
    expected = 2 / 4 * np.mean(0.3 - target, axis=(1, 2)).sum(axis=0)  # 4 channels share each mean
    np.testing.assert_allclose(tf.reshape(tape.gradient(loss, bias), -1), expected, rtol=1e-4)


@pytest.fixture
def shades():
    """Pictures of 256 shades, black and white among them, (3, 4, 4, 3)."""
    shades = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3))
    shades[:, 0], shades[:, 1] = 0, 255
    return (shades / 127.5 - 1).astype("float32")


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_the_variance_is_held_to_the_divergence_from_the_true_posterior(beta_schedule, shades):
    from torch import distributions, tensor

    schedule = NoiseSchedule(ScheduleConfig(beta_schedule=beta_schedule, beta_start=1e-4, beta_end=0.02))
    rng = np.random.default_rng(2)
    guess = shades + rng.normal(size=shades.shape).astype("float32") * 0.1
    fraction = rng.uniform(size=shades.shape).astype("float32")
    bound = variance_bound(Prediction(guess, None, fraction), shades, T, schedule)

    alphas = schedule.alphas_cumprod
    for i, t in enumerate(T.numpy()[1:], 1):
        beta = 1 - alphas[t] / alphas[t - 1]
        posterior = beta * (1 - alphas[t - 1]) / (1 - alphas[t])
        share = np.sqrt(alphas[t - 1]) * beta / (1 - alphas[t])  # of x0 in the mean; that of x_t is the same
        deviation = np.exp(0.5 * (fraction[i] * np.log(beta) + (1 - fraction[i]) * np.log(posterior)))
        true = distributions.Normal(tensor(share * shades[i]).double(), posterior**0.5)
        step = distributions.Normal(tensor(share * guess[i]).double(), tensor(deviation).double())
        expected = distributions.kl_divergence(true, step).mean() / np.log(2)
        np.testing.assert_allclose(bound[i], expected, rtol=1e-3, atol=1e-6)


def test_at_timestep_0_the_variance_is_held_to_the_likelihood_of_the_shades(shades):
    from torch import distributions, inf, tensor

    schedule = NoiseSchedule(ScheduleConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))
    guess, fraction = shades + 0.01, np.full(shades.shape, 0.5, "float32")
    bound = variance_bound(Prediction(guess, None, fraction), shades, tf.constant([0, 0, 0]), schedule)
    betas = 1 - schedule.alphas_cumprod[1] / schedule.alphas_cumprod[0]
    posterior = betas * (1 - schedule.alphas_cumprod[0]) / (1 - schedule.alphas_cumprod[1])  # of timestep 1
    deviation = np.exp(0.25 * (np.log(1e-4) + np.log(posterior)))
    step, x = distributions.Normal(tensor(guess).double(), deviation), tensor(shades).double()
    upper = step.cdf((x + 1 / 255).masked_fill(x > 0.999, inf))
    lower = step.cdf((x - 1 / 255).masked_fill(x < -0.999, -inf))
    expected = -(upper - lower).clamp(min=1e-12).log2().mean((1, 2, 3))
    np.testing.assert_allclose(bound, expected, rtol=1e-4)


def test_a_learned_variance_learns_by_its_bound_and_the_mean_by_its_error_alone(shades):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="v_prediction"))
    rng = np.random.default_rng(3)
    noise = tf.constant(rng.normal(size=shades.shape), "float32")
    mean, variance = (tf.Variable(rng.normal(size=shades.shape) * 0.3, dtype="float32") for _ in range(2))

    def loss(with_variance):
        def network(x, t, condition):
            return tf.concat([mean, variance], -1) if with_variance else mean + 0.0

        return diffusion_loss(network, tf.constant(shades), None, T, noise, schedule, learns_variance=True)

    with tf.GradientTape(persistent=True) as tape:
        whole, plain = loss(True), loss(False)
    prediction = to_prediction(
        tf.concat([mean, variance], -1),
        schedule.add_noise(tf.constant(shades), noise, T),
        *schedule.rates(T, noise),
        "v_prediction",
    )
    np.testing.assert_allclose(whole - plain, variance_bound(prediction, shades, T, schedule), rtol=1e-3)
    np.testing.assert_allclose(tape.gradient(whole, mean), tape.gradient(plain, mean), atol=1e-7)
    assert np.abs(tape.gradient(whole, variance)).max() > 0

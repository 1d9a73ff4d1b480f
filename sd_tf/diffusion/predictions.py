"""Converts between noise (epsilon), velocity (v) and clean latents (x0); nothing else does.

With signal rate a and noise rate s of a timestep (a^2 + s^2 = 1), noisy latents are
x = a x0 + s epsilon, and v = a epsilon - s x0 (Salimans & Ho 2022, appendix D).
"""

from typing import Any, NamedTuple

from sd_tf.diffusion.arrays import operations


class Prediction(NamedTuple):
    """A network's prediction for noisy latents.

    Attributes:
        x0, noise: the clean latents and the noise, each (batch, h, w, channels), not clipped.
        variance_fraction: the learned variance of a DDPM step, (batch, h, w, channels); None for a network
            that does not learn it. 0 stands for the lower bound of the variance (beta tilde), 1 for the upper
            one (beta), with linear interpolation of the logarithm between (Nichol & Dhariwal 2021, equation
            15). Both bounds depend on the next timestep, which only the sampler knows.
    """

    x0: Any
    noise: Any
    variance_fraction: Any = None


def to_prediction(output, noisy, signal_rate, noise_rate, prediction_type) -> Prediction:
    """Converts a network's output to clean latents and noise.

    Args:
        output: the network's output, (batch, h, w, channels), of type `prediction_type`; cast to the dtype of
            `noisy`. With twice the channels, the second half is the learned variance, with bounds -1 and 1 as
            in diffusers' `variance_type="learned_range"`.
        noisy: x, (batch, h, w, channels); use float32, since at high noise errors of epsilon are amplified by
            1 / signal rate.
        signal_rate, noise_rate: rates of x, numbers or tensors that broadcast over it, such as from
            `NoiseSchedule.rates`.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Returns:
        A `Prediction` with the dtype of `noisy`; signal rate * x0 + noise rate * noise = noisy.
    """
    output, variance = split_variance(operations(noisy).cast(output, noisy.dtype), noisy)
    fraction = None if variance is None else (variance + 1) / 2
    if prediction_type == "epsilon":
        return Prediction((noisy - noise_rate * output) / signal_rate, output, fraction)
    if prediction_type == "sample":
        return Prediction(output, (noisy - signal_rate * output) / noise_rate, fraction)
    x0 = signal_rate * noisy - noise_rate * output
    return Prediction(x0, signal_rate * output + noise_rate * noisy, fraction)


def split_variance(output, latents):
    """Splits a network's output into the prediction and the learned variance.

    Args:
        output: (batch, h, w, channels), or with twice the channels.
        latents: (batch, h, w, channels).

    Returns:
        The prediction, (batch, h, w, channels), and the variance of the same shape, or None.
    """
    if not len(latents.shape) or output.shape[-1] != 2 * latents.shape[-1]:
        return output, None
    mean, variance = operations(output).split(output, 2, axis=-1)
    return mean, variance


def training_target(latents, noise, t, schedule):
    """What a network should output for `schedule.add_noise(latents, noise, t)`.

    Args:
        latents: x0, float (batch, h, w, channels).
        noise: the added noise, of the shape and dtype of `latents`.
        t: timesteps, int (batch,), or a single one, an int or a scalar.
        schedule: a `NoiseSchedule`.

    Returns:
        epsilon, v or x0, (batch, h, w, channels), of the dtype of `latents`, by
        `schedule.config.prediction_type`.

    Raises:
        InputError: `t` is a Python int outside the schedule, with v-prediction.
    """
    prediction_type = schedule.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    signal_rate, noise_rate = schedule.rates(t, latents)
    return signal_rate * noise - noise_rate * latents


def denoiser(network, schedule, condition):
    """Wraps a network as a function of noisy latents and their noise level, as samplers call it.

    Args:
        network: `network(latents, timesteps, condition) -> output`, timesteps float32 (batch,).
        schedule: the `NoiseSchedule` that the network was trained on.
        condition: the `Condition` of the batch, passed on to the network.

    Returns:
        `denoise(x, level) -> Prediction`, with x (batch, h, w, channels) and one `Level` for the whole
        batch.
    """

    def denoise(x, level):
        ops = operations(x)
        timesteps = ops.broadcast_to(ops.cast(level.t, "float32"), (ops.shape(x)[0],))
        output = network(x, timesteps, condition)
        return to_prediction(output, x, level.signal, level.noise, schedule.config.prediction_type)

    return denoise

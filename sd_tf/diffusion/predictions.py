"""The one place where noise (epsilon), velocity (v) and clean latents (x0) are converted.

With signal rate a and noise rate s of a timestep (a^2 + s^2 = 1), noisy latents are
x = a x0 + s epsilon, and v = a epsilon - s x0 (Salimans & Ho 2022, appendix D).
"""

from typing import Any, NamedTuple

from sd_tf.diffusion.arrays import operations


class Prediction(NamedTuple):
    """What a network predicts from noisy latents.

    Attributes:
        x0, noise: the clean latents and the noise, each (batch, h, w, channels), not clipped.
        variance_fraction: the learned variance of a DDPM step, likewise (batch, h, w, channels); None for a
            network that does not learn it. 0 stands for the lower bound of the variance (beta tilde), 1 for
            the upper one (beta), and between them its logarithm is linear (Nichol & Dhariwal 2021, equation
            15). Both bounds depend on where the step ends, which only the sampler knows.
    """

    x0: Any
    noise: Any
    variance_fraction: Any = None


def to_prediction(output, noisy, signal_rate, noise_rate, prediction_type) -> Prediction:
    """Converts a network's output to clean latents and noise.

    Args:
        output: the network's, (batch, h, w, channels), meaning `prediction_type`; cast to the dtype of
            `noisy`. With twice the channels, the second half is the learned variance, of which -1 and 1 are
            the bounds, as in diffusers' `variance_type="learned_range"`.
        noisy: x, (batch, h, w, channels), float32 where precision matters: at high noise epsilon is
            amplified by 1 / signal rate.
        signal_rate, noise_rate: of x, numbers or tensors that broadcast over it, as those of
            `NoiseSchedule.rates`.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Returns:
        A `Prediction` of the dtype of `noisy`, with signal rate * x0 + noise rate * noise = noisy.
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
    """A network's output, of as many channels as `latents`, and the learned variance, None if there is none.

    Args:
        output: (batch, h, w, channels), or twice the channels.
        latents: (batch, h, w, channels).
    """
    if not len(latents.shape) or output.shape[-1] != 2 * latents.shape[-1]:
        return output, None
    mean, variance = operations(output).split(output, 2, axis=-1)
    return mean, variance


def training_target(latents, noise, t, schedule):
    """The output that a perfect network gives for `schedule.add_noise(latents, noise, t)`.

    Args:
        latents: x_0, (batch, h, w, channels), float.
        noise: the noise that was added, the shape and dtype of `latents`.
        t: int, (batch,); or one for all, an int or a scalar.
        schedule: a `NoiseSchedule`.

    Returns:
        (batch, h, w, channels), of the dtype of `latents`: epsilon, v or x0, by
        `schedule.config.prediction_type`.

    Raises:
        InputError: for a Python int `t` outside the schedule, with v-prediction.
    """
    prediction_type = schedule.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    signal_rate, noise_rate = schedule.rates(t, latents)
    return signal_rate * noise - noise_rate * latents


def denoiser(network, schedule, condition):
    """The network as a function of noisy latents and their level, which is all a sampler sees.

    Args:
        network: `network(latents, timesteps, condition) -> output`, timesteps float32 (batch,).
        schedule: the `NoiseSchedule` that the network was trained on.
        condition: a `Condition` of the batch, handed to the network as it is.

    Returns:
        `denoise(x, level) -> Prediction`, with x (batch, h, w, channels), and one `Level` for the whole
        batch.
    """

    def denoise(x, level):
        ops = operations(x)
        timesteps = ops.broadcast_to(ops.cast(level.t, "float32"), (ops.shape(x)[0],))
        output = network(x, timesteps, condition)
        return to_prediction(output, x, level.signal, level.noise, schedule.config.prediction_type)

    return denoise

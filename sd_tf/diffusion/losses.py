"""The training loss of a diffusion network."""

import math

import numpy as np

from sd_tf.diffusion.predictions import split_variance, to_prediction, training_target

VARIANCE_WEIGHT = 1e-3  # of the variational bound over all timesteps: lambda of Nichol & Dhariwal 2021
HALF_A_SHADE = 1 / 255  # in [-1, 1], where pictures of 256 shades are 2 / 255 apart


def min_snr_weights(schedule, gamma):
    """Loss weights that limit the weight of low noise (Hang et al. 2023, section 3.4 and appendix B).

    The squared error of x0 has the weight min(SNR, gamma), with SNR = alphas_cumprod / (1 - alphas_cumprod).
    The squared error of epsilon is SNR times that of x0, and that of v is SNR + 1 times that of x0. So their
    weights are min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1).

    Args:
        schedule: a `NoiseSchedule`; its `prediction_type` decides which of the three is given.
        gamma: above 0; 5 in the paper.

    Returns:
        numpy float64, (num_train_timesteps,), finite. At a timestep without signal (SNR 0) it is 0 for v
        and for x0. Nothing is learned from such a timestep then, as in the paper's code and in diffusers.
    """
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    error = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}  # squared, in that of x0
    return np.minimum(snr, gamma) / error[schedule.config.prediction_type]


def diffusion_loss(
    network, latents, condition, t, noise, schedule, min_snr_gamma=None, learns_variance=False
):
    """Mean squared error of the network's output (Ho et al. 2020, equation 14), one per example.

    Args:
        network: `network(latents, timesteps, condition) -> output`. Of twice the channels, the second half is
            a learned variance.
        latents: x_0, scaled, (batch, h, w, channels), float.
        condition: a `Condition` of the batch, handed to the network as it is.
        t: int, (batch,), drawn uniformly from 0 … num_train_timesteps - 1 by the caller.
        noise: standard normal, the shape and dtype of `latents`.
        schedule: a `NoiseSchedule`; its `prediction_type` decides what the output is held to.
        min_snr_gamma: multiplies the loss of each example by the weight that `min_snr_weights` gives its
            timestep; None for no weights.
        learns_variance: adds the bound of a learned variance (`variance_bound`): L_hybrid of Nichol &
            Dhariwal 2021, equation 16. It is for pixels in [-1, 1] of 256 shades. Otherwise a learned
            variance plays no part.

    Returns:
        float32, (batch,), whatever precision the network computes in: the mean over h, w and channels.
        The mean over the batch is left to the caller, who alone knows the global batch.
    """
    from keras import ops

    noisy = schedule.add_noise(latents, noise, t)
    whole = ops.cast(network(noisy, t, condition), "float32")
    output, variance = split_variance(whole, latents)
    target = training_target(latents, noise, t, schedule)
    error = output - ops.cast(target, "float32")
    loss = ops.mean(ops.square(error), axis=tuple(range(1, len(error.shape))))
    if min_snr_gamma is not None:
        weights = ops.convert_to_tensor(min_snr_weights(schedule, min_snr_gamma), dtype="float32")
        loss = ops.take(weights, t) * loss
    if variance is None or not learns_variance:
        return loss
    noisy = ops.cast(noisy, "float32")
    rates = schedule.rates(t, noisy)
    prediction = to_prediction(whole, noisy, *rates, schedule.config.prediction_type)
    bound = variance_bound(prediction, ops.cast(latents, "float32"), t, schedule)
    return loss + VARIANCE_WEIGHT * schedule.config.num_train_timesteps * bound


def variance_bound(prediction, x0, t, schedule):
    """The term of the variational bound that teaches a network its variance, one per example.

    Above timestep 0 it is the divergence of DDPM's step from the true posterior (Ho et al. 2020, equation 5);
    at timestep 0 the negative log likelihood of the picture's shades (equation 13). The mean is taken as it
    is: no gradient flows through it (Nichol & Dhariwal 2021, section 3.1).

    Args:
        prediction: a `Prediction` with `variance_fraction`, float32.
        x0: the pictures, float32 (batch, ..., channels) in [-1, 1], of 256 shades.
        t: int (batch,).
        schedule: the `NoiseSchedule`.

    Returns:
        float32 (batch,), bits for each number of a picture, in the mean.
    """
    from keras import ops

    signal = schedule.alphas_cumprod
    before = np.concatenate([[1.0], signal[:-1]])
    betas = 1 - signal / before
    posterior = betas * (1 - before) / (1 - signal)
    posterior[0] = posterior[min(1, len(posterior) - 1)] or betas[0]  # timestep 0 has none of its own
    axes = (-1,) + (1,) * (len(x0.shape) - 1)

    def at_t(table):
        return ops.reshape(ops.take(ops.convert_to_tensor(table, dtype="float32"), t), axes)

    predicted = ops.stop_gradient(prediction.x0)
    fraction = prediction.variance_fraction
    log_posterior = at_t(np.log(posterior))
    log_variance = fraction * at_t(np.log(betas)) + (1 - fraction) * log_posterior
    distance = at_t(np.sqrt(before) * betas / (1 - signal)) * (x0 - predicted)  # of the means
    divergence = 0.5 * (
        log_variance
        - log_posterior
        - 1
        + ops.exp(log_posterior - log_variance)
        + ops.square(distance) * ops.exp(-log_variance)
    )
    first = -_log_likelihood_of_shades(x0, predicted, log_variance)
    is_first = ops.reshape(ops.equal(t, 0), axes)
    bits = ops.where(is_first, first, divergence) / math.log(2)
    return ops.mean(bits, axis=tuple(range(1, len(x0.shape))))


def _log_likelihood_of_shades(x, mean, log_variance):
    """Log probability of the shades x of a normal distribution; the darkest and brightest take the rest."""
    from keras import ops

    deviation = ops.exp(0.5 * log_variance)

    def below(edge):
        return 0.5 * (1 + ops.erf((edge - mean) / (deviation * math.sqrt(2))))

    upper = ops.where(x > 1 - HALF_A_SHADE, 1.0, below(x + HALF_A_SHADE))
    lower = ops.where(x < -1 + HALF_A_SHADE, 0.0, below(x - HALF_A_SHADE))
    return ops.log(ops.maximum(upper - lower, 1e-12))

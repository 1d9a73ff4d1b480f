"""The training loss of a diffusion network."""

import numpy as np

from sd_tf.diffusion.predictions import split_variance, training_target


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


def diffusion_loss(network, latents, condition, t, noise, schedule, min_snr_gamma=None):
    """Mean squared error of the network's output (Ho et al. 2020, equation 14), one per example.

    Args:
        network: `network(latents, timesteps, condition) -> output`. Of twice the channels, the second half,
            a learned variance, plays no part in this loss.
        latents: x_0, scaled, (batch, h, w, channels), float.
        condition: a `Condition` of the batch, handed to the network as it is.
        t: int, (batch,), drawn uniformly from 0 … num_train_timesteps - 1 by the caller.
        noise: standard normal, the shape and dtype of `latents`.
        schedule: a `NoiseSchedule`; its `prediction_type` decides what the output is held to.
        min_snr_gamma: multiplies the loss of each example by the weight that `min_snr_weights` gives its
            timestep; None for no weights.

    Returns:
        float32, (batch,), whatever precision the network computes in: the mean over h, w and channels.
        The mean over the batch is left to the caller, who alone knows the global batch.
    """
    from keras import ops

    output, _ = split_variance(network(schedule.add_noise(latents, noise, t), t, condition), latents)
    target = training_target(latents, noise, t, schedule)
    error = ops.cast(output, "float32") - ops.cast(target, "float32")
    loss = ops.mean(ops.square(error), axis=tuple(range(1, len(error.shape))))
    if min_snr_gamma is None:
        return loss
    weights = ops.convert_to_tensor(min_snr_weights(schedule, min_snr_gamma), dtype="float32")
    return ops.take(weights, t) * loss

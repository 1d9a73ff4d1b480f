"""The training loss of a diffusion network."""

import numpy as np

from sd_tf.diffusion.predictions import training_target


def min_snr_weights(schedule, gamma):
    """Weights that bound what low noise counts for (Hang et al. 2023, section 3.4 and appendix B).

    Of the error of x0 the weight is min(SNR, gamma), with SNR = alphas_cumprod / (1 - alphas_cumprod).
    The squared error of epsilon is SNR times that of x0, the one of v is SNR + 1 times that of x0, so
    theirs are min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1).

    Args:
        schedule: a `NoiseSchedule`; its `prediction_type` decides which of the three is given.
        gamma: above 0; 5 in the paper.

    Returns:
        numpy float64, (num_train_timesteps,), finite. At a timestep without signal, SNR 0, it is 0 for v
        and for x0: such a timestep is then not learned from, in the paper's code and diffusers' as here.
    """
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    error = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}  # squared, in that of x0
    return np.minimum(snr, gamma) / error[schedule.config.prediction_type]


def diffusion_loss(network, latents, context, t, noise, schedule, min_snr_gamma=None):
    """Mean squared error of the network's output (Ho et al. 2020, equation 14), one per example.

    Args:
        network: `network(latents, timesteps, context) -> output`.
        latents: x_0, scaled, (batch, h, w, channels), float.
        context: (batch, tokens, width).
        t: int, (batch,), drawn uniformly from 0 … num_train_timesteps - 1 by the caller.
        noise: standard normal, the shape and dtype of `latents`.
        schedule: a `NoiseSchedule`; its `prediction_type` decides what the output is held to.
        min_snr_gamma: weighs each example by `min_snr_weights` of its timestep; None by 1.

    Returns:
        float32, (batch,), in float32 whatever the network computes in; the mean over h, w and
        channels, not yet over the batch, which only the caller knows in full.
    """
    from keras import ops

    output = network(schedule.add_noise(latents, noise, t), t, context)
    target = training_target(latents, noise, t, schedule)
    error = ops.cast(output, "float32") - ops.cast(target, "float32")
    loss = ops.mean(ops.square(error), axis=tuple(range(1, len(error.shape))))
    if min_snr_gamma is None:
        return loss
    weights = ops.convert_to_tensor(min_snr_weights(schedule, min_snr_gamma), dtype="float32")
    return ops.take(weights, t) * loss

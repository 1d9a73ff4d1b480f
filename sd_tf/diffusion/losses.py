"""The training loss of a diffusion network."""

from sd_tf.diffusion.denoiser import training_target


def diffusion_loss(network, latents, context, t, noise, schedule):
    """Mean squared error of the network's output (Ho et al. 2020, equation 14), one per example.

    Args:
        network: `network(latents, timesteps, context) -> output`.
        latents: x_0, scaled, (batch, h, w, channels), float.
        context: (batch, tokens, width).
        t: int, (batch,), drawn uniformly from 0 … num_train_timesteps - 1 by the caller.
        noise: standard normal, the shape and dtype of `latents`.
        schedule: a `NoiseSchedule`; its `prediction_type` decides what the output is held to.

    Returns:
        float32, (batch,), in float32 whatever the network computes in; the mean over h, w and
        channels, not yet over the batch, which only the caller knows in full.
    """
    from keras import ops

    output = network(schedule.add_noise(latents, noise, t), t, context)
    target = training_target(latents, noise, t, schedule)
    error = ops.cast(output, "float32") - ops.cast(target, "float32")
    return ops.mean(ops.square(error), axis=tuple(range(1, len(error.shape))))

"""A table of the networks of a latent diffusion model."""

from sd_tf.latent.new_model import sketched
from sd_tf.skeleton import skeleton
from sd_tf.text.encoder import kind_of


def summary_of(model) -> str:
    """The table that `LatentDiffusion.summary` prints.

    Weights are counted from configurations, so networks need not be read.
    """
    with skeleton():
        sketch = sketched(model)
        networks = {
            "text encoder": sketch.text_encoder,
            "UNet": sketch.unet,
            "autoencoder": sketch.autoencoder,
        }
    numbers = {name: network.count_params() for name, network in networks.items()}
    text, unet = model.config_of("text_encoder"), model.config_of("unet")
    (height, width), (picture_height, picture_width) = unet.latent_size, model.image_size
    details = {
        "text encoder": f"{kind_of(text)}, {model.tokenizer.max_length} tokens -> states {text.width} wide",
        "UNet": f"latents {height} x {width} x {unet.in_channels}, channels {unet.block_out_channels}",
        "autoencoder": f"pictures {picture_height} x {picture_width} <-> latents, channels "
        f"{model.config_of('autoencoder').block_out_channels}",
    }
    schedule = model.schedule.config
    rows = [
        f"{name:<13} {number:>13,} weights {_size(number):>9}   {details[name]}"
        for name, number in numbers.items()
    ]
    total = sum(numbers.values())
    return "\n".join(
        [
            f"LatentDiffusion, {model.precision}",
            *rows,
            f"{'all':<13} {total:>13,} weights {_size(total):>9}",
            f"noise schedule: {schedule.beta_schedule}, {schedule.num_train_timesteps:,} timesteps, predicts "
            f"{schedule.prediction_type}",
        ]
    )


def _size(number):
    size = 4 * number  # float32
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"

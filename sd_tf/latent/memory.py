"""How large a picture a model's configuration may ask for: a file of kilobytes could ask for gigabytes."""

from sd_tf.checkpoints.bounds import MOST_PIXELS, check_layer
from sd_tf.errors import InputError, shown
from sd_tf.latent.config import AutoencoderConfig, UNetConfig


def check_memory(autoencoder: AutoencoderConfig, unet: UNetConfig, bytes_of_weights: int, source: str):
    """Raises `InputError` where a picture of the model's own size is larger than such a model draws.

    Args:
        autoencoder, unet: configurations of a model.
        bytes_of_weights: of their files.
        source: the model's folder.
    """
    levels = {len(unet.block_out_channels), len(unet.down_block_types), len(unet.up_block_types)}
    if len(levels) > 1 or not unet.block_out_channels or not autoencoder.block_out_channels:
        return  # which makes no network at all
    height, width = unet.latent_size
    pixels = max(height, width) * autoencoder.downsampling
    if pixels > MOST_PIXELS:
        raise InputError(
            f"{source}: the UNet's sample_size is {shown(unet.sample_size)}, which is {pixels} pixels along "
            f"a side: {MOST_PIXELS} are the most"
        )
    check_layer(_largest_layer(autoencoder, unet), bytes_of_weights, unet.sample_size, source)


def _largest_layer(autoencoder, unet):
    """Bytes of float32, of one picture of the model's own size."""
    height, width = unet.latent_size
    latents, levels = height * width, len(unet.block_out_channels)
    heads = unet.attention_head_dim
    heads = (heads,) * levels if isinstance(heads, int) else (*heads, *[1] * levels)
    attends = [
        "CrossAttn" in unet.down_block_types[i] + unet.up_block_types[levels - 1 - i] or i == levels - 1
        for i in range(levels)
    ]
    tables = [heads[i] * (latents // 4**i) ** 2 for i in range(levels) if attends[i]]
    pictures = latents * autoencoder.downsampling**2 * autoencoder.block_out_channels[0]
    return 4 * max(latents**2, pictures, latents * unet.block_out_channels[0], *tables)

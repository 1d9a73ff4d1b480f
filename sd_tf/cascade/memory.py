"""How large a picture a stage's configuration may ask for: a file of kilobytes could ask for gigabytes."""

from sd_tf.cascade.config import ATTENDS, PixelUNetConfig
from sd_tf.checkpoints.bounds import check_layer


def check_memory(config: PixelUNetConfig, bytes_of_weights: int, source: str):
    """Raises `InputError` where a picture of the stage's own size is larger than such a network draws.

    Args:
        config: a UNet's configuration.
        bytes_of_weights: of its files.
        source: the stage's folder.
    """
    check_layer(_largest_layer(config), bytes_of_weights, config.sample_size, source)


def _largest_layer(config):
    """Bytes of float32, of one picture of the stage's own size."""
    height, width = config.image_size
    head_widths, levels = config.of_levels("attention_head_dim"), len(config.block_out_channels)
    layers = [height * width * config.block_out_channels[0]]
    for i, channels in enumerate(config.block_out_channels):
        pixels = height * width // 4 ** (i + config.efficient)
        layers.append(pixels * channels)
        attends = ATTENDS[config.down_block_types[i]] or ATTENDS[config.up_block_types[levels - 1 - i]]
        if attends or i == levels - 1:
            layers.append(max(1, channels // head_widths[i]) * pixels**2)
    return 4 * max(layers)

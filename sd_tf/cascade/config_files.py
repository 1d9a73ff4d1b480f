"""`unet/config.json` of a cascade's stage, as diffusers writes it for DeepFloyd IF."""

from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.checkpoints.config_files import Kind, of_diffusers
from sd_tf.errors import InputError

PIXEL_UNET = Kind(
    PixelUNetConfig,
    of_diffusers("UNet2DConditionModel"),
    {
        "addition_embed_type": "text",
        "center_input_sample": False,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim_type": "text_proj",
        "mid_block_only_cross_attention": None,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "num_attention_heads": None,
        "num_class_embeds": None,
        "time_cond_proj_dim": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    {  # the meaning of a missing field is diffusers' default
        "act_fn": "silu",
        "resnet_time_scale_shift": "default",
        "cross_attention_norm": None,
    },
    check=lambda config, source: _check(config, source),
)


def _check(config, source):
    if isinstance(config.sample_size, tuple) and len(config.sample_size) != 2:
        sides = len(config.sample_size)
        raise InputError(f"{source}: sample_size has {sides} numbers: give a side, or height and width")
    if not config.block_out_channels:
        raise InputError(f"{source}: block_out_channels is empty: give the channels of each level")

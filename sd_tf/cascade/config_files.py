"""The configuration file of a cascade's UNet, as diffusers writes that of DeepFloyd IF."""

from sd_tf.cascade.config import PixelUNetConfig, check_config
from sd_tf.checkpoints.config_files import Kind, of_diffusers
from sd_tf.errors import InputError, naming, shown


def _check(config, source):
    half = config.block_out_channels[0] // 2 if config.block_out_channels else 0
    if config.freq_shift and config.freq_shift >= half:
        raise InputError(
            f"{source}: freq_shift is {config.freq_shift}, as many as the {half} frequencies that "
            f"block_out_channels {shown(config.block_out_channels)} make: give 0"
        )
    if isinstance(config.sample_size, tuple) and len(config.sample_size) != 2:
        sides = len(config.sample_size)
        raise InputError(f"{source}: sample_size has {sides} numbers: give a side, or height and width")
    with naming(source):
        check_config(config)


PIXEL_UNET = Kind(
    PixelUNetConfig,
    of_diffusers("UNet2DConditionModel"),
    {
        "attention_type": "default",
        "center_input_sample": False,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dropout": 0.0,
        "dual_cross_attention": False,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "num_attention_heads": None,
        "num_class_embeds": None,
        "projection_class_embeddings_input_dim": None,
        "time_cond_proj_dim": None,
        "time_embedding_type": "positional",
    },
    # diffusers' defaults are those of Stable Diffusion.
    absent={
        "sample_size": None,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 1280,
        "cross_attention_norm": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "addition_embed_type": None,
        "resnet_time_scale_shift": "default",
        "act_fn": "silu",
    },
    check=_check,
)

"""What tests of the cascade share: small configurations, inputs, and diffusers' networks beside ours."""

import dataclasses

import numpy as np

from sd_tf.cascade.config import PixelUNetConfig

CONTEXT = (7, 24)  # tokens and width of the text states


def small_config(attends=".x", **changes):
    """A small `PixelUNetConfig`; `attends` has an x for each level with attention, a dot for one without."""
    levels = [mark == "x" for mark in attends]
    down = tuple("SimpleCrossAttnDownBlock2D" if x else "ResnetDownsampleBlock2D" for x in levels)
    up = tuple("SimpleCrossAttnUpBlock2D" if x else "ResnetUpsampleBlock2D" for x in levels[::-1])
    fields = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 24, 16)[: len(levels)],
        "layers_per_block": 1,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "encoder_hid_dim": CONTEXT[1],
        "addition_embed_type_num_heads": 4,
        "norm_num_groups": 4,
    }
    return PixelUNetConfig(**(fields | changes))


def efficient_config(attends=".x", **changes):
    """`small_config` with the levels of Imagen's Efficient U-Net."""
    levels = [mark == "x" for mark in attends]
    return small_config(
        attends,
        **{
            "down_block_types": tuple(f"Efficient{'CrossAttn' * x}DownBlock2D" for x in levels),
            "up_block_types": tuple(f"Efficient{'CrossAttn' * x}UpBlock2D" for x in levels[::-1]),
        }
        | changes,
    )


SUPER_RESOLUTION = {  # as DeepFloyd's second stage
    "in_channels": 6,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 20,
    "resnet_out_scale_factor": 2**0.5,
    "mid_block_scale_factor": 2**0.5,
    "only_cross_attention": True,
}


def inputs(config, height=16, width=16, batch=3, tokens=CONTEXT[0]):
    """Images, timesteps, context, mask and class labels; the last two are None where there are none."""
    rng = np.random.default_rng(0)
    mask = np.arange(tokens) < np.array([tokens, 1, tokens - 2])[:batch, None]
    return (
        rng.standard_normal((batch, height, width, config.in_channels)).astype("float32"),
        np.array([0, 421, 999])[:batch],
        rng.standard_normal((batch, tokens, config.context_width)).astype("float32"),
        mask,
        np.array([250, 3, 77])[:batch] if config.class_embed_type else None,
    )


def reference(config):
    """diffusers' UNet of that configuration, of random weights."""
    import diffusers
    import torch

    torch.manual_seed(0)
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name != "kept"}
    return diffusers.UNet2DConditionModel(mid_block_type="UNetMidBlock2DSimpleCrossAttn", **fields)


def theirs_on(reference, images, timesteps, context, mask=None, class_labels=None):
    """What diffusers' UNet makes of our inputs, channels last."""
    import torch

    def tensor(array):
        return None if array is None else torch.from_numpy(np.array(array))

    torch.set_num_threads(1)  # at these sizes threads only wait for each other
    with torch.no_grad():
        output = reference(
            tensor(images.transpose(0, 3, 1, 2)),
            tensor(timesteps),
            tensor(context),
            encoder_attention_mask=tensor(mask),
            class_labels=tensor(class_labels),
        ).sample
    return output.numpy().transpose(0, 2, 3, 1)

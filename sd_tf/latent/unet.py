"""The cross-attention UNet that denoises latents (Rombach et al. 2022; `diffusers.UNet2DConditionModel`).

It knows nothing of noise: it maps noisy latents, a timestep and a context to a tensor of the
latents' shape. What that tensor means is said in `sd_tf.diffusion.predictions`.
"""

import dataclasses

import keras
from keras import ops

from sd_tf.config import as_config
from sd_tf.errors import InputError, unknown
from sd_tf.latent.config import UNetConfig
from sd_tf.nn.attention import SpatialTransformer
from sd_tf.nn.blocks import Downsample, ResidualBlock, Upsample, conv
from sd_tf.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from sd_tf.nn.norm import GroupNorm
from sd_tf.nn.remat import rematerialised

DOWN_BLOCK_TYPES = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCK_TYPES = ("UpBlock2D", "CrossAttnUpBlock2D")


class Block(keras.layers.Layer):
    """Residual blocks, each followed by a spatial transformer where `heads` is a number.

    Args:
        channels: of every residual block's result.
        input_channels: of each residual block's input, so their number is that of the blocks.
        heads: of the transformers, None for a level without attention.
        config: the `UNetConfig`.
    """

    def __init__(self, channels, input_channels, heads, config, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.input_channels = channels, input_channels
        self.heads, self.config = heads, config

    def build(self, time_shape, context_shape, num_attentions=None):
        config, policy = self.config, self.dtype_policy
        self.resnets = [
            ResidualBlock(
                self.channels, config.norm_num_groups, config.norm_eps, dtype=policy, name=f"resnets.{i}"
            )
            for i in range(len(self.input_channels))
        ]
        for resnet, channels in zip(self.resnets, self.input_channels, strict=True):
            resnet.build((None, None, None, channels), time_shape)
        self.attentions = []
        if self.heads is not None:
            self.attentions = [
                SpatialTransformer(
                    self.heads,
                    config.norm_num_groups,
                    config.use_linear_projection,
                    dtype=policy,
                    name=f"attentions.{i}",
                )
                for i in range(len(self.resnets) if num_attentions is None else num_attentions)
            ]
        for attention in self.attentions:
            attention.build((None, None, None, self.channels), context_shape)

    def step(self, i, x, time, context, *skip):
        """Residual block `i`, on the picture beside a skip if there is one, and the transformer after it."""

        def residual(time, x, *skip):
            return self.resnets[i](ops.concatenate([x, *skip], axis=-1) if skip else x, time)

        x = rematerialised(residual, time, x, *skip)
        return rematerialised(self.attentions[i], x, context) if i < len(self.attentions) else x


class DownBlock(Block):
    """Returns every intermediate picture: they are the skips."""

    def __init__(self, *args, downsample, **kwargs):
        super().__init__(*args, **kwargs)
        self.downsample = downsample

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        self.downsampler = None
        if self.downsample:
            self.downsampler = Downsample((1, 1), dtype=self.dtype_policy, name="downsamplers.0")
            self.downsampler.build((None, None, None, self.channels))

    def call(self, x, time, context):
        skips = []
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, context)
            skips.append(x)
        if self.downsampler is not None:
            skips.append(self.downsampler(x))
        return skips


class MiddleBlock(Block):
    """Residual block, transformer, residual block."""

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape, num_attentions=1)

    def call(self, x, time, context):
        return self.step(1, self.step(0, x, time, context), time, context)


class UpBlock(Block):
    """Each residual block takes one skip beside the picture."""

    def __init__(self, *args, upsample, **kwargs):
        super().__init__(*args, **kwargs)
        self.upsample = upsample

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        self.upsampler = None
        if self.upsample:
            self.upsampler = Upsample(dtype=self.dtype_policy, name="upsamplers.0")
            self.upsampler.build((None, None, None, self.channels))

    def call(self, x, skips, time, context, size=None):
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, context, skips[-1 - i])
        return x if self.upsampler is None else self.upsampler(x, size=size)


@keras.saving.register_keras_serializable("sd_tf")
class UNet(keras.Model):
    """`unet(latents, timesteps, context)`.

    Args:
        config: a `UNetConfig`, or its fields as a dictionary.

    Called with latents (batch, h, w, in channels), any float; timesteps (batch,), integer or float; context
    (batch, tokens, cross_attention_dim). Returns float32 (batch, h, w, out channels).

    Raises:
        InputError: a block type is unknown, or the fields disagree on the number of levels.
    """

    def __init__(self, config=UNetConfig(), **kwargs):
        # In bfloat16 there is no timestep 999; what is to be cast, the layers within cast.
        super().__init__(autocast=False, **{"name": "unet", **kwargs})
        config = self.config = as_config(UNetConfig, config)
        policy, widths = self.dtype_policy, config.block_out_channels
        levels = len(widths)
        heads = config.attention_head_dim
        heads = (heads,) * levels if isinstance(heads, int) else tuple(heads)
        _check_levels("attention_head_dim", heads, levels)
        _check_levels("down_block_types", config.down_block_types, levels, DOWN_BLOCK_TYPES)
        _check_levels("up_block_types", config.up_block_types, levels, UP_BLOCK_TYPES)

        self.time_embedding = TimestepEmbedding(4 * widths[0], dtype=policy, name="time_embedding")
        self.conv_in = conv(widths[0], 3, "conv_in", policy)

        self.down_blocks, skip_channels, channels = [], [widths[0]], widths[0]
        for i, width in enumerate(widths):
            block = DownBlock(
                width,
                (channels,) + (width,) * (config.layers_per_block - 1),
                heads[i] if config.down_block_types[i] == "CrossAttnDownBlock2D" else None,
                config,
                downsample=i < levels - 1,
                dtype=policy,
                name=f"down_blocks.{i}",
            )
            self.down_blocks.append(block)
            skip_channels += [width] * (config.layers_per_block + block.downsample)
            channels = width

        self.mid_block = MiddleBlock(
            channels, (channels, channels), heads[-1], config, dtype=policy, name="mid_block"
        )

        self.up_blocks = []
        for i, width in enumerate(widths[::-1]):
            skips = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            block = UpBlock(
                width,
                tuple((width if j else channels) + skip for j, skip in enumerate(skips)),
                heads[::-1][i] if config.up_block_types[i] == "CrossAttnUpBlock2D" else None,
                config,
                upsample=i < levels - 1,
                dtype=policy,
                name=f"up_blocks.{i}",
            )
            self.up_blocks.append(block)
            channels = width

        self.norm_out = GroupNorm(
            config.norm_num_groups, config.norm_eps, silu=True, dtype=policy, name="conv_norm_out"
        )
        self.conv_out = conv(config.out_channels, 3, "conv_out", policy, kernel_initializer="zeros")

    def build(self, *input_shapes):
        config = self.config
        width = config.block_out_channels[0]
        time_shape = (None, 4 * width)
        context_shape = (None, None, config.cross_attention_dim)
        self.time_embedding.build((None, width))
        self.conv_in.build((None, None, None, config.in_channels))
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.build(time_shape, context_shape)
        self.norm_out.build((None, None, None, width))
        self.conv_out.build((None, None, None, width))
        self.built = True

    def call(self, latents, timesteps, context):
        config = self.config
        time = self.time_embedding(
            sinusoidal_embedding(
                timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
            )
        )
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], time, context)
        x = self.mid_block(skips[-1], time, context)
        for block in self.up_blocks:
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            x = block(x, taken, time, context, size=tuple(skips[-1].shape[1:3]) if skips else None)
        return ops.cast(self.conv_out(self.norm_out(x)), "float32")

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}


def _check_levels(name, values, levels, valid=None):
    if len(values) != levels:
        raise InputError(f"{name} has {len(values)} entries for {levels} block_out_channels: give {levels}")
    for value in values:
        if valid is not None and value not in valid:
            raise unknown(name, value, valid)

"""The KL autoencoder: pictures to latents and back (Rombach et al. 2022; `diffusers.AutoencoderKL`)."""

import dataclasses

import keras
from keras import ops

from sd_tf.config import as_config
from sd_tf.latent.config import AutoencoderConfig
from sd_tf.nn.attention import PixelAttention
from sd_tf.nn.blocks import Downsample, ResidualBlock, Upsample, conv
from sd_tf.nn.norm import GroupNorm

NORM_EPSILON = 1e-6  # of every group norm here; the UNet's residual blocks have 1e-5


class Level(keras.layers.Layer):
    """Residual blocks at one resolution, then a change of resolution (`resample`), or none."""

    def __init__(self, channels, num_blocks, groups, resample=None, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.num_blocks, self.groups, self.resample = channels, num_blocks, groups, resample

    def build(self, input_shape):
        policy = self.dtype_policy
        self.resnets = [
            ResidualBlock(self.channels, self.groups, NORM_EPSILON, dtype=policy, name=f"resnets.{i}")
            for i in range(self.num_blocks)
        ]
        inner_shape = (*input_shape[:-1], self.channels)
        for i, resnet in enumerate(self.resnets):
            resnet.build(inner_shape if i else input_shape)
        self.resampler = None
        if self.resample == "down":  # the padding of a TensorFlow model, which Stable Diffusion's was once
            self.resampler = Downsample((0, 1), dtype=policy, name="downsamplers.0")
        elif self.resample == "up":
            self.resampler = Upsample(dtype=policy, name="upsamplers.0")
        if self.resampler is not None:
            self.resampler.build(inner_shape)

    def call(self, x):
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.resampler is None else self.resampler(x)


class Middle(keras.layers.Layer):
    """Residual block, attention (if `attends`), residual block, at the lowest resolution."""

    def __init__(self, groups, attends, **kwargs):
        super().__init__(**kwargs)
        self.groups, self.attends = groups, attends

    def build(self, input_shape):
        policy, channels = self.dtype_policy, input_shape[-1]
        self.resnets = [
            ResidualBlock(channels, self.groups, NORM_EPSILON, dtype=policy, name=f"resnets.{i}")
            for i in range(2)
        ]
        self.attentions = []
        if self.attends:
            self.attentions = [PixelAttention(self.groups, dtype=policy, name="attentions.0")]
        for layer in (*self.resnets, *self.attentions):
            layer.build(input_shape)

    def call(self, x):
        first, second = self.resnets
        for layer in (first, *self.attentions, second):
            x = layer(x)
        return x


class Encoder(keras.layers.Layer):
    """(batch, height, width, 3) -> (batch, height/f, width/f, 2 x latent channels)."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def build(self, input_shape):
        config, policy = self.config, self.dtype_policy
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = conv(widths[0], 3, "conv_in", policy)
        self.levels = [
            Level(
                width,
                config.layers_per_block,
                groups,
                "down" if width_index < len(widths) - 1 else None,
                dtype=policy,
                name=f"down_blocks.{width_index}",
            )
            for width_index, width in enumerate(widths)
        ]
        self.middle = Middle(groups, config.mid_block_add_attention, dtype=policy, name="mid_block")
        self.norm_out = GroupNorm(groups, NORM_EPSILON, silu=True, dtype=policy, name="conv_norm_out")
        self.conv_out = conv(2 * config.latent_channels, 3, "conv_out", policy)

        self.conv_in.build(input_shape)
        channels = widths[0]
        for level in self.levels:
            level.build((None, None, None, channels))
            channels = level.channels
        for layer in (self.middle, self.norm_out, self.conv_out):
            layer.build((None, None, None, channels))

    def call(self, images):
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(self.middle(x)))


class Decoder(keras.layers.Layer):
    """(batch, height, width, latent channels) -> (batch, f x height, f x width, 3)."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def build(self, input_shape):
        config, policy = self.config, self.dtype_policy
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = conv(widths[0], 3, "conv_in", policy)
        self.middle = Middle(groups, config.mid_block_add_attention, dtype=policy, name="mid_block")
        self.levels = [
            Level(
                width,
                config.layers_per_block + 1,
                groups,
                "up" if width_index < len(widths) - 1 else None,
                dtype=policy,
                name=f"up_blocks.{width_index}",
            )
            for width_index, width in enumerate(widths)
        ]
        self.norm_out = GroupNorm(groups, NORM_EPSILON, silu=True, dtype=policy, name="conv_norm_out")
        self.conv_out = conv(config.out_channels, 3, "conv_out", policy)

        self.conv_in.build(input_shape)
        channels = widths[0]
        self.middle.build((None, None, None, channels))
        for level in self.levels:
            level.build((None, None, None, channels))
            channels = level.channels
        for layer in (self.norm_out, self.conv_out):
            layer.build((None, None, None, channels))

    def call(self, latents):
        x = self.middle(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(x))


@keras.saving.register_keras_serializable("sd_tf")
class AutoencoderKL(keras.Model):
    """Encoder and decoder, with everything about latents' scale and sampling.

    Images are float (batch, height, width, 3) in [-1, 1], sides divisible by `config.downsampling`
    (f). Latents outside this class are always *scaled*: (z - `config.shift_factor`) times
    `config.scaling_factor`, so that their mean is about 0 and their standard deviation about 1.

    Args:
        config: an `AutoencoderConfig`, or its fields as a dictionary.
    """

    def __init__(self, config=AutoencoderConfig(), **kwargs):
        super().__init__(**{"name": "vae", **kwargs})
        self.config = as_config(AutoencoderConfig, config)
        policy, channels = self.dtype_policy, self.config.latent_channels
        self.encoder = Encoder(self.config, dtype=policy, name="encoder")
        self.decoder = Decoder(self.config, dtype=policy, name="decoder")
        self.quant_conv = self.post_quant_conv = None
        if self.config.use_quant_conv:
            self.quant_conv = conv(2 * channels, 1, "quant_conv", policy)
        if self.config.use_post_quant_conv:
            self.post_quant_conv = conv(channels, 1, "post_quant_conv", policy)

    def build(self, input_shape=None):
        channels = self.config.latent_channels
        self.encoder.build((None, None, None, self.config.in_channels))
        if self.quant_conv is not None:
            self.quant_conv.build((None, None, None, 2 * channels))
        if self.post_quant_conv is not None:
            self.post_quant_conv.build((None, None, None, channels))
        self.decoder.build((None, None, None, channels))
        self.built = True

    def moments(self, images):
        """Mean and log variance of the *unscaled* latents, float32 (batch, h, w, latent channels) each."""
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = ops.split(ops.cast(moments, "float32"), 2, axis=-1)
        return mean, ops.clip(log_variance, -30.0, 20.0)

    def scaled(self, latents):
        """Latents as they are outside this class, of *unscaled* ones."""
        return self.config.scaling_factor * (latents - (self.config.shift_factor or 0.0))

    def unscaled(self, latents):
        """Undoes `scaled`."""
        return latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)

    def encode(self, images):
        """Mean and standard deviation of the latents, float32 (batch, h, w, latent channels) each."""
        mean, log_variance = self.moments(images)
        return self.scaled(mean), self.config.scaling_factor * ops.exp(0.5 * log_variance)

    def decode(self, latents):
        """Latents (batch, h, w, latent channels) -> float32 images, about [-1, 1], not clipped."""
        latents = self.unscaled(latents)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return ops.cast(self.decoder(latents), "float32")

    def call(self, images):
        """The picture that comes back from the mean of its latents."""
        mean, _ = self.encode(images)
        return self.decode(mean)

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}

"""The levels of a cascade's UNet: residual blocks, attention on the text, and a change of resolution."""

import keras
from keras import ops

from sd_tf.nn.added_attention import TextAndSelfAttention, TextAttention
from sd_tf.nn.blocks import Downsample, Upsample
from sd_tf.nn.remat import rematerialised
from sd_tf.nn.resampling_blocks import DownsamplingBlock, ModulatedResidualBlock, UpsamplingBlock


class Level(keras.layers.Layer):
    """Residual blocks, each followed by attention where the level attends.

    Args:
        channels: of every residual block's result.
        input_channels: of each residual block's input, so their number is that of the blocks.
        attends: whether there is attention.
        head_width: channels of an attention's head.
        only_text: whether positions attend on the text alone, not on each other.
        config: the `PixelUNetConfig`.
    """

    def __init__(self, channels, input_channels, attends, head_width, only_text, config, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.input_channels = channels, input_channels
        self.attends, self.head_width, self.only_text = attends, head_width, only_text
        self.config = config

    @property
    def output_scale(self):
        return self.config.resnet_out_scale_factor

    @property
    def num_attentions(self):
        return len(self.input_channels) if self.attends else 0

    def build(self, time_shape, context_shape):
        config = self.config
        self.resnets = [
            self.residual_block(ModulatedResidualBlock, f"resnets.{i}", channels, time_shape)
            for i, channels in enumerate(self.input_channels)
        ]
        attention = TextAttention if self.only_text else TextAndSelfAttention
        self.attentions = [
            attention(
                self.head_width,
                config.norm_num_groups,
                context_norm=config.cross_attention_norm,
                dtype=self.dtype_policy,
                name=f"attentions.{i}",
            )
            for i in range(self.num_attentions)
        ]
        for attention in self.attentions:
            attention.build((None, None, None, self.channels), context_shape)

    def residual_block(self, kind, name, input_channels, time_shape):
        """A built residual block of one of the kinds of `sd_tf.nn.resampling_blocks`."""
        config = self.config
        block = kind(
            self.channels,
            config.norm_num_groups,
            config.norm_eps,
            config.act_fn,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
            skip_time_act=config.resnet_skip_time_act,
            output_scale=self.output_scale,
            dtype=self.dtype_policy,
            name=name,
        )
        block.build((None, None, None, input_channels), time_shape)
        return block

    def step(self, i, x, time, text, *skip):
        """Residual block `i`, on the picture beside a skip if there is one, and the attention after it.

        Args:
            i: number of the block.
            x: (batch, height, width, any channels).
            time: (batch, width).
            text: the context (batch, tokens, width), and a mask's `attention_bias` where there is one.
            skip: none, or one picture of the size of x.
        """

        def residual(time, x, *skip):
            return self.resnets[i](ops.concatenate([x, *skip], axis=-1) if skip else x, time)

        x = rematerialised(residual, time, x, *skip)
        return rematerialised(self.attentions[i], x, *text) if i < len(self.attentions) else x


class DownLevel(Level):
    """Returns every intermediate picture: they are the skips."""

    def __init__(self, *args, resample, **kwargs):
        super().__init__(*args, **kwargs)
        self.resample = resample

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        self.downsampler = None
        if self.resample:
            self.downsampler = self.residual_block(
                DownsamplingBlock, "downsamplers.0", self.channels, time_shape
            )

    def call(self, x, time, text):
        skips = []
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, text)
            skips.append(x)
        if self.downsampler is not None:
            skips.append(rematerialised(self.downsampler, x, time))
        return skips


class MiddleLevel(Level):
    """Residual block, attention, residual block."""

    num_attentions = 1

    @property
    def output_scale(self):
        return self.config.mid_block_scale_factor

    def call(self, x, time, text):
        return self.step(1, self.step(0, x, time, text), time, text)


class UpLevel(Level):
    """Each residual block takes one skip beside the picture, the last of `skips` first."""

    def __init__(self, *args, resample, **kwargs):
        super().__init__(*args, **kwargs)
        self.resample = resample

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        self.upsampler = None
        if self.resample:
            self.upsampler = self.residual_block(UpsamplingBlock, "upsamplers.0", self.channels, time_shape)

    def call(self, x, skips, time, text):
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, text, skips[-1 - i])
        return x if self.upsampler is None else rematerialised(self.upsampler, x, time)


class EfficientDownLevel(Level):
    """A convolution halves the resolution before the residual blocks; returns what each of these makes.

    The residual blocks of Imagen's Efficient U-Net work at a quarter of the pixels (Saharia et al. 2022,
    appendix B). The convolution has stride 2, as there: a mean would lose the noise that is to be predicted.
    """

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        self.downsampler = Downsample((1, 1), dtype=self.dtype_policy, name="downsamplers.0")
        self.downsampler.build((None, None, None, self.input_channels[0]))

    def call(self, x, time, text):
        x, skips = self.downsampler(x), []
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, text)
            skips.append(x)
        return skips


class EfficientUpLevel(Level):
    """Residual blocks with a skip each, and a convolution at twice the resolution after them."""

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        self.upsampler = Upsample(dtype=self.dtype_policy, name="upsamplers.0")
        self.upsampler.build((None, None, None, self.channels))

    def call(self, x, skips, time, text):
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, text, skips[-1 - i])
        return self.upsampler(x)

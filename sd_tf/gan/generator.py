"""GigaGAN's generator (Kang et al. 2023, section 3) in small: a picture from a text in one pass.

Or, as its upsampler (section 3.4), from a text and a smaller picture.
"""

import dataclasses
import math

import keras
from keras import ops

from sd_tf.config import as_config
from sd_tf.errors import InputError
from sd_tf.gan.config import LOWEST_SIDE, GeneratorConfig, check_config
from sd_tf.gan.encoder import LatentEncoder, PictureFeatures
from sd_tf.gan.layers import (
    AdaptiveConv2D,
    CrossAttention,
    DistanceAttention,
    TextLayers,
    leaky_relu,
    unit_rows,
)
from sd_tf.nn.added_attention import attention_bias
from sd_tf.nn.blocks import doubled

RGB = 3


@keras.saving.register_keras_serializable("sd_tf")
class Generator(keras.Model):
    """`generator(z, states=None, text_mask=None, low_res=None)`.

    Args:
        config: a `GeneratorConfig`, or its fields as a dictionary.

    Called with z, float (batch, latent dim), standard normal; states (batch, tokens, text dim) and text_mask,
    bool (batch, tokens), of a frozen text encoder, if `text_dim` is not None. Returns a tuple of pictures,
    one for each level from the lowest up, float32 (batch, side, side, 3), about in [-1, 1]; the last is
    drawn.

    `encoder`, if there is one, tells the z of a picture, see `LatentEncoder`; training and inversion ask it.

    With `low_res_size` it enlarges low_res, float (batch, low_res_size, low_res_size, 3) in [-1, 1]: what an
    encoder sees in it joins the levels up to its size, and the levels above add to it, enlarged, what it
    lacks. Pictures are returned of these levels alone. A new one only enlarges, bilinearly.

    `styles` and `synthesize` are its two halves, for truncation, mixing and projection.

    Raises:
        InputError: the configuration makes no network.
    """

    def __init__(self, config=GeneratorConfig(), **kwargs):
        super().__init__(autocast=False, **{"name": "generator", **kwargs})
        config = self.config = as_config(GeneratorConfig, config)
        check_config(config)
        policy = self.dtype_policy
        self.text = None
        if config.text_dim is not None:
            self.text = TextLayers(
                config.text_width, config.text_layers, config.attention_head_dim, dtype=policy, name="text"
            )
        self.mapping = [
            keras.layers.Dense(
                config.style_dim, kernel_initializer="lecun_normal", dtype=policy, name=f"mapping.{i}"
            )
            for i in range(config.mapping_layers)
        ]
        self.encoder = None
        if config.encoder_channels:
            self.encoder = LatentEncoder(
                *(config.encoder_channels, config.latent_dim, config.encoder_patch),
                dtype=policy,
                name="encoder",
            )
        kernels = config.of_levels("num_kernels")
        self.levels = [
            SynthesisLevel(
                *(channels, kernels[i], config.self_attention[i], config.cross_attention[i]),
                config.attention_head_dim,
                upsample=i > 0,
                draws=i >= config.levels_below,
                starts_at_zero=config.low_res_size is not None,
                dtype=policy,
                name=f"levels.{i}",
            )
            for i, channels in enumerate(config.block_out_channels)
        ]
        self.low_res = None
        if config.low_res_size is not None:
            widths = config.block_out_channels[: config.levels_below]
            self.low_res = PictureFeatures(widths, dtype=policy, name="low_res")

    def build(self, *input_shapes):
        config = self.config
        text_shape = None
        width = config.latent_dim
        if self.text is not None:
            text_shape = (None, None, config.text_width)
            self.text.build((None, None, config.text_dim))
            width += config.text_width
        for layer in self.mapping:
            layer.build((None, width))
            width = config.style_dim
        if self.encoder is not None:
            code_shape = None if self.text is None else (None, config.text_width)
            self.encoder.build((None, config.sample_size, config.sample_size, RGB), code_shape)
        channels = config.block_out_channels[0]
        if self.low_res is not None:
            self.low_res.build((None, config.low_res_size, config.low_res_size, RGB))
        else:
            self.constant = self.add_weight(
                shape=(1, LOWEST_SIDE, LOWEST_SIDE, channels),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                name="constant",
            )
        self.start = None
        if config.starts_from_style:
            self.start = keras.layers.Dense(
                LOWEST_SIDE**2 * channels,
                kernel_initializer="lecun_normal",
                dtype=self.dtype_policy,
                name="start",
            )
            self.start.build((None, config.style_dim))
        for level, side in zip(self.levels, config.sides, strict=True):
            inner = side // 2 if level.upsample else side
            level.build((None, inner, inner, channels), (None, config.style_dim), text_shape)
            channels = level.channels
        self.built = True

    def call(self, z, states=None, text_mask=None, low_res=None):
        tokens, code = self.read(states, text_mask)
        return self.synthesize(self.styles(z, code), tokens, text_mask, low_res)

    def read(self, states=None, text_mask=None):
        """The text's local tokens and its global code, (None, None) without a text."""
        return (None, None) if self.text is None else self.text(states, text_mask)

    def styles(self, z, code=None):
        """w, (batch, style dim), of z and a global code (section 3.2)."""
        x = unit_rows(ops.cast(z, self.compute_dtype))
        if code is not None:
            x = ops.concatenate([x, unit_rows(code)], axis=-1)
        for layer in self.mapping:
            x = leaky_relu(layer(x))
        return x

    def synthesize(self, styles, tokens=None, text_mask=None, low_res=None):
        """Pictures of all levels that draw, from w.

        Args:
            styles: (batch, style dim), or a list of such, one for each level: style mixing.
            tokens, text_mask: of `read`.
            low_res: the pictures to enlarge, see this class.

        Raises:
            InputError: low_res is missing, or is given to a generator without `low_res_size`.
        """
        if (low_res is None) != (self.low_res is None):
            raise InputError(
                f"low_res is {'missing' if low_res is None else 'given'}, and the generator's low_res_size "
                f"is {self.config.low_res_size}: give low_res to a generator that enlarges, and to no other"
            )
        styles = styles if isinstance(styles, (list, tuple)) else [styles] * len(self.levels)
        bias = None if text_mask is None else attention_bias(text_mask)
        pictures, picture, seen = [], None, [None] * len(self.levels)
        if self.low_res is None:
            x = ops.repeat(ops.cast(self.constant, self.compute_dtype), ops.shape(styles[0])[0], axis=0)
            if self.start is not None:
                x = x + ops.reshape(self.start(styles[0]), (-1, *x.shape[1:]))
        else:
            picture = ops.cast(low_res, "float32")
            x, *of_levels = self.low_res(ops.cast(low_res, self.compute_dtype))
            seen[1 : 1 + len(of_levels)] = of_levels
        for level, style, skip in zip(self.levels, styles, seen, strict=True):
            x, change = level(x, style, tokens, bias, skip)
            if change is None:
                continue
            change = ops.cast(change, "float32")
            picture = change if picture is None else smoothly_doubled(picture) + change
            pictures.append(picture)
        return tuple(pictures)

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}


def smoothly_doubled(pictures):
    """(batch, height, width, channels) -> (batch, 2 height, 2 width, channels), bilinear."""
    height, width = pictures.shape[1:3]
    return ops.image.resize(pictures, (2 * height, 2 * width), "bilinear", data_format="channels_last")


@keras.saving.register_keras_serializable("sd_tf")
class SynthesisLevel(keras.layers.Layer):
    """Two adaptive convolutions and attention at one resolution, and what they add to the picture.

    Args:
        channels: of the result.
        num_kernels: of the filter banks.
        self_attention, cross_attention: whether positions attend on each other, and on the text.
        head_width: of the attentions.
        upsample: whether the resolution is doubled, between the two convolutions: the first one then has a
            quarter of the positions that it has in StyleGAN2, where it comes behind.
        draws: whether it adds to the picture.
        starts_at_zero: whether a new level adds nothing to it.

    Called with x (batch, side, side, channels in), w (batch, style dim), the text's tokens or None, their
    `attention_bias` or None, and features that join it (batch, side, side, channels) or None. Returns the
    level's features and its part of the picture, (batch, side, side, 3), or None.
    """

    def __init__(
        self,
        channels,
        num_kernels,
        self_attention,
        cross_attention,
        head_width,
        upsample,
        draws=True,
        starts_at_zero=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.draws, self.starts_at_zero = draws, starts_at_zero
        self.channels, self.num_kernels, self.head_width = channels, num_kernels, head_width
        self.self_attention, self.cross_attention, self.upsample = self_attention, cross_attention, upsample

    def build(self, x_shape, style_shape, text_shape=None):
        policy = self.dtype_policy
        inner, side = x_shape[1], x_shape[1] * (2 if self.upsample else 1)
        shape = (None, side, side, self.channels)
        self.convs = [
            AdaptiveConv2D(self.channels, 3, self.num_kernels, dtype=policy, name=f"convs.{i}")
            for i in (0, 1)
        ]
        self.convs[0].build((None, inner, inner, x_shape[-1]), style_shape)
        self.convs[1].build(shape, style_shape)
        self.attention = self.text_attention = None
        if self.self_attention:
            self.attention = DistanceAttention(self.head_width, dtype=policy, name="attention")
            self.attention.build(shape)
        if self.cross_attention:
            self.text_attention = CrossAttention(self.head_width, dtype=policy, name="text_attention")
            self.text_attention.build(shape, text_shape)
        self.to_rgb = None
        if self.draws:
            self.to_rgb = AdaptiveConv2D(
                RGB,
                1,
                demodulate=False,
                starts_at_zero=self.starts_at_zero,
                dtype=policy,
                name="to_rgb",
            )
            self.to_rgb.build(shape, style_shape)

    def call(self, x, style, tokens=None, bias=None, skip=None):
        x = leaky_relu(self.convs[0](x, style))
        if self.upsample:
            x = doubled(x)
        if skip is not None:
            x = (x + skip) * math.sqrt(0.5)  # which keeps the deviation
        x = leaky_relu(self.convs[1](x, style))
        if self.attention is not None:
            x = self.attention(x)
        if self.text_attention is not None:
            x = self.text_attention(x, tokens, bias)
        if self.to_rgb is None:
            return x, None
        return x, self.to_rgb(x, style)

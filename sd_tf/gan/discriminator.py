"""GigaGAN's discriminator (Kang et al. 2023, section 3.3) in small: it judges a picture and its text."""

import dataclasses

import keras
from keras import ops

from sd_tf.config import as_config
from sd_tf.errors import InputError
from sd_tf.gan.config import LOWEST_SIDE, DiscriminatorConfig, check_config
from sd_tf.gan.layers import AdaptiveConv2D, DistanceAttention, TextLayers, leaky_relu
from sd_tf.nn.blocks import conv
from sd_tf.nn.precision import at_least_float32

RGB = 3


@keras.saving.register_keras_serializable("sd_tf")
class Discriminator(keras.Model):
    """`discriminator(pictures, states=None, text_mask=None)`.

    A level judges what comes from all levels above it and, with `multi_scale_input`, a picture of its own
    size, each by itself: of L levels there are L (L + 1) / 2 judgements (section 3.3).

    Args:
        config: a `DiscriminatorConfig`, or its fields as a dictionary.

    Called with pictures, float (batch, side, side, 3) in [-1, 1], of which the smaller ones are made, or a
    tuple of a generator's from 4 x 4 up; states (batch, tokens, text dim) and text_mask, bool (batch,
    tokens), of a frozen text encoder, if `text_dim` is not None. The batch is a multiple of
    `minibatch_groups`. Returns logits, float32 (batch, judgements), high for real pictures.

    Raises:
        InputError: the configuration makes no network, or the pictures have another size.
    """

    def __init__(self, config=DiscriminatorConfig(), **kwargs):
        super().__init__(autocast=False, **{"name": "discriminator", **kwargs})
        config = self.config = as_config(DiscriminatorConfig, config)
        check_config(config)
        policy, widths = self.dtype_policy, config.block_out_channels
        self.text = None
        if config.text_dim is not None:
            self.text = TextLayers(
                config.text_width, config.text_layers, config.attention_head_dim, dtype=policy, name="text"
            )
        last = len(widths) - 1
        inputs = range(last + 1) if config.multi_scale_input else range(1)
        self.from_rgb = {i: conv(widths[max(i - 1, 0)], 1, f"from_rgb.{i}", policy) for i in inputs}
        self.levels = [
            JudgingLevel(
                widths[i],
                config.self_attention[i],
                config.attention_head_dim,
                dtype=policy,
                name=f"levels.{i}",
            )
            for i in range(last + 1)
        ]
        self.heads = {
            i: Head(
                is_last=i == last,
                groups=config.minibatch_groups if i == last else 1,
                dtype=policy,
                name=f"heads.{i}",
            )
            for i in (range(last + 1) if config.multi_scale_output else (last,))
        }

    def build(self, *input_shapes):
        config = self.config
        code_shape = None
        if self.text is not None:
            self.text.build((None, None, config.text_dim))
            code_shape = (None, config.text_width)
        side, channels = config.sample_size, config.block_out_channels[0]
        for i, level in enumerate(self.levels):
            if i in self.from_rgb:
                self.from_rgb[i].build((None, side, side, RGB))
            level.build((None, side, side, channels))
            channels = level.channels
            if i in self.heads:
                self.heads[i].build((None, side, side, channels), code_shape)
            side //= 2
        self.built = True

    def call(self, pictures, states=None, text_mask=None):
        return self.judged(self.seen(pictures), self.code_of(states, text_mask))

    def code_of(self, states=None, text_mask=None):
        """The code of a text, (batch, text width); None without a text."""
        return None if self.text is None else self.text(states, text_mask)[1]

    def seen(self, pictures):
        """What the levels that judge have seen of the pictures: a list of (rows, side, side, channels).

        The rows of a level are those of the largest pictures, of the next smaller ones, and so on.
        """
        pyramid = self.pyramid_of(pictures)
        x, found = None, []
        for i, level in enumerate(self.levels):
            if i in self.from_rgb:
                picture = self.from_rgb[i](ops.cast(pyramid[i], self.compute_dtype))
                x = picture if x is None else ops.concatenate([x, picture], axis=0)
            x = level(x)
            if i in self.heads:
                found.append(x)
            if i + 1 < len(self.levels):
                x = halved(x)
        return found

    def judged(self, seen, code=None):
        """Logits, float32 (batch, judgements), of `seen` and the texts' `code_of`.

        Pictures need be seen but once to be judged with several texts.
        """
        found = []
        for (i, head), x in zip(self.heads.items(), seen, strict=True):
            scales = i + 1 if self.config.multi_scale_input else 1
            logits = head(x, None if code is None else ops.tile(code, (scales, 1)))
            found.append(ops.transpose(ops.reshape(ops.cast(logits, "float32"), (scales, -1))))
        return ops.concatenate(found, axis=1)

    def pyramid_of(self, pictures):
        """The pictures that the levels see, the largest first."""
        config = self.config
        wanted = [config.sample_size // 2**i for i in self.from_rgb]
        if isinstance(pictures, (list, tuple)):
            pyramid = list(pictures[::-1])[: len(wanted)]
        else:
            pyramid = [pictures]
            while len(pyramid) < len(wanted):
                pyramid.append(halved(pyramid[-1]))
        sides = [each.shape[1] for each in pyramid]
        if sides != wanted:
            raise InputError(f"pictures have sides of {sides}, the discriminator judges {wanted}: give these")
        return pyramid

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}


def halved(x):
    """(batch, height, width, channels) -> (batch, height / 2, width / 2, channels), the means of squares."""
    height, width, channels = x.shape[1:]
    x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
    return ops.mean(x, axis=(2, 4))


@keras.saving.register_keras_serializable("sd_tf")
class JudgingLevel(keras.layers.Layer):
    """A residual block of two convolutions, without a norm, and attention by distance.

    The block's second convolution starts at zero, as in R3GAN (Huang et al. 2024, section 4).

    Args:
        channels: of the result.
        self_attention: whether positions attend on each other.
        head_width: of the attention.

    Called with (batch, side, side, channels in); returns (batch, side, side, channels).
    """

    def __init__(self, channels, self_attention, head_width, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.self_attention, self.head_width = channels, self_attention, head_width

    def build(self, x_shape):
        policy, shape = self.dtype_policy, (*x_shape[:-1], self.channels)
        self.conv1 = conv(self.channels, 3, "conv1", policy, kernel_initializer="he_normal")
        self.conv2 = conv(self.channels, 3, "conv2", policy, kernel_initializer="zeros")
        self.conv1.build(x_shape)
        self.conv2.build(shape)
        self.shortcut = self.attention = None
        if x_shape[-1] != self.channels:
            self.shortcut = conv(self.channels, 1, "shortcut", policy, use_bias=False)
            self.shortcut.build(x_shape)
        if self.self_attention:
            self.attention = DistanceAttention(self.head_width, dtype=policy, name="attention")
            self.attention.build(shape)

    def call(self, x):
        change = self.conv2(leaky_relu(self.conv1(leaky_relu(x))))
        x = change + (x if self.shortcut is None else self.shortcut(x))
        return x if self.attention is None else self.attention(x)


@keras.saving.register_keras_serializable("sd_tf")
class Head(keras.layers.Layer):
    """A level's judgement: one of the picture alone and, with a text, one of both (equation 6).

    Args:
        is_last: whether all positions are seen at once, and not each by itself.
        groups: examples whose deviation is seen (Karras et al. 2018, section 3); 1 for none.

    Called with x (rows, side, side, channels) and the text's code (rows, width) or None; returns logits,
    (rows,).
    """

    def __init__(self, is_last=False, groups=1, **kwargs):
        super().__init__(**kwargs)
        self.is_last, self.groups = is_last, groups

    def build(self, x_shape, code_shape=None):
        policy = self.dtype_policy
        _, height, width, channels = x_shape
        shape = (*x_shape[:-1], channels + (self.groups > 1))
        padding = "valid" if self.is_last else "same"
        size = LOWEST_SIDE if self.is_last else 1
        self.conv_in = keras.layers.Conv2D(
            channels, size, padding=padding, kernel_initializer="he_normal", dtype=policy, name="conv_in"
        )
        self.conv_in.build(shape)
        place = (None, 1, 1, channels) if self.is_last else (None, height, width, channels)
        self.conv_out = conv(1, 1, "conv_out", policy)
        self.conv_out.build(place)
        self.text_conv = None
        if code_shape is not None:
            self.text_conv = AdaptiveConv2D(channels, 1, demodulate=False, dtype=policy, name="text_conv")
            self.text_out = conv(1, 1, "text_out", policy)
            self.text_conv.build(place, code_shape)
            self.text_out.build(place)

    def call(self, x, code=None):
        if self.groups > 1:
            x = with_deviation(x, self.groups)
        x = leaky_relu(self.conv_in(leaky_relu(x)))
        logits = self.conv_out(x)
        if self.text_conv is not None:
            logits = logits + self.text_out(leaky_relu(self.text_conv(x, code)))
        return ops.mean(logits, axis=(1, 2, 3))


def with_deviation(x, groups):
    """Another channel: how much the examples of a group differ, on the mean over channels and positions.

    Args:
        x: (rows, height, width, channels); rows are a multiple of `groups`, examples side by side one group.

    Returns:
        (rows, height, width, channels + 1).
    """
    height, width, channels = x.shape[1:]
    grouped = at_least_float32(ops.reshape(x, (-1, groups, height, width, channels)))
    variance = ops.mean(ops.square(grouped - ops.mean(grouped, axis=1, keepdims=True)), axis=1)
    deviation = ops.mean(ops.sqrt(variance + 1e-8), axis=(1, 2, 3))  # (groups,)
    deviation = ops.repeat(ops.cast(deviation, x.dtype), groups)[:, None, None, None]
    return ops.concatenate([x, deviation * ops.ones_like(x[..., :1])], axis=-1)

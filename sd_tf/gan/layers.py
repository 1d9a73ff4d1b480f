"""The layers of GigaGAN (Kang et al. 2023): adaptive convolution, attention by distance, layers on text."""

import math

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.added_attention import attention_bias
from sd_tf.nn.attention import (
    Attention,
    FeedForward,
    at_positions_of,
    scaled_dot_product_attention,
    tokens_of,
)
from sd_tf.nn.norm import LayerNorm
from sd_tf.nn.precision import at_least_float32

EPSILON = 1e-8  # added to a squared norm


def leaky_relu(x):
    """StyleGAN's: slope 0.2, times the root of two, which keeps the deviation of centred inputs.

    So layers before and after it keep it as well with weights of variance 1 / fan-in (`lecun_normal`).
    """
    return ops.leaky_relu(x, 0.2) * math.sqrt(2.0)


def halved(x):
    """(batch, height, width, channels) -> (batch, height / 2, width / 2, channels), the means of squares."""
    height, width, channels = x.shape[1:]
    x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
    return ops.mean(x, axis=(2, 4))


def halved_to(x, side):
    """`halved` until pictures have that side, in pixels."""
    while x.shape[1] > side:
        x = halved(x)
    return x


def patches_of_pixels(x, size):
    """(batch, size * height, size * width, channels) -> (batch, height, width, size * size * channels)."""
    height, width, channels = x.shape[1] // size, x.shape[2] // size, x.shape[3]
    x = ops.reshape(x, (-1, height, size, width, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, size * size * channels))


def unit_rows(x):
    """Divided by the root mean square over the last axis (StyleGAN's pixel norm)."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + EPSILON)


def adaptive_convolution(x, kernels, style, selection=None, demodulate=True):
    """A convolution whose kernel depends on the example.

    The kernel is a mean of the bank's, weighted by the softmax of `selection` (GigaGAN, equation 3). The
    style scales its input channels, and each of its output channels is brought to unit norm (StyleGAN2,
    equations 1 and 3).

    Args:
        x: float (batch, height, width, channels in).
        kernels: (kernels of the bank, size, size, channels in, channels out); the size is odd.
        style: (batch, channels in).
        selection: (batch, kernels of the bank), logits; None if there is one.
        demodulate: whether output channels are brought to unit norm.

    Returns:
        (batch, height, width, channels out), the dtype of x.
    """
    number, size, _, channels_in, channels_out = kernels.shape
    style = at_least_float32(style)
    weights = ops.ones_like(style[:, :1])
    if number > 1:
        weights = ops.softmax(at_least_float32(selection), axis=-1)
    # A mean of kernels is one kernel on as many copies of x, each times its weight: a convolution of the
    # whole batch, where a kernel for each example would need one for each.
    # Reshaped, and not indexed with None in the middle, which OpenVINO converts to something else.
    scales = ops.cast(weights[:, :, None] * style[:, None], x.dtype)  # (batch, number, in)
    scales = ops.reshape(scales, (-1, number, 1, 1, channels_in))
    copies = ops.concatenate([x * scales[:, i] for i in range(number)], axis=-1)
    stacked = ops.reshape(ops.transpose(kernels, (1, 2, 0, 3, 4)), (size, size, -1, channels_out))
    result = ops.conv(copies, ops.cast(stacked, x.dtype), padding="same")
    if demodulate:  # by the norms of the mean kernels, without making these: from the products of each two
        wide = at_least_float32(kernels)
        products = ops.sum(wide[:, None] * wide[None], axis=(2, 3))  # (number, number, in, out)
        pairs = weights[:, :, None, None] * weights[:, None, :, None] * ops.square(style)[:, None, None]
        pairs = ops.reshape(pairs, (-1, number * number * channels_in))
        norms = ops.matmul(pairs, ops.reshape(products, (-1, channels_out)))
        scales = ops.cast(ops.rsqrt(norms + EPSILON), x.dtype)
        result = result * ops.reshape(scales, (-1, 1, 1, channels_out))
    return result


@keras.saving.register_keras_serializable("sd_tf")
class AdaptiveConv2D(keras.layers.Layer):
    """`adaptive_convolution` whose style and selection are affine functions of a vector, such as w.

    Args:
        channels: of the result.
        size: of the kernel along each axis, odd.
        num_kernels: of the filter bank.
        demodulate: whether output channels are brought to unit norm.
        starts_at_zero: whether a new layer returns zeros.

    Called with x (batch, height, width, channels in) and w (batch, any width); returns the same axes with
    `channels` channels, with a bias, in the compute dtype.
    """

    def __init__(self, channels, size=3, num_kernels=1, demodulate=True, starts_at_zero=False, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.size = channels, size
        self.num_kernels, self.demodulate = num_kernels, demodulate
        self.starts_at_zero = starts_at_zero

    def build(self, x_shape, style_shape):
        channels_in, policy = x_shape[-1], self.dtype_policy
        shape = (self.num_kernels, self.size, self.size, channels_in, self.channels)
        deviation = 1.0 / math.sqrt(self.size * self.size * channels_in)
        normal = "zeros" if self.starts_at_zero else keras.initializers.RandomNormal(stddev=deviation)
        self.kernels = self.add_weight(shape=shape, initializer=normal, name="weight")
        self.bias = self.add_weight(shape=(self.channels,), initializer="zeros", name="bias")
        self.affine = keras.layers.Dense(
            channels_in,
            bias_initializer="ones",
            dtype=policy,
            name="affine",
            kernel_initializer="lecun_normal",
        )
        self.affine.build(style_shape)
        self.selection = None
        if self.num_kernels > 1:
            self.selection = keras.layers.Dense(self.num_kernels, dtype=policy, name="selection")
            self.selection.build(style_shape)

    def call(self, x, style):
        selection = None if self.selection is None else self.selection(style)
        mixed = adaptive_convolution(x, self.kernels, self.affine(style), selection, self.demodulate)
        return mixed + ops.cast(self.bias, mixed.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "size": self.size,
            "num_kernels": self.num_kernels,
            "demodulate": self.demodulate,
            "starts_at_zero": self.starts_at_zero,
        }


@keras.saving.register_keras_serializable("sd_tf")
class DistanceAttention(keras.layers.Layer):
    """Self-attention over positions by Euclidean distance, queries and keys tied, with a residual connection.

    A dot product is not Lipschitz continuous, which a discriminator has to be (Kim et al. 2021, equation 6).
    A new layer returns its input, because `to_out` starts at zero.

    Args:
        head_width: of each head, a divisor of the channels.

    Called with (batch, height, width, channels); returns the same shape in the compute dtype.

    Raises:
        InputError: the heads do not divide the channels.
    """

    def __init__(self, head_width=32, **kwargs):
        super().__init__(**kwargs)
        self.head_width = head_width

    def build(self, input_shape):
        channels, policy = input_shape[-1], self.dtype_policy
        if channels % self.head_width:
            raise InputError(
                f"{channels} channels do not divide into heads of {self.head_width}: change one of them"
            )
        self.norm = LayerNorm(1e-5, name="norm", dtype=policy)
        self.to_q, self.to_v = (
            keras.layers.Dense(channels, use_bias=False, dtype=policy, name=name) for name in ("to_q", "to_v")
        )
        self.to_out = keras.layers.Dense(channels, kernel_initializer="zeros", dtype=policy, name="to_out")
        for layer in (self.norm, self.to_q, self.to_v, self.to_out):
            layer.build((None, None, channels))

    def call(self, x):
        tokens = self.norm(tokens_of(x))
        mixed = attention_by_distance(self.to_q(tokens), self.to_v(tokens), self.head_width)
        return x + at_positions_of(x, self.to_out(mixed))

    def get_config(self):
        return {**super().get_config(), "head_width": self.head_width}


def attention_by_distance(query, value, head_width):
    """Attention whose logits are minus the squared distances of queries, over the root of a head's width.

    Args:
        query: (batch, tokens, width), also the keys; the heads are side by side in the width.
        value: (batch, tokens, width).
        head_width: a divisor of the width.

    Returns:
        (batch, tokens, width).
    """
    _, tokens, width = query.shape
    heads, scale = width // head_width, 1.0 / math.sqrt(head_width)
    # -|q - k|^2 = 2 q k - |k|^2 - |q|^2, whose last term the softmax over keys does not see.
    wide = at_least_float32(ops.reshape(query, (-1, tokens, heads, head_width)))
    squares = ops.sum(ops.square(wide), axis=-1)
    mask = -scale * ops.transpose(squares, (0, 2, 1))[:, :, None, :]  # (batch, heads, 1, keys)
    return scaled_dot_product_attention(query, query, value, heads, mask=mask, scale=2.0 * scale)


@keras.saving.register_keras_serializable("sd_tf")
class CrossAttention(keras.layers.Layer):
    """Positions of a picture attend on the tokens of a text, with a residual connection.

    A new layer returns its input, because `to_out.0` starts at zero.

    Args:
        head_width: of each head, a divisor of the channels.

    Called with x (batch, height, width, channels), tokens (batch, tokens, any width) and their
    `attention_bias` or None; returns the shape of x in the compute dtype.
    """

    def __init__(self, head_width=32, **kwargs):
        super().__init__(**kwargs)
        self.head_width = head_width

    def build(self, x_shape, text_shape):
        channels, policy = x_shape[-1], self.dtype_policy
        self.norm = LayerNorm(1e-5, name="norm", dtype=policy)
        self.to_q, self.to_k, self.to_v = (
            keras.layers.Dense(channels, use_bias=False, dtype=policy, name=name)
            for name in ("to_q", "to_k", "to_v")
        )
        self.to_out = keras.layers.Dense(channels, kernel_initializer="zeros", dtype=policy, name="to_out")
        for layer in (self.norm, self.to_q, self.to_out):
            layer.build((None, None, channels))
        self.to_k.build(text_shape)
        self.to_v.build(text_shape)

    def call(self, x, tokens, bias=None):
        queries = self.to_q(self.norm(tokens_of(x)))
        heads = x.shape[-1] // self.head_width
        mixed = scaled_dot_product_attention(queries, self.to_k(tokens), self.to_v(tokens), heads, mask=bias)
        return x + at_positions_of(x, self.to_out(mixed))

    def get_config(self):
        return {**super().get_config(), "head_width": self.head_width}


@keras.saving.register_keras_serializable("sd_tf")
class TextLayers(keras.layers.Layer):
    """Learned layers on the states of a frozen text encoder (GigaGAN, section 3.2).

    Args:
        width: of what they return.
        num_layers: of self-attention and feed-forward.
        head_width: of each head, a divisor of the width.

    Called with states (batch, tokens, any width) and text_mask, None or bool (batch, tokens); returns the
    local tokens, (batch, tokens, width), and the global code, (batch, width). A learned token in front of
    the others becomes the code: not every text encoder has a token that stands for the whole text.
    """

    def __init__(self, width, num_layers=1, head_width=32, **kwargs):
        super().__init__(**kwargs)
        self.width, self.num_layers, self.head_width = width, num_layers, head_width

    def build(self, states_shape):
        policy, shape = self.dtype_policy, (None, None, self.width)
        self.norm_in = LayerNorm(1e-5, name="norm_in", dtype=policy)
        self.proj_in = keras.layers.Dense(self.width, dtype=policy, name="proj_in")
        self.norm_in.build(states_shape)
        self.proj_in.build(states_shape)
        self.code = self.add_weight(shape=(1, 1, self.width), initializer="random_normal", name="code")
        self.layers = [
            TextLayer(self.width // self.head_width, dtype=policy, name=f"layers.{i}")
            for i in range(self.num_layers)
        ]
        for layer in self.layers:
            layer.build(shape)
        self.norm_out = LayerNorm(1e-5, name="norm_out", dtype=policy)
        self.norm_out.build(shape)

    def call(self, states, text_mask=None):
        tokens = self.proj_in(self.norm_in(states))
        code = ops.cast(self.code, tokens.dtype)
        tokens = ops.concatenate([ops.repeat(code, ops.shape(tokens)[0], axis=0), tokens], axis=1)
        bias = None
        if text_mask is not None:
            seen = ops.cast(text_mask, "bool")
            bias = attention_bias(ops.concatenate([ops.ones_like(seen[:, :1]), seen], axis=1))
        for layer in self.layers:
            tokens = layer(tokens, bias)
        tokens = self.norm_out(tokens)
        return tokens[:, 1:], tokens[:, 0]

    def get_config(self):
        names = ("width", "num_layers", "head_width")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("sd_tf")
class TextLayer(keras.layers.Layer):
    """Self-attention and a feed-forward, each behind a norm and with a residual connection.

    Args:
        num_heads: a divisor of the width.

    Called with tokens (batch, tokens, width) and an `attention_bias` or None; returns the same shape.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape):
        policy = self.dtype_policy
        self.norm1, self.norm2 = (LayerNorm(1e-5, name=f"norm{i}", dtype=policy) for i in (1, 2))
        self.attn = Attention(self.num_heads, dtype=policy, name="attn")
        self.ff = FeedForward(dtype=policy, name="ff")
        for layer in (self.norm1, self.attn, self.norm2, self.ff):
            layer.build(input_shape)

    def call(self, x, bias=None):
        x = x + self.attn(self.norm1(x), bias=bias)
        return x + self.ff(self.norm2(x))

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}

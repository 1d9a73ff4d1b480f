"""Scaled dot-product attention over token sequences, and the layers of a spatial transformer."""

import contextlib
import math

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.fused import fused
from sd_tf.nn.norm import GroupNorm, LayerNorm

_recorded = None


class Recorded:
    """Attention weights, each (batch, heads, tokens, context tokens), in the order of the layers."""

    def __init__(self):
        self.of_itself, self.of_context = [], []


@contextlib.contextmanager
def recorded_attention():
    """Gives a `Recorded`, which has the weights of each `Attention` that is called within the block."""
    global _recorded
    before, _recorded = _recorded, Recorded()
    try:
        yield _recorded
    finally:
        _recorded = before


def scaled_dot_product_attention(query, key, value, num_heads, mask=None, record=None):
    """Multi-head attention, without its projections (Vaswani et al. 2017, equation 1).

    Args:
        query: (batch, tokens, width), any float dtype; heads lie side by side in the width.
        key, value: (batch, context tokens, width).
        num_heads: a divisor of the width.
        mask: None, or float, broadcastable to (batch, heads, tokens, context tokens), added to
            the logits.
        record: a list that the weights are added to, or None.

    Returns:
        (batch, tokens, width), the dtype of `value`. The softmax is taken in float32.
    """
    _, tokens, width = query.shape
    context_tokens, head_width = ops.shape(key)[1], width // num_heads  # a number, where it is known
    query = query * (1.0 / math.sqrt(head_width))

    def heads(x, tokens):  # (batch, tokens, width) -> (batch, heads, tokens, head width)
        return ops.transpose(ops.reshape(x, (-1, tokens, num_heads, head_width)), (0, 2, 1, 3))

    query, key, value = heads(query, tokens), heads(key, context_tokens), heads(value, context_tokens)
    logits = ops.cast(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), "float32")
    if mask is not None:
        logits = logits + mask
    weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
    if record is not None:
        record.append(weights)
    mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # (batch, tokens, heads, head width)
    return ops.reshape(mixed, (-1, tokens, width))


@keras.saving.register_keras_serializable("sd_tf")
class Attention(keras.layers.Layer):
    """Multi-head attention of `x` (batch, tokens, width) on `context`, or on itself where none is given.

    `diffusers.models.attention_processor.Attention`: `to_q`, `to_k`, `to_v`, `to_out.0`.
    """

    output_begins = "glorot_uniform"

    def __init__(self, num_heads, qkv_bias=False, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.qkv_bias = num_heads, qkv_bias

    def build(self, x_shape, context_shape=None):
        width = x_shape[-1]
        context_shape = context_shape or x_shape
        if width % self.num_heads:
            raise InputError(
                f"{width} channels do not divide into {self.num_heads} heads: change one of them"
            )

        def dense(name, bias, begins="glorot_uniform"):
            return keras.layers.Dense(width, None, bias, begins, dtype=self.dtype_policy, name=name)

        self.to_q, self.to_k, self.to_v = (dense(name, self.qkv_bias) for name in ("to_q", "to_k", "to_v"))
        self.to_out = dense("to_out.0", True, self.output_begins)
        self.to_q.build(x_shape)
        self.to_k.build(context_shape)
        self.to_v.build(context_shape)
        self.to_out.build(x_shape)

    def call(self, x, context=None):
        record = None
        if _recorded is not None:
            record = _recorded.of_itself if context is None else _recorded.of_context
        context = x if context is None else context
        mixed = scaled_dot_product_attention(
            self.to_q(x), self.to_k(context), self.to_v(context), self.num_heads, record=record
        )
        return self.to_out(mixed)

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "qkv_bias": self.qkv_bias}


@fused
def _geglu(x):
    value, gate = ops.split(x, 2, axis=-1)
    return value * ops.gelu(gate, approximate=False)


@keras.saving.register_keras_serializable("sd_tf")
class FeedForward(keras.layers.Layer):
    """GEGLU with the exact (erf) GELU, four times as wide inside (Shazeer 2020): `net.0.proj`, `net.2`."""

    def build(self, input_shape):
        width = input_shape[-1]
        self.proj = keras.layers.Dense(8 * width, dtype=self.dtype_policy, name="net.0.proj")
        self.out = keras.layers.Dense(width, dtype=self.dtype_policy, name="net.2")
        self.proj.build(input_shape)
        self.out.build((*input_shape[:-1], 4 * width))

    def call(self, x):
        return self.out(_geglu(self.proj(x)))


@keras.saving.register_keras_serializable("sd_tf")
class TransformerBlock(keras.layers.Layer):
    """Self-attention, cross-attention on `context`, feed-forward, each after a layer norm.

    `diffusers.models.attention.BasicTransformerBlock`; x is (batch, tokens, width), context
    (batch, context tokens, context width).
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, x_shape, context_shape):
        policy = {"dtype": self.dtype_policy}
        self.norm1, self.norm2, self.norm3 = (LayerNorm(1e-5, name=f"norm{i}", **policy) for i in (1, 2, 3))
        self.attn1 = Attention(self.num_heads, name="attn1", **policy)
        self.attn2 = Attention(self.num_heads, name="attn2", **policy)
        self.ff = FeedForward(name="ff", **policy)
        for layer in (self.norm1, self.attn1, self.norm2, self.norm3, self.ff):
            layer.build(x_shape)
        self.attn2.build(x_shape, context_shape)

    def call(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable("sd_tf")
class SpatialTransformer(keras.layers.Layer):
    """A transformer block over the positions of a picture, around which the picture is added back.

    `diffusers.models.transformers.Transformer2DModel`, depth 1; x is (batch, height, width,
    channels). Stable Diffusion 1 projects by 1x1 convolutions, 2 by dense layers
    (`use_linear_projection`): the same mathematics, stored in another shape. A new one changes nothing.
    """

    def __init__(self, num_heads, groups=32, use_linear_projection=False, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.groups = num_heads, groups
        self.use_linear_projection = use_linear_projection

    def build(self, x_shape, context_shape):
        channels = x_shape[-1]
        policy = {"dtype": self.dtype_policy}

        def projection(name, begins="glorot_uniform"):
            if self.use_linear_projection:
                return keras.layers.Dense(channels, kernel_initializer=begins, name=name, **policy)
            return keras.layers.Conv2D(channels, 1, kernel_initializer=begins, name=name, **policy)

        self.norm = GroupNorm(self.groups, epsilon=1e-6, name="norm", **policy)
        self.proj_in, self.proj_out = projection("proj_in"), projection("proj_out", begins="zeros")
        self.block = TransformerBlock(self.num_heads, name="transformer_blocks.0", **policy)
        for layer in (self.norm, self.proj_in, self.proj_out):
            layer.build(x_shape)
        self.block.build((x_shape[0], None, channels), context_shape)

    def call(self, x, context):
        _, height, width, channels = x.shape
        tokens = ops.reshape(self.proj_in(self.norm(x)), (-1, height * width, channels))
        tokens = self.block(tokens, context)
        return x + self.proj_out(ops.reshape(tokens, (-1, height, width, channels)))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "groups": self.groups,
            "use_linear_projection": self.use_linear_projection,
        }


@keras.saving.register_keras_serializable("sd_tf")
class PixelAttention(Attention):
    """The autoencoder's single-head self-attention over positions, around which the picture is added back.

    x is (batch, height, width, channels). A new one changes nothing.
    """

    output_begins = "zeros"

    def __init__(self, groups=32, **kwargs):
        super().__init__(num_heads=1, qkv_bias=True, **kwargs)
        self.groups = groups

    def build(self, input_shape):
        self.group_norm = GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype_policy, name="group_norm")
        self.group_norm.build(input_shape)
        super().build((input_shape[0], None, input_shape[-1]))

    def call(self, x):
        _, height, width, channels = x.shape
        tokens = ops.reshape(self.group_norm(x), (-1, height * width, channels))
        return x + ops.reshape(super().call(tokens), (-1, height, width, channels))

    def get_config(self):
        config = super().get_config()
        return {key: value for key, value in config.items() if key not in ("num_heads", "qkv_bias")} | {
            "groups": self.groups
        }

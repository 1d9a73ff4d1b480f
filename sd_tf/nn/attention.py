"""Scaled dot-product attention over token sequences, and the layers of a spatial transformer."""

import contextlib
import contextvars
import math

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.blocks import conv
from sd_tf.nn.fused import fused
from sd_tf.nn.norm import GroupNorm, LayerNorm
from sd_tf.nn.precision import at_least_float32
from sd_tf.nn.ranks import check_axes, check_rank

_recorded = contextvars.ContextVar("recorded", default=None)  # each thread has its own value


class RecordedAttention:
    """Attention weights in the order of the calls, each (batch, heads, tokens, context tokens).

    `self_attention` has those of layers that were called without a context, `cross_attention` the others.
    """

    def __init__(self):
        self.self_attention, self.cross_attention = [], []


@contextlib.contextmanager
def recorded_attention():
    """Yields a `RecordedAttention` of every `Attention` that this thread calls within the block.

    Of nested blocks only the innermost records.
    """
    recorded = RecordedAttention()
    token = _recorded.set(recorded)
    try:
        yield recorded
    finally:
        _recorded.reset(token)


def scaled_dot_product_attention(query, key, value, num_heads, mask=None, record=None, scale=None):
    """Multi-head attention without its projections (Vaswani et al. 2017, equation 1).

    Args:
        query: (batch, tokens, width), any float dtype; the heads are side by side in the width.
        key, value: (batch, context tokens, width).
        num_heads: a divisor of the width.
        mask: None, or float, broadcastable to (batch, heads, tokens, context tokens), added to
            the logits.
        record: None, or a list to which the weights (batch, heads, tokens, context tokens) are appended.
        scale: what the logits are multiplied by; None for one over the root of a head's width.

    Returns:
        (batch, tokens, width), the dtype of `value`. The softmax is computed in float32 or wider.
    """
    width = query.shape[-1]
    tokens, context_tokens = ops.shape(query)[1], ops.shape(key)[1]  # ints where they are known
    head_width = width // num_heads
    query = query * (1.0 / math.sqrt(head_width) if scale is None else scale)

    def heads(x, tokens):  # (batch, tokens, width) -> (batch, heads, tokens, head width)
        return ops.transpose(ops.reshape(x, (-1, tokens, num_heads, head_width)), (0, 2, 1, 3))

    query, key, value = heads(query, tokens), heads(key, context_tokens), heads(value, context_tokens)
    logits = at_least_float32(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))))
    if mask is not None:
        logits = logits + ops.cast(mask, logits.dtype)
    weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
    if record is not None:
        record.append(weights)
    mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # (batch, tokens, heads, head width)
    return ops.reshape(mixed, (-1, tokens, width))


@keras.saving.register_keras_serializable("sd_tf")
class Attention(keras.layers.Layer):
    """Multi-head attention with its projections: self-attention, or cross-attention if a context is given.

    Args:
        num_heads: a divisor of the width.
        qkv_bias: whether the projections to query, key and value have a bias.

    Called with x (batch, tokens, width) and optionally context (batch, context tokens, context width) and
    bias, the mask of `scaled_dot_product_attention`; returns (batch, tokens, width) in the compute dtype.

    Raises:
        InputError: the heads do not divide the width.

    Reference: `diffusers.models.attention_processor.Attention` (`to_q`, `to_k`, `to_v`, `to_out.0`).
    """

    output_initializer = "glorot_uniform"

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

        def dense(name, bias, initializer="glorot_uniform"):
            return keras.layers.Dense(width, None, bias, initializer, dtype=self.dtype_policy, name=name)

        self.to_q, self.to_k, self.to_v = (dense(name, self.qkv_bias) for name in ("to_q", "to_k", "to_v"))
        self.to_out = dense("to_out.0", True, self.output_initializer)
        self.to_q.build(x_shape)
        self.to_k.build(context_shape)
        self.to_v.build(context_shape)
        self.to_out.build(x_shape)

    def call(self, x, context=None, bias=None):
        recorded = _recorded.get()
        record = None
        if recorded is not None:
            record = recorded.self_attention if context is None else recorded.cross_attention
        context = x if context is None else context
        qkv = self.to_q(x), self.to_k(context), self.to_v(context)
        mixed = scaled_dot_product_attention(*qkv, self.num_heads, mask=bias, record=record)
        return self.to_out(mixed)

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "qkv_bias": self.qkv_bias}


@fused
def _geglu(x):
    value, gate = ops.split(x, 2, axis=-1)
    return value * ops.gelu(gate, approximate=False)


@keras.saving.register_keras_serializable("sd_tf")
class FeedForward(keras.layers.Layer):
    """GEGLU with the exact (erf) GELU (Shazeer 2020), four times as wide inside.

    Called with (batch, tokens, width); returns the same shape in the compute dtype.

    Reference: `diffusers.models.attention.FeedForward` (`net.0.proj`, `net.2`).
    """

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

    Args:
        num_heads: of both attentions, a divisor of the width.

    Called with x (batch, tokens, width) and context (batch, context tokens, context width); returns the
    shape of x in the compute dtype.

    Reference: `diffusers.models.attention.BasicTransformerBlock`.
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
    """A transformer block over the positions of a picture or volume, with a residual connection around it.

    A new layer returns its input, because `proj_out` starts at zero.

    Args:
        num_heads: of the attentions, a divisor of the channels.
        groups: of the group norm.
        use_linear_projection: whether the projections are dense layers, as in Stable Diffusion 2, or 1x1
            convolutions, as in Stable Diffusion 1. Both compute the same; checkpoints store other shapes.
        rank: 2 for pictures, 3 for volumes.

    Called with x (batch, height, width, channels), or (batch, depth, height, width, channels) for rank 3,
    and context (batch, tokens, context width); returns the shape of x in the compute dtype.

    Raises:
        InputError: `rank` is neither 2 nor 3, x has other axes, or its channels do not divide into the groups
            or heads.

    Reference: `diffusers.models.transformers.Transformer2DModel` of depth 1.
    """

    def __init__(self, num_heads, groups=32, use_linear_projection=False, rank=2, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.groups = num_heads, groups
        self.use_linear_projection, self.rank = use_linear_projection, check_rank(rank)

    def build(self, x_shape, context_shape):
        check_axes(self, x_shape)
        channels = x_shape[-1]
        policy = {"dtype": self.dtype_policy}

        def projection(name, initializer="glorot_uniform"):
            if self.use_linear_projection:
                return keras.layers.Dense(channels, kernel_initializer=initializer, name=name, **policy)
            return conv(channels, 1, name, rank=self.rank, kernel_initializer=initializer, **policy)

        self.norm = GroupNorm(self.groups, epsilon=1e-6, name="norm", **policy)
        self.proj_in, self.proj_out = projection("proj_in"), projection("proj_out", "zeros")
        self.block = TransformerBlock(self.num_heads, name="transformer_blocks.0", **policy)
        for layer in (self.norm, self.proj_in, self.proj_out):
            layer.build(x_shape)
        self.block.build((x_shape[0], None, channels), context_shape)

    def call(self, x, context):
        tokens = self.block(tokens_of(self.proj_in(self.norm(x))), context)
        return x + self.proj_out(at_positions_of(x, tokens))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "groups": self.groups,
            "use_linear_projection": self.use_linear_projection,
            "rank": self.rank,
        }


@keras.saving.register_keras_serializable("sd_tf")
class PixelAttention(Attention):
    """The autoencoder's single-head self-attention over positions, with a residual connection around it.

    A new layer returns its input, because `to_out.0` starts at zero.

    Args:
        groups: of the group norm.
        rank: 2 for pictures, 3 for volumes.

    Called with x (batch, height, width, channels), or (batch, depth, height, width, channels) for rank 3;
    returns the same shape in the compute dtype.

    Raises:
        InputError: `rank` is neither 2 nor 3, x has other axes, or the groups do not divide the channels.
    """

    output_initializer = "zeros"

    def __init__(self, groups=32, rank=2, **kwargs):
        super().__init__(num_heads=1, qkv_bias=True, **kwargs)
        self.groups, self.rank = groups, check_rank(rank)

    def build(self, input_shape):
        check_axes(self, input_shape)
        self.group_norm = GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype_policy, name="group_norm")
        self.group_norm.build(input_shape)
        super().build((input_shape[0], None, input_shape[-1]))

    def call(self, x):
        return x + at_positions_of(x, super().call(tokens_of(self.group_norm(x))))

    def get_config(self):
        config = super().get_config()
        del config["num_heads"], config["qkv_bias"]
        return {**config, "groups": self.groups, "rank": self.rank}


def tokens_of(x):
    """(batch, height, width, channels) -> (batch, height * width, channels), likewise with a depth."""
    return ops.reshape(x, (-1, math.prod(x.shape[1:-1]), x.shape[-1]))


def at_positions_of(x, tokens):
    """(batch, height * width, channels) -> the shape of x."""
    return ops.reshape(tokens, (-1, *x.shape[1:]))

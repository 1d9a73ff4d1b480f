"""Attention of a picture's positions on a text that has keys and values of its own."""

import keras
from keras import ops

from sd_tf.errors import InputError, unknown
from sd_tf.nn.attention import at_positions_of, scaled_dot_product_attention, tokens_of
from sd_tf.nn.norm import GroupNorm, LayerNorm

CONTEXT_NORMS = ("group_norm", "layer_norm")
CONTEXT_GROUPS = 32  # of the text's group norm, which diffusers does not vary
HIDDEN = -1e4  # added to a hidden token's logit: its weight is 0 in float32, and float16 still has the number


def attention_bias(mask):
    """What a mask adds to the logits: bool, or 1 and 0, (batch, tokens) -> float32 (batch, 1, 1, tokens)."""
    return ops.where(ops.cast(mask, "bool"), 0.0, HIDDEN)[:, None, None, :]


@keras.saving.register_keras_serializable("sd_tf")
class TextAttention(keras.layers.Layer):
    """Positions of a picture attend on the tokens of a text, with a residual connection around it.

    A new layer returns its input, because `to_out.0` starts at zero.

    Args:
        head_width: channels of each head, a divisor of the picture's.
        groups, epsilon: of the group norm on the picture.
        context_norm: which norm the text passes first: "group_norm" (of 32 groups, over all of its tokens),
            "layer_norm" or None.

    Called with x (batch, height, width, channels), context (batch, tokens, context width) and optionally the
    `attention_bias` of a mask; returns the shape of x in the compute dtype. Tokens that a mask hides still
    count in the statistics of a group norm, as in diffusers.

    Raises:
        InputError: a head's width or the groups do not divide the channels, or the norm is unknown.

    Reference: diffusers' `Attention` with `AttnAddedKVProcessor` and `only_cross_attention`.
    """

    def __init__(self, head_width, groups=32, epsilon=1e-5, context_norm=None, **kwargs):
        super().__init__(**kwargs)
        if context_norm not in (None, *CONTEXT_NORMS):
            raise unknown("context_norm", context_norm, (None, *CONTEXT_NORMS))
        self.head_width, self.groups, self.epsilon = head_width, groups, epsilon
        self.context_norm = context_norm

    def build(self, x_shape, context_shape):
        channels, policy = x_shape[-1], self.dtype_policy
        if channels % self.head_width:
            raise InputError(
                f"{channels} channels do not divide into heads of {self.head_width}: change one of them"
            )
        self.num_heads = channels // self.head_width
        self.group_norm = GroupNorm(self.groups, self.epsilon, dtype=policy, name="group_norm")
        self.group_norm.build(x_shape)
        self.norm_cross = None
        if self.context_norm == "group_norm":
            self.norm_cross = GroupNorm(CONTEXT_GROUPS, 1e-5, dtype=policy, name="norm_cross")
            self.norm_cross.build((*context_shape[:-1], None, context_shape[-1]))
        elif self.context_norm == "layer_norm":
            self.norm_cross = LayerNorm(1e-5, dtype=policy, name="norm_cross")
            self.norm_cross.build(context_shape)
        tokens_shape = (x_shape[0], None, channels)
        self.to_q = self.projection("to_q", channels, tokens_shape)
        self.add_k_proj = self.projection("add_k_proj", channels, context_shape)
        self.add_v_proj = self.projection("add_v_proj", channels, context_shape)
        self.to_out = self.projection("to_out.0", channels, tokens_shape, "zeros")

    def projection(self, name, width, input_shape, initializer="glorot_uniform"):
        """A built dense layer."""
        layer = keras.layers.Dense(width, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)
        layer.build(input_shape)
        return layer

    def keys_and_values(self, tokens, context):
        """Keys and values (batch, any number, channels), the text's first.

        Args:
            tokens: the picture's positions after the norm, (batch, height * width, channels).
            context: the text after its norm, (batch, tokens, context width).
        """
        return self.add_k_proj(context), self.add_v_proj(context)

    def biased(self, bias, tokens):
        """The bias of all keys, given that of the text's."""
        return bias

    def call(self, x, context, bias=None):
        if self.context_norm == "group_norm":
            context = ops.squeeze(self.norm_cross(context[:, :, None, :]), 2)
        elif self.context_norm == "layer_norm":
            context = self.norm_cross(context)
        tokens = tokens_of(self.group_norm(x))
        keys, values = self.keys_and_values(tokens, context)
        if bias is not None:
            bias = self.biased(bias, tokens)
        mixed = scaled_dot_product_attention(self.to_q(tokens), keys, values, self.num_heads, bias)
        return x + at_positions_of(x, self.to_out(mixed))

    def get_config(self):
        return {
            **super().get_config(),
            "head_width": self.head_width,
            "groups": self.groups,
            "epsilon": self.epsilon,
            "context_norm": self.context_norm,
        }


@keras.saving.register_keras_serializable("sd_tf")
class TextAndSelfAttention(TextAttention):
    """Positions of a picture attend on a text and on each other, in one softmax.

    Arguments, call and errors are those of `TextAttention`. Each position may attend on every other,
    whatever the mask.

    Reference: diffusers' `Attention` with `AttnAddedKVProcessor`.
    """

    def build(self, x_shape, context_shape):
        super().build(x_shape, context_shape)
        channels = x_shape[-1]
        self.to_k = self.projection("to_k", channels, (x_shape[0], None, channels))
        self.to_v = self.projection("to_v", channels, (x_shape[0], None, channels))

    def keys_and_values(self, tokens, context):
        keys, values = super().keys_and_values(tokens, context)
        return (
            ops.concatenate([keys, self.to_k(tokens)], axis=1),
            ops.concatenate([values, self.to_v(tokens)], axis=1),
        )

    def biased(self, bias, tokens):
        return ops.pad(bias, ((0, 0), (0, 0), (0, 0), (0, tokens.shape[1])))

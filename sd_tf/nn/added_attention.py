"""Attention of pixels to each other and to a text at once, as in DeepFloyd IF."""

import math

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.attention import scaled_dot_product_attention
from sd_tf.nn.norm import GroupNorm

CROSS_NORM_GROUPS = 32  # of diffusers' `cross_attention_norm_num_groups`


@keras.saving.register_keras_serializable("sd_tf")
class AddedKeyValueAttention(keras.layers.Layer):
    """Self-attention whose keys and values have those of a context beside them, with a residual connection.

    A new layer returns its input, because `to_out.0` starts at zero.

    Args:
        head_width: width of a head, a divisor of the channels.
        groups: of the group norm of the pixels.
        cross_norm: whether the context is normalised, in 32 groups.
        only_cross: whether pixels attend to the context alone.

    Called with x (batch, height, width, channels), context (batch, tokens, context width) and optionally
    `mask`, float (batch, tokens), which is added to the logits of the context's tokens. Returns the shape of
    x in the compute dtype.

    Raises:
        InputError: heads of that width do not divide the channels.

    Reference: `diffusers.models.attention_processor.AttnAddedKVProcessor`.
    """

    def __init__(self, head_width, groups=32, cross_norm=False, only_cross=False, **kwargs):
        super().__init__(**kwargs)
        self.head_width, self.groups = head_width, groups
        self.cross_norm, self.only_cross = cross_norm, only_cross

    def build(self, x_shape, context_shape):
        channels, policy = x_shape[-1], self.dtype_policy
        if channels % self.head_width:
            raise InputError(
                f"{channels} channels do not divide into heads {self.head_width} wide: change one of them"
            )

        def dense(name, initializer="glorot_uniform"):
            return keras.layers.Dense(channels, kernel_initializer=initializer, dtype=policy, name=name)

        self.group_norm = GroupNorm(self.groups, 1e-5, dtype=policy, name="group_norm")
        self.to_q, self.to_out = dense("to_q"), dense("to_out.0", "zeros")
        self.add_k_proj, self.add_v_proj = dense("add_k_proj"), dense("add_v_proj")
        self.to_k = self.to_v = self.norm_cross = None
        if not self.only_cross:
            self.to_k, self.to_v = dense("to_k"), dense("to_v")
        if self.cross_norm:
            self.norm_cross = GroupNorm(CROSS_NORM_GROUPS, 1e-5, dtype=policy, name="norm_cross")
            self.norm_cross.build((None, None, 1, context_shape[-1]))
        self.group_norm.build(x_shape)
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out):
            if layer is not None:
                layer.build((None, None, channels))
        self.add_k_proj.build(context_shape)
        self.add_v_proj.build(context_shape)

    def call(self, x, context, mask=None):
        channels, pixels = x.shape[-1], math.prod(x.shape[1:-1])
        tokens = ops.reshape(self.group_norm(x), (-1, pixels, channels))
        if self.norm_cross is not None:  # in groups of the width, over all tokens, as over pixels
            context = ops.squeeze(self.norm_cross(ops.expand_dims(context, 2)), 2)
        key, value = self.add_k_proj(context), self.add_v_proj(context)
        if mask is not None:  # (batch, 1, 1, tokens), and nothing at the pixels behind them
            mask = ops.cast(mask, "float32")[:, None, None, :]
        if not self.only_cross:
            key = ops.concatenate([key, self.to_k(tokens)], axis=1)
            value = ops.concatenate([value, self.to_v(tokens)], axis=1)
            if mask is not None:
                mask = ops.pad(mask, ((0, 0), (0, 0), (0, 0), (0, pixels)))
        heads = channels // self.head_width
        mixed = scaled_dot_product_attention(self.to_q(tokens), key, value, heads, mask)
        return x + ops.reshape(self.to_out(mixed), (-1, *x.shape[1:]))

    def get_config(self):
        return {
            **super().get_config(),
            "head_width": self.head_width,
            "groups": self.groups,
            "cross_norm": self.cross_norm,
            "only_cross": self.only_cross,
        }

"""The text as one vector: its states pooled by attention, for the embedding of the timestep."""

import math

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.norm import LayerNorm
from sd_tf.nn.precision import at_least_float32


class AttentionPooling(keras.layers.Layer):
    """The mean of the tokens attends to itself and to all tokens: (batch, tokens, width) -> (batch, width).

    Args:
        num_heads: a divisor of the width.

    Reference: `diffusers.models.embeddings.AttentionPooling`, after DeepFloyd IF.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, shape):
        width = shape[-1]
        if width % self.num_heads:
            raise InputError(
                f"{width} channels do not divide into {self.num_heads} heads: change one of them"
            )
        self.positional_embedding = self.add_weight(
            shape=(1, width),
            initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            name="positional_embedding",
        )
        for name in ("q_proj", "k_proj", "v_proj"):
            dense = keras.layers.Dense(width, dtype=self.dtype_policy, name=name)
            dense.build(shape)
            setattr(self, name, dense)

    def call(self, x):
        width = x.shape[-1]
        mean = ops.mean(x, axis=1, keepdims=True) + self.positional_embedding
        x = ops.concatenate([mean, x], axis=1)  # (batch, 1 + tokens, width)

        def heads(x):  # (batch, tokens, width) -> (batch, heads, tokens, head width)
            x = ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads, width // self.num_heads))
            return ops.transpose(x, (0, 2, 1, 3))

        query, key, value = heads(self.q_proj(mean)), heads(self.k_proj(x)), heads(self.v_proj(x))
        query = query * (1.0 / math.sqrt(width // self.num_heads))
        logits = at_least_float32(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))))
        weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)  # (batch, heads, 1, 1 + tokens)
        return ops.reshape(ops.matmul(weights, value), (-1, width))


class PooledText(keras.layers.Layer):
    """Layer norm, attention pooling, projection, layer norm: (batch, tokens, width) -> (batch, `width`).

    Args:
        width: of the result.
        num_heads: of the pooling, a divisor of the text's width.

    Reference: `diffusers.models.embeddings.TextTimeEmbedding`.
    """

    def __init__(self, width, num_heads, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.norm1 = LayerNorm(1e-5, dtype=policy, name="norm1")
        self.pool = AttentionPooling(num_heads, dtype=policy, name="pool")
        self.proj = keras.layers.Dense(width, dtype=policy, name="proj")
        self.norm2 = LayerNorm(1e-5, dtype=policy, name="norm2")

    def build(self, shape):
        self.norm1.build(shape)
        self.pool.build(shape)
        self.proj.build((None, shape[-1]))
        self.norm2.build((None, self.proj.units))

    def call(self, states):
        return self.norm2(self.proj(self.pool(self.norm1(states))))

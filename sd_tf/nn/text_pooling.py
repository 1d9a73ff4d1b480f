"""A text's states pooled into one vector, by attention."""

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.attention import scaled_dot_product_attention
from sd_tf.nn.norm import LayerNorm


@keras.saving.register_keras_serializable("sd_tf")
class AttentionPooling(keras.layers.Layer):
    """The mean of a text's states, moved by a learned vector, attends on itself and on the states.

    Args:
        num_heads: a divisor of the width.

    Called with (batch, tokens, width); returns (batch, width) in the compute dtype. All tokens count.

    Raises:
        InputError: the heads do not divide the width.

    Reference: DeepFloyd IF's `AttentionPooling`, after CLIP's `AttentionPool2d`.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.num_heads:
            raise InputError(f"a text {width} wide does not divide into {self.num_heads} heads: change one")
        self.positional_embedding = self.add_weight(
            shape=(1, width),
            initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
            name="positional_embedding",
        )
        self.q_proj, self.k_proj, self.v_proj = (
            keras.layers.Dense(width, dtype=self.dtype_policy, name=name)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            layer.build(input_shape)

    def call(self, x):
        query = ops.mean(x, axis=1, keepdims=True) + ops.cast(self.positional_embedding, x.dtype)
        states = ops.concatenate([query, x], axis=1)  # (batch, 1 + tokens, width)
        pooled = scaled_dot_product_attention(
            self.q_proj(query), self.k_proj(states), self.v_proj(states), self.num_heads
        )
        return pooled[:, 0]

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable("sd_tf")
class TextTimeEmbedding(keras.layers.Layer):
    """A text as a vector to be added to a timestep's embedding: norm, `AttentionPooling`, projection, norm.

    Args:
        width: of the result.
        num_heads: of the pooling, a divisor of the text's width.

    Called with (batch, tokens, text width); returns (batch, width) in the compute dtype.

    Raises:
        InputError: the heads do not divide the text's width.

    Reference: `diffusers.models.embeddings.TextTimeEmbedding`.
    """

    def __init__(self, width, num_heads=64, **kwargs):
        super().__init__(**kwargs)
        self.width, self.num_heads = width, num_heads

    def build(self, input_shape):
        policy, text_width = {"dtype": self.dtype_policy}, input_shape[-1]
        self.norm1 = LayerNorm(1e-5, name="norm1", **policy)
        self.pool = AttentionPooling(self.num_heads, name="pool", **policy)
        self.proj = keras.layers.Dense(self.width, name="proj", **policy)
        self.norm2 = LayerNorm(1e-5, name="norm2", **policy)
        self.norm1.build(input_shape)
        self.pool.build(input_shape)
        self.proj.build((None, text_width))
        self.norm2.build((None, self.width))

    def call(self, x):
        return self.norm2(self.proj(self.pool(self.norm1(x))))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "num_heads": self.num_heads}

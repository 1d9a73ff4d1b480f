"""Sinusoidal embedding of timesteps, and the two dense layers after it."""

import math

import keras
from keras import ops

from sd_tf.nn.activations import activation


def sinusoidal_embedding(t, width, flip_sin_to_cos=True, freq_shift=0):
    """Sines and cosines of `t` at frequencies from 1 to 1/10000 (Ho et al. 2020; diffusers' `Timesteps`).

    Args:
        t: (batch,), integer or float.
        width: half of it cosines, half sines. If it is odd, the last column is zero.
        flip_sin_to_cos: whether the cosines come first, as in Stable Diffusion.
        freq_shift: subtracted from the number of frequencies in the exponent's denominator.

    Returns:
        float32 (batch, width).
    """
    half = width // 2
    exponent = -math.log(10000.0) * ops.arange(half, dtype="float32") / (half - freq_shift)
    angles = ops.cast(t, "float32")[:, None] * ops.exp(exponent)[None, :]
    parts = [ops.cos(angles), ops.sin(angles)]
    if not flip_sin_to_cos:
        parts.reverse()
    if width % 2:
        parts.append(ops.zeros_like(angles[:, :1]))
    return ops.concatenate(parts, axis=-1)


@keras.saving.register_keras_serializable("sd_tf")
class TimestepEmbedding(keras.layers.Layer):
    """Two dense layers, an activation in between: (batch, features) -> (batch, width), in the compute dtype.

    Args:
        width: of both layers.
        act: name of the activation, "silu" or "gelu".

    Raises:
        InputError: the activation is unknown.

    Reference: `diffusers.models.embeddings.TimestepEmbedding`.
    """

    def __init__(self, width, act="silu", **kwargs):
        super().__init__(**kwargs)
        self.width, self.act, self.activation = width, act, activation(act)
        self.linear_1 = keras.layers.Dense(width, dtype=self.dtype_policy, name="linear_1")
        self.linear_2 = keras.layers.Dense(width, dtype=self.dtype_policy, name="linear_2")

    def build(self, input_shape):
        self.linear_1.build(input_shape)
        self.linear_2.build((None, self.width))

    def call(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "act": self.act}

"""Group normalisation. (Layer normalisation is Keras' own.)"""

import keras
from keras import ops

from sd_tf.errors import InputError


@keras.saving.register_keras_serializable("sd_tf")
class GroupNorm(keras.layers.Layer):
    """Normalises groups of channels over all positions (Wu & He 2018), channels last.

    Takes and returns (batch, height, width, channels). The statistics are float32 whatever the
    policy. `keras.layers.GroupNormalization` computes the same; this one reads the picture twice
    and writes it once, by folding mean, variance, gamma and beta into one scale and one shift
    per picture and channel.
    """

    def __init__(self, groups=32, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups, self.epsilon = groups, epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise InputError(
                f"{channels} channels do not divide into {self.groups} groups: change one of them"
            )
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")

    def call(self, x):
        _, height, width, channels = x.shape
        grouped = ops.reshape(x, (-1, height * width, self.groups, channels // self.groups))
        mean, variance = ops.moments(ops.cast(grouped, "float32"), axes=(1, 3), keepdims=True)
        scale = ops.rsqrt(variance + self.epsilon)  # (batch, 1, groups, 1)
        per_group = (1, 1, self.groups, channels // self.groups)
        scale = scale * ops.reshape(ops.cast(self.gamma, "float32"), per_group)
        shift = ops.reshape(ops.cast(self.beta, "float32"), per_group) - mean * scale
        per_channel = (-1, 1, 1, channels)
        scale = ops.cast(ops.reshape(scale, per_channel), x.dtype)
        return x * scale + ops.cast(ops.reshape(shift, per_channel), x.dtype)

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}

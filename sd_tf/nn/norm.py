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
        pixels = ops.cast(x, "float32")
        mean = self._of_groups(pixels)
        variance = self._of_groups(ops.square(pixels - mean))
        scale = ops.rsqrt(variance + self.epsilon) * ops.cast(self.gamma, "float32")
        shift = ops.cast(self.beta, "float32") - mean * scale
        return x * ops.cast(scale, x.dtype) + ops.cast(shift, x.dtype)

    def _of_groups(self, x):
        """The mean of each group, (batch, 1, 1, channels): the same for all channels of a group."""
        in_group = x.shape[-1] // self.groups
        # Rows, then columns: summed in one go, the pixels of a large picture lose four digits of seven.
        of_channels = ops.mean(ops.mean(x, axis=2), axis=1)  # (batch, channels)
        means = ops.mean(ops.reshape(of_channels, (-1, self.groups, in_group)), axis=-1)
        return ops.repeat(means, in_group, axis=-1)[:, None, None, :]

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "epsilon": self.epsilon}

"""Residual block, halving and doubling of a picture: what both the autoencoder and the UNet are made of."""

import keras
from keras import ops

from sd_tf.nn.norm import GroupNorm


def conv(channels, size, name, dtype, **kwargs):
    """A convolution that keeps height and width (odd `size`, stride 1)."""
    return keras.layers.Conv2D(channels, size, padding="same", dtype=dtype, name=name, **kwargs)


@keras.saving.register_keras_serializable("sd_tf")
class ResidualBlock(keras.layers.Layer):
    """Norm, SiLU, convolution, twice, the timestep's embedding added between (diffusers' `ResnetBlock2D`).

    A new block changes nothing: its last convolution begins at zero, as in Stable Diffusion's own code
    (CompVis, `zero_module`) and not in diffusers. It learns twice as fast, see ARCHITECTURE.md.

    Args:
        channels: of the result; a 1x1 convolution fits the input to it where they differ.
        groups, epsilon: of the group norms.

    x is (batch, height, width, any channels); `time`, where given, (batch, width).
    """

    def __init__(self, channels, groups=32, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.groups, self.epsilon = channels, groups, epsilon

    def build(self, x_shape, time_shape=None):
        policy = self.dtype_policy
        inner_shape = (*x_shape[:-1], self.channels)
        self.norm1 = GroupNorm(self.groups, self.epsilon, silu=True, dtype=policy, name="norm1")
        self.conv1 = conv(self.channels, 3, "conv1", policy)
        self.norm2 = GroupNorm(self.groups, self.epsilon, silu=True, dtype=policy, name="norm2")
        self.conv2 = conv(self.channels, 3, "conv2", policy, kernel_initializer="zeros")
        self.norm1.build(x_shape)
        self.conv1.build(x_shape)
        self.norm2.build(inner_shape)
        self.conv2.build(inner_shape)
        self.time_emb_proj = self.conv_shortcut = None
        if time_shape is not None:
            self.time_emb_proj = keras.layers.Dense(self.channels, dtype=policy, name="time_emb_proj")
            self.time_emb_proj.build(time_shape)
        if x_shape[-1] != self.channels:
            self.conv_shortcut = conv(self.channels, 1, "conv_shortcut", policy)
            self.conv_shortcut.build(x_shape)

    def call(self, x, time=None):
        hidden = self.conv1(self.norm1(x))
        if time is not None:
            hidden = hidden + self.time_emb_proj(ops.silu(time))[:, None, None, :]
        hidden = self.conv2(self.norm2(hidden))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable("sd_tf")
class Downsample(keras.layers.Layer):
    """A 3x3 convolution of stride 2, which halves (batch, height, width, channels) along both sides.

    Args:
        padding: (before, after) in pixels, on both sides alike. Stable Diffusion's UNet has (1, 1),
            its autoencoder (0, 1). Stated, because "same" means another thing in each framework.
    """

    def __init__(self, padding=(1, 1), **kwargs):
        super().__init__(**kwargs)
        self.padding = tuple(padding)

    def build(self, input_shape):
        self.conv = keras.layers.Conv2D(
            input_shape[-1], 3, strides=2, padding="valid", dtype=self.dtype_policy, name="conv"
        )
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(ops.pad(x, ((0, 0), self.padding, self.padding, (0, 0))))

    def get_config(self):
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable("sd_tf")
class Upsample(keras.layers.Layer):
    """Every pixel doubled along both sides, then a 3x3 convolution."""

    def build(self, input_shape):
        self.conv = conv(input_shape[-1], 3, "conv", self.dtype_policy)
        self.conv.build(input_shape)

    def call(self, x, size=None):
        """x (batch, height, width, channels) -> twice that, cut to `size` where a skip of odd size waits."""
        _, height, width, channels = x.shape
        x = ops.broadcast_to(x[:, :, None, :, None, :], (ops.shape(x)[0], height, 2, width, 2, channels))
        x = ops.reshape(x, (-1, 2 * height, 2 * width, channels))
        if size is not None and size != (2 * height, 2 * width):
            x = x[:, : size[0], : size[1]]
        return self.conv(x)

"""Residual block, downsampling and upsampling, for pictures (rank 2) and volumes (rank 3)."""

import keras
from keras import ops

from sd_tf.nn.norm import GroupNorm
from sd_tf.nn.ranks import check_axes, check_rank

CONVOLUTIONS = {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}


def conv(channels, size, name, dtype, rank=2, **kwargs):
    """A convolution that keeps the spatial size.

    Args:
        channels: of the result.
        size: of the kernel along each spatial axis, odd.
        name, dtype: of the Keras layer.
        rank: 2 for `keras.layers.Conv2D`, 3 for `keras.layers.Conv3D`.
        **kwargs: others of the Keras layer's arguments.

    Raises:
        InputError: `rank` is neither 2 nor 3.
    """
    layer = CONVOLUTIONS[check_rank(rank)]
    return layer(channels, size, padding="same", dtype=dtype, name=name, **kwargs)


@keras.saving.register_keras_serializable("sd_tf")
class ResidualBlock(keras.layers.Layer):
    """Norm, SiLU, convolution, twice, with the timestep's embedding added in between.

    A new block returns its input: the last convolution starts at zero, as in CompVis' code (`zero_module`)
    and unlike diffusers. It learns twice as fast, see docs/experiments.md.

    Args:
        channels: of the result. If the input has another number, a 1x1 convolution adapts it.
        groups, epsilon: of the group norms.
        rank: 2 for pictures, 3 for volumes.

    Called with x (batch, height, width, any channels), or (batch, depth, height, width, any channels) for
    rank 3, and optionally `time` (batch, width). Returns the same axes with `channels` channels, in the
    compute dtype.

    Raises:
        InputError: `rank` is neither 2 nor 3, x has other axes, or the groups do not divide the channels.

    Reference: diffusers' `ResnetBlock2D`.
    """

    def __init__(self, channels, groups=32, epsilon=1e-5, rank=2, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.groups, self.epsilon = channels, groups, epsilon
        self.rank = check_rank(rank)

    def build(self, x_shape, time_shape=None):
        check_axes(self, x_shape)
        policy, rank = self.dtype_policy, self.rank
        inner_shape = (*x_shape[:-1], self.channels)
        self.norm1 = GroupNorm(self.groups, self.epsilon, silu=True, dtype=policy, name="norm1")
        self.conv1 = conv(self.channels, 3, "conv1", policy, rank)
        self.norm2 = GroupNorm(self.groups, self.epsilon, silu=True, dtype=policy, name="norm2")
        self.conv2 = conv(self.channels, 3, "conv2", policy, rank, kernel_initializer="zeros")
        self.norm1.build(x_shape)
        self.conv1.build(x_shape)
        self.norm2.build(inner_shape)
        self.conv2.build(inner_shape)
        self.time_emb_proj = self.conv_shortcut = None
        if time_shape is not None:
            self.time_emb_proj = keras.layers.Dense(self.channels, dtype=policy, name="time_emb_proj")
            self.time_emb_proj.build(time_shape)
        if x_shape[-1] != self.channels:
            self.conv_shortcut = conv(self.channels, 1, "conv_shortcut", policy, rank)
            self.conv_shortcut.build(x_shape)

    def call(self, x, time=None):
        hidden = self.conv1(self.norm1(x))
        if time is not None:
            embedding = self.time_emb_proj(ops.silu(time))  # (batch, channels)
            hidden = hidden + embedding[(slice(None), *[None] * self.rank)]  # (batch, 1, 1, channels)
        hidden = self.conv2(self.norm2(hidden))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "epsilon": self.epsilon,
            "rank": self.rank,
        }


@keras.saving.register_keras_serializable("sd_tf")
class Downsample(keras.layers.Layer):
    """A 3x3 convolution of stride 2, which halves each spatial axis (diffusers' `Downsample2D`).

    Args:
        padding: zeros (before, after) each spatial axis. Stable Diffusion's UNet has (1, 1), its
            autoencoder (0, 1). It is explicit because "same" pads differently in Keras and in PyTorch.
        rank: 2 for pictures (batch, height, width, channels), 3 for volumes (batch, depth, height, width,
            channels).

    Raises:
        InputError: `rank` is neither 2 nor 3, or the input has other axes.
    """

    def __init__(self, padding=(1, 1), rank=2, **kwargs):
        super().__init__(**kwargs)
        self.padding, self.rank = tuple(padding), check_rank(rank)

    def build(self, input_shape):
        check_axes(self, input_shape)
        self.conv = CONVOLUTIONS[self.rank](
            input_shape[-1], 3, strides=2, padding="valid", dtype=self.dtype_policy, name="conv"
        )
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(ops.pad(x, ((0, 0), *[self.padding] * self.rank, (0, 0))))

    def get_config(self):
        return {**super().get_config(), "padding": self.padding, "rank": self.rank}


@keras.saving.register_keras_serializable("sd_tf")
class Upsample(keras.layers.Layer):
    """Nearest-neighbour upsampling to twice the size, then a 3x3 convolution (diffusers' `Upsample2D`).

    Args:
        rank: 2 for pictures (batch, height, width, channels), 3 for volumes (batch, depth, height, width,
            channels).

    Raises:
        InputError: `rank` is neither 2 nor 3, or the input has other axes.
    """

    def __init__(self, rank=2, **kwargs):
        super().__init__(**kwargs)
        self.rank = check_rank(rank)

    def build(self, input_shape):
        check_axes(self, input_shape)
        self.conv = conv(input_shape[-1], 3, "conv", self.dtype_policy, self.rank)
        self.conv.build(input_shape)

    def call(self, x, size=None):
        """x with twice its spatial size, cropped to `size` if given: a UNet's skip may have an odd size.

        Args:
            x: (batch, height, width, channels), or with depth before the height for rank 3.
            size: None, or the result's spatial size, one integer for each axis.
        """
        whole = tuple(2 * length for length in x.shape[1:-1])
        x = doubled(x)
        if size is not None and tuple(size) != whole:
            x = x[(slice(None), *map(slice, size))]
        return self.conv(x)

    def get_config(self):
        return {**super().get_config(), "rank": self.rank}


def doubled(x):
    """Every position of a picture or volume (batch, ..., channels) repeated along each spatial axis."""
    *depth, height, width, channels = x.shape[1:]
    lengths = [2 * length for length in x.shape[1:-1]]
    # A volume's slices are doubled as pictures, then its depth: TensorFlow cannot broadcast eight axes.
    x = ops.reshape(x, (-1, height, 1, width, 1, channels))
    x = ops.broadcast_to(x, (ops.shape(x)[0], height, 2, width, 2, channels))
    if depth:
        x = ops.reshape(x, (-1, *depth, 1, 4 * height * width * channels))
        x = ops.broadcast_to(x, (ops.shape(x)[0], *depth, 2, x.shape[-1]))
    return ops.reshape(x, (-1, *lengths, channels))

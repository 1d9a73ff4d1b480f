"""Residual blocks whose group norm the timestep modulates, and that change the resolution inside."""

import keras
from keras import ops

from sd_tf.nn.activations import activation
from sd_tf.nn.blocks import conv, doubled
from sd_tf.nn.fused import fused
from sd_tf.nn.norm import GroupNorm


@fused
def _modulated_silu(x, scale, shift):
    return ops.silu(x * (1.0 + scale) + shift)


@fused
def _modulated_gelu(x, scale, shift):
    return ops.gelu(x * (1.0 + scale) + shift, approximate=False)


# The modulation and the activation after it, in one pass over memory in training.
_MODULATED = {"silu": _modulated_silu, "gelu": _modulated_gelu}


@keras.saving.register_keras_serializable("sd_tf")
class ModulatedResidualBlock(keras.layers.Layer):
    """Norm, activation, convolution, twice; a timestep's embedding acts on what is between.

    A new block returns its input, divided by `output_scale`, because the last convolution starts at zero.

    Args:
        channels: of the result. If the input has another number, a 1x1 convolution adapts it.
        groups, epsilon: of the group norms.
        act: name of the activation, "silu" or "gelu".
        scale_shift: whether the embedding scales and shifts the second norm's result (Dhariwal & Nichol
            2021, "adaptive group normalization"), instead of being added before it.
        skip_time_act: whether the embedding comes with its activation already applied.
        output_scale: what the sum of input and branch is divided by. With the root of 2 the variance stays
            that of the input (Saharia et al. 2022, appendix B).

    Called with x (batch, height, width, any channels) and `time` (batch, width); returns (batch, height,
    width, channels) in the compute dtype.

    Raises:
        InputError: the groups do not divide the channels, or the activation is unknown.

    Reference: diffusers' `ResnetBlock2D`.
    """

    def __init__(
        self,
        channels,
        groups=32,
        epsilon=1e-5,
        act="silu",
        scale_shift=True,
        skip_time_act=False,
        output_scale=1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels, self.groups, self.epsilon, self.act = channels, groups, epsilon, act
        self.scale_shift, self.skip_time_act = scale_shift, skip_time_act
        self.output_scale = output_scale
        self.activation = activation(act)

    def build(self, x_shape, time_shape):
        policy, channels = self.dtype_policy, self.channels
        inner_shape = (*x_shape[:-1], channels)
        silu = self.act == "silu"  # which the norm applies in the same pass over memory
        self.norm1 = GroupNorm(self.groups, self.epsilon, silu=silu, dtype=policy, name="norm1")
        self.conv1 = conv(channels, 3, "conv1", policy)
        self.norm2 = GroupNorm(
            self.groups, self.epsilon, silu=silu and not self.scale_shift, dtype=policy, name="norm2"
        )
        self.conv2 = conv(channels, 3, "conv2", policy, kernel_initializer="zeros")
        self.time_emb_proj = keras.layers.Dense(
            channels * (1 + self.scale_shift), dtype=policy, name="time_emb_proj"
        )
        self.norm1.build(x_shape)
        self.conv1.build(x_shape)
        self.time_emb_proj.build(time_shape)
        self.norm2.build(inner_shape)
        self.conv2.build(inner_shape)
        self.conv_shortcut = None
        if x_shape[-1] != channels:
            self.conv_shortcut = conv(channels, 1, "conv_shortcut", policy)
            self.conv_shortcut.build(x_shape)

    def resampled(self, x):
        """x (batch, height, width, channels) at the resolution of the result: here its own."""
        return x

    def call(self, x, time):
        hidden = self.conv1(self.resampled(self._activated(self.norm1, x)))
        time = self.time_emb_proj(time if self.skip_time_act else self.activation(time))[:, None, None, :]
        if self.scale_shift:
            scale, shift = ops.split(time, 2, axis=-1)  # (batch, 1, 1, channels)
            hidden = _MODULATED[self.act](self.norm2(hidden), scale, shift)
        else:
            hidden = self._activated(self.norm2, hidden + time)
        x = self.resampled(x)
        hidden = self.conv2(hidden) + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return hidden if self.output_scale == 1 else hidden / self.output_scale

    def _activated(self, norm, x):
        return norm(x) if norm.silu else self.activation(norm(x))

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "groups": self.groups,
            "epsilon": self.epsilon,
            "act": self.act,
            "scale_shift": self.scale_shift,
            "skip_time_act": self.skip_time_act,
            "output_scale": self.output_scale,
        }


@keras.saving.register_keras_serializable("sd_tf")
class DownsamplingBlock(ModulatedResidualBlock):
    """A `ModulatedResidualBlock` of half the height and width, by the mean of each 2 x 2 pixels.

    Reference: diffusers' `ResnetBlock2D(down=True)`, from Dhariwal & Nichol 2021 (BigGAN's blocks).
    """

    def resampled(self, x):
        return ops.average_pool(x, 2, strides=2, padding="valid", data_format="channels_last")


@keras.saving.register_keras_serializable("sd_tf")
class UpsamplingBlock(ModulatedResidualBlock):
    """A `ModulatedResidualBlock` of twice the height and width, by repetition of each pixel.

    Reference: diffusers' `ResnetBlock2D(up=True)`, from Dhariwal & Nichol 2021 (BigGAN's blocks).
    """

    def resampled(self, x):
        return doubled(x)

"""Residual blocks that take in a timestep by scale and shift, and may change the size of a picture."""

import keras
from keras import ops

from sd_tf.errors import unknown
from sd_tf.nn.activations import activation, silu
from sd_tf.nn.blocks import conv
from sd_tf.nn.fused import fused
from sd_tf.nn.norm import GroupNorm

RESAMPLINGS = (None, "up", "down")


@fused
def _scaled_and_shifted(x, scale, shift):
    return x * (1 + scale) + shift


@keras.saving.register_keras_serializable("sd_tf")
class ResamplingBlock(keras.layers.Layer):
    """Norm, activation, convolution, twice, with the timestep's embedding in between.

    A new block returns its input, made smaller or larger: the last convolution starts at zero, as in
    CompVis' code (`zero_module`) and unlike diffusers.

    Args:
        channels: of the result. If the input has another number, a 1x1 convolution adapts it.
        groups, epsilon: of the group norms.
        act_fn: a name of `sd_tf.nn.activations.ACTIVATIONS`.
        scale_shift: whether the embedding scales and shifts what the second norm gives; otherwise it is added
            before that norm.
        skip_time_act: whether the embedding has been through an activation already.
        scale_factor: what the sum with the input is divided by.
        resampling: "up" doubles height and width by repeating pixels, "down" halves them by means of four;
            None keeps them.

    Called with x (batch, height, width, any channels) and `time` (batch, width). Returns (batch, height,
    width, channels), resampled, in the compute dtype.

    Raises:
        InputError: the groups do not divide the channels, or `act_fn` is unknown.

    Reference: diffusers' `ResnetBlock2D` with `up`, `down`, `time_embedding_norm`, `skip_time_act` and
    `output_scale_factor`.
    """

    def __init__(
        self,
        channels,
        groups=32,
        epsilon=1e-5,
        act_fn="silu",
        scale_shift=True,
        skip_time_act=False,
        scale_factor=1.0,
        resampling=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if resampling not in RESAMPLINGS:
            raise unknown("resampling", resampling, [str(each) for each in RESAMPLINGS])
        self.channels, self.groups, self.epsilon = channels, groups, epsilon
        self.act_fn, self.scale_shift, self.skip_time_act = act_fn, scale_shift, skip_time_act
        self.scale_factor, self.resampling = scale_factor, resampling
        self.activation = activation(act_fn)

    def build(self, x_shape, time_shape):
        policy = self.dtype_policy
        has_silu = self.activation is silu  # which the norm computes with it
        inner_shape = (*x_shape[:-1], self.channels)
        self.norm1 = GroupNorm(self.groups, self.epsilon, silu=has_silu, dtype=policy, name="norm1")
        self.conv1 = conv(self.channels, 3, "conv1", policy)
        numbers = 2 * self.channels if self.scale_shift else self.channels
        self.time_emb_proj = keras.layers.Dense(numbers, dtype=policy, name="time_emb_proj")
        self.norm2 = GroupNorm(
            self.groups, self.epsilon, silu=has_silu and not self.scale_shift, dtype=policy, name="norm2"
        )
        self.conv2 = conv(self.channels, 3, "conv2", policy, kernel_initializer="zeros")
        self.norm1.build(x_shape)
        self.conv1.build(x_shape)
        self.time_emb_proj.build(time_shape)
        self.norm2.build(inner_shape)
        self.conv2.build(inner_shape)
        self.conv_shortcut = None
        if x_shape[-1] != self.channels:
            self.conv_shortcut = conv(self.channels, 1, "conv_shortcut", policy)
            self.conv_shortcut.build(x_shape)

    def call(self, x, time):
        hidden = self.norm1(x)
        if not self.norm1.silu:
            hidden = self.activation(hidden)
        x, hidden = _resampled(x, self.resampling), _resampled(hidden, self.resampling)
        hidden = self.conv1(hidden)
        time = time if self.skip_time_act else self.activation(time)
        embedding = self.time_emb_proj(time)[:, None, None, :]  # (batch, 1, 1, channels or twice as many)
        if self.scale_shift:
            scale, shift = ops.split(embedding, 2, axis=-1)
            hidden = _scaled_and_shifted(self.norm2(hidden), scale, shift)
        else:
            hidden = self.norm2(hidden + embedding)
        if not self.norm2.silu:
            hidden = self.activation(hidden)
        hidden = self.conv2(hidden)
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return x + hidden if self.scale_factor == 1 else (x + hidden) / self.scale_factor

    def get_config(self):
        names = ("channels", "groups", "epsilon", "act_fn", "scale_shift", "skip_time_act", "scale_factor")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in (*names, "resampling")},
        }


def _resampled(x, resampling):
    """(batch, height, width, channels) of half or twice the size; of odd sides the last pixel is left out."""
    if resampling is None:
        return x
    height, width, channels = x.shape[1:]
    if resampling == "down":
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
        return ops.mean(x, axis=(2, 4))
    x = ops.reshape(x, (-1, height, 1, width, 1, channels))
    x = ops.broadcast_to(x, (ops.shape(x)[0], height, 2, width, 2, channels))
    return ops.reshape(x, (-1, 2 * height, 2 * width, channels))

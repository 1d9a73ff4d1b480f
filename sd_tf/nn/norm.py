"""Group normalisation and layer normalisation, which read their input twice and write once."""

import math

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.fused import custom_gradient, fused, is_fusing
from sd_tf.nn.precision import at_least_float32
from sd_tf.nn.ranks import AXES


def group_norm(x, gamma, beta, groups, epsilon, silu=False):
    """Group normalisation (Wu & He 2018), optionally followed by SiLU.

    Args:
        x: (batch, height, width, channels) or (batch, depth, height, width, channels), any float dtype.
        gamma, beta: float32 (channels,).
        groups: a divisor of the channels.
        epsilon: added to the variance.
        silu: whether SiLU follows.

    Returns:
        The shape and dtype of x. Mean and variance are computed in float32 or wider.
    """
    function = _group_norm_with_gradient if is_fusing() else _group_norm
    return function(x, gamma, beta, groups, epsilon, silu)


def _group_norm(x, gamma, beta, groups, epsilon, silu):
    scale, shift, _, _ = _scale_and_shift(x, gamma, beta, groups, epsilon)
    return _affine(x, scale, shift, silu=silu)


def _scale_and_shift(x, gamma, beta, groups, epsilon):
    """Scale, shift, mean and inverse deviation, each (batch, 1, 1, channels), in float32 or wider."""
    values = at_least_float32(x)
    mean = _group_mean(_spatial_mean(values), groups)
    inverse = ops.rsqrt(_group_mean(_spatial_mean(ops.square(values - mean)), groups) + epsilon)
    scale = inverse * gamma
    return scale, beta - mean * scale, mean, inverse


def _spatial_mean(x):
    """The mean over all spatial axes, (batch, 1, 1, channels)."""
    # One axis after another: one sum over all pixels of a large picture would lose four of seven digits.
    for axis in reversed(range(1, len(x.shape) - 1)):
        x = ops.mean(x, axis=axis, keepdims=True)
    return x


def _group_mean(means, groups):
    """(batch, 1, 1, channels), each channel's mean -> the mean of the group that it belongs to."""
    *ones, channels = means.shape[1:]
    mean = ops.mean(ops.reshape(means, (-1, groups, channels // groups)), axis=-1)
    mean = ops.repeat(mean, channels // groups, axis=-1)  # (batch, channels)
    return mean[(slice(None), *[None] * len(ones))]


@fused
def _affine(x, scale, shift, silu):
    x = x * ops.cast(scale, x.dtype) + ops.cast(shift, x.dtype)
    return ops.silu(x) if silu else x


def _group_norm_with_gradient(x, gamma, beta, groups, epsilon, silu):
    """`_group_norm` with a gradient that keeps only x and reads it twice.

    With n the normalised x, y = f(gamma n + beta), and d the gradient of the loss with respect to
    gamma n + beta, the gradient of beta is the sum of d, that of gamma the sum of d n, and that of x
    (gamma d - mean(gamma d) - n mean(gamma d n)) / deviation, with means over a group.
    """

    def call(x, gamma, beta):
        scale, shift, mean, inverse = _scale_and_shift(x, gamma, beta, groups, epsilon)
        positions, axes = math.prod(x.shape[1:-1]), tuple(range(len(x.shape) - 1))

        def gradient(upstream):
            before_silu, product = _gradient_before_silu(x, scale, shift, mean, inverse, upstream, silu=silu)
            sums, products = _spatial_mean(before_silu), _spatial_mean(product)
            constant = inverse * _group_mean(gamma * sums, groups)
            slope = inverse * _group_mean(gamma * products, groups)
            return (
                _input_gradient(x, scale, shift, mean, inverse, upstream, constant, slope, silu=silu),
                positions * ops.sum(products, axis=axes),
                positions * ops.sum(sums, axis=axes),
            )

        return _affine(x, scale, shift, silu=silu), gradient

    return custom_gradient(call)(x, gamma, beta)


def _through_silu(x, scale, shift, upstream, silu):
    """The gradient with respect to SiLU's input, given that with respect to its result."""
    upstream = at_least_float32(upstream)
    if not silu:
        return upstream
    z = at_least_float32(x) * scale + shift
    s = ops.sigmoid(z)
    return upstream * s * (1.0 + z * (1.0 - s))


@fused
def _gradient_before_silu(x, scale, shift, mean, inverse, upstream, silu):
    before_silu = _through_silu(x, scale, shift, upstream, silu)
    return before_silu, before_silu * (at_least_float32(x) - mean) * inverse


@fused
def _input_gradient(x, scale, shift, mean, inverse, upstream, constant, slope, silu):
    before_silu = _through_silu(x, scale, shift, upstream, silu)
    normalised = (at_least_float32(x) - mean) * inverse
    return ops.cast(before_silu * scale - constant - normalised * slope, x.dtype)


@keras.saving.register_keras_serializable("sd_tf")
class GroupNorm(keras.layers.Layer):
    """Group normalisation over all positions (Wu & He 2018), channels last, optionally followed by SiLU.

    The number of spatial axes is that of the input. The result is that of
    `keras.layers.GroupNormalization`, in fewer passes over memory: mean, variance, gamma and beta become
    one scale and one shift for each example and channel.

    Args:
        groups: a divisor of the channels.
        epsilon: added to the variance.
        silu: whether SiLU follows.

    Called with (batch, height, width, channels) or (batch, depth, height, width, channels); returns the same
    shape in the compute dtype. Mean and variance are float32 or wider, whatever the policy.

    Raises:
        InputError: the groups do not divide the channels, or the input is neither picture nor volume.
    """

    def __init__(self, groups=32, epsilon=1e-5, silu=False, **kwargs):
        super().__init__(**kwargs)
        self.groups, self.epsilon, self.silu = groups, epsilon, silu

    def build(self, input_shape):
        channels = input_shape[-1]
        if len(input_shape) - 2 not in AXES:
            raise InputError(
                f"{self.name} has an input of shape {tuple(input_shape)}: pass {' or '.join(AXES.values())}"
            )
        if channels % self.groups:
            raise InputError(
                f"{channels} channels do not divide into {self.groups} groups: change one of them"
            )
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")

    def call(self, x):
        gamma, beta = at_least_float32(self.gamma), at_least_float32(self.beta)
        return group_norm(x, gamma, beta, self.groups, self.epsilon, self.silu)

    def get_config(self):
        return {
            **super().get_config(),
            "groups": self.groups,
            "epsilon": self.epsilon,
            "silu": self.silu,
        }


@fused
def _layer_norm(x, gamma, beta, epsilon):
    values = at_least_float32(x)
    centred = values - ops.mean(values, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return ops.cast(centred * ops.rsqrt(variance + epsilon) * gamma + beta, x.dtype)


@keras.saving.register_keras_serializable("sd_tf")
class LayerNorm(keras.layers.Layer):
    """Layer normalisation of the last axis (Ba et al. 2016), in float32 or wider, whatever the policy.

    Called with (..., channels); returns the same shape in the compute dtype.

    Args:
        epsilon: added to the variance.
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=input_shape[-1:], initializer="zeros", name="beta")

    def call(self, x):
        gamma, beta = at_least_float32(self.gamma), at_least_float32(self.beta)
        return _layer_norm(x, gamma, beta, epsilon=self.epsilon)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}

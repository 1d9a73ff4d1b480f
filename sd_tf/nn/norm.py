"""Group and layer normalisation, each in two passes over memory."""

import keras
from keras import ops

from sd_tf.errors import InputError
from sd_tf.nn.fused import differentiated, fused, fused_now


def group_norm(x, gamma, beta, groups, epsilon, silu=False):
    """Of x (batch, height, width, channels), with float32 gamma and beta (channels,); then SiLU, if asked."""
    function = _with_gradient if fused_now() else _group_norm
    return function(x, gamma, beta, groups, epsilon, silu)


def _group_norm(x, gamma, beta, groups, epsilon, silu):
    scale, shift, _, _ = _scale_and_shift(x, gamma, beta, groups, epsilon)
    return _affine(x, scale, shift, silu=silu)


def _scale_and_shift(x, gamma, beta, groups, epsilon):
    """float32 (batch, 1, 1, channels) each, beside mean and inverse deviation, the same in a group."""
    pixels = ops.cast(x, "float32")
    mean = _of_groups(_of_channels(pixels), groups)
    inverse = ops.rsqrt(_of_groups(_of_channels(ops.square(pixels - mean)), groups) + epsilon)
    scale = inverse * gamma
    return scale, beta - mean * scale, mean, inverse


def _of_channels(x):
    """The mean over positions, (batch, 1, 1, channels)."""
    # Rows, then columns: summed in one go, the pixels of a large picture lose four digits of seven.
    return ops.mean(ops.mean(x, axis=2, keepdims=True), axis=1, keepdims=True)


def _of_groups(means, groups):
    """Channels' means -> those of their groups, the shape kept."""
    channels = means.shape[-1]
    of_groups = ops.mean(ops.reshape(means, (-1, groups, channels // groups)), axis=-1)
    return ops.repeat(of_groups, channels // groups, axis=-1)[:, None, None, :]


@fused
def _affine(x, scale, shift, silu):
    x = x * ops.cast(scale, x.dtype) + ops.cast(shift, x.dtype)
    return ops.silu(x) if silu else x


def _with_gradient(x, gamma, beta, groups, epsilon, silu):
    """`_group_norm` with a gradient that keeps the picture alone and reads it twice.

    With n the normalised picture, y = f(gamma n + beta), and d the gradient of the loss before f, that
    of beta is the sum of d, that of gamma the sum of d n, and that of the picture
    (gamma d - mean(gamma d) - n mean(gamma d n)) / deviation, where means are a group's.
    """

    def call(x, gamma, beta):
        scale, shift, mean, inverse = _scale_and_shift(x, gamma, beta, groups, epsilon)
        positions = x.shape[1] * x.shape[2]

        def gradient(upstream):
            before, product = _before(x, scale, shift, mean, inverse, upstream, silu=silu)
            sums, products = _of_channels(before), _of_channels(product)
            constant = inverse * _of_groups(gamma * sums, groups)
            slope = inverse * _of_groups(gamma * products, groups)
            return (
                _downstream(x, scale, shift, mean, inverse, upstream, constant, slope, silu=silu),
                positions * ops.sum(products, axis=(0, 1, 2)),
                positions * ops.sum(sums, axis=(0, 1, 2)),
            )

        return _affine(x, scale, shift, silu=silu), gradient

    return differentiated(call)(x, gamma, beta)


def _through_silu(x, scale, shift, upstream, silu):
    upstream = ops.cast(upstream, "float32")
    if not silu:
        return upstream
    z = ops.cast(x, "float32") * scale + shift
    s = ops.sigmoid(z)
    return upstream * s * (1.0 + z * (1.0 - s))


@fused
def _before(x, scale, shift, mean, inverse, upstream, silu):
    before = _through_silu(x, scale, shift, upstream, silu)
    return before, before * (ops.cast(x, "float32") - mean) * inverse


@fused
def _downstream(x, scale, shift, mean, inverse, upstream, constant, slope, silu):
    before = _through_silu(x, scale, shift, upstream, silu)
    normalised = (ops.cast(x, "float32") - mean) * inverse
    return ops.cast(before * scale - constant - normalised * slope, x.dtype)


@keras.saving.register_keras_serializable("sd_tf")
class GroupNorm(keras.layers.Layer):
    """Normalises groups of channels over all positions (Wu & He 2018), channels last; then SiLU, if asked.

    Takes and returns (batch, height, width, channels). The statistics are float32 whatever the
    policy. `keras.layers.GroupNormalization` computes the same; this one reads the picture twice
    and writes it once, by folding mean, variance, gamma and beta into one scale and one shift
    per picture and channel.
    """

    def __init__(self, groups=32, epsilon=1e-5, silu=False, **kwargs):
        super().__init__(**kwargs)
        self.groups, self.epsilon, self.silu = groups, epsilon, silu

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise InputError(
                f"{channels} channels do not divide into {self.groups} groups: change one of them"
            )
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")

    def call(self, x):
        gamma, beta = (ops.cast(weight, "float32") for weight in (self.gamma, self.beta))
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
    pixels = ops.cast(x, "float32")
    centred = pixels - ops.mean(pixels, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return ops.cast(centred * ops.rsqrt(variance + epsilon) * gamma + beta, x.dtype)


@keras.saving.register_keras_serializable("sd_tf")
class LayerNorm(keras.layers.Layer):
    """Normalises the last axis (Ba et al. 2016), in float32 whatever the policy."""

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=input_shape[-1:], initializer="zeros", name="beta")

    def call(self, x):
        gamma, beta = (ops.cast(weight, "float32") for weight in (self.gamma, self.beta))
        return _layer_norm(x, gamma, beta, epsilon=self.epsilon)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}

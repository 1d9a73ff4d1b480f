"""What a discriminator says in the end: of its own levels, and of the maps of a frozen network."""

import keras
from keras import ops

from sd_tf.gan.config import LOWEST_SIDE
from sd_tf.gan.layers import AdaptiveConv2D, halved, leaky_relu
from sd_tf.nn.blocks import conv
from sd_tf.nn.precision import at_least_float32


@keras.saving.register_keras_serializable("sd_tf")
class Head(keras.layers.Layer):
    """A level's judgement: one of the picture alone and, with a text, one of both (equation 6).

    Args:
        is_last: whether all positions are seen at once, and not each by itself.
        groups: examples whose deviation is seen (Karras et al. 2018, section 3); 1 for none.

    Called with x (rows, side, side, channels), the text's code (rows, width) or None, and `scales` and
    `again` of `with_first_again`, where the code has rows for these as well; returns logits, (rows,).
    """

    def __init__(self, is_last=False, groups=1, **kwargs):
        super().__init__(**kwargs)
        self.is_last, self.groups = is_last, groups

    def build(self, x_shape, code_shape=None):
        policy = self.dtype_policy
        _, height, width, channels = x_shape
        shape = (*x_shape[:-1], channels + (self.groups > 1))
        padding = "valid" if self.is_last else "same"
        size = LOWEST_SIDE if self.is_last else 1
        self.conv_in = keras.layers.Conv2D(
            channels, size, padding=padding, kernel_initializer="lecun_normal", dtype=policy, name="conv_in"
        )
        self.conv_in.build(shape)
        place = (None, 1, 1, channels) if self.is_last else (None, height, width, channels)
        self.conv_out = conv(1, 1, "conv_out", policy)
        self.conv_out.build(place)
        self.text_conv = None
        if code_shape is not None:
            self.text_conv = AdaptiveConv2D(channels, 1, demodulate=False, dtype=policy, name="text_conv")
            self.text_out = conv(1, 1, "text_out", policy)
            self.text_conv.build(place, code_shape)
            self.text_out.build(place)

    def call(self, x, code=None, scales=1, again=0):
        if self.groups > 1:
            x = with_deviation(x, self.groups)
        x = with_first_again(leaky_relu(self.conv_in(leaky_relu(x))), scales, again)
        logits = self.conv_out(x)
        if self.text_conv is not None:
            logits = logits + self.text_out(leaky_relu(self.text_conv(x, code)))
        return ops.mean(logits, axis=(1, 2, 3))


def with_first_again(x, scales, again):
    """The first `again` examples of each scale once more, behind the others, to be judged with another text.

    Args:
        x: (scales x examples, height, width, channels).

    Returns:
        (scales x (examples + again), height, width, channels).
    """
    if isinstance(again, int) and not again:
        return x
    shape = x.shape[1:]
    x = ops.reshape(x, (scales, -1, *shape))
    return ops.reshape(ops.concatenate([x, x[:, :again]], axis=1), (-1, *shape))


def with_deviation(x, groups):
    """Another channel: how much the examples of a group differ, on the mean over channels and positions.

    Args:
        x: (rows, height, width, channels); rows are a multiple of `groups`, examples side by side one group.

    Returns:
        (rows, height, width, channels + 1).
    """
    height, width, channels = x.shape[1:]
    grouped = at_least_float32(ops.reshape(x, (-1, groups, height, width, channels)))
    variance = ops.mean(ops.square(grouped - ops.mean(grouped, axis=1, keepdims=True)), axis=1)
    deviation = ops.mean(ops.sqrt(variance + 1e-8), axis=(1, 2, 3))  # (groups,)
    deviation = ops.repeat(ops.cast(deviation, x.dtype), groups)[:, None, None, None]
    return ops.concatenate([x, deviation * ops.ones_like(x[..., :1])], axis=-1)


@keras.saving.register_keras_serializable("sd_tf")
class VisionHead(keras.layers.Layer):
    """Judges pictures by one of the maps of a frozen network.

    Channels are mixed at random first, by a convolution that is not trained, so that no few of them can be
    leaned on (Sauer et al. 2021, section 3.2).

    Args:
        width: channels after mixing.
        head: a `Head` for 4 x 4 positions.

    Called with a map (batch, side, side, channels), whose side is 4 times a power of two, the text's code or
    None, and `again` as of `Head`; returns logits (batch,).
    """

    def __init__(self, width, head, **kwargs):
        super().__init__(**kwargs)
        self.width, self.head = width, head

    def build(self, map_shape, code_shape=None):
        policy, side = self.dtype_policy, map_shape[1]
        self.mixing = conv(self.width, 1, "mixing", policy, kernel_initializer="lecun_normal", use_bias=False)
        self.mixing.build(map_shape)
        self.mixing.trainable = False
        self.convs = []
        while side > LOWEST_SIDE:
            layer = conv(self.width, 3, f"convs.{len(self.convs)}", policy, kernel_initializer="lecun_normal")
            layer.build((None, side, side, self.width))
            self.convs.append(layer)
            side //= 2
        self.head.build((None, LOWEST_SIDE, LOWEST_SIDE, self.width), code_shape)

    def call(self, x, code=None, again=0):
        x = self.mixing(ops.cast(x, self.compute_dtype))
        for layer in self.convs:
            x = halved(leaky_relu(layer(x)))
        return self.head(x, code, again=again)

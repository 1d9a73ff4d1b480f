"""Which z draws about a given picture: the encoder that a generator is trained beside."""

import keras
from keras import ops

from sd_tf.gan.config import LOWEST_SIDE
from sd_tf.gan.discriminator import JudgingLevel
from sd_tf.gan.layers import halved, leaky_relu, patches_of_pixels
from sd_tf.nn.blocks import conv
from sd_tf.nn.precision import at_least_float32

RGB = 3
LOG_VARIANCE = (-10.0, 2.0)


@keras.saving.register_keras_serializable("sd_tf")
class Encoder(keras.layers.Layer):
    """The normal distribution of z for a picture (Kingma and Welling 2014; Zhu et al. 2017, section 3.2).

    Args:
        channels: of each level, the first as large as the picture; each halves it, down to 4 x 4.
        latent_dim: of z.
        patch_size: pixels of the picture along each side of a position.

    Called with pictures, float (batch, side, side, 3) in [-1, 1]; returns the mean and the logarithm of the
    variance, float32 (batch, latent dim) each, the latter between `LOG_VARIANCE`.
    """

    def __init__(self, channels, latent_dim, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.latent_dim, self.patch_size = channels, latent_dim, patch_size

    def build(self, pictures_shape=None):
        policy, side = self.dtype_policy, LOWEST_SIDE * 2 ** (len(self.channels) - 1)
        self.from_rgb = conv(self.channels[0], 3, "from_rgb", policy)
        self.from_rgb.build((None, side, side, RGB * self.patch_size**2))
        self.levels, inner = [], self.channels[0]
        for i, width in enumerate(self.channels):
            level = JudgingLevel(width, self_attention=False, head_width=1, dtype=policy, name=f"levels.{i}")
            level.build((None, side, side, inner))
            self.levels.append(level)
            side, inner = side // 2, width
        self.out = keras.layers.Dense(
            2 * self.latent_dim, kernel_initializer="lecun_normal", dtype=policy, name="out"
        )
        self.out.build((None, LOWEST_SIDE**2 * inner))
        self.built = True

    def call(self, pictures):
        patches = patches_of_pixels(pictures, self.patch_size)
        x = self.from_rgb(ops.cast(patches, self.compute_dtype))
        for i, level in enumerate(self.levels):
            x = level(halved(x) if i else x)
        x = self.out(ops.reshape(leaky_relu(x), (-1, LOWEST_SIDE**2 * self.channels[-1])))
        mean, log_variance = ops.split(at_least_float32(x), 2, axis=-1)
        return mean, ops.clip(log_variance, *LOG_VARIANCE)

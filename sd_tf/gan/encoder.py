"""What a generator sees in a picture: features of each resolution, and which z draws about it."""

import keras
from keras import ops

from sd_tf.gan.config import LOWEST_SIDE
from sd_tf.gan.discriminator import JudgingLevel
from sd_tf.gan.layers import halved, leaky_relu, patches_of_pixels, unit_rows
from sd_tf.nn.blocks import conv
from sd_tf.nn.precision import at_least_float32

LOG_VARIANCE = (-10.0, 2.0)


@keras.saving.register_keras_serializable("sd_tf")
class PictureFeatures(keras.layers.Layer):
    """Features of a picture at its own resolution and at each half of it, down to 4 x 4.

    Args:
        block_out_channels: of each level, from 4 x 4 up to the picture's resolution.
        patch_size: pixels along each side of a position.

    Called with pictures, float (batch, side, side, 3), of as many sides as the levels make. Returns a list of
    (batch, side, side, channels) in the compute dtype, from 4 x 4 up.
    """

    def __init__(self, block_out_channels, patch_size=1, **kwargs):
        super().__init__(**kwargs)
        self.block_out_channels, self.patch_size = tuple(block_out_channels), patch_size

    def build(self, input_shape):
        policy, (_, side, _, colours) = self.dtype_policy, input_shape
        channels = self.block_out_channels[-1]
        # Each position also sees what borders on its patch, as a discriminator's.
        self.from_rgb = conv(channels, 3, "from_rgb", policy, kernel_initializer="lecun_normal")
        side //= self.patch_size
        self.from_rgb.build((None, side, side, colours * self.patch_size**2))
        self.levels = {}
        for i in reversed(range(len(self.block_out_channels))):
            self.levels[i] = JudgingLevel(self.block_out_channels[i], dtype=policy, name=f"levels.{i}")
            self.levels[i].build((None, side, side, channels))
            channels, side = self.block_out_channels[i], side // 2

    def call(self, pictures):
        patches = patches_of_pixels(pictures, self.patch_size)
        x, found = self.from_rgb(ops.cast(patches, self.compute_dtype)), []
        for i, level in self.levels.items():
            x = level(x)
            found.insert(0, x)
            if i:
                x = halved(x)
        return found

    def get_config(self):
        config = {"block_out_channels": self.block_out_channels, "patch_size": self.patch_size}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("sd_tf")
class LatentEncoder(keras.layers.Layer):
    """The normal distribution of z for a picture and its text (Sohn et al. 2015, section 4.1).

    What the text says already z does not have to say, and is then spread alike for every text.

    Args:
        block_out_channels, patch_size: as of `PictureFeatures`.
        latent_dim: of z.

    Called with pictures, float (batch, side, side, 3) in [-1, 1], and the global code of their texts, (batch,
    any width), or None without a text; returns the mean and the logarithm of the variance, float32 (batch,
    latent dim) each, the latter between `LOG_VARIANCE`.
    """

    def __init__(self, block_out_channels, latent_dim, patch_size=1, **kwargs):
        super().__init__(**kwargs)
        self.block_out_channels, self.patch_size = tuple(block_out_channels), patch_size
        self.latent_dim = latent_dim

    def build(self, input_shape, code_shape=None):
        policy = self.dtype_policy
        self.features = PictureFeatures(
            self.block_out_channels, self.patch_size, dtype=policy, name="features"
        )
        self.features.build(input_shape)
        self.out = keras.layers.Dense(
            2 * self.latent_dim, kernel_initializer="lecun_normal", dtype=policy, name="out"
        )
        self.out.build((None, LOWEST_SIDE**2 * self.block_out_channels[0]))
        self.text_out = None
        if code_shape is not None:
            self.text_out = keras.layers.Dense(
                2 * self.latent_dim, use_bias=False, kernel_initializer="zeros", dtype=policy, name="text_out"
            )
            self.text_out.build(code_shape)

    def call(self, pictures, code=None):
        [lowest, *_] = self.features(pictures)
        x = ops.reshape(leaky_relu(lowest), (-1, LOWEST_SIDE**2 * self.block_out_channels[0]))
        x = at_least_float32(self.out(x))
        if self.text_out is not None:
            x = x + at_least_float32(self.text_out(unit_rows(code)))
        mean, log_variance = ops.split(x, 2, axis=-1)
        return mean, ops.clip(log_variance, *LOG_VARIANCE)

    def get_config(self):
        names = ("block_out_channels", "latent_dim", "patch_size")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

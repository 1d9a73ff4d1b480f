"""GigaGAN's discriminator (Kang et al. 2023, section 3.3) in small: it judges a picture and its text."""

import dataclasses

import keras
from keras import ops

from sd_tf.config import as_config
from sd_tf.errors import InputError
from sd_tf.gan.config import DiscriminatorConfig, check_config
from sd_tf.gan.heads import Head, VisionHead
from sd_tf.gan.layers import DistanceAttention, TextLayers, halved, leaky_relu, patches_of_pixels
from sd_tf.nn.blocks import conv

RGB = 3


@keras.saving.register_keras_serializable("sd_tf")
class Discriminator(keras.Model):
    """`discriminator(pictures, states=None, text_mask=None)`.

    A level judges what comes from all levels above it and, with `multi_scale_input`, a picture of its own
    size, each by itself: of L levels there are L (L + 1) / 2 judgements (section 3.3).

    Args:
        config: a `DiscriminatorConfig`, or its fields as a dictionary.

    Called with pictures, float (batch, side, side, 3) in [-1, 1], of which the smaller ones are made, or a
    tuple of a generator's from the lowest up; states (batch, tokens, text dim) and text_mask, bool (batch,
    tokens), of a frozen text encoder, if `text_dim` is not None. The batch is a multiple of
    `minibatch_groups`. Returns logits, float32 (batch, judgements), high for real pictures.

    Raises:
        InputError: the configuration makes no network, or the pictures have another size.
    """

    def __init__(self, config=DiscriminatorConfig(), **kwargs):
        super().__init__(autocast=False, **{"name": "discriminator", **kwargs})
        config = self.config = as_config(DiscriminatorConfig, config)
        check_config(config)
        policy, widths = self.dtype_policy, config.block_out_channels
        self.text = None
        if config.text_dim is not None:
            self.text = TextLayers(
                config.text_width, config.text_layers, config.attention_head_dim, dtype=policy, name="text"
            )
        self.vision = [
            VisionHead(
                config.vision_width,
                Head(True, config.minibatch_groups, dtype=policy, name="head"),
                dtype=policy,
                name=f"vision.{i}",
            )
            for i in range(len(config.vision_channels))
        ]
        last = len(widths) - 1
        self.from_rgb, self.levels, self.heads = {}, [], {}
        if not config.judges_pixels:
            return
        inputs = range(last + 1) if config.multi_scale_input else range(1)
        size = 3 if config.patch_size > 1 else 1  # each position also sees what borders on its patch
        self.from_rgb = {i: conv(widths[max(i - 1, 0)], size, f"from_rgb.{i}", policy) for i in inputs}
        self.levels = [
            JudgingLevel(
                widths[i],
                config.self_attention[i],
                config.attention_head_dim,
                dtype=policy,
                name=f"levels.{i}",
            )
            for i in range(last + 1)
        ]
        self.heads = {
            i: Head(
                is_last=i == last,
                groups=config.minibatch_groups if i == last else 1,
                dtype=policy,
                name=f"heads.{i}",
            )
            for i in (range(last + 1) if config.multi_scale_output else (last,))
        }

    def build(self, *input_shapes):
        config = self.config
        code_shape = None
        if self.text is not None:
            self.text.build((None, None, config.text_dim))
            code_shape = (None, config.text_width)
        side, channels = config.sample_size // config.patch_size, config.block_out_channels[0]
        for i, level in enumerate(self.levels):
            if i in self.from_rgb:
                self.from_rgb[i].build((None, side, side, RGB * config.patch_size**2))
            level.build((None, side, side, channels))
            channels = level.channels
            if i in self.heads:
                self.heads[i].build((None, side, side, channels), code_shape)
            side //= 2
        for i, (head, width) in enumerate(zip(self.vision, config.vision_channels, strict=True)):
            side = config.sample_size // 2 ** (i + 1)
            head.build((None, side, side, width), code_shape)
        self.built = True

    def call(self, pictures, states=None, text_mask=None):
        return self.judged(self.seen(pictures), self.code_of(states, text_mask))

    def code_of(self, states=None, text_mask=None):
        """The code of a text, (batch, text width); None without a text."""
        return None if self.text is None else self.text(states, text_mask)[1]

    def seen(self, pictures):
        """What the levels that judge have seen of the pictures: a list of (rows, side, side, channels).

        The rows of a level are those of the largest pictures, of the next smaller ones, and so on.
        """
        pyramid = self.pyramid_of(pictures)
        x, found = None, []
        for i, level in enumerate(self.levels):
            if i in self.from_rgb:
                patches = patches_of_pixels(pyramid[i], self.config.patch_size)
                picture = self.from_rgb[i](ops.cast(patches, self.compute_dtype))
                x = picture if x is None else ops.concatenate([x, picture], axis=0)
            x = level(x)
            if i in self.heads:
                found.append(x)
            if i + 1 < len(self.levels):
                x = halved(x)
        return found

    def judged(self, seen, code=None, again=0):
        """Logits of `seen` and the texts' `code_of`.

        Args:
            seen: of `batch` pictures.
            code: (batch + again, text width), or None.
            again: so many of the first pictures are judged once more, with the texts behind the others'.

        Returns:
            float32 (batch + again, judgements).
        """
        found = []
        for (i, head), x in zip(self.heads.items(), seen, strict=True):
            scales = i + 1 if self.config.multi_scale_input else 1
            logits = head(
                x, None if code is None else ops.tile(code, (scales, 1)), scales=scales, again=again
            )
            found.append(ops.transpose(ops.reshape(ops.cast(logits, "float32"), (scales, -1))))
        return ops.concatenate(found, axis=1)

    def judged_by_vision(self, maps, code=None, again=0):
        """As `judged`, of a frozen network's maps: float32 (batch + again, maps)."""
        logits = [head(x, code, again=again) for head, x in zip(self.vision, maps, strict=True)]
        return ops.cast(ops.stack(logits, axis=1), "float32")

    def pyramid_of(self, pictures):
        """The pictures that the levels see, the largest first."""
        config = self.config
        wanted = [config.sample_size // 2**i for i in self.from_rgb]
        given = pictures[::-1] if isinstance(pictures, (list, tuple)) else [pictures]
        pyramid = list(given[: len(wanted)])
        while len(pyramid) < len(wanted):
            pyramid.append(halved(pyramid[-1]))
        sides = [each.shape[1] for each in pyramid]
        if sides != wanted:
            raise InputError(f"pictures have sides of {sides}, the discriminator judges {wanted}: give these")
        return pyramid

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}


@keras.saving.register_keras_serializable("sd_tf")
class JudgingLevel(keras.layers.Layer):
    """A residual block of two convolutions, without a norm, and attention by distance.

    The block's second convolution starts at zero, as in R3GAN (Huang et al. 2024, section 4).

    Args:
        channels: of the result.
        self_attention: whether positions attend on each other.
        head_width: of the attention.

    Called with (batch, side, side, channels in); returns (batch, side, side, channels).
    """

    def __init__(self, channels, self_attention=False, head_width=32, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.self_attention, self.head_width = channels, self_attention, head_width

    def build(self, x_shape):
        policy, shape = self.dtype_policy, (*x_shape[:-1], self.channels)
        self.conv1 = conv(self.channels, 3, "conv1", policy, kernel_initializer="lecun_normal")
        self.conv2 = conv(self.channels, 3, "conv2", policy, kernel_initializer="zeros")
        self.conv1.build(x_shape)
        self.conv2.build(shape)
        self.shortcut = self.attention = None
        if x_shape[-1] != self.channels:
            self.shortcut = conv(self.channels, 1, "shortcut", policy, use_bias=False)
            self.shortcut.build(x_shape)
        if self.self_attention:
            self.attention = DistanceAttention(self.head_width, dtype=policy, name="attention")
            self.attention.build(shape)

    def call(self, x):
        change = self.conv2(leaky_relu(self.conv1(leaky_relu(x))))
        x = change + (x if self.shortcut is None else self.shortcut(x))
        return x if self.attention is None else self.attention(x)

"""The UNet of a cascade's stages, which denoises pixels: that of DeepFloyd IF, the open Imagen.

It knows nothing of noise: it maps noisy pictures, a timestep and a text's states to a tensor of pictures,
and where it learns a variance to a second one beside it. What these mean is said in
`sd_tf.diffusion.predictions`.

References: Saharia et al. 2022 (Imagen), appendix B; `diffusers.UNet2DConditionModel` with the block types
below.
"""

import dataclasses

import keras
from keras import ops

from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.cascade.text_pooling import PooledText
from sd_tf.config import as_config
from sd_tf.errors import InputError, unknown
from sd_tf.nn.activations import activation
from sd_tf.nn.added_attention import AddedKeyValueAttention
from sd_tf.nn.blocks import conv
from sd_tf.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from sd_tf.nn.norm import GroupNorm
from sd_tf.nn.remat import rematerialised
from sd_tf.nn.resampling_blocks import ResamplingBlock

# Without attention, and with it. The efficient ones, of Imagen's super-resolution, make a picture smaller
# before a level's residual blocks; diffusers has none of them.
DOWN_BLOCK_TYPES = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
UP_BLOCK_TYPES = ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")
EFFICIENT_DOWN_BLOCK_TYPES = ("EfficientDownBlock2D", "EfficientCrossAttnDownBlock2D")
EFFICIENT_UP_BLOCK_TYPES = ("EfficientUpBlock2D", "EfficientCrossAttnUpBlock2D")
TIME_SCALE_SHIFTS = ("scale_shift", "default")
CROSS_NORMS = ("group_norm", None)


class Level(keras.layers.Layer):
    """Residual blocks of one size, each followed by attention where `head_width` is a number.

    Args:
        channels: of every residual block's result.
        input_channels: of each residual block's input, so their number is that of the blocks.
        head_width: of the attentions, None for a level without.
        config: the `PixelUNetConfig`.
        scale_factor: what the sums of residual blocks are divided by.
        attentions: how many; None for one behind each residual block.
    """

    def __init__(
        self, channels, input_channels, head_width, config, scale_factor=None, attentions=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.channels, self.input_channels, self.config = channels, input_channels, config
        self.scale_factor = config.resnet_out_scale_factor if scale_factor is None else scale_factor
        number = len(input_channels) if attentions is None else attentions
        self.resnets = [self.residual_block(f"resnets.{i}") for i in range(len(input_channels))]
        self.attentions = [
            AddedKeyValueAttention(
                head_width,
                config.norm_num_groups,
                config.cross_attention_norm == "group_norm",
                config.only_cross_attention,
                dtype=self.dtype_policy,
                name=f"attentions.{i}",
            )
            for i in range(number if head_width is not None else 0)
        ]

    def residual_block(self, name, resampling=None):
        """A residual block with the configuration's settings."""
        config = self.config
        return ResamplingBlock(
            self.channels,
            config.norm_num_groups,
            config.norm_eps,
            config.act_fn,
            config.resnet_time_scale_shift == "scale_shift",
            config.resnet_skip_time_act,
            self.scale_factor,
            resampling,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, time_shape, context_shape):
        for resnet, channels in zip(self.resnets, self.input_channels, strict=True):
            resnet.build((None, None, None, channels), time_shape)
        for attention in self.attentions:
            attention.build((None, None, None, self.channels), context_shape)

    def step(self, i, x, time, context, mask, *skip):
        """Residual block `i`, on the picture beside a skip if there is one, and the attention after it."""

        def residual(time, x, *skip):
            return self.resnets[i](ops.concatenate([x, *skip], axis=-1) if skip else x, time)

        x = rematerialised(residual, time, x, *skip)
        if i >= len(self.attentions):
            return x
        return rematerialised(self.attentions[i], x, context, *([] if mask is None else [mask]))


class DownLevel(Level):
    """Returns every intermediate picture: they are the skips, and the last goes on.

    Args:
        resampled: "after" the residual blocks, "before" them, or None for a level that keeps the size.
        before: channels of the picture that comes in.
    """

    def __init__(self, *args, resampled, before, **kwargs):
        super().__init__(*args, **kwargs)
        self.resampled, self.before = resampled, before
        self.downsampler = None if resampled is None else self.residual_block("downsamplers.0", "down")

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        if self.downsampler is not None:
            channels = self.before if self.resampled == "before" else self.channels
            self.downsampler.build((None, None, None, channels), time_shape)

    def call(self, x, time, context, mask=None):
        skips = []
        if self.resampled == "before":
            x = rematerialised(lambda time, x: self.downsampler(x, time), time, x)
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, context, mask)
            skips.append(x)
        if self.resampled == "after":
            skips.append(rematerialised(lambda time, x: self.downsampler(x, time), time, x))
        return skips


class MiddleLevel(Level):
    """Residual block, attention, residual block."""

    def call(self, x, time, context, mask=None):
        return self.step(1, self.step(0, x, time, context, mask), time, context, mask)

    def step(self, i, x, time, context, mask):
        if i:  # without attention behind it
            return rematerialised(lambda time, x: self.resnets[1](x, time), time, x)
        return super().step(i, x, time, context, mask)


class UpLevel(Level):
    """Each residual block takes one skip beside the picture.

    Args:
        upsample: whether the picture is made larger behind them.
    """

    def __init__(self, *args, upsample, **kwargs):
        super().__init__(*args, **kwargs)
        self.upsampler = self.residual_block("upsamplers.0", "up") if upsample else None

    def build(self, time_shape, context_shape):
        super().build(time_shape, context_shape)
        if self.upsampler is not None:
            self.upsampler.build((None, None, None, self.channels), time_shape)

    def call(self, x, skips, time, context, mask=None):
        for i in range(len(self.resnets)):
            x = self.step(i, x, time, context, mask, skips[-1 - i])
        if self.upsampler is None:
            return x
        return rematerialised(lambda time, x: self.upsampler(x, time), time, x)


@keras.saving.register_keras_serializable("sd_tf")
class PixelUNet(keras.Model):
    """`unet(images, timesteps, context, text_mask=None, class_labels=None)`.

    Args:
        config: a `PixelUNetConfig`, or its fields as a dictionary.

    Called with

        images: (batch, height, width, in channels), any float: noisy pictures, and beside them along the
            channels the picture to enlarge, if the network takes one. Sides are multiples of 2 to the number
            of levels less one, or of levels for efficient blocks.
        timesteps: (batch,), integer or float.
        context: the text's states, (batch, tokens, encoder_hid_dim).
        text_mask: bool (batch, tokens), True at tokens to attend to; None for all. The pooling of the text
            sees all tokens, as in diffusers.
        class_labels: (batch,), the timestep of the noise on the picture to enlarge.

    Returns float32 (batch, height, width, out channels).

    Raises:
        InputError: a block type is unknown, or the fields disagree on the number of levels.
    """

    def __init__(self, config=PixelUNetConfig(), **kwargs):
        # In bfloat16 there is no timestep 999; what is to be cast, the layers within cast.
        super().__init__(autocast=False, **{"name": "unet", **kwargs})
        config = self.config = as_config(PixelUNetConfig, config)
        policy, widths, levels = self.dtype_policy, config.block_out_channels, config.levels
        is_efficient = _check(config)
        self.activation = activation(config.act_fn)
        self.time_act = config.time_embedding_act_fn and activation(config.time_embedding_act_fn)

        self.time_embedding = TimestepEmbedding(
            4 * widths[0], config.act_fn, dtype=policy, name="time_embedding"
        )
        self.class_embedding = None
        if config.class_embed_type is not None:
            self.class_embedding = TimestepEmbedding(
                4 * widths[0], config.act_fn, dtype=policy, name="class_embedding"
            )
        self.add_embedding = PooledText(
            4 * widths[0], config.addition_embed_type_num_heads, dtype=policy, name="add_embedding"
        )
        self.encoder_hid_proj = keras.layers.Dense(
            config.cross_attention_dim, dtype=policy, name="encoder_hid_proj"
        )
        self.conv_in = conv(widths[0], 3, "conv_in", policy)

        self.down_blocks, channels = [], widths[0]
        self.has_first_skip = not is_efficient
        skip_channels = [widths[0]] if self.has_first_skip else []
        for i, width in enumerate(widths):
            layers = config.of_level("layers_per_block", i)
            before, resampled = channels, "after" if i < levels - 1 else None
            if is_efficient:
                channels, resampled = width, "before"
            block = DownLevel(
                width,
                (channels,) + (width,) * (layers - 1),
                _head_width(config, i, config.down_block_types[i]),
                config,
                resampled=resampled,
                before=before,
                dtype=policy,
                name=f"down_blocks.{i}",
            )
            self.down_blocks.append(block)
            skip_channels += [width] * (layers + (resampled == "after"))
            channels = width

        self.mid_block = MiddleLevel(
            channels,
            (channels, channels),
            config.of_level("attention_head_dim", levels - 1),
            config,
            config.mid_block_scale_factor,
            attentions=1,
            dtype=policy,
            name="mid_block",
        )

        self.up_blocks = []
        for i, width in enumerate(widths[::-1]):
            level = levels - 1 - i
            layers = config.of_level("layers_per_block", level) + (not is_efficient)
            skips = [skip_channels.pop() for _ in range(layers)]
            block = UpLevel(
                width,
                tuple((width if j else channels) + skip for j, skip in enumerate(skips)),
                _head_width(config, level, config.up_block_types[i]),
                config,
                upsample=is_efficient or i < levels - 1,
                dtype=policy,
                name=f"up_blocks.{i}",
            )
            self.up_blocks.append(block)
            channels = width

        has_silu = config.act_fn in ("silu", "swish")
        self.norm_out = GroupNorm(
            config.norm_num_groups, config.norm_eps, silu=has_silu, dtype=policy, name="conv_norm_out"
        )
        self.conv_out = conv(config.out_channels, 3, "conv_out", policy, kernel_initializer="zeros")

    def build(self, *input_shapes):
        config = self.config
        width = config.block_out_channels[0]
        time_shape = (None, 4 * width)
        text_shape = (None, None, config.encoder_hid_dim)
        context_shape = (None, None, config.cross_attention_dim)
        self.time_embedding.build((None, width))
        if self.class_embedding is not None:
            self.class_embedding.build((None, width))
        self.add_embedding.build(text_shape)
        self.encoder_hid_proj.build(text_shape)
        self.conv_in.build((None, None, None, config.in_channels))
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.build(time_shape, context_shape)
        self.norm_out.build((None, None, None, width))
        self.conv_out.build((None, None, None, width))
        self.built = True

    def call(self, images, timesteps, context, text_mask=None, class_labels=None):
        time = self.time_embedding(self._sinusoidal(timesteps))
        if self.class_embedding is not None:
            if class_labels is None:
                raise InputError("this UNet enlarges pictures: give class_labels, the level of their noise")
            time = time + self.class_embedding(self._sinusoidal(class_labels))
        time = time + self.add_embedding(context)
        if self.time_act is not None:
            time = self.time_act(time)
        context = self.encoder_hid_proj(context)
        mask = None if text_mask is None else (ops.cast(text_mask, "float32") - 1.0) * 10000.0

        x = self.conv_in(images)
        skips = [x] if self.has_first_skip else []
        for block in self.down_blocks:
            found = block(x, time, context, mask)
            x, skips = found[-1], [*skips, *found]
        x = self.mid_block(x, time, context, mask)
        for block in self.up_blocks:
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            x = block(x, taken, time, context, mask)
        x = self.norm_out(x)
        x = x if self.norm_out.silu else self.activation(x)
        return ops.cast(self.conv_out(x), "float32")

    def _sinusoidal(self, t):
        config = self.config
        return sinusoidal_embedding(
            t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
        )

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}


def _head_width(config, level, block_type):
    return config.of_level("attention_head_dim", level) if "CrossAttn" in block_type else None


def _check(config) -> bool:
    """Whether the blocks are the efficient ones; raises `InputError` where fields do not go together."""
    levels = config.levels
    for name in ("layers_per_block", "attention_head_dim", "down_block_types", "up_block_types"):
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != levels:
            raise InputError(
                f"{name} has {len(value)} entries for {levels} block_out_channels: give {levels}"
            )
    is_efficient = config.down_block_types[0] in EFFICIENT_DOWN_BLOCK_TYPES
    for name, plain, efficient in (
        ("down_block_types", DOWN_BLOCK_TYPES, EFFICIENT_DOWN_BLOCK_TYPES),
        ("up_block_types", UP_BLOCK_TYPES, EFFICIENT_UP_BLOCK_TYPES),
    ):
        for value in getattr(config, name):
            if value not in (*plain, *efficient):
                raise unknown(name, value, (*plain, *efficient))
            if value not in (efficient if is_efficient else plain):
                raise InputError(f"{name} has {value}: a UNet has efficient blocks throughout, or none")
    for name, valid in (
        ("resnet_time_scale_shift", TIME_SCALE_SHIFTS),
        ("cross_attention_norm", CROSS_NORMS),
        ("class_embed_type", ("timestep", None)),
    ):
        if getattr(config, name) not in valid:
            raise unknown(name, getattr(config, name), [str(each) for each in valid])
    return is_efficient

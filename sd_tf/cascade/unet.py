"""The UNet of a cascade: it denoises pictures, given a text (Imagen, Saharia et al. 2022; DeepFloyd IF).

It knows nothing of noise: it maps noisy pictures, a timestep, a text and, in the super-resolution stage, the
level of the low resolution's noise to a tensor of the pictures' size. What that tensor means is said in
`sd_tf.diffusion.predictions`.
"""

import dataclasses

import keras
from keras import ops

from sd_tf.cascade.blocks import DownLevel, EfficientDownLevel, EfficientUpLevel, MiddleLevel, UpLevel
from sd_tf.cascade.config import ATTENDS, PixelUNetConfig, check_config
from sd_tf.config import as_config
from sd_tf.errors import InputError
from sd_tf.nn.activations import activation
from sd_tf.nn.added_attention import attention_bias
from sd_tf.nn.blocks import conv
from sd_tf.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from sd_tf.nn.norm import GroupNorm
from sd_tf.nn.text_pooling import TextTimeEmbedding


@keras.saving.register_keras_serializable("sd_tf")
class PixelUNet(keras.Model):
    """`unet(images, timesteps, context, text_mask=None, class_labels=None)`.

    Args:
        config: a `PixelUNetConfig`, or its fields as a dictionary.

    Called with images (batch, h, w, in channels), any float; timesteps (batch,), integer or float; context
    (batch, tokens, width of the text states); text_mask, None or bool (batch, tokens), which tokens are
    attended on; class_labels (batch,), integer or float, the level of noise of the low resolution, for
    `class_embed_type="timestep"` only. Returns float32 (batch, h, w, out channels).

    The pooled text and `cross_attention_norm="group_norm"` see all tokens, as in diffusers: pad every
    context of a model to one number of tokens.

    Raises:
        InputError: a block type is unknown, the fields disagree on the number of levels, class_labels are
            missing or not asked for, or the pictures' sides are not multiples of `config.size_multiple`.

    Reference: diffusers' `UNet2DConditionModel`, with whose files it exchanges weights unless its levels are
    Imagen's efficient ones.
    """

    def __init__(self, config=PixelUNetConfig(), **kwargs):
        # In bfloat16 there is no timestep 999; what is to be cast, the layers within cast.
        super().__init__(autocast=False, **{"name": "unet", **kwargs})
        config = self.config = as_config(PixelUNetConfig, config)
        check_config(config)
        policy, widths = self.dtype_policy, config.block_out_channels
        time_width = config.time_width

        self.time_embedding = TimestepEmbedding(
            time_width, config.act_fn, dtype=policy, name="time_embedding"
        )
        self.class_embedding = self.add_embedding = self.encoder_hid_proj = None
        if config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(
                time_width, config.act_fn, dtype=policy, name="class_embedding"
            )
        if config.addition_embed_type == "text":
            self.add_embedding = TextTimeEmbedding(
                time_width, config.addition_embed_type_num_heads, dtype=policy, name="add_embedding"
            )
        if config.encoder_hid_dim is not None:
            self.encoder_hid_proj = keras.layers.Dense(
                config.cross_attention_dim, dtype=policy, name="encoder_hid_proj"
            )
        self.conv_in = conv(widths[0], 3, "conv_in", policy)
        self._make_levels()
        # A fused SiLU is the norm's; any other activation follows it.
        self.norm_out = GroupNorm(
            config.norm_num_groups,
            config.norm_eps,
            silu=config.act_fn == "silu",
            dtype=policy,
            name="conv_norm_out",
        )
        self.conv_out = conv(config.out_channels, 3, "conv_out", policy, kernel_initializer="zeros")

    def _make_levels(self):
        config, policy, efficient = self.config, self.dtype_policy, self.config.efficient
        widths, layers = config.block_out_channels, config.of_levels("layers_per_block")
        heads = config.of_levels("attention_head_dim")
        only_text = config.of_levels("only_cross_attention")
        last = len(widths) - 1

        def level(kind, i, input_channels, head_width, name, block_type, resample):
            # Efficient levels all change the resolution, the others all but the lowest or highest.
            options = {} if efficient else {"resample": resample}
            return kind(
                *(widths[i], input_channels, ATTENDS[block_type], head_width, only_text[i], config),
                dtype=policy,
                name=name,
                **options,
            )

        kind = EfficientDownLevel if efficient else DownLevel
        self.down_blocks, skip_channels, channels = [], [] if efficient else [widths[0]], widths[0]
        for i, block_type in enumerate(config.down_block_types):
            inputs = (channels,) + (widths[i],) * (layers[i] - 1)
            self.down_blocks.append(
                level(kind, i, inputs, heads[i], f"down_blocks.{i}", block_type, i < last)
            )
            skip_channels += [widths[i]] * (layers[i] + (not efficient and i < last))
            channels = widths[i]

        self.mid_block = MiddleLevel(
            *(channels, (channels, channels), True, heads[-1], config.middle_only_cross_attention, config),
            dtype=policy,
            name="mid_block",
        )

        kind = EfficientUpLevel if efficient else UpLevel
        self.up_blocks = []
        for number, block_type in enumerate(config.up_block_types):
            i = last - number
            skips = [skip_channels.pop() for _ in range(layers[i] + (not efficient))]
            inputs = tuple((widths[i] if j else channels) + skip for j, skip in enumerate(skips))
            self.up_blocks.append(
                level(kind, i, inputs, heads[number], f"up_blocks.{number}", block_type, i > 0)
            )
            channels = widths[i]

    def build(self, *input_shapes):
        config = self.config
        width = config.block_out_channels[0]
        text_shape = (None, None, config.context_width)
        self.time_embedding.build((None, width))
        if self.class_embedding is not None:
            self.class_embedding.build((None, width))
        if self.add_embedding is not None:
            self.add_embedding.build(text_shape)
        if self.encoder_hid_proj is not None:
            self.encoder_hid_proj.build(text_shape)
        self.conv_in.build((None, None, None, config.in_channels))
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.build((None, config.time_width), (None, None, config.cross_attention_dim))
        self.norm_out.build((None, None, None, width))
        self.conv_out.build((None, None, None, width))
        self.built = True

    def call(self, images, timesteps, context, text_mask=None, class_labels=None):
        self._check_call(images, class_labels)
        time = self._embedded(timesteps, context, class_labels)
        if self.encoder_hid_proj is not None:
            context = self.encoder_hid_proj(context)
        text = (context,) if text_mask is None else (context, attention_bias(text_mask))

        x = first = self.conv_in(images)
        skips = [] if self.config.efficient else [x]
        for block in self.down_blocks:
            skips += block(x, time, text)
            x = skips[-1]
        x = self.mid_block(x, time, text)
        for block in self.up_blocks:
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            x = block(x, taken, time, text)
        if self.config.efficient:
            x = x + first  # the only skip at the pictures' own resolution
        x = self.norm_out(x)
        if not self.norm_out.silu:
            x = activation(self.config.act_fn)(x)
        return ops.cast(self.conv_out(x), "float32")

    def _embedded(self, timesteps, context, class_labels):
        """(batch, time width): the timestep, the low resolution's level of noise and the pooled text."""
        config = self.config

        def sinusoidal(t):
            return sinusoidal_embedding(
                t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
            )

        time = self.time_embedding(sinusoidal(timesteps))
        if config.timestep_post_act is not None:
            time = activation(config.timestep_post_act)(time)
        if self.class_embedding is not None:
            time = time + self.class_embedding(sinusoidal(class_labels))
        if self.add_embedding is not None:
            time = time + self.add_embedding(context)
        if config.time_embedding_act_fn is not None:
            time = activation(config.time_embedding_act_fn)(time)
        return time

    def _check_call(self, images, class_labels):
        config = self.config
        if (class_labels is None) != (self.class_embedding is None):
            raise InputError(
                f"class_labels are {'missing' if class_labels is None else 'given'}, class_embed_type is "
                f"{config.class_embed_type!r}: a super-resolution stage has both, a base neither"
            )
        multiple = config.size_multiple
        if any(side is not None and side % multiple for side in images.shape[1:3]):
            height, width = images.shape[1:3]
            raise InputError(
                f"pictures are {height} x {width}: {len(config.block_out_channels)} levels of this UNet need "
                f"multiples of {multiple}"
            )

    def get_config(self):
        return {**super().get_config(), "config": dataclasses.asdict(self.config)}

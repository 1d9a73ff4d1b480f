"""The configuration of a cascade's UNet: its `config.json`."""

from dataclasses import dataclass

from sd_tf.config import kept


@dataclass(frozen=True)
class PixelUNetConfig:
    """`diffusers.UNet2DConditionModel` with the blocks of DeepFloyd IF; the defaults are those of IF-I-M.

    Attributes:
        sample_size: pixels along a side; or height and width.
        in_channels: 3, or 6 with the picture to enlarge beside the noisy one.
        out_channels: 3, or 6 with a learned variance.
        layers_per_block: residual blocks of a level, for all levels or one for each.
        attention_head_dim: width of an attention head, for all levels or one for each.
        cross_attention_dim: width that the text's states are projected to.
        encoder_hid_dim: width of the text's states.
        addition_embed_type_num_heads: of the attention that pools the text into the timestep's embedding.
        class_embed_type: "timestep" for the level of noise on the picture to enlarge; None without one.
        cross_attention_norm: "group_norm" or None, of the text's states.
        only_cross_attention: whether pixels attend to the text alone, not to each other.
        resnet_time_scale_shift: "scale_shift" or "default", how the timestep enters residual blocks.
        resnet_skip_time_act: whether blocks leave out the activation before their projection of the timestep.
        resnet_out_scale_factor, mid_block_scale_factor: what the sums of residual blocks are divided by.
    """

    sample_size: int | tuple[int, ...] = 64
    in_channels: int = 3
    out_channels: int = 6
    block_out_channels: tuple[int, ...] = (192, 384, 576, 768)
    layers_per_block: int | tuple[int, ...] = 3
    down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3
    up_block_types: tuple[str, ...] = ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",)
    attention_head_dim: int | tuple[int, ...] = 64
    cross_attention_dim: int = 768
    encoder_hid_dim: int = 4096
    addition_embed_type_num_heads: int = 64
    class_embed_type: str | None = None
    cross_attention_norm: str | None = "group_norm"
    only_cross_attention: bool = False
    resnet_time_scale_shift: str = "scale_shift"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    act_fn: str = "gelu"
    time_embedding_act_fn: str | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    kept: dict = kept()

    @property
    def levels(self) -> int:
        """How many sizes the network works at."""
        return len(self.block_out_channels)

    def of_level(self, name: str, level: int) -> int:
        """A value that is one for all levels, or one for each."""
        value = getattr(self, name)
        return value[level] if isinstance(value, tuple) else value

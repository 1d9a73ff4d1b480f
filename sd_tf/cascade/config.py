"""The configuration of a cascade's UNets: it is their `config.json`."""

from dataclasses import dataclass

from sd_tf.config import kept
from sd_tf.errors import InputError, unknown

ATTENDS = {  # block type -> whether its levels attend on the text
    "ResnetDownsampleBlock2D": False,
    "SimpleCrossAttnDownBlock2D": True,
    "EfficientDownBlock2D": False,
    "EfficientCrossAttnDownBlock2D": True,
    "ResnetUpsampleBlock2D": False,
    "SimpleCrossAttnUpBlock2D": True,
    "EfficientUpBlock2D": False,
    "EfficientCrossAttnUpBlock2D": True,
}
DOWN_BLOCK_TYPES = tuple(name for name in ATTENDS if "Down" in name)
UP_BLOCK_TYPES = tuple(name for name in ATTENDS if "Up" in name)
MOST_HEADS = 1024  # each has a table of all pairs of positions in memory; DeepFloyd's have up to 44

_ACTIVATIONS = ("silu", "gelu")
_CHOICES = {
    "act_fn": _ACTIVATIONS,
    "time_embedding_act_fn": (None, *_ACTIVATIONS),
    "timestep_post_act": (None, *_ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "cross_attention_norm": (None, "group_norm", "layer_norm"),
    "class_embed_type": (None, "timestep"),
    "addition_embed_type": (None, "text"),
    "encoder_hid_dim_type": (None, "text_proj"),
}


@dataclass(frozen=True)
class PixelUNetConfig:
    """`diffusers.UNet2DConditionModel` of Imagen's kind; the defaults are DeepFloyd's smallest base, IF-I-M.

    The super-resolution stage has six input channels, the noisy picture beside the enlarged one, and
    `class_embed_type="timestep"`. A list for all levels begins with the highest resolution, one of
    `up_block_types` with the lowest.

    The block types that begin with "Efficient" are ours: Imagen's Efficient U-Net changes the resolution
    before the residual blocks on the way down (Saharia et al. 2022, appendix B). diffusers cannot open
    a network that has them.
    """

    sample_size: int | tuple[int, ...] | None = 64  # pixels; a side, or height and width
    in_channels: int = 3
    out_channels: int = 6  # the prediction's, and as many for a learned variance
    block_out_channels: tuple[int, ...] = (192, 384, 576, 768)
    layers_per_block: int | tuple[int, ...] = 3  # residual blocks of all levels, or of each
    down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3
    up_block_types: tuple[str, ...] = ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",)
    # A head's width; the latent family's is their number. A list is for the blocks in their order: the first
    # is of the first of down_block_types and of the first of up_block_types, as diffusers has it.
    attention_head_dim: int | tuple[int, ...] = 64
    cross_attention_dim: int = 768  # of the text that is attended on, after its projection
    # On that text. diffusers' "layer_norm" works where the levels have as many channels as the text alone.
    cross_attention_norm: str | None = "group_norm"
    only_cross_attention: bool | tuple[bool, ...] = False  # positions attend on the text alone
    mid_block_only_cross_attention: bool | None = None  # None is only_cross_attention, if that is one value
    encoder_hid_dim: int | None = 4096  # the text encoder's width; None if there is no projection
    encoder_hid_dim_type: str | None = "text_proj"
    addition_embed_type: str | None = "text"  # the pooled text is part of the time embedding
    addition_embed_type_num_heads: int = 64  # of the pooling
    class_embed_type: str | None = None  # "timestep": the level of the low resolution's noise
    resnet_time_scale_shift: str = "scale_shift"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0  # what a residual block's result is divided by
    mid_block_scale_factor: float = 1.0
    act_fn: str = "gelu"
    time_embedding_dim: int | None = None  # None is four times the first of block_out_channels
    time_embedding_act_fn: str | None = None  # on the sum of all embeddings
    timestep_post_act: str | None = None  # on the timestep's embedding alone
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    kept: dict = kept()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the network was trained on; 64 where nothing says."""
        size = self.sample_size or 64
        size = (size, size) if isinstance(size, int) else tuple(size)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"sample_size is {self.sample_size!r}: give a side, or height and width")
        return size

    @property
    def efficient(self) -> bool:
        """Whether levels change the resolution before their residual blocks."""
        return self.down_block_types[0].startswith("Efficient")

    @property
    def size_multiple(self) -> int:
        """What height and width of a picture have to be multiples of."""
        return 2 ** (len(self.block_out_channels) - (not self.efficient))

    @property
    def context_width(self) -> int:
        """Width of the text states that the network is called with."""
        return self.encoder_hid_dim or self.cross_attention_dim

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    def of_levels(self, name: str) -> tuple:
        """A field that is one value for all levels, or one for each: as the latter."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def middle_only_cross_attention(self) -> bool:
        """Whether the middle's positions attend on the text alone."""
        if self.mid_block_only_cross_attention is not None:
            return self.mid_block_only_cross_attention
        return self.only_cross_attention is True


def check_config(config: PixelUNetConfig):
    """Raises `InputError` where the fields disagree on the levels, or name what there is not."""
    levels = len(config.block_out_channels)
    if not levels:
        raise InputError("block_out_channels is empty: give one number of channels for each level")
    for name in (
        *("down_block_types", "up_block_types"),
        *("layers_per_block", "attention_head_dim", "only_cross_attention"),
    ):
        number = len(config.of_levels(name))
        if number != levels:
            raise InputError(f"{name} has {number} entries for {levels} block_out_channels: give {levels}")
    for name, valid in (("down_block_types", DOWN_BLOCK_TYPES), ("up_block_types", UP_BLOCK_TYPES)):
        for value in getattr(config, name):
            if value not in valid:
                raise unknown(name, value, valid)
    names = config.down_block_types + config.up_block_types
    if any(name.startswith("Efficient") != config.efficient for name in names):
        raise InputError(
            "some of down_block_types and up_block_types are efficient: all levels have to be, or none"
        )
    for name, valid in _CHOICES.items():
        if getattr(config, name) not in valid:
            raise unknown(name, getattr(config, name), valid)
    if config.encoder_hid_dim_type is not None and config.encoder_hid_dim is None:
        raise InputError(
            f"encoder_hid_dim_type is {config.encoder_hid_dim_type!r}, encoder_hid_dim None: give the text "
            "encoder's width, or None for both"
        )
    head_widths = config.of_levels("attention_head_dim")
    every_channels = config.block_out_channels + config.block_out_channels[::-1]
    for channels, width in zip(every_channels, 2 * head_widths, strict=True):
        if channels // width > MOST_HEADS:
            raise InputError(
                f"attention_head_dim is {width}, which makes {channels // width} heads of {channels} "
                f"channels: {MOST_HEADS} are the most"
            )

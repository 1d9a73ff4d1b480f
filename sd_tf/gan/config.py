"""What a GAN is made of: its two players' `config.json`, its losses, and how pictures are augmented."""

from dataclasses import dataclass
from typing import NamedTuple

from sd_tf.config import kept
from sd_tf.errors import InputError

LOWEST_SIDE = 4  # pixels of the first level that a generator draws
MOST_LEVELS = 9  # 1024 positions along a side
PATCHES = (1, 2, 4)
ADVERSARIAL = ("relativistic", "non_saturating")
JUDGES = ("pixels", "vision", "both")
CLIP_FEATURES = ("projected", "token_states")


@dataclass(frozen=True)
class GeneratorConfig:
    """GigaGAN's generator (Kang et al. 2023, section 3) in small; each of its parts can be left out.

    Lists begin with the lowest resolution, 4 x 4; each level doubles it.
    """

    block_out_channels: tuple[int, ...] = (256, 256, 128, 64)
    latent_dim: int = 64  # of z
    style_dim: int = 256  # of w
    mapping_layers: int = 4
    starts_from_style: bool = False  # drawing begins with features of w beside the learned ones
    encoder_channels: tuple[int, ...] = ()  # of each level of the encoder, see `encoder_patch`; () for none
    text_dim: int | None = None  # width of the text encoder's states; None draws without a text
    text_width: int = 128  # of the learned layers behind it
    text_layers: int = 1
    num_kernels: int | tuple[int, ...] = 4  # of the filter banks, of all levels or of each; 1 has no bank
    self_attention: tuple[bool, ...] = (False, True, True, False)
    cross_attention: tuple[bool, ...] = (False, True, True, False)  # on the text's tokens
    attention_head_dim: int = 32
    low_res_size: int | None = None  # pixels along a side of a picture to enlarge; None draws without one
    kept: dict = kept()

    @property
    def sample_size(self) -> int:
        """Pixels along a side."""
        return self.sides[-1]

    @property
    def low_res_sizes(self) -> tuple[int, ...]:
        """What `low_res_size` may be: the sizes of all levels but the last."""
        return self.sides[:-1]

    @property
    def levels_below(self) -> int:
        """How many levels only read the picture to enlarge; those above them draw."""
        return 0 if self.low_res_size is None else 1 + self.low_res_sizes.index(self.low_res_size)

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels along a side of each level."""
        return tuple(side_of(level + 1) for level in range(len(self.block_out_channels)))

    @property
    def encoder_patch(self) -> int:
        """Pixels of the picture along a side of each position that the encoder sees.

        Its levels begin with 4 x 4 as well; with fewer than the generator's, positions are patches. With
        more there is none, which is 0.
        """
        return self.sample_size // side_of(len(self.encoder_channels))

    def of_levels(self, name: str) -> tuple:
        """A field that is one value for all levels, or one for each: as the latter."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """GigaGAN's discriminator in small; each of its parts can be left out.

    Lists begin with the pictures' resolution; each level halves it, down to 4 x 4.
    """

    block_out_channels: tuple[int, ...] = (64, 128, 256, 256)
    patch_size: int = 1  # pixels along each side of a position, of the picture and of smaller ones
    text_dim: int | None = None
    text_width: int = 128
    text_layers: int = 1
    self_attention: tuple[bool, ...] = (False, True, True, False)
    attention_head_dim: int = 32
    multi_scale_input: bool = True  # every level also sees the picture of its own size
    multi_scale_output: bool = True  # every level judges, not the last alone
    minibatch_groups: int = 4  # examples whose deviation the last level sees; 1 for none
    judges_pixels: bool = True  # with the levels above; without, only by a frozen network's maps
    vision_channels: tuple[int, ...] = ()  # of that network's maps, which halve; the first has half the side
    vision_width: int = 64  # channels of a head on a map
    kept: dict = kept()

    @property
    def sample_size(self) -> int:
        """Pixels along a side."""
        return self.patch_size * side_of(len(self.block_out_channels))

    def of_levels(self, name: str) -> tuple:
        """As of `GeneratorConfig`."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


def side_of(levels: int) -> int:
    """Positions along a side of the last of so many levels."""
    return LOWEST_SIDE * 2 ** (levels - 1)


def check_config(config: GeneratorConfig | DiscriminatorConfig):
    """Raises `InputError` where the fields disagree on the levels, or a number makes no network."""
    levels = len(config.block_out_channels)
    if levels > MOST_LEVELS:
        raise InputError(
            f"block_out_channels has {levels} entries, which are pictures of {config.sample_size} pixels: "
            f"{MOST_LEVELS} are the most"
        )
    if not levels:
        raise InputError("block_out_channels is empty: give one number of channels for each level")
    if getattr(config, "patch_size", 1) not in PATCHES:
        raise InputError(f"patch_size is {config.patch_size}: give one of {', '.join(map(str, PATCHES))}")
    for name in ("num_kernels", "self_attention", "cross_attention"):
        if hasattr(config, name) and len(config.of_levels(name)) != levels:
            number = len(config.of_levels(name))
            raise InputError(f"{name} has {number} entries for {levels} block_out_channels: give {levels}")
    encoder = getattr(config, "encoder_channels", ())
    if encoder and config.encoder_patch not in PATCHES:
        may_be = " or ".join(str(levels - i) for i in range(len(PATCHES)) if levels > i)
        raise InputError(
            f"encoder_channels has {len(encoder)} entries for {levels} block_out_channels: give {may_be}, or "
            "none"
        )
    for number in getattr(config, "num_kernels", 1), getattr(config, "minibatch_groups", 1):
        if min(number if isinstance(number, tuple) else (number,)) < 1:
            raise InputError(f"num_kernels or minibatch_groups is {number}: 1 is none, give 1 or more")
    if isinstance(config, DiscriminatorConfig) and not (config.judges_pixels or config.vision_channels):
        raise InputError(
            "judges_pixels is off, and vision_channels is empty: a discriminator judges by one of them, or "
            "by both"
        )
    if getattr(config, "low_res_size", None) is not None and config.low_res_size not in config.low_res_sizes:
        raise InputError(
            f"low_res_size is {config.low_res_size}: a model that draws {config.sample_size} pixels enlarges "
            f"{' or '.join(map(str, config.low_res_sizes)) or 'no picture, give it more levels'}"
        )
    if getattr(config, "low_res_size", None) is not None and config.starts_from_style:
        raise InputError(
            "starts_from_style is on, and low_res_size is given: a generator that enlarges starts from the "
            "small picture, leave one of them out"
        )
    attends = config.block_out_channels, config.of_levels("self_attention")
    if config.text_dim is not None and config.text_width % config.attention_head_dim:
        raise InputError(
            f"text_width is {config.text_width}, which does not divide into heads of "
            f"{config.attention_head_dim}: change one of them"
        )
    cross = getattr(config, "cross_attention", config.of_levels("self_attention"))
    for channels, *attentions in zip(*attends, cross, strict=True):
        if any(attentions) and channels % config.attention_head_dim:
            raise InputError(
                f"{channels} channels do not divide into heads of {config.attention_head_dim}: change one of "
                "block_out_channels and attention_head_dim"
            )
    if getattr(config, "cross_attention", None) and config.text_dim is None and any(config.cross_attention):
        raise InputError(
            "cross_attention is on, and text_dim is None: give the width of the text states, or leave it out"
        )


class GanLosses(NamedTuple):
    """The parts of the losses and their weights; a weight of 0 leaves a part out.

    Attributes:
        kind: one of `ADVERSARIAL`.
        gamma: of R1 and R2, the squared gradients at real and drawn pictures; half of it is their weight.
        matching: weight of pictures with another's text, which are to be judged as drawn ones.
        clip: weight of CLIP's contrastive loss of the drawn pictures.
        clip_features: one of `CLIP_FEATURES`, what that loss compares. "token_states", the towers' pooled
            states, are neither projected nor of length 1 and have no learned factor: a mistake to look at.
        vision: weight of the judgements by a frozen network's maps.
        vision_gamma: of R1 and R2 at these maps.
        reconstruction: of a generator with an encoder, weight of the mean distance of pictures that are drawn
            again from the pictures that they are drawn from.
        perceptual: likewise, of the distance of their activations in a frozen network.
        kl: weight of the divergence of what the encoder says from the distribution that z is drawn from.
        low_res: of a generator that enlarges, weight of the mean squared difference of what it draws, made
            small again, from the picture that it enlarges.
    """

    kind: str = "relativistic"
    gamma: float = 1.0
    matching: float = 1.0
    clip: float = 0.0
    clip_features: str = "projected"
    vision: float = 1.0
    vision_gamma: float = 1.0
    reconstruction: float = 8.0
    perceptual: float = 4.0
    kl: float = 0.01
    low_res: float = 10.0


class Augmentation(NamedTuple):
    """How much pictures are changed.

    Attributes:
        translation: the longest way along each axis, as a share of the side.
        cutout: side of the square that is blotted out, as a share of the side; 0 for none.
        flip: whether half of the pictures are mirrored. Not for pictures that point one way.
    """

    translation: float = 0.125
    cutout: float = 0.0
    flip: bool = False

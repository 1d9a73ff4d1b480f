"""Presets of GANs: network sizes and training settings by name."""

from dataclasses import dataclass, replace

from sd_tf.errors import argument, unknown
from sd_tf.gan.config import Augmentation, DiscriminatorConfig, GanLosses, GeneratorConfig
from sd_tf.gan.settings import GanSettings
from sd_tf.training.options import StageConfig

WIDTHS = (24, 48, 96)  # of the perceptual network's maps
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Preset:
    """Everything that a run needs except its data."""

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    text_encoder: str
    max_minutes: float
    generator_training: StageConfig
    discriminator_training: StageConfig
    losses: GanLosses = GanLosses()
    augmentation: Augmentation = Augmentation()
    text_length: int | None = None
    vision: str = "perceptual-mini"  # the frozen network that the discriminator judges by
    low_res_noise: float = 0.1  # the most deviation of noise on pictures to enlarge
    caption_dropout: float = 0.1  # of models that enlarge: the rest draws from its caption alone
    recommended: GanSettings = GanSettings()  # of the models that it makes


# Muon learns more in the same minutes than AdamW does. AdamW's part, biases and the like, has no momentum, as
# of StyleGAN and R3GAN: what a player's gradient was says little of the next.
PLAYER = StageConfig(
    batch_size=32,
    optimizer="muon",
    learning_rate=2e-3,
    lr_schedule="cosine",
    warmup_steps=300,
    weight_decay=0.0,
    gradient_clip=1e3,
    beta_1=0.0,
    beta_2=0.99,
)
GARMENTS = Preset(
    generator=GeneratorConfig(
        block_out_channels=(128, 128, 96, 32),
        style_dim=128,
        mapping_layers=2,
        starts_from_style=True,
        encoder_channels=(96, 64, 32),
        text_width=64,
        num_kernels=1,
        self_attention=(False, True, False, False),
        cross_attention=(False, True, False, False),
    ),
    discriminator=DiscriminatorConfig(
        block_out_channels=(32, 64, 96),
        patch_size=2,
        text_width=64,
        self_attention=(False, False, False),
        multi_scale_input=False,
        vision_channels=WIDTHS,
        vision_width=32,
    ),
    text_encoder="clip-mini",
    max_minutes=28,
    generator_training=PLAYER,
    discriminator_training=PLAYER,
    losses=GanLosses(gamma=0.7, clip=0.25),
    augmentation=Augmentation(translation=0.0),
)
PICTURES = replace(
    GARMENTS,
    generator=replace(
        GARMENTS.generator,
        block_out_channels=(192, 192, 128, 96, 32),
        encoder_channels=(128, 96, 64, 32),
        self_attention=(False, True, True, False, False),
        cross_attention=(False, True, True, False, False),
    ),
    discriminator=replace(
        GARMENTS.discriminator,
        block_out_channels=(32, 64, 96, 128),
        self_attention=(False, False, True, False),
        vision_channels=(),  # the bundled networks, which judge and know captions, know garments alone
    ),
    text_encoder=MINILM,
    text_length=32,
    max_minutes=60,
    losses=GanLosses(gamma=0.7),
    augmentation=Augmentation(translation=0.125, cutout=0.25),
)

PRESETS = {"fashion-mnist-gan": GARMENTS, "pictures-gan": PICTURES}
PRESET_OF_DATASET = {"fashion_mnist": "fashion-mnist-gan", "garments": "fashion-mnist-gan"}


def preset_of(dataset: str) -> str:
    """The name of a data set's default preset."""
    return PRESET_OF_DATASET.get(dataset, "pictures-gan")


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise unknown(argument("preset"), name, PRESETS)
    return PRESETS[name]

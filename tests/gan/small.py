"""What tests of the GAN share: two small networks, garments and their texts."""

import numpy as np

from sd_tf.checkpoints.perceptual import load_perceptual
from sd_tf.gan.config import DiscriminatorConfig, GanLosses, GeneratorConfig
from sd_tf.gan.discriminator import Discriminator
from sd_tf.gan.generator import Generator
from sd_tf.gan.stages import DISCRIMINATOR, GENERATOR, GanStage
from sd_tf.seeding import seeded
from sd_tf.training.options import StageConfig

DRAWS = GeneratorConfig(
    block_out_channels=(16, 8, 8, 8),
    latent_dim=6,
    style_dim=10,
    mapping_layers=2,
    text_dim=5,
    text_width=8,
    num_kernels=2,
    self_attention=(False, True, False, False),
    cross_attention=(False, True, False, False),
    attention_head_dim=4,
)
JUDGES = DiscriminatorConfig(
    block_out_channels=(8, 8, 8, 16),
    text_dim=5,
    text_width=8,
    self_attention=(False, False, True, False),
    attention_head_dim=4,
    minibatch_groups=2,
)
PLAYER = StageConfig(
    batch_size=4, learning_rate=2e-3, warmup_steps=1, weight_decay=0.0, beta_1=0.0, beta_2=0.99
)


class Texts:
    """A stand-in for a `TextCache`: random states, the same for the same caption."""

    seconds = 0.0

    def __init__(self, captions, tokens=3, width=5):
        rng = np.random.default_rng(0)
        self._rows = {caption: row for row, caption in enumerate(captions)}
        self.states = rng.standard_normal((len(captions) + 1, tokens, width)).astype(np.float16)
        self.mask = np.ones((len(captions) + 1, tokens), bool)

    def rows_of(self, captions):
        return np.array([self._rows[caption] for caption in captions])


def small_stage(dataset, losses=GanLosses(), augmentation=None, seed=0, draws=DRAWS, judges=JUDGES):
    """A `GanStage` of new small networks."""
    with seeded(0):
        generator, discriminator = Generator(draws), Discriminator(judges)
        generator.build()
        discriminator.build()
    texts = Texts(dataset.distinct_captions) if draws.text_dim else None
    configs = {GENERATOR: PLAYER, DISCRIMINATOR: PLAYER}
    vision = load_perceptual() if judges.vision_channels or draws.encoder_channels else None
    return GanStage(
        generator, discriminator, configs, dataset, texts, losses, augmentation, seed, vision=vision
    )

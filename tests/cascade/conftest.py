"""A tiny random cascade with a tiny random T5: 8 pixels, then 16."""

import dataclasses

import pytest

from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.cascade.model import CascadedDiffusion
from sd_tf.cascade.presets import DRAWING, ENLARGING, NOISING, schedule_of_pixels
from sd_tf.cascade.stage import PixelStage
from sd_tf.cascade.unet import PixelUNet
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.seeding import seeded
from sd_tf.text.config import T5Config
from sd_tf.text.encoder import T5TextEncoder
from sd_tf.text.subword_tokenizer import t5_tokenizer
from sd_tf.text.t5 import T5EncoderModel
from tests.conftest import shake_variables
from tests.text.vocabularies import t5_pieces

BASE = PixelUNetConfig(
    sample_size=8,
    in_channels=3,
    out_channels=6,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    attention_head_dim=8,
    cross_attention_dim=32,
    encoder_hid_dim=24,
    addition_embed_type_num_heads=4,
    norm_num_groups=8,
)
ENLARGE = dataclasses.replace(BASE, sample_size=16, in_channels=6, class_embed_type="timestep")


def tiny_t5(length=77):
    """A random T5 as a `TextEncoder`, 24 wide."""
    pieces = t5_pieces()
    config = T5Config(vocab_size=len(pieces), d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
    with seeded(0):
        network = T5EncoderModel(config)
        network.build()
    shake_variables(network, 0, 0.1)
    return T5TextEncoder(t5_tokenizer(pieces, 2, max_length=length), config, lambda: network)


def tiny_cascade(length=77, shaken=0.1, **schedule):
    """A random `CascadedDiffusion` of two stages."""
    stages = []
    for seed, config in enumerate((BASE, ENLARGE)):
        with seeded(seed):
            unet = PixelUNet(config)
            unet.build()
        shake_variables(unet, seed, shaken)
        noising = NoiseSchedule(NOISING) if seed else None
        settings = ENLARGING if seed else DRAWING
        stages.append(
            PixelStage(unet, NoiseSchedule(schedule_of_pixels(**schedule)), noising, settings, 100 * seed)
        )
    return CascadedDiffusion(stages, tiny_t5(length))


@pytest.fixture(scope="session")
def cascade():
    return tiny_cascade()

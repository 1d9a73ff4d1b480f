"""Presets that repeat what others tried: as many parameters, the same training, a dry run of each."""

import dataclasses

import numpy as np
import pytest

import sd_tf
from sd_tf.cascade.presets import PRESETS
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.schedulers import thresholding_of
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.skeleton import skeleton
from sd_tf.training.options import StageConfig

OTHERS = ("minimagen-pokemon", "minimagen-tiny", "minimagen-large")
T5_SMALL, T5_BASE, T5_XXL = 512, 768, 4096  # widths of their states


def parameters(name, stage, width):
    """Of a preset's stage with a text encoder of that width."""
    with skeleton():
        unet = PixelUNet(dataclasses.replace(PRESETS[name].stages[stage].unet, encoder_hid_dim=width))
        unet.build()
    return unet.count_params()


def test_the_pokemon_experiment_has_minimagens_sizes():
    # minimagen 0.0.9, text_embed_dim 512, cross-attention and attention as named, num_resnet_blocks 1:
    # Unet(dim=128, dim_mults=(1, 2, 4), (False, True, True)), and the same with lowres_cond=True.
    theirs = 44_533_635, 51_906_563
    assert parameters("minimagen-pokemon", 0, T5_SMALL) == pytest.approx(theirs[0], rel=0.12)
    assert parameters("minimagen-pokemon", 1, T5_SMALL) == pytest.approx(theirs[1], rel=0.02)


def test_the_study_has_minimagens_sizes():
    # minimagen 0.0.9, text_embed_dim 768: Unet(dim=8, dim_mults=(1, 2)) without attention in the levels, and
    # with num_resnet_blocks=(1, 2), memory_efficient=True, lowres_cond=True. Together the study's 264 k.
    theirs = 106_163 + 158_147
    assert sum(parameters("minimagen-tiny", i, T5_BASE) for i in (0, 1)) == pytest.approx(theirs, rel=0.02)
    # The study says 396 M.
    assert sum(parameters("minimagen-large", i, T5_BASE) for i in (0, 1)) == pytest.approx(396e6, rel=0.02)


def test_the_paper_has_its_sizes():
    # The base is said to have 2.3 B with these widths. minimagen 0.0.9, Super(text_embed_dim=4096,
    # lowres_cond=True), which is the paper's first Efficient U-Net: 716,185,987; the paper says 600 M.
    assert parameters("imagen-paper", 0, T5_XXL) == pytest.approx(2.3e9, rel=0.02)
    assert parameters("imagen-paper", 1, T5_XXL) == pytest.approx(716_185_987, rel=0.03)


@pytest.mark.parametrize("name", OTHERS)
def test_they_are_trained_as_the_reports_say(name):
    preset = PRESETS[name]
    assert preset.caption_dropout == 0.15
    for stage in preset.stages:
        schedule = NoiseSchedule(stage.schedule)
        # GaussianDiffusion(timesteps=1000) of minimagen: betas from 0.0001 to 0.02 in equal steps.
        np.testing.assert_allclose(
            schedule.alphas_cumprod, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-6
        )
        assert stage.schedule.prediction_type == "epsilon" and stage.unet.out_channels == 3
        assert thresholding_of(stage.schedule)[:2] == ("dynamic", 0.9)
        assert dataclasses.replace(stage.training, share=1.0) == StageConfig(
            batch_size=2,
            learning_rate=1e-4,
            optimizer="adamw",
            lr_schedule="constant",
            warmup_steps=0,
            weight_decay=0.0,  # without which AdamW is Adam
            gradient_clip=50.0,
            ema_decay=0.0,
        )
    assert preset.stages[1].augment_level == 0.2 * 1000


def test_attention_is_on_the_second_and_third_level_with_heads_of_64():
    config = PRESETS["minimagen-pokemon"].stages[0].unet
    assert ["Attn" in name for name in config.down_block_types] == [False, True, True]
    assert ["Attn" in name for name in config.up_block_types] == [True, True, False]
    assert config.attention_head_dim == 64 and config.block_out_channels[-1] // 64 == 8


@pytest.mark.parametrize("name", ["minimagen-tiny", pytest.param("imagen-paper", marks=pytest.mark.slow)])
def test_a_dry_run_needs_no_network_and_no_memory(name, capsys, tmp_path, monkeypatch):
    import PIL.Image

    from sd_tf import train

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("a red dress")
    data = ["--dataset", "folder", "--data-dir", str(tmp_path), "--dry-run"]
    flags = ["--preset", name, "--text-encoder", "clip-mini", "--output", str(tmp_path / "run")]
    train.main(["cascade", *data, *flags])
    said = capsys.readouterr().out
    assert said.count("trainable parameters") == len(PRESETS[name].stages)
    assert said.count("memory of a replica") == len(PRESETS[name].stages)
    assert "128 wide, 16 tokens" in said and not (tmp_path / "run").exists()


def test_one_stage_of_the_full_size_is_a_whole_model():
    model = sd_tf.CascadedDiffusion.from_preset("pixels-32", "garments")
    assert model.stage_names == ["base"] and model.image_size == (32, 32)
    assert model.generate("a red dress", steps=1, progress=False).shape == (1, 32, 32, 3)

"""Runs that train in seconds: a preset of the smallest sizes, and the command line's way to start them."""

import contextlib
import dataclasses
import json
import signal

import pytest

from sd_tf import commandline
from sd_tf import train as command
from sd_tf.data import garments
from sd_tf.families import commands_of
from sd_tf.latent import presets
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig
from sd_tf.training import observers
from sd_tf.training.fit import run_folder
from sd_tf.training.options import OptimizerOptions, RunOptions, StageConfig
from sd_tf.training.run import Run

STAGES = ("clip", "autoencoder", "diffusion")
STEPS = 3
TOWER = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1}
STAGE = StageConfig(batch_size=4, learning_rate=1e-3, share=0.5, warmup_steps=1)
TINY = dataclasses.replace(
    presets.GARMENTS,
    autoencoder=AutoencoderConfig(
        block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=4, sample_size=32
    ),
    unet=UNetConfig(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=4,
    ),
    text=CLIPTextConfig(**TOWER, num_attention_heads=2, max_position_embeddings=24),
    vision=CLIPVisionConfig(**TOWER, num_attention_heads=2, image_size=32, patch_size=16),
    vocab_size=1024,
    clip_stage=STAGE,
    autoencoder_stage=dataclasses.replace(STAGE, optimizer="muon"),
    diffusion_stage=dataclasses.replace(STAGE, optimizer="muon"),
    cached_epochs=1,
)


@contextlib.contextmanager
def with_tiny_preset():
    """Within the block there is a preset that trains in seconds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
        monkeypatch.setattr(garments, "EPOCH", 40)
        yield


def config(folder, **changes):
    """Flag -> value, of a command that trains the tiny preset."""
    settings = {"dataset": "garments", "preset": "tiny", "max_steps": STEPS, "output": folder, "previews": 1}
    return settings | changes


def words_of(settings):
    """The words of a command; None and False leave a flag out."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        words += [] if value is None or value is False else [flag] if value is True else [flag, str(value)]
    return words


def train(settings):
    """Trains, as the command line does."""
    command.main(words_of(settings))


def run_of(settings):
    """The `Run` of a command, before it trains."""
    with commandline.naming_flags():
        family = commands_of("latent")
        found = command.parse("latent", family, words_of(settings))
        model, data = command.model_and_data(family, found)
        folder = run_folder(found[RunOptions].output, data)
        options = dataclasses.replace(found[RunOptions], output=str(folder))
        recipe = family.recipe(model, found[family.Options], folder)
        return Run(recipe, data, options, found[OptimizerOptions])


def train_tiny(folder, **changes):
    """Trains the tiny preset."""
    train(config(folder, **changes))


def made(folder, **changes):
    """The `Run` of the tiny preset, before it trains."""
    return run_of(config(folder, **changes))


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def interrupt(run, monkeypatch, stage, step):
    """Trains, and presses Ctrl-C in that step."""
    log = observers.Log.__call__

    def press(self, trainer, now, elapsed, means):
        log(self, trainer, now, elapsed, means)
        if (self.stage.name, now) == (stage, step):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(observers.Log, "__call__", press)
        with pytest.raises(KeyboardInterrupt, match=f"{stage}: run it again to resume from step {step}"):
            run.train()

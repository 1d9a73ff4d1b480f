"""A family that nobody has: what a new one has to bring, and that the shared rooms need no more of it."""

import dataclasses
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf import families, train
from sd_tf.checkpoints.networks import load_alone, save_alone
from sd_tf.data.pipeline import stream, to_uint8
from sd_tf.files import read_json, write_json
from sd_tf.images import to_unit
from sd_tf.options import Options, option
from sd_tf.seeding import normals, seeded
from sd_tf.training import observers
from sd_tf.training.fit import fit
from sd_tf.training.options import StageConfig
from sd_tf.training.recipe import PlannedStage, Recipe
from sd_tf.training.stage import SinglePlayerStage

# -- the family: from here ------------------------------------------------------------------------
CONFIG = StageConfig(batch_size=8, learning_rate=0.05, warmup_steps=1)


@dataclasses.dataclass(frozen=True)
class DotOptions(Options):
    width: int = option(8, "of the hidden layer", at_least=1)


class DotStage(SinglePlayerStage):
    name = "dots"

    def batches(self, first, part=(0, 1)):
        def fetch(indices, epoch):
            colours = to_unit(self.dataset.examples(indices, epoch).images).mean(axis=(1, 2))
            return {"colours": colours, "noise": normals((7, epoch), indices, (4,))}

        return stream(fetch, len(self.dataset), self.batch_size, 0, first, part)

    def loss(self, batch):
        return {"loss": tf.reduce_mean(tf.square(self.network(batch["noise"]) - batch["colours"]), axis=1)}


class DotPlan(PlannedStage):
    name, share, result, batch_size = "dots", 1.0, "model_index.json", 8

    def __init__(self, model):
        self.model = model

    def make(self, run, budget):
        stage = DotStage(CONFIG, self.model.network)
        stage.dataset = run.dataset
        return stage

    def finish(self, run, stage):
        self.model.save(run.folder)

    def restore(self, run):
        self.model.network = load(run.folder).network


class DotRecipe(Recipe):
    family, image_size, minutes, stage_names, folders = "dots", 32, 1.0, ("dots",), ("dots",)

    def __init__(self, model, options):
        self.model, self.options = model, (options,)

    def stages(self, run):
        return [DotPlan(self.model)]


# -- to here: its network, its class, and what reads and writes it -------------------------------------
class Dots:
    """Draws pictures of one colour each, from noise."""

    Options, precision = DotOptions, "float32"

    def __init__(self, width):
        self.width = width
        with seeded(0):
            self.network = DotNetwork(width)
            self.network.build()

    def fit(self, data, **settings):
        return fit(self, lambda model, options, folder: DotRecipe(model, options), data, **settings)

    def generate(self, num_images=1, seed=0):
        colours = to_uint8(self.network(normals((7, 0), np.arange(num_images) + seed, (4,))))
        return np.broadcast_to(colours[:, None, None], (num_images, 32, 32, 3))

    def save(self, folder):
        save_alone(self.network, Path(folder) / "dots", {"width": self.width})
        write_json(Path(folder) / "model_index.json", {"_class_name": "DotPipeline"})


class DotNetwork(keras.Model):
    """Noise (batch, 4) -> colours (batch, 3)."""

    def __init__(self, width):
        super().__init__(name="dots")
        self.hidden = keras.layers.Dense(width, "tanh", name="hidden")
        self.out = keras.layers.Dense(3, name="out")

    def build(self, shape=None):
        self.hidden.build((None, 4))
        self.out.build((None, self.hidden.units))
        self.built = True

    def call(self, noise):
        return self.out(self.hidden(noise))


def load(folder):
    model = Dots(read_json(Path(folder) / "dots" / "config.json")["width"])
    load_alone(model.network, Path(folder) / "dots")
    return model


def check(options):
    """All that can be wrong with its options is in `DotOptions`."""


def model_for_training(options, data, dtype, seed):
    return Dots(options.width)


def recipe(model, options, folder):
    return DotRecipe(model, options)


def stage_configs(dataset, options):
    return [CONFIG]


def defaults(dataset, options):
    return {"max_minutes": "1"}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The family, as `families.py` would have it."""
    home = families.Home("Dots", __name__, __name__, ("DotPipeline",))
    monkeypatch.setitem(families.FAMILIES, "dots", home)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Dots.__module__])
    monkeypatch.setattr(sys.modules[__name__], "Options", DotOptions, raising=False)


SETTINGS = {"steps": 60, "options": {"previews": 0}, "verbose": 0}


def test_a_made_up_family_trains_saves_loads_and_draws(tmp_path):
    data = sd_tf.open_data("garments")
    history = Dots(8).fit(data, folder=tmp_path / "run", **SETTINGS)
    assert history.history["loss"][-1] < 0.1 and history.stage == ["dots"] * len(history)
    model = sd_tf.load(tmp_path / "run")
    assert isinstance(model, Dots) and model.generate(2).shape == (2, 32, 32, 3)
    mean = np.mean(data.at(32).examples(range(64), 0).images)
    assert abs(model.generate(64).mean() - mean) < 12  # the mean colour of the pictures that it saw


def test_a_made_up_family_resumes_to_the_bit(tmp_path, monkeypatch):
    Dots(8).fit("garments", folder=tmp_path / "whole", **SETTINGS)

    def interrupt(log, trainer, step, elapsed, means, plain=observers.Log.__call__):
        plain(log, trainer, step, elapsed, means)
        if step == 11:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(observers.Log, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt, match="stopped in stage dots: .* resume from step 11"):
            Dots(8).fit("garments", folder=tmp_path / "run", **SETTINGS)
    Dots(8).fit("garments", folder=tmp_path / "run", **SETTINGS)
    ours, theirs = (tmp_path / name / "dots" / "model.safetensors" for name in ("run", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_made_up_family_is_trained_by_its_name_on_the_command_line(tmp_path):
    flags = ["--dataset", "garments", "--width", "3", "--max-steps", "2", "--output", str(tmp_path / "run")]
    train.main(["dots", *flags])
    assert sd_tf.load(tmp_path / "run").width == 3
    with pytest.raises(sd_tf.InputError, match="--width is 0: give 1 or more"):
        train.main(["dots", "--width", "0"])
    with pytest.raises(sd_tf.InputError, match="holds a run with other options .*--width 3 -> 4"):
        train.main(["dots", *flags[:3], "4", *flags[4:]])


def test_a_folder_of_another_familys_run_is_refused(tmp_path):
    Dots(8).fit("garments", folder=tmp_path / "run", **SETTINGS | {"steps": 1})
    flags = ["--dataset", "garments", "--max-steps", "1", "--output", str(tmp_path / "run")]
    with pytest.raises(
        sd_tf.InputError, match="holds a run of the family 'dots', not latent: name another --o"
    ):
        train.main(flags)

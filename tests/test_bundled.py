"""What the bundled weights promise to somebody who has just installed the package."""

import dataclasses

import numpy as np
import pytest

import sd_tf
from sd_tf.checkpoints.sources import BUNDLED
from sd_tf.data.captions import PALETTE
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.open import open_data
from sd_tf.evaluation import alignment, judging
from sd_tf.evaluation.dominant_colour import COLOURS, dominant_colour
from sd_tf.latent.presets import PRESETS
from tests.conftest import drawn_by_diffusers

MOST_MEGABYTES = {"fashion-mnist": 20, "fashion-mnist-small": 3, "emoji": 25}
PRESET = {"emoji": "emoji-64"}  # of a model whose name it does not have
MOST_DISTANCES = {
    "fashion-mnist": (5.0, 1.8),
    "fashion-mnist-small": (6.5, 4.5),
}  # samples, reconstructions
PROMPTS = {
    "garments": ["a red dress", "a blue bag", "an ankle boot", "a green coat"],
    "emoji": [f"a 3d icon of {name}" for name in ("hot pepper", "red heart", "grinning face", "tractor")],
}


@pytest.fixture(scope="module", params=MOST_MEGABYTES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return sd_tf.load(name)


@pytest.fixture(params=MOST_DISTANCES)
def garments(request):
    """The name of a model of garments, and it."""
    return request.param, sd_tf.load(request.param)


def real_pictures(name, data_dir, number):
    """Of the data set that a model has learned, as networks take them."""
    if name == "emoji":
        dataset = open_data("emoji", data_dir=data_dir).at(64)
        indices = np.linspace(0, len(dataset) - 1, number).astype(int)
    else:
        dataset, indices = FashionMNIST("test", data_dir), np.arange(number)
    return dataset.examples(indices, 0).images.astype("float32") / 127.5 - 1


def test_weights_are_small(name):
    sizes = [file.stat().st_size for file in (BUNDLED / name).rglob("*") if file.is_file()]
    assert 1e6 < sum(sizes) <= 1e6 * MOST_MEGABYTES[name]


def test_weights_are_those_of_the_preset(name, model):
    preset = PRESETS[PRESET.get(name, name)]
    assert dataclasses.replace(preset.unet, cross_attention_dim=preset.text.hidden_size) == model.unet.config
    assert model.autoencoder.config.block_out_channels == preset.autoencoder.block_out_channels
    assert model.text_encoder.config.num_hidden_layers == preset.text.num_hidden_layers
    assert model.schedule.config == preset.schedule
    assert preset.command.startswith("python -m sd_tf.train") and preset.runtime and preset.scores


def test_latents_have_unit_deviation(name, model, data_dir):
    mean, std = model.autoencoder.encode(real_pictures(name, data_dir, 512))
    deviation = np.sqrt(np.var(np.asarray(mean)) + np.mean(np.square(np.asarray(std))))
    assert 0.9 < deviation < 1.1


def test_pictures_come_back_from_their_latents(name, model, data_dir):
    images = real_pictures(name, data_dir, 256)
    error = np.abs(np.asarray(model.autoencoder(images)) - images).mean()
    blank = np.abs(images - images.mean()).mean()
    assert error < 0.15 * blank


def test_every_colour_is_drawn_on_every_garment(garments):
    _, model = garments
    pairs = [(label, colour) for label in range(10) for colour in range(len(PALETTE))]
    images = model.generate([alignment.prompt_for(*pair) for pair in pairs], steps=10, progress=False)
    right = alignment.nearest_colour(images) == np.array(pairs)[:, 1]
    assert right.mean() >= 0.95


def test_diffusers_draws_the_same_pictures(name, model):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(BUNDLED / name, torch_dtype=torch.float32)
    prompts, side = PROMPTS.get(name, PROMPTS["garments"]), model.unet.config.sample_size
    latents = np.random.default_rng(0).standard_normal((4, side, side, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, prompts, latents, 20, 3.0)
    ours = model.generate(prompts, steps=20, guidance_scale=3.0, latents=latents, progress=False)
    assert np.abs(reference - ours).max() <= 2


def test_hearts_have_their_colours():
    names = ["black", "blue", "brown", "green", "purple", "red", "yellow"]
    images = sd_tf.load("emoji").generate([f"a 3d icon of {each} heart" for each in names], 4, progress=False)
    right = dominant_colour(images) == np.repeat([COLOURS.index(each) for each in names], 4)
    assert right.mean() >= 0.8


@pytest.mark.slow
def test_judged_by_a_classifier_that_has_taught_nothing(garments, data_dir):
    name, model = garments
    train, test = (FashionMNIST(split, data_dir) for split in ("train", "test"))
    judges = judging.Judges(train, test, inception="none")
    settings = {"steps": 25, "guidance_scale": 3.0, "guidance_interval": [0.4, 1.0], "seed": 0}
    scores = judges.scores(judges.draw(model, 500, 800, settings), settings)
    distance, of_reconstructions = MOST_DISTANCES[name]
    assert scores["frechet_distance"].value <= distance
    assert scores["reconstruction_distance"].value <= of_reconstructions
    assert scores["tinted_class_accuracy"].value >= 0.87
    assert scores["class_accuracy"].value >= 0.90
    assert scores["colour_accuracy"].value >= 0.995
    assert scores["precision"].value >= 0.85 and scores["recall"].value >= 0.5
    assert scores["copies"].value < 0.02

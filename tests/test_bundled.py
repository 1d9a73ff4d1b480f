"""What the bundled weights promise to somebody who has just installed the package."""

import numpy as np
import pytest

import sd_tf
from sd_tf.checkpoints.sources import BUNDLED
from sd_tf.data.captions import PALETTE
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.evaluation import alignment, judging
from sd_tf.presets import FASHION_MNIST


@pytest.fixture(scope="module")
def model():
    return sd_tf.load("fashion-mnist")


def test_weights_are_at_most_20_mb():
    sizes = [file.stat().st_size for file in (BUNDLED / "fashion-mnist").rglob("*")]
    assert 1e6 < sum(sizes) <= 20e6


def test_weights_are_those_of_the_preset(model):
    assert model.unet.config == FASHION_MNIST.unet
    assert model.autoencoder.config.block_out_channels == FASHION_MNIST.autoencoder.block_out_channels
    assert model.schedule.config == FASHION_MNIST.schedule


def test_latents_have_unit_deviation(model, data_dir):
    images = FashionMNIST("test", data_dir).examples(np.arange(512), 0).images
    mean, std = model.autoencoder.encode(images.astype("float32") / 127.5 - 1)
    deviation = np.sqrt(np.var(np.asarray(mean)) + np.mean(np.square(np.asarray(std))))
    assert 0.9 < deviation < 1.1


def test_pictures_come_back_from_their_latents(model, data_dir):
    images = FashionMNIST("test", data_dir).examples(np.arange(256), 0).images.astype("float32") / 127.5 - 1
    error = np.abs(np.asarray(model.autoencoder(images)) - images).mean()
    blank = np.abs(images - images.mean()).mean()
    assert error < 0.15 * blank


def test_every_colour_is_drawn_on_every_garment(model):
    pairs = [(label, colour) for label in range(10) for colour in range(len(PALETTE))]
    images = model.generate([alignment.prompt_for(*pair) for pair in pairs], steps=10, progress=False)
    right = alignment.nearest_colour(images) == np.array(pairs)[:, 1]
    assert right.mean() >= 0.95


def test_diffusers_draws_the_same_pictures(model):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        BUNDLED / "fashion-mnist", torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a red dress", "a blue bag", "an ankle boot", "a green coat"]
    latents = np.random.default_rng(0).standard_normal((4, 8, 8, 4)).astype("float32")
    reference = pipeline(
        prompts,
        num_inference_steps=20,
        guidance_scale=3.0,
        latents=torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()),
        output_type="np",
    ).images
    ours = model.generate(prompts, steps=20, guidance_scale=3.0, latents=latents, progress=False)
    assert np.abs(np.round(reference * 255) - ours).max() <= 2


@pytest.mark.slow
def test_an_independent_classifier_recognises_garments_and_colours(model, data_dir):
    train, test = (FashionMNIST(split, data_dir) for split in ("train", "test"))
    judges = judging.Judges(train, test, inception="none")
    settings = {"steps": 20, "guidance_scale": 3.0, "seed": 0}
    scores = judges.scores(judging.draw(model, judges.real, 1000, 800, settings), settings)
    assert scores["class_accuracy"].value >= 0.90
    assert scores["tinted_class_accuracy"].value >= 0.80
    assert scores["colour_accuracy"].value >= 0.99
    assert scores["copies"].value < 0.02

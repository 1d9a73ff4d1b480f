"""CLIP guidance follows the gradient of what its CLIP says, and pictures become more like their prompts."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.diffusion.predictions import to_prediction
from sd_tf.errors import InputError
from sd_tf.images import to_unit
from sd_tf.latent.clip_guidance import CLIPGuidance
from sd_tf.text.prompt_syntax import text_of

PROMPTS = ["a red dress", "a (blue:1.3) bag", "a green sandal"]


@pytest.fixture(scope="module")
def guidance():
    return CLIPGuidance("clip-mini")


def logits(guidance, images, prompts):
    features = guidance.clip.image_features(guidance.clip.preprocess(images))
    texts = guidance.clip.text_features(guidance.tokenizer(prompts))
    return tf.reduce_sum(features * texts, axis=1) * tf.exp(guidance.clip.logit_scale)


def test_the_gradient_is_that_of_the_logit(guidance, tiny_model):
    rng, level = np.random.default_rng(0), tiny_model.schedule.level(300)
    x = rng.standard_normal((2, 8, 8, 4), "float32")
    context = tiny_model.encode_prompts(["a dress", "a bag"])
    gradient = guidance.gradients(tiny_model, ["a dress", "a bag"])(np.array([0, 1]), context)(x, level)

    def logit(x):
        output = tiny_model.unet(x, tf.fill([2], 300.0), context)
        kind = tiny_model.schedule.config.prediction_type
        x0 = to_prediction(output, tf.constant(x), level.signal, level.noise, kind).x0
        return logits(guidance, tiny_model.autoencoder.decode(x0), ["a dress", "a bag"]).numpy()

    for _ in range(3):
        way = rng.standard_normal(x.shape, "float32")
        slope = (logit(x + 1e-3 * way) - logit(x - 1e-3 * way)) / 2e-3
        np.testing.assert_allclose((gradient * way).sum(axis=(1, 2, 3)), slope, rtol=0.02, atol=0.15)


def test_pictures_become_more_like_their_prompts(guidance):
    model = sd_tf.load("fashion-mnist-small")
    settings = {"num_images": 2, "steps": 8, "guidance_scale": 1.0, "progress": False, "engine": "tensorflow"}
    plain = model.generate(PROMPTS, **settings)
    guided = model.generate(PROMPTS, clip_guidance=guidance, **settings)
    prompts = [prompt for prompt in ("a red dress", "a blue bag", "a green sandal") for _ in range(2)]
    before, after = (logits(guidance, to_unit(images), prompts).numpy() for images in (plain, guided))
    assert (after > before).all() and (after - before).mean() > 0.3
    unmoved = CLIPGuidance("clip-mini", 0.0)
    assert np.abs(model.generate(PROMPTS, clip_guidance=unmoved, **settings).astype(int) - plain).max() <= 1


def test_one_guidance_serves_pictures_of_several_sizes(guidance, tiny_model):
    for width in (8, 16):
        latents = np.random.default_rng(0).standard_normal((1, 8, width, 4), "float32")
        settings = {"steps": 2, "latents": latents, "progress": False}
        drawn = tiny_model.generate("a bag", clip_guidance=guidance, **settings)
        assert drawn.shape == (1, 16, 2 * width, 3)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("weights", "a (red) [dress] (bag)"),
        ("a1111", "a red dress (bag)"),
        ("comfyui", "a red [dress] (bag)"),
    ],
)
def test_guides_read_the_words_of_prompts_of_each_syntax(syntax, words, tiny_model):
    asked = []

    class Guide:
        def gradients(self, model, prompts):
            asked.append(prompts)
            return lambda places, context: lambda x, level: np.zeros_like(x)

        def chosen(self, model, prompts, contexts, seeds, noise, level):
            asked.append(prompts)
            return noise

    guides = {"clip_guidance": Guide(), "initial_noise": Guide()}
    guides["clip_guidance"].scale = 1.0
    prompts = ["a dress", r"a (red) [dress] \(bag\)"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more tokens than a row has
        tiny_model.generate(prompts, 2, steps=1, prompt_syntax=syntax, progress=False, **guides)
    read = [text_of(prompt) for each in asked for prompt in each]  # of four pictures, by two guides
    assert sorted(read) == sorted(["a dress", words] * 4)


@pytest.mark.parametrize("scale", [-1, 1001, True, "much"])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(InputError, match="scale of the CLIP guidance is"):
        CLIPGuidance("clip-mini", scale)


def test_a_clip_without_an_image_tower_is_refused(tmp_path, tiny_model):
    tiny_model.save(tmp_path)
    with pytest.raises(InputError):
        CLIPGuidance(tmp_path / "text_encoder")

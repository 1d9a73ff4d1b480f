"""Noise is chosen in which the UNet attends to every word that a prompt names, and stays like noise."""

import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.errors import InputError
from sd_tf.latent.initial_noise import InitialNoise, _attention_measure
from sd_tf.nn.attention import recorded_attention

PARTED = ["a (red:1.2) dress, a purple bag", "a bag"]
PROMPTS = ["a red dress", "a blue bag"]
SEEDS = np.array([3, 4])


@pytest.fixture(scope="module")
def model():
    return sd_tf.load("fashion-mnist-small")


def test_attention_is_recorded_as_it_is(tiny_model):
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")
    context = tiny_model.encode_prompts(PROMPTS)
    inputs = x, tf.fill([2], 500.0), context
    plain = tiny_model.unet(*inputs)
    with recorded_attention() as recorded:
        np.testing.assert_array_equal(tiny_model.unet(*inputs), plain)
    assert len(recorded.cross_attention) == len(recorded.self_attention) > 0
    for itself, of_context in zip(recorded.self_attention, recorded.cross_attention, strict=True):
        assert itself.shape[2] == itself.shape[3] == of_context.shape[2]
        assert of_context.shape[3] == context.shape[1]
        for weights in (itself, of_context):
            np.testing.assert_allclose(tf.reduce_sum(weights, axis=-1), 1, atol=1e-5)
    tiny_model.unet(*inputs)
    assert len(recorded.cross_attention) == len(recorded.self_attention)  # nothing more outside the block


def test_words_are_found_among_the_tokens(tiny_model):
    tokenizer = tiny_model.tokenizer
    shares, readable = InitialNoise()._places(tokenizer, PARTED, 3 * tokenizer.max_length)
    ids = tokenizer.ids("a red dress, a purple bag")
    room, row = tokenizer.max_length - 2, []
    assert len(ids) > room  # in two parts
    for first in range(0, len(ids), room):
        row += tokenizer.row(ids[first : first + room]).tolist()
    words = ["red", "dress,", "purple", "bag"]
    assert (shares[0].any(axis=1)).sum() == len(words)
    for word, share in zip(words, shares[0], strict=False):
        assert [row[place] for place in np.flatnonzero(share)] == tokenizer.ids(word)
        assert share.sum() == pytest.approx(1)
    assert [row[place] for place in np.flatnonzero(readable[0])] == ids
    assert (shares[1].any(axis=1)).sum() == 1 and readable[1].sum() == len(tokenizer.ids("a bag"))


def state(model, noise, prompts):
    """How much of the words is unseen, and how much is mixed."""
    shares, readable = InitialNoise()._places(model.tokenizer, prompts, model.tokenizer.max_length)
    changes = np.zeros((2, *noise.shape), "float32")
    timesteps = np.full(len(noise), 999, "float32")
    context = model.encode_prompts(prompts)
    _, unseen, mixed, _ = _attention_measure(model.unet)(noise, changes, timesteps, context, shares, readable)
    return unseen.numpy(), mixed.numpy()


def test_words_are_seen_in_the_noise_that_is_chosen(model):
    noise = np.random.default_rng(1).standard_normal((8, 8, 8, 4), "float32")
    prompts, level = (
        ["a red dress", "a blue bag", "a green sandal", "a pink coat"] * 2,
        model.schedule.level(999),
    )
    strict = InitialNoise(steps=15, rounds=1, unseen=0.0, mixed=0.0)
    chosen = strict.chosen(model, prompts, model.encode_prompts(prompts), np.arange(8), noise, level)
    before, after = (sum(state(model, each, prompts)) for each in (noise, chosen))
    assert (after < before).all() and (before - after).mean() > 0.01
    assert np.abs(chosen - noise).max() > 0
    assert abs(chosen.mean()) < 0.1 and chosen.std() == pytest.approx(1, abs=0.1)


def test_noise_that_will_do_is_kept(model):
    noise = np.random.default_rng(1).standard_normal((2, 8, 8, 4), "float32")
    context, level = model.encode_prompts(PROMPTS), model.schedule.level(999)
    easy = InitialNoise(unseen=1.0, mixed=1.0)
    np.testing.assert_array_equal(easy.chosen(model, PROMPTS, context, SEEDS, noise, level), noise)


def test_a_picture_is_the_same_alone_and_beside_others(model):
    settings = {"steps": 3, "engine": "tensorflow", "progress": False}
    settings["initial_noise"] = InitialNoise(steps=2, rounds=2, unseen=0.0)
    together = model.generate(["a bag", "a red dress"], seed=5, **settings)
    alone = model.generate("a red dress", seed=5, **settings)
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 2
    assert np.abs(model.generate("a red dress", seed=5, steps=3)[0].astype(int) - alone[0]).max() > 2


def test_prompts_may_be_longer_than_the_tower(tiny_model):
    settings = {"steps": 2, "initial_noise": InitialNoise(steps=1, rounds=1), "progress": False}
    long = "a dress, " * 6
    for prompts in ((long, ""), ("a bag", long), ("a bag", "a dress")):
        assert tiny_model.generate(prompts[0], negative_prompt=prompts[1], **settings).shape == (1, 16, 16, 3)


def test_latents_may_be_of_one_size_and_then_of_another(tiny_model):
    noise = InitialNoise(steps=2, rounds=1, unseen=0)
    for width in (8, 16, 12):
        latents = np.random.default_rng(0).standard_normal((1, 8, width, 4), "float32")
        before = latents.copy()
        drawn = tiny_model.generate("a bag", steps=2, progress=False, latents=latents, initial_noise=noise)
        assert drawn.shape == (1, 16, 2 * width, 3)
        np.testing.assert_array_equal(latents, before)  # of the caller


def test_words_are_those_of_the_prompt_however_they_are_written(tiny_model):
    shares, _ = InitialNoise(words=["Red"])._places(tiny_model.tokenizer, ["a RED dress"], 10)
    assert (shares[0].sum(axis=1) > 0).sum() == 1


def test_bad_input_is_named(model):
    noise = InitialNoise(words=["hat"])
    with pytest.raises(InputError, match="'a red dress' lacks 'hat', a word of initial_noise: add it"):
        model.generate("a red dress", initial_noise=noise)
    with pytest.raises(InputError, match="initial_noise and image are both given"):
        model.generate("a dress", image=np.zeros((32, 32, 3), "uint8"), initial_noise=InitialNoise())
    for wrong in ({"steps": 0}, {"rounds": 0}, {"unseen": 2}, {"mixed": -1}, {"words": "dress"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            InitialNoise(**wrong)

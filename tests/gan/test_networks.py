"""The generator and the discriminator: what they see, what they do not, and their parts left out."""

import dataclasses

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.gan.config import DiscriminatorConfig, GeneratorConfig
from sd_tf.gan.discriminator import Discriminator
from sd_tf.gan.encoder import LOG_VARIANCE
from sd_tf.gan.generator import Generator
from sd_tf.gan.heads import with_deviation
from sd_tf.gan.layers import halved, patches_of_pixels
from tests.conftest import shake_variables

RNG = np.random.default_rng(0)
DRAWS = GeneratorConfig(
    block_out_channels=(16, 8, 8),
    latent_dim=6,
    style_dim=10,
    mapping_layers=2,
    text_dim=5,
    text_width=8,
    num_kernels=2,
    self_attention=(False, True, False),
    cross_attention=(False, True, False),
    attention_head_dim=4,
)
JUDGES = DiscriminatorConfig(
    block_out_channels=(8, 8, 16),
    text_dim=5,
    text_width=8,
    self_attention=(False, True, False),
    attention_head_dim=4,
    minibatch_groups=2,
)
WITHOUT_TEXT = {"text_dim": None, "cross_attention": (False,) * 3}


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


def made(kind, config, **changes):
    network = kind(dataclasses.replace(config, **changes))
    network.build()
    return shake_variables(network)


@pytest.mark.parametrize("changes", [{}, WITHOUT_TEXT, {"num_kernels": 1}, {"num_kernels": (1, 2, 3)}])
def test_a_generator_draws_a_picture_of_every_level(changes):
    generator = made(Generator, DRAWS, **changes)
    text = (normal(3, 4, 5), np.ones((3, 4), bool)) if generator.config.text_dim else ()
    pictures = [np.asarray(each) for each in generator(normal(3, 6), *text)]
    assert [each.shape for each in pictures] == [(3, side, side, 3) for side in (4, 8, 16)]
    assert all(each.dtype == np.float32 and np.ptp(each) > 0 for each in pictures)


def test_a_picture_is_the_same_alone_and_in_a_batch_and_depends_on_its_text_and_noise():
    generator = made(Generator, DRAWS)
    z, states, mask = normal(3, 6), normal(3, 4, 5), np.ones((3, 4), bool)
    together = np.asarray(generator(z, states, mask)[-1])
    alone = np.asarray(generator(z[1:2], states[1:2], mask[1:2])[-1])
    np.testing.assert_allclose(together[1:2], alone, atol=3e-6 * np.abs(alone).max())
    for other in ((z[::-1], states), (z, states[::-1])):
        assert np.abs(np.asarray(generator(*other, mask)[-1])[0] - together[0]).max() > 1e-3


def test_the_two_halves_are_the_whole_and_styles_can_differ_by_level():
    generator = made(Generator, DRAWS)
    z, states, mask = normal(2, 6), normal(2, 4, 5), np.ones((2, 4), bool)
    tokens, code = generator.read(states, mask)
    w = generator.styles(z, code)
    whole = [np.asarray(each) for each in generator(z, states, mask)]
    for ours, expected in zip(generator.synthesize(w, tokens, mask), whole, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    other = generator.styles(normal(2, 6), code)
    mixed = [np.asarray(each) for each in generator.synthesize([w, w, other], tokens, mask)]
    np.testing.assert_allclose(mixed[1], whole[1], atol=1e-6)
    assert np.abs(mixed[2] - whole[2]).max() > 1e-3


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("outputs", [True, False])
def test_there_is_a_judgement_for_each_level_and_scale(inputs, outputs):
    judge = made(Discriminator, JUDGES, multi_scale_input=inputs, multi_scale_output=outputs)
    logits = judge(normal(4, 16, 16, 3), normal(4, 3, 5), np.ones((4, 3), bool))
    expected = {(True, True): 1 + 2 + 3, (True, False): 3, (False, True): 3, (False, False): 1}
    assert logits.shape == (4, expected[inputs, outputs])


def test_a_picture_of_its_own_size_is_judged_by_itself():
    judge = made(Discriminator, JUDGES, minibatch_groups=1)
    text = normal(2, 3, 5), np.ones((2, 3), bool)
    pyramid = [normal(2, side, side, 3) for side in (4, 8, 16)]
    logits = np.asarray(judge(tuple(pyramid), *text))
    pyramid[2] = normal(2, 16, 16, 3)
    changed = np.abs(np.asarray(judge(tuple(pyramid), *text)) - logits).max(axis=0) > 1e-4
    # Judgements of the levels of 16, 8 and 4 pixels; of each the first is of the largest picture.
    assert changed.tolist() == [True, True, False, True, False, False]


def test_one_picture_is_judged_as_its_pyramid():
    judge = made(Discriminator, JUDGES)
    picture, text = normal(2, 16, 16, 3), (normal(2, 3, 5), np.ones((2, 3), bool))
    half = halved(picture)
    np.testing.assert_allclose(judge(picture, *text), judge((halved(half), half, picture), *text), atol=1e-5)
    with pytest.raises(InputError, match=r"sides of \[8, 4, 2\], the discriminator judges \[16, 8, 4\]"):
        judge(half, *text)


def test_a_judgement_depends_on_the_text_only_where_there_is_one():
    judge, picture = made(Discriminator, JUDGES), normal(2, 16, 16, 3)
    mask = np.ones((2, 3), bool)
    a, b = (np.asarray(judge(picture, normal(2, 3, 5), mask)) for _ in range(2))
    assert (np.abs(a - b).max(axis=0) > 1e-4).all()
    seen, states = judge.seen(picture), normal(2, 3, 5)  # once, for several texts
    expected = judge(picture, states, mask)
    np.testing.assert_allclose(judge.judged(seen, judge.code_of(states, mask)), expected, atol=1e-6)
    assert made(Discriminator, JUDGES, text_dim=None)(picture).shape == (2, 6)


@pytest.mark.parametrize("changes", [{}, {"multi_scale_input": False}, {"vision_channels": (3,)}])
def test_the_first_pictures_are_judged_again_with_other_texts(changes):
    judge, picture, mask = made(Discriminator, JUDGES, **changes), normal(4, 16, 16, 3), np.ones((4, 3), bool)
    own, other = normal(4, 3, 5), normal(2, 3, 5)
    expected = np.asarray(judge(picture, own, mask))
    again = np.asarray(judge(picture[:2], other, mask[:2]))
    code = np.concatenate([judge.code_of(own, mask), judge.code_of(other, mask[:2])])
    found = np.asarray(judge.judged(judge.seen(picture), code, 2))
    np.testing.assert_allclose(found[:4], expected, atol=1e-5)
    np.testing.assert_allclose(found[4:], again, atol=1e-5)
    if judge.vision:
        maps = [normal(4, 8, 8, 3)]
        found = np.asarray(judge.judged_by_vision(maps, code, 2))
        np.testing.assert_allclose(found[:4], judge.judged_by_vision(maps, code[:4]), atol=1e-5)
        alone = judge.judged_by_vision([maps[0][:2]], code[4:])
        np.testing.assert_allclose(found[4:], alone, atol=1e-5)


def test_positions_of_several_pixels():
    pixels = np.arange(2 * 6 * 4 * 3, dtype="float32").reshape(2, 6, 4, 3)
    patches = np.asarray(patches_of_pixels(pixels, 2))
    assert patches.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(
        patches[1, 1, 1, 6:9], pixels[1, 3, 2]
    )  # the lower left pixel of a position
    generator = made(Generator, DRAWS)
    pictures = generator(normal(4, 6), normal(4, 4, 5), np.ones((4, 4), bool))
    text = normal(4, 3, 5), np.ones((4, 3), bool)
    judge = made(Discriminator, JUDGES, patch_size=2, block_out_channels=(8, 16), self_attention=(False,) * 2)
    assert judge(pictures, *text).shape == (4, 3) and judge.config.sample_size == 16
    four = made(Discriminator, JUDGES, block_out_channels=(8, 8, 8, 16), self_attention=(False,) * 4)
    logits = four((normal(4, 16, 16, 3), normal(4, 32, 32, 3)), *text)  # it halves the smallest, twice
    assert logits.shape == (4, 10)


def test_drawing_may_begin_with_features_of_the_style():
    plain, from_style = made(Generator, DRAWS), made(Generator, DRAWS, starts_from_style=True)
    assert {v.path for v in from_style.weights} - {v.path for v in plain.weights} == {
        "generator/start/kernel",
        "generator/start/bias",
    }
    styles = normal(1, 10)
    small = [np.asarray(from_style.synthesize(each, normal(1, 3, 8))[0]) for each in (styles, -styles)]
    from_style.start.kernel.assign(np.zeros_like(from_style.start.kernel))
    assert np.abs(small[0] - small[1]).max() > 1e-3


def test_an_encoder_tells_a_distribution_of_z():
    side = DRAWS.sample_size
    whole = made(Generator, DRAWS, encoder_channels=(8, 8, 12))
    patches = made(Generator, DRAWS, encoder_channels=(8, 12))
    assert (whole.config.encoder_patch, patches.config.encoder_patch) == (1, 2)
    for generator in (whole, patches):
        pictures, code = 100 * normal(3, side, side, 3), normal(3, 8)
        mean, log_variance = generator.encoder(pictures, code)
        [other, _] = generator.encoder(pictures, -code)
        assert np.abs(np.asarray(other - mean)).max() > 1e-3  # with another text
        assert mean.shape == log_variance.shape == (3, 6)
        low, high = LOG_VARIANCE
        assert low <= np.asarray(log_variance).min() and np.asarray(log_variance).max() <= high
    message = "encoder_channels has 4 entries for 3 block_out_channels: give 3 or 2 or 1"
    with pytest.raises(InputError, match=message):
        made(Generator, DRAWS, encoder_channels=(8,) * 4)


def test_the_deviation_of_a_group_is_its_own():
    x = normal(4, 2, 2, 3)
    x[2:] = x[2]  # the second group is twice the same
    channel = np.asarray(with_deviation(x, 2))[..., 3]
    np.testing.assert_allclose(channel[2:], 0.0, atol=1e-3)
    np.testing.assert_allclose(channel[:2], x[:2].std(axis=0).mean(), rtol=1e-4)


@pytest.mark.parametrize("kind, config", [(Generator, DRAWS), (Discriminator, JUDGES)])
def test_a_network_is_made_again_from_its_configuration(kind, config):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kind(config)))
    assert again.config == config


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (Generator, {"block_out_channels": ()}, "block_out_channels is empty"),
        (Generator, {"num_kernels": (1, 2)}, "num_kernels has 2 entries for 3 block_out_channels: give 3"),
        (Generator, {"num_kernels": 0}, "is 0: 1 is none"),
        (Generator, {"text_dim": None}, "cross_attention is on, and text_dim is None"),
        (Generator, {"attention_head_dim": 3, "text_width": 9}, "8 channels do not divide into heads of 3"),
        (Discriminator, {"patch_size": 3}, "patch_size is 3: give one of 1, 2, 4"),
        (Discriminator, {"self_attention": (True,)}, "self_attention has 1 entries for 3 block_out_channels"),
    ],
)
def test_a_configuration_that_makes_no_network_is_an_error(kind, changes, message):
    config = DRAWS if kind is Generator else JUDGES
    with pytest.raises(InputError, match=message):
        kind(dataclasses.replace(config, **changes))

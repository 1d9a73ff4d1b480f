"""A GAN that enlarges pictures: its generator, its stage, what it draws, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import sd_tf
from sd_tf import families, generate, train
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.data.garments import Garments
from sd_tf.data.resizing import shrunk
from sd_tf.errors import InputError
from sd_tf.gan.card import traits_of
from sd_tf.gan.config import GanLosses
from sd_tf.gan.discriminator import Discriminator
from sd_tf.gan.enlarging import EnlargingStage
from sd_tf.gan.generator import Generator
from sd_tf.gan.losses import low_res_loss
from sd_tf.gan.new_model import new_model
from sd_tf.gan.options import GanOptions
from sd_tf.gan.recipe import recipe_of
from sd_tf.gan.settings import GanSettings
from sd_tf.gan.stages import DISCRIMINATOR, GENERATOR
from sd_tf.images import to_unit
from sd_tf.seeding import seeded
from sd_tf.sharing.card import model_card
from sd_tf.sharing.facts import Facts
from sd_tf.training.step import Step
from tests.conftest import shake_variables
from tests.gan.small import DRAWS, JUDGES, PLAYER, Texts

RNG = np.random.default_rng(0)
ENLARGES = dataclasses.replace(DRAWS, low_res_size=8)
PROMPT = "a red dress"
WITHOUT_TEXT = {"text_dim": None, "cross_attention": (False,) * 4}


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


def made(config, scale=0.2, **changes):
    network = Generator(dataclasses.replace(config, **changes))
    network.build()
    return shake_variables(network, scale=scale)


# -- the generator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("small", "drawn"), [(4, (8, 16, 32)), (8, (16, 32)), (16, (32,))])
def test_pictures_are_drawn_above_the_size_of_the_small_one(small, drawn):
    generator = made(ENLARGES, low_res_size=small)
    text = normal(2, 4, 5), np.ones((2, 4), bool)
    pictures = generator(normal(2, 6), *text, normal(2, small, small, 3))
    assert [tuple(each.shape) for each in pictures] == [(2, side, side, 3) for side in drawn]
    assert all(np.ptp(each) > 0 for each in pictures)


def test_a_picture_depends_on_the_small_one_the_text_and_the_noise_and_not_on_its_neighbours():
    generator = made(ENLARGES)
    given = normal(2, 6), normal(2, 4, 5), normal(2, 8, 8, 3)
    mask = np.ones((2, 4), bool)

    def last(z, states, low_res):
        return np.asarray(generator(z, states, mask[: len(z)], low_res)[-1])

    together = last(*given)
    alone = last(*(each[:1] for each in given))
    np.testing.assert_allclose(together[:1], alone, atol=1e-5 * np.abs(alone).max())
    for changed in range(3):
        others = [each[::-1] if i == changed else each for i, each in enumerate(given)]
        assert np.abs(last(*others)[0] - together[0]).max() > 1e-3


def test_every_place_of_the_small_picture_is_seen_at_every_level_up_to_its_own():
    generator = made(ENLARGES, low_res_size=16)
    small = normal(1, 16, 16, 3)
    before = [np.asarray(each) for each in generator.low_res(small)]
    assert [each.shape for each in before] == [(1, 4, 4, 16), (1, 8, 8, 8), (1, 16, 16, 8)]
    small[0, 13, 2] += 1.0
    after = [np.asarray(each) for each in generator.low_res(small)]
    for level, place in zip(range(3), ((3, 0), (6, 1), (13, 2)), strict=True):
        assert np.abs(after[level] - before[level])[0][place].max() > 1e-3


def test_what_adds_nothing_enlarges_as_a_bilinear_filter():
    with seeded(0):
        generator = Generator(dataclasses.replace(ENLARGES, **WITHOUT_TEXT))
        generator.build()  # a new one
    small = normal(2, 8, 8, 3)
    pictures = generator(normal(2, 6), low_res=small)
    once = np.stack([bilinear(each, 16) for each in small])
    np.testing.assert_allclose(pictures[0], once, atol=1e-5)
    np.testing.assert_allclose(pictures[1], np.stack([bilinear(each, 32) for each in once]), atol=1e-5)


def bilinear(picture, side):
    """As Pillow enlarges, (height, width, 3) to (side, side, 3)."""
    channels = [Image.fromarray(channel).resize((side, side), Image.BILINEAR) for channel in picture.T]
    return np.stack([np.asarray(each) for each in channels]).T


def test_a_generator_without_a_small_picture_has_the_weights_and_draws_what_it_did_before():
    generator = Generator(dataclasses.replace(DRAWS, **{name: value[:3] for name, value in OF_THREE.items()}))
    generator.build()
    rng = np.random.default_rng(0)
    for variable in generator.variables:
        variable.assign(0.3 * rng.standard_normal(variable.shape).astype("float32"))
    text = rng.standard_normal((2, 6)), rng.standard_normal((2, 4, 5))
    pictures = generator(*(each.astype("float32") for each in text), np.ones((2, 4), bool))
    # Of the code of before there were any that enlarge.
    assert (len(generator.variables), generator.count_params()) == (86, 18651)
    expected = [0.5923589, 1.4521502, -1.6090189]
    np.testing.assert_allclose([np.asarray(each)[1, 1, 2, 0] for each in pictures], expected, rtol=1e-4)


OF_THREE = {
    name: getattr(DRAWS, name) for name in ("block_out_channels", "self_attention", "cross_attention")
}


@pytest.mark.parametrize("side", [0, -8, 2, 12, 32, 64, 2**20])
def test_a_size_that_no_level_has_is_refused(side):
    with pytest.raises(
        InputError, match=f"low_res_size is {side}: a model that draws 32 pixels enlarges 4 or 8"
    ):
        Generator(dataclasses.replace(ENLARGES, low_res_size=side))


def test_a_small_picture_is_for_a_generator_that_enlarges_and_for_no_other():
    plain = dataclasses.replace(ENLARGES, **WITHOUT_TEXT)
    with pytest.raises(InputError, match="low_res is missing, and the generator's low_res_size is 8"):
        made(plain)(normal(1, 6))
    with pytest.raises(InputError, match="low_res is given, and the generator's low_res_size is None"):
        made(plain, low_res_size=None)(normal(1, 6), low_res=normal(1, 8, 8, 3))


# -- the stage ----------------------------------------------------------------------------------------------


def enlarging_stage(dataset, losses=GanLosses(), draws=ENLARGES, judges=JUDGES, **settings):
    with seeded(0):
        generator, discriminator = Generator(draws), Discriminator(judges)
        generator.build()
        discriminator.build()
    texts = Texts(dataset.distinct_captions) if draws.text_dim else None
    configs = {GENERATOR: PLAYER, DISCRIMINATOR: PLAYER}
    return EnlargingStage(generator, discriminator, configs, dataset, texts, losses, **settings)


@pytest.fixture(scope="module")
def garments():
    return Garments(32)


def first_batches(stage, first, number):
    return [
        {name: np.asarray(value) for name, value in batch.items()}
        for batch in stage.batches(first).take(number)
    ]


def losses_of(stage, player, batch):
    return {name: np.asarray(value) for name, value in stage.losses(batch, player, None).items()}


def test_small_pictures_are_the_means_of_real_ones_with_noise_of_any_deviation_up_to_the_largest(garments):
    [clean] = first_batches(enlarging_stage(garments), 0, 1)
    images = clean["images"].reshape(4, 8, 4, 8, 4, 3)
    np.testing.assert_allclose(clean["low_res"], images.mean(axis=(2, 4)), atol=1e-6)
    batches = first_batches(enlarging_stage(garments, low_res_noise=0.3), 0, 16)
    means = [shrunk(batch["images"], (8, 8)) for batch in batches]
    found = np.concatenate([batch["low_res"] - mean for batch, mean in zip(batches, means, strict=True)])
    deviations = found.reshape(64, -1).std(axis=1)
    assert 0.25 < deviations.max() < 0.35 and deviations.min() < 0.05
    assert abs(deviations.mean() - 0.15) < 0.04 and abs(found.mean()) < 0.01


def test_batches_are_a_function_of_their_number(garments):
    stage = enlarging_stage(garments, low_res_noise=0.2, caption_dropout=0.5)
    several, [third] = first_batches(stage, 0, 3), first_batches(stage, 2, 1)
    for name, value in several[2].items():
        np.testing.assert_array_equal(third[name], value)


def test_a_share_of_the_captions_is_empty(garments):
    stage = enlarging_stage(garments, caption_dropout=0.4)
    states = np.concatenate([batch["states"] for batch in first_batches(stage, 0, 32)])
    is_empty = (states == stage.texts.states[-1].astype(np.float32)).all(axis=(1, 2))
    assert 0.25 < is_empty.mean() < 0.55


def test_the_loss_of_the_small_picture_is_the_mean_squared_difference():
    pictures, small = normal(3, 16, 16, 3), normal(3, 4, 4, 3)
    means = pictures.reshape(3, 4, 4, 4, 4, 3).mean(axis=(2, 4))
    expected = ((means - small) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(low_res_loss(pictures, small), expected, rtol=1e-5)


def test_the_generators_loss_has_it_with_its_weight_and_compares_with_the_picture_without_noise(garments):
    stage = enlarging_stage(garments, GanLosses(low_res=3.0), low_res_noise=0.5)
    shake_variables(stage.generator)
    [batch] = stage.batches(0).take(1)
    found = losses_of(stage, GENERATOR, batch)
    np.testing.assert_allclose(found["loss"], found["adversarial"] + 3.0 * found["low_res"], rtol=1e-5)
    drawn = stage.generator(batch["z"], batch["states"], batch["text_mask"], batch["low_res"])[-1]
    drawn = np.clip(drawn, -1, 1)
    expected = ((shrunk(drawn, (8, 8)) - shrunk(batch["images"].numpy(), (8, 8))) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found["low_res"], expected, rtol=1e-4)
    assert "low_res" not in losses_of(stage, DISCRIMINATOR, batch)
    without = enlarging_stage(garments, GanLosses(low_res=0.0))
    assert "low_res" not in losses_of(without, GENERATOR, batch)


@pytest.mark.parametrize("has_text", [True, False])
def test_both_players_move(garments, has_text):
    changes = {} if has_text else WITHOUT_TEXT
    judges = JUDGES if has_text else dataclasses.replace(JUDGES, text_dim=None)
    stage = enlarging_stage(garments, draws=dataclasses.replace(ENLARGES, **changes), judges=judges)
    step = Step(stage, tf.distribute.get_strategy(), "float32")
    before = [np.asarray(variable.value).copy() for variable in stage.generator.trainable_variables]
    for learner in step.learners.values():
        learner.optimizer.learning_rate.assign(1e-3)
    means = step(*stage.batches(0).take(2))
    assert "generator/low_res" in means and all(np.isfinite(value) for value in means.values())
    after = [np.asarray(variable.value).copy() for variable in stage.generator.trainable_variables]
    assert max(np.abs(new - old).max() for new, old in zip(after, before, strict=True)) > 1e-5


# -- the model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    encoder = open_text_encoder("clip-mini")
    with seeded(0):
        networks = [
            kind(dataclasses.replace(config, text_dim=encoder.width))
            for kind, config in ((Generator, ENLARGES), (Discriminator, JUDGES))
        ]
        for network in networks:
            network.build()
    shake_variables(networks[0], scale=0.1)
    return sd_tf.GigaGAN(*networks, encoder, GanSettings(0.7))


@pytest.fixture(scope="module")
def small():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def apart(ours, theirs):
    return np.abs(np.asarray(ours).astype(int) - theirs).max()


def test_pictures_are_enlarged_by_their_seeds_and_prompts_alone_and_in_a_batch(model, small):
    prompts = [PROMPT, "a blue bag", PROMPT]
    drawn = model.upscale(small, prompts, seed=3)
    assert drawn.shape == (3, 32, 32, 3) and drawn.dtype == np.uint8
    assert list(drawn.seeds) == [3, 3, 4]
    assert apart(model.upscale(small[2], PROMPT, seed=4, batch_size=1), drawn[2:]) <= 1
    for other in (
        model.upscale(small[1], PROMPT, seed=3),
        model.upscale(small[0], "a blue bag", seed=3),
        model.upscale(small[0], PROMPT, seed=4),
        model.upscale(small[0], PROMPT, seed=3, truncation=0.0),
    ):
        assert apart(other, drawn[:1]) > 2
    [picture] = model.upscale(Image.fromarray(small[0]), PROMPT, seed=3, output="pil")
    assert apart(np.asarray(picture), drawn[0]) <= 1 and picture.info == {"prompt": PROMPT, "seed": 3}


def test_no_prompt_says_what_the_empty_caption_says(model, small):
    encoded = model.text_encoder.encode(*model.text_encoder.tokenize([""]))
    states, mask = np.asarray(encoded.states, "float32"), np.asarray(encoded.mask)
    styles = model.generator.styles(normal(1, 6) * 0, model.generator.read(states, mask)[1])
    assert np.isfinite(styles).all()
    drawn = model.upscale(small[:1], truncation=0.0)
    texts = states, mask.astype(np.int32)
    run = model.engines["tensorflow"]
    z = np.concatenate([np.asarray(model_mean_noise(model))])
    style = np.asarray(run.styles(z, *(np.repeat(part, len(z), axis=0) for part in texts))).mean(axis=0)
    expected = run.synthesize(np.broadcast_to(style, (1, 4, 10)), to_unit(small[:1]), *texts)
    assert apart(np.clip(np.round((np.asarray(expected) + 1) * 127.5), 0, 255), drawn) <= 1


def model_mean_noise(model):
    from sd_tf.gan.drawing import MEAN_STYLES, STYLES_IN_MEAN
    from sd_tf.seeding import normals

    return normals((MEAN_STYLES,), np.arange(STYLES_IN_MEAN), (model.generator_config.latent_dim,))


def test_a_saved_model_enlarges_the_same(model, small, tmp_path):
    model.save(tmp_path / "gan")
    again = sd_tf.load(tmp_path / "gan")
    assert again.small_size == (8, 8) and again.image_size == (32, 32)
    ours, theirs = (each.upscale(small, PROMPT, engine="tensorflow") for each in (again, model))
    np.testing.assert_array_equal(ours, theirs)
    assert again.weights_sha256() == model.weights_sha256()


def test_openvino_enlarges_the_same(model, small):
    pytest.importorskip("openvino", reason="needs openvino, which the extra of that name brings")
    ours, theirs = (model.upscale(small, PROMPT, engine=engine) for engine in ("openvino", "tensorflow"))
    assert apart(ours, theirs) <= 2 and theirs.std() > 20


def test_it_is_told_what_it_cannot_do(model, small, tmp_path):
    for call in (
        lambda: model.generate(PROMPT),
        lambda: model.interpolate([PROMPT, "a blue bag"]),
        lambda: model.invert(small[0]),
    ):
        with pytest.raises(InputError, match="this model only enlarges pictures: call upscale"):
            call()
    with pytest.raises(
        InputError, match="image is 16 x 10, this model enlarges 8 x 8: scale it to that size"
    ):
        model.upscale(np.zeros((10, 16, 3), np.uint8))
    with pytest.raises(InputError, match="image is an empty list"):
        model.upscale([])
    with pytest.raises(InputError, match=r"prompt is \['a'\]: give one, or 3, one for each picture"):
        model.upscale(small, ["a"])
    with pytest.raises(InputError, match="truncation is 3"):
        model.upscale(small, truncation=3)
    plain = dataclasses.replace(DRAWS, **WITHOUT_TEXT)
    with pytest.raises(InputError, match="draws from text and enlarges no pictures: call generate, or train"):
        sd_tf.GigaGAN(made(plain)).upscale(small)
    model.save(tmp_path / "gan")
    with pytest.raises(InputError, match="only enlarges pictures: name a model that draws from text, or"):
        families.check(tmp_path / "gan", from_text=True)


def test_the_command_enlarges(model, small, tmp_path):
    model.save(tmp_path / "gan")
    Image.fromarray(small[0]).save(tmp_path / "small.png")
    flags = ["--model", str(tmp_path / "gan"), "--output", str(tmp_path / "out"), "--engine", "tensorflow"]
    generate.main(
        [PROMPT, "--upscale", str(tmp_path / "small.png"), "--truncation", "0.5", "--seed", "4", *flags]
    )
    with Image.open(tmp_path / "out" / "a-red-dress-4.png") as image:
        expected = model.upscale(small[0], PROMPT, seed=4, truncation=0.5)
        assert apart(np.asarray(image), expected[0]) <= 1
    generate.main(["--upscale", str(tmp_path / "small.png"), *flags])
    assert (tmp_path / "out" / "upscaled-0.png").is_file()
    with pytest.raises(InputError, match="this model only enlarges pictures: call upscale"):
        generate.main([PROMPT, *flags])
    for flag, value in (("--sr-steps", "5"), ("--augment-level", "5"), ("--negative-prompt", "blue")):
        with pytest.raises(InputError, match=f"{flag} is not for this kind of model, GigaGAN: leave it out"):
            generate.main(["--upscale", str(tmp_path / "small.png"), flag, value, *flags])


def test_its_summary_and_its_card_say_what_it_enlarges(model, tmp_path, capsys):
    model.summary()
    said = capsys.readouterr().out
    assert "32 x 32 pixels of 8 x 8" in said and f"{model.generator.count_params():,}" in said
    assert "enlarges a picture in one pass" in model_card("a/b", traits_of(model, tmp_path), Facts())


# -- options ------------------------------------------------------------------------------------------------


def test_a_new_model_enlarges_from_the_size_that_is_asked_for(tmp_path):
    options = GanOptions(enlarge_from=16, low_res_weight=4.0, low_res_noise=0.0, unconditional=True)
    model = new_model(options, "fashion_mnist")
    assert model.small_size == (16, 16) and model.image_size == (32, 32)
    recipe = recipe_of(model, options, tmp_path)
    assert recipe.preset.losses.low_res == 4.0 and recipe.preset.low_res_noise == 0.0
    assert recipe.described()["enlarges"] == "16 x 16 pixels"
    assert "reconstruction" not in recipe.described()["losses"]  # it has no encoder
    plain = new_model(GanOptions(unconditional=True), "fashion_mnist")
    assert (
        plain.small_size is None
        and "low_res" not in recipe_of(plain, GanOptions(), tmp_path).described()["losses"]
    )


def test_sizes_and_flags_that_do_not_fit_are_refused(tmp_path, capsys):
    flags = ["gan", "--dataset", "fashion_mnist", "--dry-run", "--output", str(tmp_path / "run")]
    message = (
        "--enlarge-from is 12: a model that draws 32 pixels enlarges 4 or 8 or 16, give one of these or "
        "another"
    )
    with pytest.raises(InputError, match=message):
        train.main([*flags, "--enlarge-from", "12"])
    with pytest.raises(
        InputError, match="--low-res-weight is only for a model that enlarges pictures: leave"
    ):
        train.main([*flags, "--low-res-weight", "2"])
    with pytest.raises(InputError, match="--enlarge-from makes a model without an encoder"):
        train.main([*flags, "--enlarge-from", "16", "--reconstruction-weight", "2"])
    assert not (tmp_path / "run").exists()

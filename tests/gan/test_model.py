"""`GigaGAN`: what it draws, how it is kept, and what it refuses."""

import dataclasses
import importlib
import json
import warnings

import numpy as np
import pytest

import sd_tf
from sd_tf import generate
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.errors import InputError
from sd_tf.gan.card import traits_of
from sd_tf.gan.discriminator import Discriminator
from sd_tf.gan.drawing import texts_of_request
from sd_tf.gan.generator import Generator
from sd_tf.gan.inversion import nearest_styles
from sd_tf.gan.options import GanOptions
from sd_tf.gan.recipe import recipe_of
from sd_tf.gan.settings import GanSettings
from sd_tf.seeding import seeded
from sd_tf.sharing.card import model_card
from sd_tf.sharing.facts import Facts
from tests.gan.small import DRAWS, JUDGES

PROMPT = "a red dress"


@pytest.fixture(scope="module")
def model():
    encoder = open_text_encoder("clip-mini")
    draws = dataclasses.replace(DRAWS, text_dim=encoder.width)
    with seeded(0):
        networks = [Generator(draws), Discriminator(dataclasses.replace(JUDGES, text_dim=encoder.width))]
        for network in networks:
            network.build()
        for level in networks[0].levels:  # a new generator hardly looks at its noise
            for variable in level.trainable_variables:
                variable.assign(variable + 0.1 * np.random.default_rng(1).standard_normal(variable.shape))
    return sd_tf.GigaGAN(*networks, encoder, GanSettings(0.7))


def test_a_picture_depends_on_its_prompt_its_seed_and_the_truncation(model):
    several = model.generate([PROMPT, "a blue bag"], num_images=2, seed=3)
    assert several.shape == (4, 32, 32, 3) and several.dtype == np.uint8
    assert list(several.seeds) == [3, 4, 3, 4]
    alone = model.generate(PROMPT, seed=4, truncation=0.7, batch_size=1)
    assert np.abs(several[1].astype(int) - alone[0]).max() <= 1
    for other in (several[0], several[3], model.generate(PROMPT, seed=4, truncation=1.0)[0]):
        assert np.abs(other.astype(int) - alone[0]).max() > 2


def test_without_any_truncation_left_all_seeds_draw_one_picture(model):
    styles = model.styles(PROMPT, num_images=3, truncation=0)
    np.testing.assert_allclose(styles[1:], styles[:-1], atol=1e-6)
    far, near = (model.styles(PROMPT, num_images=8, truncation=each) for each in (1.0, 0.5))
    np.testing.assert_allclose(near - styles[:1], 0.5 * (far - styles[:1]), atol=1e-5)


def test_styles_draw_what_their_arguments_do_and_can_be_mixed(model):
    styles = model.styles(PROMPT, num_images=2)
    assert styles.shape == (2, 4, 10)
    drawn = model.generate(PROMPT, num_images=2)
    np.testing.assert_array_equal(model.generate(PROMPT, num_images=2, styles=styles), drawn)
    mixed = styles[:1].copy()
    mixed[:, 3:] = styles[1:, 3:]
    between = model.generate(PROMPT, styles=mixed)
    assert np.abs(between.astype(int) - drawn[:1]).max() > 0
    assert np.abs(between.astype(int) - drawn[1:]).max() > 0


def test_interpolation_begins_and_ends_at_its_prompts_and_seeds(model):
    frames = model.interpolate([PROMPT, "a blue bag"], 5, seeds=[0, 7])
    ends = model.generate([PROMPT, "a blue bag"], seed=[0, 7])
    assert frames.shape == (5, 32, 32, 3)
    assert np.abs(frames[[0, -1]].astype(int) - ends).max() <= 1


def test_an_inverted_picture_is_drawn_again(model):
    picture = model.generate(PROMPT, seed=500, truncation=1.0)
    found = model.invert(picture[0], PROMPT, progress=False)
    again, usual = model.generate(PROMPT, styles=found), model.generate(PROMPT, truncation=0)
    error, before = (np.square(picture - each.astype(float)).mean() for each in (again, usual))
    assert error < 0.25 * before
    known = model.generate(PROMPT, seed=5, truncation=1.0)  # of one of the seeds that it tries
    found = model.invert(known[0], PROMPT, steps=20, progress=False)
    assert np.abs(model.generate(PROMPT, styles=found).astype(int) - known).max() <= 1


def test_an_encoder_tells_where_an_inversion_begins(model, monkeypatch):
    z = np.random.default_rng(3).standard_normal((2, 6)).astype("float32")  # of no seed
    pictures = model.generate([PROMPT], 2, z=z, truncation=1.0)
    styles = model.styles(PROMPT, 2, z=z, truncation=1.0)
    texts = texts_of_request(model, model._request(PROMPT, 2, 0, 64, "weights"))(range(2))
    assert np.abs(nearest_styles(model, pictures, PROMPT, texts) - styles).max() > 1e-2
    monkeypatch.setattr(model.generator, "encoder", lambda seen, code: (z, np.zeros_like(z)))
    np.testing.assert_allclose(nearest_styles(model, pictures, PROMPT, texts), styles, atol=1e-5)


def test_a_trained_model_without_an_encoder_takes_no_weight_of_its_loss(model, tmp_path):
    with pytest.raises(InputError, match="reconstruction_weight is 2.0, and the model has no encoder"):
        recipe_of(model, GanOptions(reconstruction_weight=2.0), tmp_path)


def test_a_trained_model_goes_on_with_clips_loss_if_it_is_asked_for(model, tmp_path):
    weights = [recipe_of(model, GanOptions(clip_weight=w), tmp_path).preset.losses.clip for w in (None, 0.5)]
    assert weights == [0.0, 0.5]  # the bundled CLIP may not know the captions


def test_a_saved_model_draws_the_same(model, tmp_path):
    model.save(tmp_path / "gan")
    again = sd_tf.load(tmp_path / "gan")
    assert again.recommended == GanSettings(0.7) and again.image_size == (32, 32)
    for engine in ("tensorflow",):
        np.testing.assert_array_equal(
            again.generate(PROMPT, engine=engine), model.generate(PROMPT, engine=engine)
        )
    assert again.discriminator.count_params() == model.discriminator.count_params()


def test_the_command_draws_and_refuses_what_only_diffusion_has(model, tmp_path, capsys):
    model.save(tmp_path / "gan")
    flags = ["--model", str(tmp_path / "gan"), "--output", str(tmp_path / "out"), "--engine", "tensorflow"]
    generate.main([PROMPT, "--truncation", "0.5", "--num-images", "2", *flags])
    assert len(list((tmp_path / "out").glob("a-red-dress-*.png"))) == 2
    with pytest.raises(InputError, match="--steps is not for this kind of model, GigaGAN"):
        generate.main([PROMPT, "--steps", "5", *flags])
    with pytest.raises(InputError, match="--negative-prompt is not for this kind of model"):
        generate.main([PROMPT, "--negative-prompt", "blue", *flags])
    with pytest.raises(InputError, match="--truncation is not for this kind of model, LatentDiffusion"):
        generate.main([PROMPT, "--truncation", "0.5", "--model", "fashion-mnist", *flags[2:]])


def test_settings_out_of_range_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="truncation is 2"):
        model.generate(PROMPT, truncation=2)
    with pytest.raises(InputError, match="styles has the shape"):
        model.generate(PROMPT, styles=np.zeros((1, 3)))
    with pytest.raises(InputError, match="give one of them"):
        model.generate(PROMPT, styles=np.zeros((1, 10)), truncation=0.5)
    model.save(tmp_path / "gan")
    file = tmp_path / "gan" / "generation_config.json"
    file.write_text(json.dumps({"truncation": 7}))
    with pytest.raises(InputError, match="generation_config.json: .*truncation is 7"):
        sd_tf.load(tmp_path / "gan")


def test_weights_of_words_are_refused_where_they_change_nothing(model):
    for syntax in ("weights", "a1111"):
        with pytest.raises(InputError, match=r"weighs words, .* prompt_syntax comfyui"):
            model.generate("a (red:1.5) dress", prompt_syntax=syntax)
    with pytest.raises(InputError, match="weighs words"):
        model.interpolate([PROMPT, "a (blue:2) bag"], 3)
    plain = model.generate(PROMPT, truncation=1.0)
    weighted = model.generate("a (red:3) dress", truncation=1.0, prompt_syntax="comfyui")
    assert np.abs(plain.astype(int) - weighted).max() > 0


def test_words_that_it_has_not_learned_are_warned_of(model):
    try:
        model.known_words = frozenset(("a", "red", "dress"))
        with pytest.warns(UserWarning, match="learned from: blue, bag"):
            model.generate([PROMPT, "a blue bag"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.generate(PROMPT)
    finally:
        model.known_words = None


def test_the_summary_says_what_it_is_made_of(model, capsys):
    model.summary()
    said = capsys.readouterr().out
    assert f"{model.generator.count_params():,}" in said and "2, 2, 2, 2 kernels" in said
    assert f"{model.discriminator.count_params():,}" in said and "judges by pixels" in said


def test_its_card_says_that_it_draws_in_one_pass(model, tmp_path):
    text = model_card("team/gan", traits_of(model, tmp_path), Facts())
    assert "a picture in one pass) that draws pictures of 32 x 32 pixels" in text
    assert 'sd_tf.load("team/gan")' in text


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("export", ["--format", "onnx", "--output"]),
        ("demo.__main__", ["--port", "0"]),
        ("sweep", ["a dress", "--output", "sheet.png"]),
    ],
)
def test_commands_of_steps_say_that_it_has_none(model, tmp_path, command, flags):
    model.save(tmp_path / "gan")
    main = importlib.import_module(f"sd_tf.{command}").main
    flags = [*flags, str(tmp_path / "served")] if flags[-1] == "--output" else flags
    with pytest.raises(InputError, match="is a GigaGAN, which draws in one pass"):
        main([*flags, "--run" if command == "sweep" else "--model", str(tmp_path / "gan")])


def test_the_barest_of_networks_are_read_again(tmp_path):
    draws = dataclasses.replace(DRAWS, text_dim=None, num_kernels=1, cross_attention=(False,) * 4)
    draws = dataclasses.replace(draws, self_attention=(False,) * 4)
    judges = dataclasses.replace(JUDGES, text_dim=None, multi_scale_input=False, multi_scale_output=False)
    judges = dataclasses.replace(judges, block_out_channels=(8,) * 4, self_attention=(False,) * 4)
    networks = [Generator(draws), Discriminator(judges)]
    for network in networks:
        network.build()
    sd_tf.GigaGAN(*networks).save(tmp_path / "gan")
    again = sd_tf.load(tmp_path / "gan")
    assert again.discriminator.count_params() == networks[1].count_params()
    np.testing.assert_array_equal(
        again.generate(seed=3, engine="tensorflow"),
        sd_tf.GigaGAN(*networks).generate(seed=3, engine="tensorflow"),
    )

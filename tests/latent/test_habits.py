"""What people bring from diffusers, Keras, numpy and web interfaces: sizes, seeds, pictures of any form."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf.checkpoints.sources import bundled_names, resolve
from sd_tf.errors import InputError
from sd_tf.generation.settings import Settings
from sd_tf.text.known_words import read_words
from tests.conftest import drawn_by_diffusers, make_tiny_model

SETTINGS = {"steps": 3, "guidance_scale": 2.0, "progress": False, "engine": "tensorflow"}


def draw(model, prompt="a red dress", **settings):
    return model.generate(prompt, **SETTINGS | settings)


def apart(one, other):
    return np.abs(np.asarray(one).astype(int) - other).max()


@pytest.fixture(scope="module")
def picture():
    """A smooth one, 16 x 16."""
    across, down = np.meshgrid(np.arange(16), np.arange(16))
    return np.stack([16 * across, 16 * down, 255 - 8 * across - 8 * down], axis=-1).astype("uint8")


# -- sizes ------------------------------------------------------------------------------------------------


def test_diffusers_draws_the_same_at_another_size(tiny_model, tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    tiny_model.save(tmp_path)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    latents = np.random.default_rng(0).standard_normal((1, 16, 12, 4)).astype("float32")
    theirs = drawn_by_diffusers(pipeline, ["a red dress"], latents, 3, 2.0, height=32, width=24)
    assert theirs.shape == (1, 32, 24, 3)
    assert apart(draw(tiny_model, latents=latents, height=32, width=24), theirs) <= 2
    assert apart(draw(tiny_model, latents=latents), theirs) <= 2


def test_height_and_width_are_of_the_pictures_and_each_may_be_left_to_the_model(tiny_model):
    assert draw(tiny_model, height=24, width=32).shape == (1, 24, 32, 3)
    assert draw(tiny_model, width=32).shape == (1, 16, 32, 3)
    np.testing.assert_array_equal(draw(tiny_model, height=16, width=16), draw(tiny_model))
    way = tiny_model.interpolate(["a bag", "a dress"], frames=2, height=24, steps=2, progress=False)
    assert way.shape == (2, 24, 16, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"height": 30}, "height is 30: give 28 or 32, a multiple of 4"),
        ({"width": 3}, "width is 3: give 4, a multiple of 4"),
        ({"height": 0}, "height is 0: give a whole number from 1"),
        ({"height": 16.0}, "height is 16.0: give a whole number"),
        ({"height": 5000, "width": 5000}, "are more than this model has memory for: give at most 262,144"),
        (
            {"height": 24, "latents": np.zeros((1, 8, 8, 4))},
            r"are \(8, 8\), those of height and width \(12, 8\)",
        ),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_drawn_are_named(tiny_model, settings, said):
    with pytest.raises(InputError, match=said):
        draw(tiny_model, **settings)


def test_openvino_draws_other_sizes(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = make_tiny_model()
    for size in ({"height": 24, "width": 12}, {"height": 12}, {}):
        by_tensorflow = draw(model, num_images=2, **size)
        assert apart(draw(model, num_images=2, engine="openvino", **size), by_tensorflow) <= 2


# -- seeds ------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(tiny_model):
    given = {"num_images": np.int32(2), "seed": np.uint32(2**32 - 2), "steps": np.int64(3)}
    np.testing.assert_array_equal(
        draw(tiny_model, **given), draw(tiny_model, num_images=2, seed=2**32 - 2, steps=3)
    )


def test_seeds_are_one_for_each_prompt_or_one_for_each_picture(tiny_model):
    one, two = (draw(tiny_model, prompt, seed=seed) for prompt, seed in (("a bag", 7), ("a dress", 3)))
    both = draw(tiny_model, ["a bag", "a dress"], seed=[7, 3])
    assert both.seeds.tolist() == [7, 3] and apart(both, np.concatenate([one, two])) <= 1
    each = draw(tiny_model, ["a bag", "a dress"], num_images=2, seed=[7, 1, 1, 3])
    assert each.seeds.tolist() == [7, 1, 1, 3] and apart(each[[0, 3]], np.concatenate([one, two])) <= 1
    firsts = draw(tiny_model, ["a bag", "a dress"], num_images=2, seed=[7, 3])
    assert firsts.seeds.tolist() == [7, 8, 3, 4]


def test_no_seed_is_a_new_one_which_the_result_tells(tiny_model):
    first, second = (draw(tiny_model, num_images=2, seed=None) for _ in range(2))
    assert apart(first, second) > 2
    assert apart(draw(tiny_model, num_images=2, seed=int(first.seeds[0])), first) == 0


def test_the_same_prompt_several_times_is_as_many_pictures(tiny_model):
    drawn = draw(tiny_model, ["a dress", "a bag", "a dress"], num_images=2, seed=5)
    assert drawn.seeds.tolist() == [5, 6, 5, 6, 7, 8]
    assert apart(drawn[[0, 1, 4, 5]], draw(tiny_model, "a dress", num_images=4, seed=5)) <= 1
    others = draw(tiny_model, ["a dress", "a dress"], negative_prompt=["", "a bag"])
    assert others.seeds.tolist() == [0, 0]  # drawn to be compared


# -- what is handed in and out ----------------------------------------------------------------------------


def test_pil_pictures_come_back_with_prompt_and_seed(tiny_model):
    pictures = draw(tiny_model, ["a bag", "a dress"], num_images=2, seed=3, output="pil")
    np.testing.assert_array_equal(
        np.stack([np.asarray(each) for each in pictures]),
        draw(tiny_model, ["a bag", "a dress"], num_images=2, seed=3),
    )
    assert pictures[3].info == {"prompt": "a dress", "seed": 4}
    with pytest.raises(InputError, match="unknown output 'pill': did you mean 'pil'"):
        draw(tiny_model, output="pill")


def test_a_picture_is_taken_in_any_form(tiny_model, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = draw(tiny_model, image=picture)
    transparent = np.concatenate([picture, np.full((16, 16, 1), 255, np.uint8)], axis=-1)
    for form in (
        Image.fromarray(picture),
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        [picture],
        picture[np.newaxis],
        picture.astype("float32") / 255,
        transparent,
        Image.fromarray(transparent),
    ):
        np.testing.assert_array_equal(draw(tiny_model, image=form), expected)
    grey = np.repeat(picture[..., :1], 3, axis=-1)
    for form in (grey[..., 0], grey[..., :1], Image.fromarray(grey[..., 0])):
        np.testing.assert_array_equal(draw(tiny_model, image=form), draw(tiny_model, image=grey))
    clear = np.concatenate([picture, np.zeros((16, 16, 1), np.uint8)], axis=-1)
    np.testing.assert_array_equal(
        draw(tiny_model, image=clear), draw(tiny_model, image=np.full_like(picture, 255))
    )


def test_a_picture_of_any_size_is_scaled_to_height_and_width(tiny_model, picture):
    large = Image.fromarray(picture).resize((50, 30))
    scaled = large.resize((24, 16), Image.Resampling.LANCZOS)
    drawn = draw(tiny_model, image=large, height=16, width=24)
    np.testing.assert_array_equal(drawn, draw(tiny_model, image=scaled))
    two = draw(tiny_model, ["a bag", "a dress"], image=[large, picture], height=16, width=24)
    assert two.shape == (2, 16, 24, 3)
    with pytest.raises(InputError, match="image is 50 x 30: give sides .* or height and width, which it is"):
        draw(tiny_model, image=large)
    with pytest.raises(InputError, match="image has pictures of 16 x 16 and 50 x 30: give height and width"):
        draw(tiny_model, ["a bag", "a dress"], image=[large, picture])


def test_a_mask_is_taken_in_any_form(tiny_model, picture, tmp_path):
    mask = np.zeros((16, 16), bool)
    mask[:, :8] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    expected = draw(tiny_model, image=picture, mask=mask)
    for form in (
        mask.astype(np.int8),
        mask.astype(np.uint8),
        mask.astype(np.int64) * 255,
        mask.astype(np.float64),
        mask[..., np.newaxis],
        mask[np.newaxis],
        Image.fromarray(mask),
        tmp_path / "mask.png",
        mask[::2, ::2],
        Image.fromarray(mask).resize((160, 160)),
    ):
        np.testing.assert_array_equal(draw(tiny_model, image=picture, mask=form), expected)


def test_what_is_no_picture_is_named(tiny_model, tmp_path):
    with pytest.raises(InputError, match="image .*nothing.png: cannot be read as a picture: it is missing"):
        draw(tiny_model, image=tmp_path / "nothing.png")
    with pytest.raises(InputError, match="mask .*nothing.png: cannot be read as a picture: it is missing"):
        draw(tiny_model, image=np.zeros((16, 16, 3), np.uint8), mask=tmp_path / "nothing.png")


# -- embeddings and layers of the text encoder ------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tiny_model, tmp_path_factory):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.save(folder)
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")


def test_diffusers_draws_the_same_from_embeddings(tiny_model, pipeline, latents):
    import torch

    embeds = tiny_model.encode_prompts(["a red dress", "a blue bag"])
    negative = np.random.default_rng(1).standard_normal(embeds.shape).astype("float32")
    given = {
        "prompt_embeds": torch.from_numpy(embeds.copy()),
        "negative_prompt_embeds": torch.from_numpy(negative),
    }
    theirs = drawn_by_diffusers(pipeline, None, latents, 3, 2.0, **given)
    ours = draw(tiny_model, None, latents=latents, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert apart(ours, theirs) <= 2
    words = draw(tiny_model, ["a red dress", "a blue bag"], latents=latents)
    assert apart(draw(tiny_model, None, latents=latents, prompt_embeds=embeds), words) <= 1


def test_embeddings_stand_for_prompts(tiny_model):
    embeds = tiny_model.encode_prompts(["a red dress", "a red dress"])
    drawn = draw(tiny_model, None, prompt_embeds=embeds, num_images=2, seed=5)
    assert drawn.shape == (4, 16, 16, 3) and drawn.seeds.tolist() == [5, 6, 5, 6]
    plain = draw(tiny_model, "a red dress", negative_prompt="a bag")
    negative = tiny_model.encode_prompts(["a bag"])
    assert apart(draw(tiny_model, "a red dress", negative_prompt_embeds=negative), plain) <= 1


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        ("a dress", {"prompt_embeds": np.zeros((1, 10, 16))}, "prompt and prompt_embeds are both given"),
        (None, {}, "prompt is None: give a string"),
        (
            None,
            {"prompt_embeds": np.zeros((10, 16))},
            r"have the shape \(10, 16\): give \(prompts",
        ),
        (None, {"prompt_embeds": np.zeros((1, 10, 8))}, "have the width 8, this model's text encoder has 16"),
        (None, {"prompt_embeds": np.zeros((1, 10, 16), int)}, "prompt_embeds are int64, or not all finite"),
        (
            None,
            {"prompt_embeds": np.full((1, 10, 16), np.nan)},
            "are float64, or not all finite",
        ),
        (None, {"prompt_embeds": np.zeros((1, 20, 16))}, "negative prompts have 10 tokens, prompts 20: give"),
        ("a dress", {"negative_prompt_embeds": np.zeros((2, 10, 16))}, r"give \(1 or 1, tokens, width\)"),
        (
            "a dress",
            {"negative_prompt": "a bag", "negative_prompt_embeds": np.zeros((1, 10, 16))},
            "negative_prompt and negative_prompt_embeds are both given",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_embeddings_that_do_not_fit_are_named(tiny_model, prompt, settings, said):
    with pytest.raises(InputError, match=said):
        draw(tiny_model, prompt, **settings)


def test_what_reads_words_takes_no_embeddings(tiny_model):
    from sd_tf.latent.initial_noise import InitialNoise

    with pytest.raises(InputError, match="initial_noise reads the words of a prompt: give prompt instead"):
        draw(tiny_model, None, prompt_embeds=np.zeros((1, 10, 16)), initial_noise=InitialNoise())


def test_clip_skip_is_diffusers(tiny_model, pipeline, latents):
    """Its own line for it fails with transformers 5, which has taken `text_model` out of the way."""
    import torch

    prompts = ["a red dress", "a blue bag"]
    ids = torch.from_numpy(np.asarray(tiny_model.tokenizer(prompts)).astype("int64"))
    with torch.no_grad():
        found = pipeline.text_encoder(ids, output_hidden_states=True)
        tower = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder)
        embeds = tower.final_layer_norm(found.hidden_states[-2])
    whole = torch.from_numpy(tiny_model.encode_prompts(["", ""]).copy())
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": whole}
    theirs = drawn_by_diffusers(pipeline, None, latents, 3, 2.0, **given)
    ours = draw(tiny_model, prompts, latents=latents, clip_skip=1)
    assert apart(ours, theirs) <= 2
    assert apart(ours, draw(tiny_model, prompts, latents=latents)) > 2
    of_web = draw(tiny_model, prompts, latents=latents, clip_skip=1, prompt_syntax="a1111")
    assert apart(of_web, ours) > 0  # there the negative prompt has fewer layers, too


# -- settings that a model recommends ---------------------------------------------------------------------


def test_a_model_recommends_settings_which_a_caller_replaces(tmp_path):
    model = make_tiny_model()
    chosen = Settings(steps=4, guidance_scale=2.0, guidance_interval=(0.5, 1.0), sampler="euler", karras=True)
    model.recommended = chosen
    model.save(tmp_path)
    read = sd_tf.load(tmp_path)
    assert read.recommended == chosen
    plain = {"progress": False, "engine": "tensorflow"}
    np.testing.assert_array_equal(
        read.generate("a bag", **plain), model.generate("a bag", **vars(chosen), **plain)
    )
    np.testing.assert_array_equal(
        read.generate("a bag", steps=2, sampler="ddim", guidance_scale=3.0, **plain),
        model.generate("a bag", **vars(Settings(steps=2)), **plain),
    )


# -- prompts of the web interfaces ------------------------------------------------------------------------


def test_a1111s_prompts_weigh_words_and_loaded_loras(tmp_path):
    from sd_tf.lora.adaptations import LowRank

    model = make_tiny_model()
    module = next(name for name in model.adaptations.modules if name.endswith("to_q"))
    outputs, inputs = model.adaptations.shape(module)
    change = LowRank(np.ones((1, inputs), "float32"), np.ones((outputs, 1), "float32"))
    model.adaptations.add("style", {module: change}, weight=0.0)
    plain = draw(model)
    np.testing.assert_array_equal(draw(model, "a red dress <lora:style:0>", prompt_syntax="a1111"), plain)
    tagged = draw(model, "a red dress <lora:style:0.7>", prompt_syntax="a1111")
    assert model.adaptations.weights == {"style": 0.0}
    model.adaptations.weigh({"style": 0.7})
    np.testing.assert_array_equal(draw(model), tagged)
    assert apart(tagged, plain) > 0
    with pytest.raises(
        InputError, match=r"names the LoRA 'other', which is not loaded: load_lora\(file, name"
    ):
        draw(model, "a dress <lora:other>", prompt_syntax="a1111")
    with pytest.raises(InputError, match="'a bag' has other LoRAs than 'a dress <lora:style>'"):
        draw(model, ["a dress <lora:style>", "a bag"], prompt_syntax="a1111")
    with pytest.warns(UserWarning, match="<hypernet:x:1> is read as text"):
        draw(model, "a dress <hypernet:x:1>", prompt_syntax="a1111")


def test_prompt_syntaxes_differ_as_their_names_say(tiny_model):
    drawn = {
        syntax: draw(tiny_model, "a (red:1.8) dress", prompt_syntax=syntax)
        for syntax in ("weights", "a1111", "comfyui")
    }
    np.testing.assert_array_equal(drawn["weights"], drawn["a1111"])  # one row has one mean
    assert apart(drawn["comfyui"], drawn["a1111"]) > 0
    with pytest.raises(InputError, match="unknown prompt_syntax 'a111': did you mean 'a1111'"):
        draw(tiny_model, prompt_syntax="a111")


# -- words that a model does not know ---------------------------------------------------------------------


def test_words_of_no_caption_are_named_and_drawn(tmp_path):
    model = make_tiny_model()
    model.known_words = frozenset({"a", "red", "dress"})
    model.save(tmp_path)
    with pytest.warns(UserWarning, match="in no caption that this model has learned from: tiger") as caught:
        draw(sd_tf.load(tmp_path), "a red tiger")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(sd_tf.load(tmp_path), "a red dress")
        draw(make_tiny_model(), "a red tiger")  # whose text encoder may know it


def test_the_bundled_models_know_the_words_of_their_captions():
    for name in bundled_names():
        folder = resolve(name)
        if (folder / "unet").is_dir():
            assert {"a", "red"} <= read_words(folder)
            assert "tigerish" not in read_words(folder)


def test_a_model_draws_as_the_scheduler_of_its_folder_says(tmp_path):
    model = make_tiny_model()
    model.save(tmp_path)
    (tmp_path / "generation_config.json").unlink()  # as diffusers writes it
    file = tmp_path / "scheduler" / "scheduler_config.json"
    values = json.loads(file.read_text())
    values |= {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    file.write_text(json.dumps(values))
    index = tmp_path / "model_index.json"
    scheduler = ["diffusers", "DPMSolverMultistepScheduler"]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": scheduler}))
    read = sd_tf.load(tmp_path)
    assert (read.recommended.sampler, read.recommended.karras) == ("dpmpp_2m", True)
    np.testing.assert_array_equal(draw(read), draw(model, sampler="dpmpp_2m", karras=True))
    np.testing.assert_array_equal(draw(read, sampler="ddim"), draw(model))

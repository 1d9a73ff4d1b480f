"""Generation: what a seed promises, what bad input gets, and diffusers' pipeline on the same weights."""

import dataclasses
import types
import warnings

import numpy as np
import pytest

from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.generation.request import PICTURE_NOISE
from sd_tf.latent.model import LatentDiffusion
from sd_tf.seeding import normals

STEPS = 3


def draw(model, prompt="a red dress", **settings):
    return model.generate(prompt, **{"steps": STEPS, "progress": False} | settings)


def apart(ours, theirs):
    """The largest difference of two uint8 arrays, as a number that does not wrap."""
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


@pytest.fixture(scope="module")
def sixteen(tiny_model):
    return draw(tiny_model, num_images=16, seed=100)


def test_pictures_are_uint8_rgb_and_all_different(sixteen):
    assert sixteen.shape == (16, 16, 16, 3) and sixteen.dtype == np.uint8
    assert len(np.unique(sixteen.reshape(16, -1), axis=0)) == 16
    assert sixteen.std() > 20  # a flat or saturated picture would hide differences


@pytest.mark.parametrize("j", [0, 3, 15])
def test_a_picture_is_the_same_alone_and_within_a_batch_of_sixteen(tiny_model, sixteen, j):
    assert apart(draw(tiny_model, seed=100 + j), sixteen[j : j + 1]) <= 1


def test_the_batch_size_changes_nothing(tiny_model, sixteen):
    assert apart(draw(tiny_model, num_images=16, seed=100, batch_size=5), sixteen) <= 1


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"eta": 0.7}], ids=str)
def test_noise_within_the_steps_belongs_to_the_seed_too(tiny_model, settings):
    batch = draw(tiny_model, num_images=4, seed=7, **settings)
    assert apart(draw(tiny_model, seed=9, **settings), batch[2:3]) <= 1
    assert apart(batch, draw(tiny_model, num_images=4, seed=7)) > 20


def test_every_picture_and_every_step_has_noise_of_its_own(tiny_model):
    seen = []
    draw(tiny_model, num_images=3, sampler="ddpm", callback=lambda *step: seen.append(step))
    drawn = []
    timesteps = tiny_model.schedule.inference_timesteps(STEPS)
    levels = tiny_model.schedule.alphas_cumprod[timesteps]
    x = normals((PICTURE_NOISE, 0), range(3), (8, 8, 4))
    for (_, after, prediction), level, next_level in zip(seen, levels, levels[1:], strict=False):
        alpha = level / next_level  # Ho et al. 2020, equation 7
        mean = np.sqrt(next_level) * (1 - alpha) / (1 - level) * np.asarray(prediction.x0)
        mean += np.sqrt(alpha) * (1 - next_level) / (1 - level) * x
        x = np.asarray(after)
        drawn.append((x - mean) / np.sqrt((1 - next_level) / (1 - level) * (1 - alpha)))
    drawn = np.concatenate(drawn).reshape(6, -1)  # 2 steps x 3 pictures
    assert 0.9 < drawn.std() < 1.1
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.3  # of 256 numbers: 0.06 by chance


def test_a_call_repeats_itself(tiny_model, sixteen):
    np.testing.assert_array_equal(draw(tiny_model, num_images=16, seed=100), sixteen)


def test_prompts_are_drawn_in_order_each_as_if_alone(tiny_model):
    together = draw(tiny_model, ["a red dress", "a blue bag"], num_images=2, seed=5)
    assert apart(draw(tiny_model, "a red dress", num_images=2, seed=5), together[:2]) <= 1
    assert apart(draw(tiny_model, "a blue bag", num_images=2, seed=5), together[2:]) <= 1
    assert apart(together[:2], together[2:]) > 10


def test_guidance_of_1_is_the_prompt_alone_and_of_0_the_negative_prompt(tiny_model):
    plain = draw(tiny_model, "a red dress", guidance_scale=1, negative_prompt="a bag")
    np.testing.assert_array_equal(plain, draw(tiny_model, "a red dress", guidance_scale=1))
    assert apart(plain, draw(tiny_model, "a blue bag", guidance_scale=0, negative_prompt="a red dress")) <= 1
    assert apart(plain, draw(tiny_model, "a red dress", guidance_scale=6)) > 10


def test_negative_prompts_can_be_one_for_each_prompt(tiny_model):
    prompts, negatives = ["a dress", "a bag"], ["blue", "red"]
    together = draw(tiny_model, prompts, negative_prompt=negatives)
    for i in range(2):
        alone = draw(tiny_model, prompts[i], negative_prompt=negatives[i])
        assert apart(alone, together[i : i + 1]) <= 1


def test_the_largest_seed_works(tiny_model):
    assert draw(tiny_model, seed=2**32 - 1).shape == (1, 16, 16, 3)


def test_the_callback_sees_every_step_and_ends_at_the_latents_of_the_picture(tiny_model):
    seen = []
    images = draw(tiny_model, num_images=3, batch_size=2, callback=lambda *step: seen.append(step))
    assert [step for step, _, _ in seen] == [0, 1, 2, 0, 1, 2]
    last = np.concatenate([np.asarray(seen[i][1]) for i in (2, 5)])
    decoded = np.clip(np.round((np.asarray(tiny_model.autoencoder.decode(last)) + 1) * 127.5), 0, 255)
    assert apart(decoded.astype(np.uint8), images) <= 1
    assert np.asarray(seen[0][2].x0).shape == (2, 8, 8, 4)


def test_latents_take_the_place_of_the_noise_of_the_seeds(tiny_model):
    latents = normals((PICTURE_NOISE, 0), [3, 4], (8, 8, 4))
    np.testing.assert_array_equal(
        draw(tiny_model, latents=latents, num_images=2), draw(tiny_model, num_images=2, seed=3)
    )
    wide = normals((PICTURE_NOISE, 0), [3], (4, 12, 4))
    assert draw(tiny_model, latents=wide, sampler="ddpm").shape == (1, 8, 24, 3)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_agrees_with_diffusers_pipeline_on_the_saved_folder(tiny_model, prediction_type, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = LatentDiffusion(
        tiny_model.autoencoder,
        tiny_model.unet,
        tiny_model.text_encoder,
        tiny_model.tokenizer,
        NoiseSchedule(ScheduleConfig(prediction_type=prediction_type)),
    )
    model.save(tmp_path / "model")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    latents = normals((PICTURE_NOISE, 0), [3, 4], (8, 8, 4)).transpose(0, 3, 1, 2)
    reference = pipeline(
        "a red dress",
        negative_prompt="a blue bag",
        num_images_per_prompt=2,
        num_inference_steps=5,
        guidance_scale=3.0,
        latents=torch.from_numpy(latents.copy()),
        output_type="np",
    ).images
    reference = np.round(reference * 255).astype(np.uint8)
    ours = model.generate(
        "a red dress", negative_prompt="a blue bag", num_images=2, steps=5, guidance_scale=3.0, seed=3
    )
    assert reference.std() > 20
    assert apart(ours, reference) <= 2


def test_guidance_in_no_step_is_the_prompt_alone_and_in_all_is_the_default(tiny_model):
    plain = draw(tiny_model, "a red dress", guidance_scale=1)
    np.testing.assert_array_equal(draw(tiny_model, "a red dress", guidance_interval=(0.5, 0.5)), plain)
    whole = draw(tiny_model, "a red dress", guidance_scale=6)
    np.testing.assert_array_equal(
        draw(tiny_model, "a red dress", guidance_scale=6, guidance_interval=(0, 1)), whole
    )
    half = draw(tiny_model, "a red dress", guidance_scale=6, guidance_interval=(0, 0.5))
    assert apart(half, whole) > 5 and apart(half, plain) > 5


BAD = {
    "prompt": ["", "  ", 5, None, [], ["a dress", 3], ["a dress", ""], {"a dress"}],
    "num_images": [0, -1, 1.5, "2", True, None],
    "steps": [0, -1, 1001, 2.0, "20", True],
    "seed": [-1, 2**32, 0.5, "0", [1, 2], [0.5]],
    "batch_size": [0, -4, 2.5],
    "guidance_scale": [-1, float("nan"), float("inf"), "3", True],
    "guidance_interval": [0.5, (0.2,), (0.8, 0.2), (-0.1, 1), (0, 1.1), ("0", "1")],
    "guidance_rescale": [-0.1, 1.1, "1"],
    "eta": [-0.1, 1.1, float("nan"), "0"],
    "negative_prompt": [None, 3, ["a", "b"], [3], []],
    "latents": [
        np.zeros((1, 8, 8, 3)),
        np.zeros((2, 8, 8, 4)),
        np.zeros((8, 8, 4)),
        np.zeros((1, 0, 8, 4)),
        "x",
    ]
    + [np.full((1, 8, 8, 4), np.nan), np.zeros((1, 8, 8, 4), int)],
    "sampler": ["dimm", "", ["ddim"]],
    "timestep_spacing": ["lead", "", 3, ["leading"]],
    "karras": [1, "yes", True],  # the sampler is DDIM
    "clip_skip": [-1, 2, 0.5, None, True],  # of two layers
    "clip_guidance": ["clip-mini", 1.0],
    "initial_noise": [True, "red"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]], ids=repr)
def test_a_bad_argument_is_refused_in_one_line_that_names_it(tiny_model, name, value):
    settings = {"prompt": "a dress", name: value}
    with pytest.raises(InputError) as error:
        draw(tiny_model, **settings)
    message = str(error.value)
    assert name.split("_")[0] in message and "\n" not in message


def test_an_unknown_sampler_gets_the_nearest_names(tiny_model):
    with pytest.raises(InputError, match="unknown sampler 'dimm': did you mean 'ddim'"):
        draw(tiny_model, sampler="dimm")


def test_the_last_seed_of_several_pictures_must_exist_too(tiny_model):
    with pytest.raises(InputError, match=f"seed is {2**32 - 1}: give a whole number from 0 to {2**32 - 3}"):
        draw(tiny_model, seed=2**32 - 1, num_images=3)


def test_ddpm_has_no_eta(tiny_model):
    with pytest.raises(InputError, match="eta is 0.5, but sampler 'ddpm'"):
        draw(tiny_model, sampler="ddpm", eta=0.5)


def test_a_prompt_longer_than_the_tower_is_drawn_to_its_end_beside_others_as_alone(tiny_model):
    begun = "a red dress " * 3
    prompts = [begun + "with blue sleeves", "a bag", begun, "a (red:3) bag"]
    together = draw(tiny_model, prompts, negative_prompt=["", "blue", "", ""])
    for i, prompt in enumerate(prompts):
        alone = draw(tiny_model, prompt, negative_prompt="blue" if i == 1 else "")
        assert apart(alone, together[i : i + 1]) <= 1
    assert apart(together[:1], together[2:3]) > 5
    assert apart(together[3:], draw(tiny_model, "a red bag")) > 5


@pytest.mark.parametrize("prompt", ["красное платье", "赤いドレス", "123 !?"])
def test_a_prompt_without_a_latin_letter_warns(tiny_model, prompt):
    with pytest.warns(UserWarning, match=f"prompt {prompt!r} has no Latin letter".replace("?", r"\?")):
        draw(tiny_model, prompt)


def test_an_ordinary_prompt_warns_of_nothing(tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw(tiny_model, "A red dress!")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"cross_attention_dim": 24}, "context is 24 wide, the text encoder's output 16"),
        ("unet", {"in_channels": 9}, "latents of 9 channels, the autoencoder's have 4"),
        (
            "text_encoder",
            {"vocab_size": 99, "max_position_embeddings": 10},
            "of .* tokens, the text .* of 99",
        ),
        (
            "text_encoder",
            {"vocab_size": 9999, "max_position_embeddings": 5},
            "gives 10 of .* reads 5 of 9999",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tiny_model, part, changes, message):
    parts = {
        name: getattr(tiny_model, name)
        for name in ("autoencoder", "unet", "text_encoder", "tokenizer", "schedule")
    }
    parts[part] = types.SimpleNamespace(config=dataclasses.replace(parts[part].config, **changes))
    with pytest.raises(InputError, match=message):
        LatentDiffusion(**parts)


def test_a_schedule_that_clips_is_not_for_latents(tiny_model):
    parts = {name: getattr(tiny_model, name) for name in ("autoencoder", "unet", "text_encoder", "tokenizer")}
    schedule = NoiseSchedule(ScheduleConfig(clip_sample=True))
    with pytest.raises(InputError, match="clip_sample is true, but latents, unlike pixels, have no range"):
        LatentDiffusion(**parts, schedule=schedule)


def test_many_prompts_are_encoded_a_batch_at_a_time(tiny_model, monkeypatch):
    engine, sizes = tiny_model.engines["tensorflow"], []

    def counting(ids):
        sizes.append(len(ids))
        return engine.encode(ids)

    counted = engine._replace(encode=counting)
    monkeypatch.setattr(tiny_model, "engine_for", lambda name, shape: counted)
    prompts = [f"a {colour} dress{' and a bag' * (i % 3)}" for i, colour in enumerate(["red", "blue"] * 6)]
    together = draw(tiny_model, prompts, steps=1, batch_size=4, negative_prompt="a bag")
    assert max(sizes) == 4 and sum(sizes) >= 24
    monkeypatch.undo()
    assert apart(together, draw(tiny_model, prompts, steps=1, negative_prompt="a bag")) <= 1


def test_many_pictures_are_encoded_and_decoded_a_batch_at_a_time(tiny_model, monkeypatch):
    encode, engine, sizes = tiny_model._encode_images, tiny_model.engines["tensorflow"], []

    def counting(function):
        return lambda given: sizes.append(len(given)) or function(given)

    monkeypatch.setattr(tiny_model, "_encode_images", counting(encode))
    counted = engine._replace(decode=counting(engine.decode))
    monkeypatch.setattr(tiny_model, "engine_for", lambda name, shape: counted)
    pictures = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    prompts = ["a dress"] * 7
    draw(tiny_model, prompts, image=pictures, strength=0, batch_size=3)
    assert sizes == [3, 3, 1] * 2  # encoded, then decoded
    latents = tiny_model.encode_images(pictures, batch_size=2)
    tiny_model.invert(pictures, steps=1, batch_size=2)
    decoded = tiny_model.decode_latents(latents, batch_size=2)
    assert max(sizes[6:]) == 2
    monkeypatch.undo()
    np.testing.assert_allclose(latents, tiny_model.encode_images(pictures), atol=1e-5)
    assert apart(decoded, tiny_model.decode_latents(latents)) <= 1


def test_the_loss_is_the_squared_error_of_the_velocity(tiny_model):
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 3, 8, 8, 4)).astype("float32")
    context, timesteps = tiny_model.encode_prompts(["a", "b", "c"]), np.array([10, 500, 990])
    schedule = tiny_model.schedule
    signal = np.sqrt(schedule.alphas_cumprod[timesteps])[:, None, None, None]
    sigma = np.sqrt(1 - signal**2)
    noisy = (signal * latents + sigma * noise).astype("float32")
    velocity = signal * noise - sigma * latents
    expected = np.mean((tiny_model.unet(noisy, timesteps, context) - velocity) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(tiny_model.loss(latents, context, timesteps, noise), expected, rtol=1e-4)

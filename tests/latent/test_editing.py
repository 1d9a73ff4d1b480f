"""Pictures drawn from pictures: changed, filled in, gone between, and walked back to their noise."""

import numpy as np
import pytest

import sd_tf
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError
from tests.conftest import drawn_by_diffusers, make_tiny_model

PROMPTS = ["a red dress", "a blue bag"]
STEPS = 10


@pytest.fixture(scope="module")
def picture():
    """A smooth one, 16 x 16."""
    across, down = np.meshgrid(np.arange(16), np.arange(16))
    return np.stack([16 * across, 16 * down, 255 - 8 * across - 8 * down], axis=-1).astype("uint8")


def draw(model, prompt="a red dress", **settings):
    return model.generate(prompt, **{"steps": STEPS, "progress": False, "guidance_scale": 2.0} | settings)


def apart(one, other):
    return np.abs(one.astype(int) - other).max()


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("editing") / "model"
    tiny_model.save(folder)
    return folder


def of_diffusers(kind, saved, model, image, noise, monkeypatch, strength, **options):
    """What a pipeline of diffusers draws, whose autoencoder's mean and whose noise are ours."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers runs on torch")
    pipeline = getattr(diffusers, kind).from_pretrained(saved, torch_dtype=torch.float32)
    given = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    monkeypatch.setattr(f"{type(pipeline).__module__}.randn_tensor", lambda *_, **__: given)
    latents = np.repeat(model.encode_images(image[np.newaxis]), len(noise), axis=0)
    latents = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
    return drawn_by_diffusers(
        pipeline, PROMPTS, None, STEPS, 2.0, image=latents, strength=strength, **options
    )


@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_a_picture_is_changed_as_by_diffusers(tiny_model, saved, picture, strength, monkeypatch):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")
    kind = "StableDiffusionImg2ImgPipeline"
    reference = of_diffusers(kind, saved, tiny_model, picture, noise, monkeypatch, strength)
    ours = draw(tiny_model, PROMPTS, image=picture, strength=strength, latents=noise)
    assert apart(ours, reference) <= 2


def test_a_part_of_a_picture_is_filled_in_as_by_diffusers(tiny_model, saved, picture, monkeypatch):
    torch = pytest.importorskip("torch", reason="diffusers runs on torch")
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4), "float32")
    mask = np.zeros((16, 16), bool)
    mask[4:12, 6:] = True
    reference = of_diffusers(
        "StableDiffusionInpaintPipeline",
        saved,
        tiny_model,
        picture,
        noise,
        monkeypatch,
        0.75,
        mask_image=torch.from_numpy(mask.astype("float32"))[None, None].repeat(2, 1, 1, 1),
        masked_image_latents=torch.zeros(2, 4, 8, 8),
        height=16,
        width=16,
    )
    ours = draw(tiny_model, PROMPTS, image=picture, strength=0.75, latents=noise, mask=mask)
    assert apart(ours[:, mask], reference[:, mask]) <= 2
    np.testing.assert_array_equal(ours[:, ~mask], np.stack([picture] * 2)[:, ~mask])


def test_one_picture_may_have_a_mask_for_each_prompt(tiny_model, picture):
    masks = np.zeros((2, 16, 16), bool)
    masks[0, :8] = masks[1, :, 8:] = True
    together = draw(tiny_model, PROMPTS, image=picture, mask=masks)
    two = draw(tiny_model, PROMPTS, image=np.stack([picture] * 2), mask=masks)
    np.testing.assert_array_equal(together, two)
    for drawn, mask in zip(together, masks, strict=True):
        np.testing.assert_array_equal(drawn[~mask], picture[~mask])
        assert (drawn[mask] != picture[mask]).any()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde"])
def test_steps_are_drawn_again_inside_the_mask_alike_in_batches_of_any_size(tiny_model, picture, sampler):
    mask = np.zeros((16, 16), bool)
    mask[:8] = True
    settings = {"image": picture, "mask": mask, "sampler": sampler}
    again = draw(tiny_model, PROMPTS, resamples=3, **settings)
    assert np.abs(again.astype(int) - draw(tiny_model, PROMPTS, resamples=1, **settings))[:, mask].max() > 2
    np.testing.assert_array_equal(again[:, ~mask], np.stack([picture] * 2)[:, ~mask])
    assert apart(again, draw(tiny_model, PROMPTS, resamples=3, batch_size=1, **settings)) <= 1


def test_at_full_strength_nothing_below_the_mask_is_left(tiny_model, picture):
    everywhere = draw(tiny_model, image=picture, mask=np.ones((16, 16), bool), strength=1.0)
    np.testing.assert_array_equal(everywhere, draw(tiny_model))


def test_a_strength_of_less_than_a_step_warns(tiny_model, picture):
    with pytest.warns(UserWarning, match="strength 0.05 of 10 steps is less than one"):
        same = draw(tiny_model, image=picture, strength=0.05)
    np.testing.assert_array_equal(same, draw(tiny_model, image=picture, strength=0.0))


def test_guidance_keeps_to_the_steps_that_strength_leaves(tiny_model, picture):
    """Shares are of all steps: half of them, noisier than the half that is taken, guide nothing."""
    settings = {"image": picture, "strength": 0.5, "guidance_scale": 8.0}
    early, none, late = (
        draw(tiny_model, **settings, guidance_interval=interval) for interval in ((0, 0.4), (0, 0), (0.5, 1))
    )
    np.testing.assert_array_equal(early, none)
    assert apart(late, none) > 2


def test_strength_goes_from_the_picture_to_the_prompt(tiny_model, picture):
    [rebuilt] = np.asarray(tiny_model.autoencoder(picture[np.newaxis] / np.float32(127.5) - 1))
    nothing = draw(tiny_model, image=picture, strength=0.0)
    assert apart(nothing[0], np.clip((rebuilt + 1) * 127.5, 0, 255)) <= 1
    some, all_of_it = (
        draw(tiny_model, image=picture, strength=strength, num_images=4) for strength in (0.3, 1.0)
    )
    far = [np.abs(each.astype(int) - nothing).mean() for each in (some, all_of_it)]
    assert 1 < far[0] < far[1]


def test_pictures_of_another_size_and_one_for_each_prompt(tiny_model, picture):
    wide = np.concatenate([picture, picture[:, ::-1]], axis=1)
    together = draw(tiny_model, PROMPTS, image=np.stack([wide, wide[::-1]]), num_images=2, strength=0.5)
    assert together.shape == (4, 16, 32, 3)
    alone = draw(tiny_model, PROMPTS[1], image=wide[::-1], num_images=2, strength=0.5)
    assert apart(together[2:], alone) <= 1


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_masks_of_every_kind_are_one(tiny_model, picture, kind):
    mask = np.zeros((16, 16), bool)
    mask[:, :8] = True
    given = mask.astype(kind) * (255 if kind is np.uint8 else 1)
    expected = draw(tiny_model, image=picture, mask=mask)
    np.testing.assert_array_equal(draw(tiny_model, image=picture, mask=given.astype(kind)), expected)


def test_the_way_between_prompts_begins_and_ends_with_them(tiny_model):
    settings = {"steps": STEPS, "guidance_scale": 2.0}
    way = tiny_model.interpolate(PROMPTS, frames=5, seeds=3, progress=False, **settings)
    ends = draw(tiny_model, PROMPTS, seed=3)
    assert apart(way[[0, -1]], ends) <= 1
    steps = np.abs(np.diff(way.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < np.abs(way[0].astype(int) - way[-1]).mean()


@pytest.mark.parametrize("noisy", [{}, {"sampler": "ddpm"}, {"eta": 1.0}], ids=str)
def test_the_way_between_seeds_begins_and_ends_with_them(tiny_model, noisy):
    settings = {"steps": STEPS, "guidance_scale": 2.0} | noisy
    way = tiny_model.interpolate("a red dress", frames=9, seeds=[1, 5, 2], progress=False, **settings)
    for frame, seed in ((0, 1), (4, 5), (8, 2)):
        assert apart(way[[frame]], draw(tiny_model, seed=seed, **noisy)) <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": np.full((16, 16, 3), 2.0)}, "image has floating-point pixels from 0 to 2: give"),
        ({"image": np.zeros((16, 16, 3), int)}, "image has pixels of int64: give uint8"),
        ({"image": np.zeros((16, 16, 2), "uint8")}, r"image has the shape \(16, 16, 2\)|is 16 pictures"),
        ({"image": np.zeros((2, 16, 16, 3), "uint8")}, r"shape \(2, 16, 16, 3\) is 2 pictures: give one"),
        ({"image": np.uint8(3)}, "image of the shape .* is 0 pictures"),
        ({"image": np.zeros((16, 15, 3), "uint8")}, "image is 15 x 16: give sides that are multiples of"),
        ({"image": np.zeros((0, 16, 3), "uint8")}, r"image has the shape \(0, 16, 3\)"),
        ({"strength": 1.1}, "strength is 1.1: give a number from 0 to 1"),
        ({"strength": -0.1}, "strength is -0.1"),
        ({"strength": None}, "strength is None"),
        ({"mask": np.full((16, 16), 256)}, r"mask has numbers outside \[0, 255\]"),
        ({"mask": np.full((16, 16), -1)}, r"mask has numbers outside \[0, 1\]"),
        ({"mask": np.full((16, 16), "x")}, "mask is <U1: give bool, or numbers"),
        ({"mask": np.full((16, 16), 2.0)}, r"mask has numbers outside \[0, 1\]"),
        ({"mask": np.full((16, 16), np.nan)}, r"mask has numbers outside \[0, 1\]"),
        ({"mask": np.zeros((16, 16), bool)}, "mask covers nothing"),
        ({"mask": np.ones((16, 16), bool), "image": None}, "mask is for a picture: give image as well"),
        ({"mask": np.ones((16, 16), bool), "resamples": 0}, "resamples is 0"),
        ({"mask": np.ones((16, 16), bool), "resamples": 101}, "resamples is 101"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"latents are \(4, 4\), those of image \(8, 8\)"),
    ],
    ids=str,
)
def test_pictures_and_masks_that_do_not_fit_are_named(tiny_model, picture, settings, message):
    with pytest.raises(InputError, match=message):
        draw(tiny_model, **{"image": picture} | settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a bag"]}, "1 prompts and 1 seeds"),
        ({"prompts": ["a bag", "a coat"], "seeds": [1, 2, 3]}, "2 prompts and 3 seeds"),
        ({"prompts": ["a bag", "a coat"], "frames": 1}, "frames is 1"),
        ({"prompts": "a bag", "seeds": [1, -1]}, "seeds is -1"),
        ({"prompts": "a bag", "seeds": [1, 2], "steps": 0}, "steps is 0"),
    ],
    ids=str,
)
def test_a_way_to_nowhere_is_named(tiny_model, arguments, message):
    with pytest.raises(InputError, match=message):
        tiny_model.interpolate(**arguments)


@pytest.fixture(scope="module")
def bundled():
    """A model that has learned something, and a picture of it."""
    model = sd_tf.load("fashion-mnist")
    [picture] = model.generate("a blue trouser", seed=3, progress=False)
    return model, picture


def test_the_bundled_model_fills_in_what_is_missing(bundled):
    model, trouser = bundled
    mask = np.zeros((32, 32), bool)
    mask[14:22, 8:24] = True
    broken = np.where(mask[..., np.newaxis], 0, trouser).astype("uint8")
    mended = model.generate("a blue trouser", image=broken, mask=mask, strength=1.0, progress=False)
    left, now = (np.abs(each.astype(int) - trouser)[mask].mean() for each in (broken, mended[0]))
    assert now < 0.7 * left


def test_the_bundled_model_draws_the_upper_half_of_a_red_dress_in_green(bundled):
    """It has never seen a dress of two colours; in one walk the upper half becomes a dark olive."""
    model, _ = bundled
    red = model.generate("a red dress", num_images=16, seed=0, progress=False)
    mask = np.zeros((32, 32), bool)
    mask[:16] = True

    def greener(**settings):
        """By how much the drawn halves are greener than they are red or blue, of 255."""
        drawn = model.generate(
            ["a green dress"] * 16, image=red, mask=mask, strength=1.0, progress=False, **settings
        )
        halves = drawn[:, 2:14].astype(float)
        over, seen = halves[..., 1] - halves[..., [0, 2]].max(axis=-1), halves.max(axis=-1) > 60
        return (over * seen).sum(axis=(1, 2)) / np.maximum(1, seen.sum(axis=(1, 2)))

    assert model.recommended.resamples == 8
    assert (greener() > 30).sum() >= 14 and (greener(resamples=1) > 30).sum() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ["a bag", "a coat"]}, r"the prompt is \['a bag', 'a coat'\]: give a string"),
        ({"prompt": None}, "prompt is None"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image": np.zeros((16, 15, 3), "uint8")}, "image is 15 x 16"),
    ],
    ids=str,
)
def test_what_cannot_be_inverted_is_named(tiny_model, picture, arguments, message):
    with pytest.raises(InputError, match=message):
        tiny_model.invert(**{"image": picture} | arguments)


@pytest.mark.parametrize("to_one", [True, False])
def test_every_kind_of_model_inverts_in_batches_of_any_size(picture, to_one):
    for kind in ("epsilon", "v_prediction", "sample"):
        model = make_tiny_model()
        model.schedule = NoiseSchedule(ScheduleConfig(prediction_type=kind, set_alpha_to_one=to_one))
        images = np.stack([picture, picture[::-1], picture[:, ::-1]])
        noise = model.invert(images, "a bag", steps=STEPS)
        assert np.isfinite(noise).all()
        np.testing.assert_allclose(model.invert(images, "a bag", steps=STEPS, batch_size=2), noise, atol=1e-3)


def test_a_picture_comes_back_from_its_noise_and_another_prompt_changes_it(bundled):
    model, trouser = bundled
    noise = model.invert(trouser, "a blue trouser", steps=50)
    assert noise.shape == (1, 8, 8, 4)
    prompts = ["a blue trouser", "a red trouser"]
    again, red = model.generate(
        prompts, latents=np.repeat(noise, 2, axis=0), steps=50, guidance_scale=1.0, progress=False
    )
    assert np.abs(again.astype(int) - trouser).mean() < 4
    (means, of_red) = (each.reshape(-1, 3).mean(axis=0) for each in (again, red))
    assert means[2] > 2 * means[0] and of_red[0] > 2 * of_red[2]


@pytest.mark.parametrize("side", [8192, 520])
def test_a_picture_larger_than_memory_is_refused_before_it_is_encoded(tiny_model, side):
    image = np.broadcast_to(np.uint8(0), (side, side, 3))
    for use in (lambda: draw(tiny_model, image=image), lambda: tiny_model.invert(image)):
        with pytest.raises(InputError, match=f"image is {side} x {side}, .* such as 512 x 512"):
            use()

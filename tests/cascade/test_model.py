"""Drawing with a cascade: seeds, sizes, pictures to start from, enlarging, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf import generate
from tests.cascade.conftest import tiny_cascade

FAST = {"steps": 3, "super_resolution": {"steps": 2}, "progress": False}


def test_a_picture_is_the_same_alone_and_in_a_batch(cascade):
    prompts = ["a red dress", "a blue bag"]
    whole = cascade.generate(prompts, num_images=2, seed=5, **FAST)
    assert whole.shape == (4, 16, 16, 3) and whole.dtype == np.uint8
    assert list(whole.seeds) == [5, 6, 5, 6]
    for batch_size in (1, 3):
        again = cascade.generate(prompts, num_images=2, seed=5, batch_size=batch_size, **FAST)
        assert np.abs(again.astype(int) - whole).max() <= 1
    alone = cascade.generate("a blue bag", seed=6, **FAST)
    assert np.abs(alone.astype(int) - whole[3]).max() <= 1


def test_stages_draw_from_different_noise(cascade):
    from sd_tf.cascade.drawing import DRAWS_OF_A_STAGE
    from sd_tf.generation.request import Request

    request = Request("a red dress")
    base, larger = (request.noise(np.array([0]), draw, (8, 8, 3)) for draw in (0, DRAWS_OF_A_STAGE))
    assert abs(np.corrcoef(base.ravel(), larger.ravel())[0, 1]) < 0.2


def test_only_the_first_stages_are_run_if_asked_for(cascade):
    assert cascade.generate("a dress", stages=1, **FAST).shape == (1, 8, 8, 3)
    with pytest.raises(sd_tf.InputError, match="stages is 3: give a whole number from 1 to 2"):
        cascade.generate("a dress", stages=3, **FAST)


def test_other_sizes_and_those_that_do_not_fit(cascade):
    assert cascade.generate("a dress", height=24, width=32, **FAST).shape == (1, 24, 32, 3)
    with pytest.raises(sd_tf.InputError, match="height is 18: give 16 or 20, a multiple of 4"):
        cascade.generate("a dress", height=18, **FAST)


def test_image_to_image_stays_nearer_to_the_picture_with_less_strength(cascade):
    picture = np.full((16, 16, 3), (200, 40, 40), np.uint8)
    distances = []
    for strength in (0.0, 0.4, 1.0):
        drawn = cascade.generate(
            "a dress", image=picture, strength=strength, stages=1, **FAST | {"steps": 10}
        )
        distances.append(np.abs(drawn.astype(int) - picture[0, 0]).mean())
    assert distances[0] <= 1 and distances[0] < distances[1] < distances[2]


def test_inpainting_leaves_pixels_outside_the_mask_exactly_as_they_are(cascade):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    drawn = cascade.generate("a dress", image=picture, mask=mask, **FAST)[0]
    np.testing.assert_array_equal(drawn[~mask], picture[~mask])
    assert (drawn[mask] != picture[mask]).mean() > 0.9


@pytest.mark.parametrize("place", [(4, 4), (5, 5)])
def test_a_mask_of_one_pixel_is_one_of_every_stage(cascade, place):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[place] = True
    drawn = cascade.generate("a dress", image=picture, mask=mask, **FAST)[0]
    np.testing.assert_array_equal((drawn != picture).any(axis=-1), mask)
    small = cascade.generate("a dress", image=picture, mask=mask, stages=1, **FAST)[0]
    untouched = cascade.generate("a dress", image=picture, strength=0, stages=1, **FAST)[0]
    np.testing.assert_array_equal(np.argwhere((small != untouched).any(axis=-1)), [[2, 2]])


def test_the_way_between_prompts_and_seeds_begins_and_ends_with_them(cascade):
    prompts, settings = ["a red dress", "a blue bag"], FAST | {"thresholding": "static"}
    way = cascade.interpolate(prompts, frames=4, seeds=3, **settings)
    assert way.shape == (4, 16, 16, 3) and way.dtype == np.uint8
    ends = [cascade.generate(each, seed=3, **settings)[0] for each in prompts]
    assert np.abs(way[[0, -1]].astype(int) - ends).max() <= 1
    between = cascade.interpolate("a red dress", frames=3, seeds=[1, 5], sampler="ddpm", **settings)
    for frame, seed in ((0, 1), (2, 5)):
        alone = cascade.generate("a red dress", seed=seed, sampler="ddpm", **settings)
        assert np.abs(between[frame].astype(int) - alone[0]).max() <= 1
    assert (between[1] != between[0]).mean() > 0.5 and (between[1] != between[2]).mean() > 0.5
    assert cascade.interpolate(prompts, frames=2, stages=1, **FAST).shape == (2, 8, 8, 3)


def test_a_way_that_there_is_not_is_refused(cascade):
    with pytest.raises(sd_tf.InputError, match="1 prompts and 1 seeds: give two or more"):
        cascade.interpolate("a dress")
    with pytest.raises(sd_tf.InputError, match="augment_level is 1000"):
        cascade.interpolate(["a", "b"], augment_level=1000)
    with pytest.raises(sd_tf.InputError, match="unknown thresholding 'dynamical'"):
        cascade.interpolate(["a", "b"], thresholding="dynamical")
    with pytest.raises(sd_tf.InputError, match="unknown engine 'openvine': did you mean 'openvino'"):
        cascade.interpolate(["a", "b"], engine="openvine")
    with pytest.raises(sd_tf.InputError, match="the prompt names the LoRA 'mine', which is not loaded"):
        cascade.interpolate(["a <lora:mine:1>", "b <lora:mine:1>"], prompt_syntax="a1111")


def test_frames_from_the_command_line(cascade, tmp_path):
    cascade.save(tmp_path / "model")
    flags = ["--frames", "3", "--seed", "4", "--steps", "2", "--sr-steps", "1", "--thresholding", "none"]
    flags += ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    generate.main(["a dress", "a bag", *flags])
    settings = {"steps": 2, "super_resolution": {"steps": 1}, "thresholding": "none"}
    expected = cascade.interpolate(["a dress", "a bag"], 3, 4, progress=False, **settings)
    for number, frame in enumerate(expected):
        with Image.open(tmp_path / "out" / f"frame-{number}.png") as image:
            assert np.abs(np.asarray(image).astype(int) - frame).max() <= 1


def test_upscale_enlarges_pictures_of_any_size_with_a_prompt_or_without(cascade):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 6, 10, 3), np.uint8)
    plain = cascade.upscale(pictures, super_resolution={"steps": 2})
    assert plain.shape == (2, 12, 20, 3)
    told = cascade.upscale(pictures, ["a red dress", "a bag"], super_resolution={"steps": 2})
    assert (plain != told).any()
    one = cascade.upscale(pictures[1], seed=1, super_resolution={"steps": 2}, output="pil")
    assert one[0].size == (20, 12)


def test_words_have_their_weights_where_another_picture_has_no_prompt(cascade):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    settings = {"super_resolution": {"steps": 2, "guidance_scale": 4.0}, "negative_prompt": "a bag"}
    prompts = ["a (red:1.8) dress", ""]
    beside = cascade.upscale(pictures, prompts, **settings)
    alone = cascade.upscale(pictures[0], prompts[0], **settings)
    assert np.abs(beside[0].astype(int) - alone[0]).max() <= 1
    plain = cascade.upscale(pictures[0], "a red dress", **settings)
    assert (plain != alone).any()


def test_what_cannot_be_enlarged_is_refused(cascade):
    with pytest.raises(sd_tf.InputError, match="image is an empty list"):
        cascade.upscale([])
    with pytest.raises(sd_tf.InputError, match="image is 600 x 600, more than this model has memory for"):
        cascade.upscale(np.zeros((600, 600, 3), np.uint8))
    with pytest.raises(sd_tf.InputError, match=r"prompt is \[1\]: give one"):
        cascade.upscale(np.zeros((8, 8, 3), np.uint8), prompt=[1])
    some = cascade.upscale(np.zeros((2, 8, 8, 3), np.uint8), ["a dress", ""], super_resolution={"steps": 1})
    assert some.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("settings, message", [
    ({"augment_level": -1, "stages": 1}, "augment_level is -1"),
    ({"super_resolution": {"typo": 1}, "stages": 1}, "unknown setting of super_resolution 'typo'"),
    ({"engine": "openvine"}, "unknown engine 'openvine': did you mean 'openvino'"),
    ({"thresholding": "dynamical"}, "unknown thresholding 'dynamical': did you mean 'dynamic'"),
    ({"thresholding": "static", "percentile": 0.9}, "percentile is 0.9, but thresholding is static"),
    ({"percentile": 95}, "percentile is 95: give a number from 0 to 1"),
    ({"augment_level": 1000}, "augment_level is 1000: give a whole number from 0 to 999"),
    ({"super_resolution": {"stepps": 2}}, "unknown setting of super_resolution 'stepps': did"),
    ({"super_resolution": [{}, {}]}, "super_resolution has 2 entries for 1 stages"),
    ({"super_resolution": 4}, "super_resolution is 4: give a dictionary"),
    ({"mask": np.ones((16, 16), bool)}, "mask is for a picture: give image as well"),
    ({"latents": np.zeros((1, 8, 8, 4), "float32")}, r"latents have the shape \(1, 8, 8, 4\): give"),
    ({"latents": np.zeros((1, 16, 8, 3), "float32")}, r"latents are \(16, 8\), and the first stage draws"),
])  # fmt: skip
def test_bad_arguments_are_refused(cascade, settings, message):
    with pytest.raises(sd_tf.InputError, match=message):
        cascade.generate("a dress", **{"steps": 2, **settings})


def test_what_a_later_stage_cannot_do_is_said_before_the_first_has_drawn(cascade, monkeypatch):
    monkeypatch.setattr("sd_tf.cascade.drawing.draw_stage", lambda *_, **__: pytest.fail("was drawn"))
    later = {"super_resolution": {"steps": 1001}, "progress": False}
    with pytest.raises(sd_tf.InputError, match="steps is 1001: give a whole number from 1 to 1000"):
        cascade.generate("a dress", **later)
    with pytest.raises(sd_tf.InputError, match="steps is 1001"):
        cascade.interpolate(["a dress", "a bag"], **later)
    with pytest.raises(sd_tf.InputError, match="steps is 1001"):
        cascade.upscale(np.zeros((8, 8, 3), np.uint8), **later)


def test_dynamic_thresholding_tames_high_guidance():
    """Saharia et al. 2022, section 2.3: clipping saturates pixels, dynamic thresholding does not."""
    model = tiny_cascade()
    settings = {"stages": 1, "steps": 8, "guidance_scale": 40.0, "progress": False}
    static, dynamic = (
        model.generate("a red dress", 8, thresholding=kind, percentile=percentile, **settings)
        for kind, percentile in (("static", None), ("dynamic", 0.9))
    )
    saturated = [np.isin(images, (0, 255)).mean() for images in (static, dynamic)]
    assert saturated[1] < 0.5 * saturated[0]

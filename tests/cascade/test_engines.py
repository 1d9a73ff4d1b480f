"""Cascades by OpenVINO beside TensorFlow: the same pictures, and conversions that are kept."""

import numpy as np
import pytest

import sd_tf
from tests.cascade.conftest import tiny_cascade

pytest.importorskip("openvino", reason="needs openvino, which the extra of that name brings")

FAST = {"steps": 2, "super_resolution": {"steps": 2, "guidance_scale": 2.0}, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "model"
    tiny_cascade(shaken=0.03).save(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where conversions are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sd_tf" / "conversions"


def draw(model, engine, prompt="a red dress", **settings):
    return model.generate(prompt, **FAST | settings, engine=engine)


def apart(ours, theirs):
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


def test_both_engines_draw_the_same_pictures_from_one_conversion_of_each_stage(folder, cache, monkeypatch):
    model = sd_tf.load(folder)
    settings = [
        {"num_images": 3, "batch_size": 2},
        {"guidance_scale": 1.0, "sampler": "ddpm", "super_resolution": {"steps": 3}},
    ]
    pictures = [draw(model, "openvino", **each) for each in settings]
    for ours, each in zip(pictures, settings, strict=True):
        assert apart(ours, draw(model, "tensorflow", **each)) <= 2 and ours.std() > 20
    kept = sorted({file.name for file in place.iterdir()} for place in cache.iterdir())
    assert kept == [{"denoise.xml", "denoise.bin", "conversion.json"}] * 2
    monkeypatch.setattr(
        "sd_tf.generation.engines.write_conversion", lambda *_: pytest.fail("converted again")
    )
    again = sd_tf.load(folder)
    assert apart(draw(again, "auto", **settings[0]), pictures[0]) == 0
    for stage in again.stages:  # a model that is loaded takes the conversions by itself
        assert stage.engines["auto"] is stage.engines["openvino"]


def test_pictures_of_another_size_are_enlarged_the_same(folder, cache):
    model = sd_tf.load(folder)
    small = np.random.default_rng(0).integers(0, 256, (1, 6, 10, 3), np.uint8)
    ours, theirs = (
        model.upscale(small, "a bag", super_resolution={"steps": 2}, engine=engine, progress=False)
        for engine in ("openvino", "tensorflow")
    )
    assert ours.shape == (1, 12, 20, 3) and apart(ours, theirs) <= 2


def test_frames_of_an_interpolation_are_drawn_by_the_engine_that_is_asked_for(folder, cache):
    model, prompts = sd_tf.load(folder), ["a red dress", "a blue bag"]
    ours = model.interpolate(prompts, frames=2, engine="openvino", **FAST)
    assert len(list(cache.iterdir())) == 2  # of each stage, so that they were not drawn by TensorFlow
    assert apart(ours, model.interpolate(prompts, frames=2, engine="tensorflow", **FAST)) <= 2


def test_a_stage_whose_weights_have_changed_is_converted_again(folder, cache):
    model = sd_tf.load(folder)
    before = draw(model, "openvino", stages=1)
    kernel = model.stages[0].unet.conv_out.kernel
    kernel.assign(np.asarray(kernel) + 0.1)
    changed = draw(model, "openvino", stages=1)
    assert apart(changed, draw(model, "tensorflow", stages=1)) <= 2 < apart(changed, before)
    assert apart(draw(sd_tf.load(folder), "openvino", stages=1), before) == 0


def test_a_new_model_is_drawn_by_tensorflow_unless_openvino_is_asked_for(cascade, cache):
    pictures = draw(cascade, "auto", stages=1)
    assert apart(pictures, draw(cascade, "tensorflow", stages=1)) == 0 and not cache.exists()
    assert apart(pictures, draw(cascade, "openvino", stages=1)) <= 2


def test_openvino_is_for_networks_in_float32(folder):
    model = sd_tf.load(folder, dtype="mixed_bfloat16")
    with pytest.raises(sd_tf.InputError, match="engine 'openvino': it converts float32 models, this one"):
        draw(model, "openvino")
    assert draw(model, "auto", stages=1).shape == (1, 8, 8, 3)

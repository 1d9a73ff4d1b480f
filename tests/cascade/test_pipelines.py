"""Whole pictures as diffusers' IF pipelines draw them, from the same noise, weights and text."""

import numpy as np
import pytest

import sd_tf
from sd_tf.cascade import drawing
from sd_tf.generation.request import Request
from tests.cascade.conftest import tiny_cascade

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red dress", "a blue bag on a black background"]


def channels_first(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny cascade, and its folder."""
    model, folder = tiny_cascade(shaken=0.03), tmp_path_factory.mktemp("cascade") / "model"
    model.save(folder)
    return model, folder


def opened(kind, folder, **parts):
    """A pipeline of diffusers that draws with DPM-Solver++, which adds no noise."""
    nothing = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    pipeline = kind.from_pretrained(folder, requires_safety_checker=False, **nothing, **parts)
    config = pipeline.scheduler.config
    changes = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "variance_type": None}
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, **settings):
    """The pictures of `PROMPTS`, (n, height, width, 3), 0...255."""
    images = pipeline(PROMPTS, output_type="np", clean_caption=False, **settings).images
    return np.round(images * 255)


def injected(pipeline, *noises):
    """The pipeline draws these noises, one after another, instead of random ones."""
    waiting = [channels_first(each) for each in noises]
    pipeline.prepare_intermediate_images = lambda *_, **__: waiting.pop(0)
    return pipeline


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0, 8.0])
def test_base_pictures_are_those_of_diffusers(saved, guidance_scale):
    model, folder = saved
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("float32")
    settings = {"steps": 12, "sampler": "dpmpp_2m", "guidance_scale": guidance_scale}
    ours = model.generate(PROMPTS, stages=1, latents=noise, **settings)
    pipeline = injected(opened(diffusers.IFPipeline, folder / "base"), noise)
    theirs = drawn(pipeline, num_inference_steps=12, guidance_scale=guidance_scale)
    assert np.abs(ours - theirs).max() <= 2
    assert np.unique(ours).size > 40  # something was drawn
    static = model.generate(PROMPTS, stages=1, latents=noise, thresholding="static", **settings)
    assert np.abs(static - theirs).max() > 2  # thresholding mattered


def test_ddpm_with_a_learned_variance_draws_the_pictures_of_diffusers(saved, monkeypatch):
    model, folder = saved
    request, places = Request(PROMPTS), np.arange(2)
    noises = [request.noise(places, draw, (8, 8, 3)) for draw in range(9)]
    ours = model.generate(PROMPTS, stages=1, steps=8, sampler="ddpm", guidance_scale=2.0)
    pipeline = diffusers.IFPipeline.from_pretrained(folder / "base", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    waiting = [channels_first(each) for each in noises[1:]]
    monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *_, **__: waiting.pop(0))
    theirs = drawn(injected(pipeline, noises[0]), num_inference_steps=8, guidance_scale=2.0)
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("augment_level", [0, 250])
def test_enlarged_pictures_are_those_of_diffusers(saved, augment_level):
    model, folder = saved
    small = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    settings = {"steps": 10, "guidance_scale": 4.0}
    ours = model.upscale(small, PROMPTS, augment_level=augment_level, super_resolution=settings)
    request, first = Request(PROMPTS), drawing.DRAWS_OF_A_STAGE
    initial, augmentation = (
        request.noise(np.arange(2), draw, (16, 16, 3)) for draw in (first, first + drawing.AUGMENTATION)
    )
    base = opened(diffusers.IFPipeline, folder / "base")
    parts = {"tokenizer": base.tokenizer, "text_encoder": base.text_encoder}
    pipeline = injected(opened(diffusers.IFSuperResolutionPipeline, folder / "sr2", **parts), initial)
    with pytest.MonkeyPatch.context() as patch:
        module = diffusers.pipelines.deepfloyd_if.pipeline_if_superresolution
        patch.setattr(module, "randn_tensor", lambda *_, **__: channels_first(augmentation))
        theirs = drawn(
            pipeline,
            image=channels_first(small / np.float32(127.5) - 1),
            height=16,
            width=16,
            num_inference_steps=10,
            guidance_scale=4.0,
            noise_level=augment_level,
        )
    assert np.abs(ours - theirs).max() <= 2


def test_folders_of_diffusers_open_here(saved, tmp_path):
    model, folder = saved
    opened(diffusers.IFPipeline, folder / "base").save_pretrained(tmp_path / "theirs")
    read = sd_tf.load(tmp_path / "theirs")
    assert isinstance(read, sd_tf.CascadedDiffusion) and len(read.stages) == 1
    ours, theirs = (
        each.generate(PROMPTS, stages=1, sampler="dpmpp_2m", steps=4, guidance_scale=2)
        for each in (model, read)
    )
    np.testing.assert_array_equal(ours, theirs)

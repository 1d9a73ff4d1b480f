"""Fields that a scheduler's file lacks mean what diffusers' classes of that name have as defaults."""

import inspect
import json
import warnings

import numpy as np
import pytest

from sd_tf.checkpoints.config_files import SCHEDULE, SCHEDULER_DEFAULTS
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.latent.config_files import read_schedule
from sd_tf.latent.loading import load

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of these tests")
pytest.importorskip("torch", reason="diffusers' schedulers run on torch")

FILES = {  # what old files say
    "nothing": {},
    "betas": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "spacing": {"timestep_spacing": "trailing", "num_train_timesteps": 400},
}


@pytest.mark.parametrize("name", SCHEDULER_DEFAULTS)
def test_the_defaults_are_those_in_the_signatures_of_diffusers(name):
    theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
    for field, ours in SCHEDULER_DEFAULTS[name].items():
        if field in theirs:
            assert theirs[field].default == ours, field
    fields = {field for field in vars(ScheduleConfig()) if field != "kept"}
    assert set(SCHEDULER_DEFAULTS[name]) == fields
    assert {field for field in fields if field in theirs} >= fields - {
        "set_alpha_to_one",
        "clip_sample",
        "rescale_betas_zero_snr",
    }


def test_every_class_that_is_read_has_defaults():
    assert set(SCHEDULER_DEFAULTS) == {"DDIMScheduler", *SCHEDULE.siblings}


@pytest.mark.parametrize("values", FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", SCHEDULER_DEFAULTS)
def test_a_file_with_missing_fields_is_the_schedule_that_diffusers_reads(name, values, tmp_path):
    file = tmp_path / "scheduler_config.json"
    of_pndm = (
        {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    )  # as our sampler does, and every file
    file.write_text(json.dumps({"_class_name": name, **of_pndm, **values}))
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    schedule = NoiseSchedule(SCHEDULE.from_json(json.loads(file.read_text()), str(file)))
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-4)
    for steps in (1, 7, 20):
        theirs.set_timesteps(steps)
        sampler = {"DPMSolverMultistepScheduler": "dpmpp_2m", "UniPCMultistepScheduler": "unipc"}.get(name)
        expected = list(dict.fromkeys(theirs.timesteps.tolist()))  # PNDM asks twice about one
        np.testing.assert_allclose(_timesteps(schedule, name, sampler, steps), expected, atol=1e-3)
    if hasattr(theirs, "final_alpha_cumprod"):
        assert schedule.final_level.signal**2 == pytest.approx(float(theirs.final_alpha_cumprod), rel=1e-5)


def _timesteps(schedule, name, sampler, steps):
    from sd_tf.diffusion.samplers import SAMPLERS

    sampler = sampler or {
        "DDIMScheduler": "ddim",
        "DDPMScheduler": "ddpm",
        "PNDMScheduler": "pndm",
        "LMSDiscreteScheduler": "lms",
        "EulerDiscreteScheduler": "euler",
        "EulerAncestralDiscreteScheduler": "euler_ancestral",
    }.get(name)
    return [level.t for level in SAMPLERS[sampler].levels(schedule, steps)[:-1]]


@pytest.mark.parametrize("name", SCHEDULER_DEFAULTS)
def test_a_stable_diffusion_folder_is_read_as_its_pipeline_reads_it(name, tiny_model, tmp_path):
    """diffusers' pipeline sets `steps_offset` to 1 and `clip_sample` to false, whatever an old file says."""
    tiny_model.save(tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": name, **FILES["betas"]}))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", name]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    theirs, ours = pipeline.scheduler.config, load(tmp_path / "model").schedule.config
    for field in ("beta_start", "beta_schedule", "timestep_spacing", "steps_offset", "prediction_type"):
        assert getattr(ours, field) == theirs[field], field
    assert not ours.clip_sample and not theirs.get("clip_sample")
    values = {"_class_name": name, "steps_offset": 0}
    if "clip_sample" in theirs:
        values["clip_sample"] = True
    assert read_schedule(values, "file").steps_offset == 1

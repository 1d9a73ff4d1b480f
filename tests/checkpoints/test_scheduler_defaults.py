"""Fields that a scheduler's file lacks mean what diffusers' classes of that name have as defaults."""

import importlib
import inspect
import json
import sys
import types
import warnings

import numpy as np
import pytest

from sd_tf.checkpoints.schedulers import SCHEDULE, SCHEDULERS, recommended
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.generation.settings import Settings
from sd_tf.latent.config_files import read_schedule
from sd_tf.latent.loading import load

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of these tests")
pytest.importorskip("torch", reason="diffusers' schedulers run on torch")

# Needs torchsde, which is not installed: without it diffusers shows a class without a signature.
NOT_INSTALLED = {"DPMSolverSDEScheduler"} if not diffusers.utils.is_torchsde_available() else set()
INSTALLED = [name for name in SCHEDULERS if name not in NOT_INSTALLED]
EXACT = [name for name in INSTALLED if SCHEDULERS[name].is_exact]

FILES = {  # what old files say
    "nothing": {},
    "betas": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "spacing": {"timestep_spacing": "trailing", "num_train_timesteps": 400},
}


def signature_of(name, monkeypatch):
    """The parameters of a scheduler in diffusers."""
    if name in NOT_INSTALLED:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
        return inspect.signature(getattr(module, name).__init__).parameters
    return inspect.signature(getattr(diffusers, name).__init__).parameters


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_defaults_are_those_in_the_signatures_of_diffusers(name, monkeypatch):
    theirs, scheduler = signature_of(name, monkeypatch), SCHEDULERS[name]
    for field, ours in scheduler.defaults.items():
        if field in theirs:
            assert theirs[field].default == ours, field
    for field, supported in scheduler.supported.items():
        if field in theirs:
            assert theirs[field].default == supported.default, field
        assert field in theirs or not scheduler.is_exact, field
    assert scheduler.has_karras == ("use_karras_sigmas" in theirs)
    fields = {field for field in vars(ScheduleConfig()) if field != "kept"}
    assert set(scheduler.defaults) == fields
    lacking = {"set_alpha_to_one", "clip_sample", "rescale_betas_zero_snr"}
    if name == "DPMSolverSinglestepScheduler":
        lacking |= {"timestep_spacing", "steps_offset"}
    assert {field for field in fields if field in theirs} >= fields - lacking


@pytest.mark.parametrize("values", FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", INSTALLED)
def test_a_file_with_missing_fields_is_the_schedule_that_diffusers_reads(name, values, tmp_path):
    file = tmp_path / "scheduler_config.json"
    of_pndm = (
        {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    )  # as our sampler does, and every file
    file.write_text(json.dumps({"_class_name": name, **of_pndm, **values}))
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    config = SCHEDULE.from_json(json.loads(file.read_text()), str(file))
    schedule = NoiseSchedule(config)
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-4)
    for steps in (1, 7, 20) if name in EXACT else ():
        theirs.set_timesteps(steps)
        expected = list(dict.fromkeys(theirs.timesteps.tolist()))  # PNDM and Heun ask twice about some
        levels = Settings(steps, **recommended(config)).levels(schedule)
        np.testing.assert_allclose([level.t for level in levels[:-1]], expected, atol=1e-3)
    if hasattr(theirs, "final_alpha_cumprod"):
        assert schedule.final_level.signal**2 == pytest.approx(float(theirs.final_alpha_cumprod), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*pictures differ from those of diffusers")
@pytest.mark.parametrize("name", INSTALLED)
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
        if field in theirs or name != "DPMSolverSinglestepScheduler":
            assert getattr(ours, field) == theirs[field], field
    assert not ours.clip_sample and not theirs.get("clip_sample")
    values = {"_class_name": name, "steps_offset": 0}
    if "clip_sample" in theirs:
        values["clip_sample"] = True
    assert read_schedule(values, "file").steps_offset == 1

"""Scheduler files of diffusers: which are read, what they recommend, and where pictures would differ."""

import inspect
import itertools
import json
import shutil
import warnings

import pytest

from sd_tf.checkpoints.schedulers import SCHEDULE, SCHEDULERS, check_scheduler, recommended
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.errors import InputError
from sd_tf.latent.config_files import read_schedule
from sd_tf.latent.loading import load_lazily

torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of these tests")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAMPLER_OF = {  # every scheduler of diffusers that has betas
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_2m_sde",
    "SASolverScheduler": "dpmpp_2m_sde",
    "KDPM2DiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "euler_ancestral",
    "LCMScheduler": "euler_ancestral",
    "TCDScheduler": "ddim",
}
STAND_INS = [name for name, scheduler in SCHEDULERS.items() if not scheduler.is_exact]
EXACT = [name for name, scheduler in SCHEDULERS.items() if scheduler.is_exact]
OTHER_VALUES = {  # of every field that changes more than the noise schedule
    "algorithm_type": ["sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"],
    "clip_sample_range": [0.1],
    "disable_corrector": [[1, 2]],
    "dynamic_thresholding_ratio": [0.5],
    "euler_at_final": [True],
    "final_sigmas_type": ["sigma_min"],
    "flow_shift": [3.0],
    "interpolation_type": ["log_linear"],
    "lambda_min_clipped": [-1.0],
    "lower_order_final": [False],
    "predict_x0": [False],
    "sample_max_value": [0.5],
    "shift_terminal": [0.1],
    "sigma_max": [5.0],
    "sigma_min": [0.5],
    "skip_prk_steps": [False],
    "solver_order": [1, 3],
    "solver_type": ["heun", "bh1"],
    "thresholding": [True],
    "time_shift_type": ["linear"],
    "timestep_type": ["continuous"],
    "use_beta_sigmas": [True],
    "use_dynamic_shifting": [True],
    "use_exponential_sigmas": [True],
    "use_karras_sigmas": [True],
    "use_lu_lambdas": [True],
    "variance_type": ["fixed_small_log", "fixed_large"],
}
# What these are for is not drawn by a Stable Diffusion: they need a network with learned variances, flow
# matching, or a noise schedule of its own.
NOT_DRAWN = {"solver_p", "trained_betas", "use_flow_sigmas", "flow_shift", "time_shift_type"}
NOT_DRAWN |= {"use_dynamic_shifting", "shift_terminal"}


def values_of(name, **changes):
    """A whole file of a class, with the noise schedule of Stable Diffusion."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    values = {field: each.default for field, each in parameters.items() if field != "self"}
    usual = {"clip_sample": False, "skip_prk_steps": True, "steps_offset": 1}
    return values | BETAS | {field: value for field, value in usual.items() if field in values} | changes


def said_of(name, values):
    """The message of the one warning with which a file is read, "" without one."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        read_schedule({"_class_name": name} | values, "scheduler_config.json")
    assert len(found) <= 1
    return str(found[0].message) if found else ""


def drawn(name, values, steps=6):
    """What diffusers draws with a network that is a formula."""
    scheduler = getattr(diffusers, name).from_config(values)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4, 4, generator=generator) * scheduler.init_noise_sigma
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t) * (0.3 + t / 2000)) * 0.8
        x = scheduler.step(output, t, x, **({"generator": generator} if takes_noise else {})).prev_sample
    return x


def changes_pictures(name, field, value):
    """Whether diffusers draws something else with it; None where it refuses or replaces the value."""
    has_karras = "use_karras_sigmas" in values_of(name)
    kinds = itertools.product(("epsilon", "v_prediction"), (False, True) if has_karras else (None,))
    for prediction_type, karras in kinds:
        levels = {"use_karras_sigmas": karras} if has_karras and field != "use_karras_sigmas" else {}
        values = values_of(name, prediction_type=prediction_type, **levels)
        try:
            other = drawn(name, values | {field: value})
        except (ImportError, NotImplementedError, ValueError):
            return None
        if getattr(diffusers, name).from_config(values | {field: value}).config[field] != value:
            return None
        if not torch.allclose(other, drawn(name, values), atol=1e-4):
            return True
    return False


def test_every_class_recommends_a_sampler():
    assert {name: scheduler.sampler for name, scheduler in SCHEDULERS.items()} == SAMPLER_OF
    assert {"dpmpp_2m_sde", *SAMPLER_OF.values()} == set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLER_OF)
def test_a_file_recommends_its_sampler_spacing_and_levels(name):
    values = {"_class_name": name, "timestep_spacing": "linspace"}
    spacing = "trailing" if name in ("LCMScheduler", "TCDScheduler") else "linspace"
    expected = {"sampler": SAMPLER_OF[name], "timestep_spacing": spacing, "karras": False}
    assert recommended(SCHEDULE.from_json(values, "file")) == expected
    values["use_karras_sigmas"] = True
    has_karras = "LCM" not in name and "TCD" not in name and SAMPLER_OF[name] not in ("ddim", "ddpm", "pndm")
    has_karras &= name != "EulerAncestralDiscreteScheduler"  # diffusers' has no such levels
    assert recommended(SCHEDULE.from_json(values, "file")) == expected | {"karras": has_karras}


@pytest.mark.parametrize(
    ("algorithm", "sampler"),
    [("dpmsolver++", "dpmpp_2m"), ("sde-dpmsolver++", "dpmpp_2m_sde"), ("sde-dpmsolver", "dpmpp_2m_sde")],
)
def test_dpm_solver_is_one_of_two_samplers(algorithm, sampler):
    values = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": algorithm}
    assert recommended(SCHEDULE.from_json(values, "file"))["sampler"] == sampler


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EXACT)
def test_a_warning_names_a_field_that_changes_diffusers_pictures_and_no_other(name):
    values = values_of(name)
    assert said_of(name, values) == ""
    settings = recommended(SCHEDULE.from_json({"_class_name": name} | values, "file"))
    fields = set(values) - set(SCHEDULERS[name].defaults) - NOT_DRAWN
    assert fields <= set(OTHER_VALUES)  # a field that a newer diffusers adds is one to think about
    for field, value in [(name, value) for name in sorted(fields) for value in OTHER_VALUES[name]]:
        changed, differs = values | {field: value}, changes_pictures(name, field, value)
        is_followed = recommended(SCHEDULE.from_json({"_class_name": name} | changed, "file")) != settings
        if differs is not None and not is_followed:
            said = said_of(name, changed)
            assert differs == (f"{field} is {value!r}, the sampler" in said), (field, value, said)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_class_without_a_sampler_of_ours_is_read_with_one_warning_and_written_back(
    name, tiny_model, tmp_path
):
    tiny_model.save(tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    own = {"_class_name": name, **BETAS, "clip_sample": False, "steps_offset": 1, "something_own": [1, 2]}
    file.write_text(json.dumps(own | {"prediction_type": "v_prediction"}))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", name]}))
    with pytest.warns(UserWarning) as found:
        model = load_lazily(tmp_path / "model")
    (message,) = [str(each.message) for each in found]
    assert f"{name} is not there, the sampler '{SAMPLER_OF[name]}' is the nearest" in message
    model.save(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "scheduler" / "scheduler_config.json").read_text())
    assert written.items() >= own.items()
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["scheduler"][1] == name
    shutil.rmtree(tmp_path / "again")


@pytest.mark.filterwarnings("ignore:.*pictures differ from those of diffusers")
@pytest.mark.parametrize("name", [name for name in SAMPLER_OF if name != "DPMSolverSDEScheduler"])
def test_a_whole_file_of_diffusers_goes_through_unchanged(name, tmp_path):
    getattr(diffusers, name).from_config(values_of(name)).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "scheduler_config.json").read_text())
    after = SCHEDULE.to_json(read_schedule(before, "file"))
    version = "_diffusers_version"
    offset = {"steps_offset": 1} if name == "DPMSolverSinglestepScheduler" else {}  # as the pipeline has it
    added = {"rescale_betas_zero_snr", "set_alpha_to_one", "clip_sample", "steps_offset"}
    lost = {field: value for field, value in before.items() if after[field] != value and field != version}
    assert not lost
    assert set(after) - set(before) <= (added if name == "DDIMScheduler" else set(offset))


def test_the_class_of_the_index_takes_precedence_as_in_diffusers(tiny_model, tmp_path):
    tiny_model.save(tmp_path)
    index = tmp_path / "model_index.json"
    values = json.loads(index.read_text()) | {"scheduler": ["diffusers", "HeunDiscreteScheduler"]}
    index.write_text(json.dumps(values))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    config = load_lazily(tmp_path).schedule.config
    assert type(pipeline.scheduler).__name__ == config.kept["_class_name"] == "HeunDiscreteScheduler"
    assert recommended(config)["sampler"] == "heun"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
        ("FlowMatchHeunDiscreteScheduler", "flow matching"),
        ("EDMEulerScheduler", "sigma_min and sigma_max"),
        ("EDMDPMSolverMultistepScheduler", "sigma_min and sigma_max"),
        ("CogVideoXDDIMScheduler", "shifted"),
        ("IPNDMScheduler", "a sine"),
        ("VQDiffusionScheduler", "only schedulers with betas are supported"),
        (None, "scheduler is None: only schedulers with betas"),
        (["DDIMScheduler"], "only schedulers with betas are supported"),
    ],
)
def test_a_class_of_another_noise_schedule_is_refused_with_the_reason(name, why):
    with pytest.raises(InputError) as refused:
        check_scheduler("scheduler", name, "model_index.json")
    assert f"model_index.json: scheduler is {name!r}" in str(refused.value) and why in str(refused.value)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_sigmas_of_flow_matching_are_refused(name):
    with pytest.raises(InputError, match="file: use_flow_sigmas is True, but only models of diffusion"):
        read_schedule({"_class_name": name, "use_flow_sigmas": True}, "file")

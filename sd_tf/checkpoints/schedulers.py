"""`scheduler_config.json`: the schedulers of diffusers whose noise schedule is one of ours.

Of such a file two things are read. The noise schedule belongs to the model and becomes a `ScheduleConfig`.
The scheduler's class and its settings say how diffusers would draw: they are kept and written back, and
`recommended` translates them to settings of `generate`.
"""

import warnings
from typing import NamedTuple

from sd_tf.checkpoints.config_files import Kind, of_diffusers
from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.diffusion.thresholding import Thresholding
from sd_tf.errors import InputError, shown

# The defaults in the signatures of diffusers' schedulers (0.42), with which `from_config` fills gaps.
# A class without `set_alpha_to_one` ends free of noise, and one without `clip_sample` clips nothing.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "clip_sample": False,
    "rescale_betas_zero_snr": False,
}
LINSPACE = {"timestep_spacing": "linspace"}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}


class Supported(NamedTuple):
    """The values of a scheduler's field with which our sampler draws as diffusers does.

    Attributes:
        values: these values.
        default: the value of a file without the field: the default in diffusers' signature.
    """

    values: tuple
    default: object


def _same(value):
    """A field whose only supported value is also its default."""
    return Supported((value,), value)


THRESHOLDING = {"thresholding": _same(False)}
LEVELS = {"use_exponential_sigmas": _same(False), "use_beta_sigmas": _same(False)}
SIGMA_RANGE = {"sigma_min": _same(None), "sigma_max": _same(None)}
FINAL_SIGMA = {"final_sigmas_type": _same("zero")}
LAMBDAS = {"lambda_min_clipped": _same(float("-inf"))}


class Scheduler(NamedTuple):
    """How a scheduler of diffusers is read.

    Attributes:
        sampler: our sampler, a key of `sd_tf.diffusion.samplers.SAMPLERS`.
        defaults: field of `ScheduleConfig` -> its value where the file lacks it.
        supported: field that changes the pictures -> its values that our sampler draws with too.
        is_exact: whether our sampler is the class's own; otherwise it stands in for it.
        has_karras: whether the class has `use_karras_sigmas`.
        timestep_spacing: the spacing of the class itself, whatever its file says; None for the file's.
    """

    sampler: str
    defaults: dict
    supported: dict
    is_exact: bool = True
    has_karras: bool = False
    timestep_spacing: str | None = None


def _stand_in(sampler, defaults, has_karras=True, timestep_spacing=None):
    """A scheduler that we have no sampler for."""
    supported = THRESHOLDING | LEVELS | FINAL_SIGMA | LAMBDAS
    return Scheduler(sampler, defaults, supported, False, has_karras, timestep_spacing)


DDIM = Scheduler("ddim", DEFAULTS | {"clip_sample": True}, THRESHOLDING)
DDPM = Scheduler(
    "ddpm",
    DEFAULTS | {"clip_sample": True},
    THRESHOLDING | {"variance_type": Supported(("fixed_small", "fixed_small_log"), "fixed_small")},
)
CONSISTENCY = DEFAULTS | STABLE_DIFFUSION | {"beta_schedule": "scaled_linear"}

SCHEDULERS = {
    "DDIMScheduler": DDIM,
    "DDIMParallelScheduler": DDIM,
    "DDPMScheduler": DDPM,
    "DDPMParallelScheduler": DDPM,
    "PNDMScheduler": Scheduler(
        "pndm",
        DEFAULTS | {"set_alpha_to_one": False},
        {"skip_prk_steps": Supported((True,), False)},
    ),
    "LMSDiscreteScheduler": Scheduler("lms", DEFAULTS | LINSPACE, LEVELS, has_karras=True),
    "EulerDiscreteScheduler": Scheduler(
        "euler",
        DEFAULTS | LINSPACE,
        LEVELS
        | SIGMA_RANGE
        | FINAL_SIGMA
        | {"interpolation_type": _same("linear"), "timestep_type": _same("discrete")},
        has_karras=True,
    ),
    "EulerAncestralDiscreteScheduler": Scheduler("euler_ancestral", DEFAULTS | LINSPACE, {}),
    "HeunDiscreteScheduler": Scheduler(
        "heun", DEFAULTS | LINSPACE | STABLE_DIFFUSION, LEVELS, has_karras=True
    ),
    # With a last step that ends free of noise, `lower_order_final` and `euler_at_final` change nothing.
    "DPMSolverMultistepScheduler": Scheduler(
        "dpmpp_2m",
        DEFAULTS | LINSPACE,
        THRESHOLDING
        | LEVELS
        | FINAL_SIGMA
        | LAMBDAS
        | {
            "solver_order": _same(2),
            "solver_type": _same("midpoint"),
            "algorithm_type": Supported(("dpmsolver++", "sde-dpmsolver++"), "dpmsolver++"),
            "use_lu_lambdas": _same(False),
        },
        has_karras=True,
    ),
    "UniPCMultistepScheduler": Scheduler(
        "unipc",
        DEFAULTS | LINSPACE,
        THRESHOLDING
        | LEVELS
        | SIGMA_RANGE
        | FINAL_SIGMA
        | {
            "solver_order": _same(2),
            "solver_type": _same("bh2"),
            "predict_x0": _same(True),
            "lower_order_final": _same(True),
            "disable_corrector": _same([]),
            "solver_p": _same(None),
            "shift_terminal": _same(None),
        },
        has_karras=True,
    ),
    "DEISMultistepScheduler": _stand_in("dpmpp_2m", DEFAULTS | LINSPACE),
    "DPMSolverSinglestepScheduler": _stand_in("dpmpp_2m", DEFAULTS | LINSPACE),
    "DPMSolverSDEScheduler": _stand_in("dpmpp_2m_sde", DEFAULTS | LINSPACE | STABLE_DIFFUSION),
    "SASolverScheduler": _stand_in("dpmpp_2m_sde", DEFAULTS | LINSPACE),
    "KDPM2DiscreteScheduler": _stand_in("heun", DEFAULTS | LINSPACE | STABLE_DIFFUSION),
    "KDPM2AncestralDiscreteScheduler": _stand_in("euler_ancestral", DEFAULTS | LINSPACE | STABLE_DIFFUSION),
    # Both begin at the last timestep, as "trailing" does, whatever `timestep_spacing` says.
    "LCMScheduler": _stand_in("euler_ancestral", CONSISTENCY, False, "trailing"),
    "TCDScheduler": _stand_in("ddim", CONSISTENCY, False, "trailing"),
}

OTHER_SCHEDULES = {  # beginning of a class's name -> why its models are none that can be read
    "FlowMatch": "flow matching, whose noise schedule is a straight line",
    "EDM": "noise levels between sigma_min and sigma_max instead of timesteps with betas",
    "CogVideoX": "betas that are shifted to less signal",
    "IPNDM": "a sine instead of betas",
    "CMStochasticIterative": "noise levels between sigma_min and sigma_max instead of timesteps with betas",
}


def check_scheduler(field: str, name, source: str):
    """Raises `InputError` for a class whose noise schedule is none of ours.

    Args:
        field: of the file, that names the class.
        name: of the class.
        source: the file.
    """
    if isinstance(name, str) and name in SCHEDULERS:
        return
    found = [why for start, why in OTHER_SCHEDULES.items() if str(name).startswith(start)]
    why = f", which stands for {found[0]}" if found else ""
    raise InputError(
        f"{source}: {field} is {shown(name)}{why}: only schedulers with betas are supported, which are "
        f"{', '.join(SCHEDULERS)}"
    )


def _check_schedule(config, source):
    flow = config.kept.get("use_flow_sigmas", False)
    if flow is not False:
        raise InputError(
            f"{source}: use_flow_sigmas is {shown(flow)}, but only models of diffusion are supported, not of "
            "flow matching"
        )


SCHEDULE = Kind(
    ScheduleConfig,
    of_diffusers("DDIMScheduler"),
    {"trained_betas": None},
    absent_by_class={name: scheduler.defaults for name, scheduler in SCHEDULERS.items()},
    siblings=tuple(name for name in SCHEDULERS if name != "DDIMScheduler"),
    check=_check_schedule,
)


def class_of(config: ScheduleConfig) -> str:
    """The scheduler's class in diffusers that a model was read with; DDIM's for a new model."""
    return config.kept.get("_class_name", "DDIMScheduler")


def recommended(config: ScheduleConfig) -> dict:
    """The settings of `generate` that come closest to a model's own scheduler.

    Args:
        config: a `ScheduleConfig` that was read from a `scheduler_config.json`.

    Returns:
        "sampler", "timestep_spacing" and "karras", as `sd_tf.generation.settings.Settings` takes them.
    """
    scheduler = SCHEDULERS[class_of(config)]
    sampler = scheduler.sampler
    if sampler == "dpmpp_2m" and str(config.kept.get("algorithm_type")).startswith("sde-"):
        sampler = "dpmpp_2m_sde"
    return {
        "sampler": sampler,
        "timestep_spacing": scheduler.timestep_spacing or config.timestep_spacing,
        "karras": scheduler.has_karras and config.kept.get("use_karras_sigmas") is True,
    }


def thresholding_of(config: ScheduleConfig) -> Thresholding:
    """How a scheduler of diffusers keeps predicted pixels in range.

    Raises:
        InputError: a value of its file is out of range.
    """
    if config.kept.get("thresholding") is not True:
        return Thresholding("static" if config.clip_sample else "none")
    numbers = []
    for name, usual, least, most in (
        ("dynamic_thresholding_ratio", 0.995, 0.0, 1.0),
        ("sample_max_value", 1.0, 1.0, 1e6),
    ):
        value = config.kept.get(name, usual)
        if type(value) not in (int, float) or not least <= value <= most:
            raise InputError(f"{name} is {shown(value)}, expected {least:g} to {most:g}")
        numbers.append(float(value))
    return Thresholding("dynamic", *numbers)


def warn_of_differences(config: ScheduleConfig, source: str, known: tuple[str, ...] = ()):
    """Warns where our sampler draws other pictures than the scheduler of a file.

    Args:
        config: the schedule, read from the file.
        source: the file.
        known: fields that the family draws by, whatever their values.

    Warns:
        UserWarning: another sampler is used, or a field has a value that our sampler does not know.
    """
    scheduler, sampler = SCHEDULERS[class_of(config)], recommended(config)["sampler"]
    found = []
    if not scheduler.is_exact:
        found.append(f"{class_of(config)} is not there, the sampler {sampler!r} is the nearest")
    for name, supported in scheduler.supported.items():
        value = config.kept.get(name, supported.default)
        if name not in known and value not in supported.values:
            usual = supported.values[0]
            found.append(f"{name} is {shown(value)}, the sampler {sampler!r} draws as with {usual!r}")
    if found:
        warnings.warn(f"{source}: pictures differ from those of diffusers: {'; '.join(found)}", stacklevel=2)

"""Samplers with levels of their own take diffusers' steps.

    python -m tests.diffusion.test_sampler_parity

prints the largest differences, in standard deviations of diffusers' latents, for every sampler,
prediction type, spacing and number of steps, and then the orders at which samplers converge. DDIM's and
DDPM's steps are held to diffusers' in `test_samplers` too, more closely.

Where diffusers' scheduler does something else on purpose of ours, it is told to do the same first: PNDM is
given epsilons, also of other models, and in linspace DDIM and PNDM go to the timestep that they visit next.
"""

import itertools
import sys
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest

from sd_tf.diffusion.predictions import to_prediction
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from tests.diffusion.test_samplers import ORDERS, errors_of

SHAPE = (2, 4, 4, 3)
SCHEDULERS = {  # ours: diffusers', and its options
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
WITH_KARRAS = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "unipc")  # of diffusers' schedulers
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
LARGEST = 1e-4


def smooth(x, t, call):
    """A network."""
    return np.tanh(x * np.float32(0.3 + t / 2000)) * np.float32(0.8)


def random(x, t, call):
    """A network that says something else each time it is asked."""
    return np.random.default_rng(call).standard_normal(SHAPE, "float32")


def draw(steps):
    """What both begin with, and the noise that both add."""
    noises = np.random.default_rng(2).standard_normal((steps + 1, *SHAPE), "float32")
    return noises[0], noises[1:]


def of_diffusers(name, config, steps, karras, network):
    """What diffusers' scheduler arrives at, in our coordinates; the timesteps that it asked about."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference of this test")
    torch = pytest.importorskip("torch", reason="diffusers' schedulers run on torch")
    kind, options = SCHEDULERS[name]
    options = options | ({"use_karras_sigmas": True} if karras else {})
    scheduler = getattr(diffusers, kind)(
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        timestep_spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
        # PNDM combines what the network says as it is: see `pndm`.
        prediction_type="epsilon" if name == "pndm" else config.prediction_type,
        **options,
    )
    # In float32 1 - alphas_cumprod loses digits, which shifts latents by up to 6e-4 of their deviation.
    alphas_cumprod = np.maximum(NoiseSchedule(config).alphas_cumprod, 2.0**-24)  # as diffusers' own
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod)
    if not options.get("set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    latents, noises = draw(steps)
    begins, _, *_ = SAMPLERS[name].levels(NoiseSchedule(config), steps, karras)
    in_karras_coordinates = name in ("euler", "euler_ancestral", "heun", "lms")
    x = torch.from_numpy(latents / np.float32(begins.signal if in_karras_coordinates else 1.0))
    timesteps = scheduler.timesteps.tolist()
    for call, t in enumerate(timesteps):
        if name in ("ddim", "pndm") and config.timestep_spacing == "linspace":
            following = sorted({-1, *timesteps}, reverse=True)  # it goes elsewhere: see `samplers`
            scheduler.num_inference_steps = Fraction(1000, t - following[following.index(t) + 1])
            if name == "pndm" and call == 1:
                scheduler.num_inference_steps = Fraction(1000, timesteps[0] - t)
        seen = scheduler.scale_model_input(x, scheduler.timesteps[call]).numpy()
        output = torch.from_numpy(as_epsilon(name, config, network(seen, t, call), seen, t))
        noise = torch.from_numpy(noises[min(call, steps - 1)])
        options = {"variance_noise": noise} if name == "dpmpp_2m_sde" else {}
        drawn = mock.Mock(return_value=noise)
        with mock.patch(f"{type(scheduler).__module__}.randn_tensor", drawn, create=True):
            x = scheduler.step(output, scheduler.timesteps[call], x, **options).prev_sample
    return x.numpy(), timesteps


def as_epsilon(name, config, output, x, t):
    """What PNDM is given."""
    if name != "pndm":
        return output
    level = NoiseSchedule(config).level(int(t))
    return to_prediction(output, x, level.signal, level.noise, config.prediction_type).noise.astype("float32")


def of_ours(name, config, steps, karras, network):
    """Likewise of our sampler."""
    schedule, (latents, noises), asked = NoiseSchedule(config), draw(steps), []

    def denoise(x, level):
        output = network(x.astype("float32"), level.t, len(asked))
        asked.append(level.t)
        return to_prediction(output, x, level.signal, level.noise, config.prediction_type)

    levels = SAMPLERS[name].levels(schedule, steps, karras)
    return SAMPLERS[name].sample(denoise, latents, levels, noises.__getitem__), asked


def difference(name, prediction_type, spacing, steps, karras=False, network=smooth, **changes):
    """The largest between the two, in standard deviations; checks that they ask about the same."""
    config = ScheduleConfig(prediction_type=prediction_type, timestep_spacing=spacing, **changes)
    theirs, expected = of_diffusers(name, config, steps, karras, network)
    ours, asked = of_ours(name, config, steps, karras, network)
    np.testing.assert_allclose(asked, expected, rtol=0, atol=2e-3)
    return float(np.abs(ours - theirs).max() / theirs.std())


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_arrives_where_diffusers_does(name, prediction_type, spacing, karras):
    if karras and name not in WITH_KARRAS:
        pytest.skip("diffusers' scheduler has no such levels")
    if (name, prediction_type) == ("euler_ancestral", "sample"):
        pytest.skip("diffusers' scheduler has no such models")
    # Float32's rounding of x0 over the last sigmas, 0.03, in four epsilons of large weights.
    largest = 5 * LARGEST if (name, prediction_type) == ("lms", "sample") else LARGEST
    for steps, network in itertools.product((5, 20, 50), (smooth, random)):
        assert difference(name, prediction_type, spacing, steps, karras, network) < largest, (steps, network)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_few_steps_too(name, steps):
    assert difference(name, "epsilon", "leading", steps) < LARGEST


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim", "ddpm")])
def test_other_schedules_too(name):
    changes = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps_offset": 0}
    assert difference(name, "v_prediction", "trailing", 10, **changes) < LARGEST


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim", "ddpm", "pndm", "heun")])
def test_from_no_signal_too(name, spacing):
    """But PNDM, which refuses it, and Heun, whose first step of 4,096 sigmas magnifies either's rounding."""
    changes = {"rescale_betas_zero_snr": True}
    assert difference(name, "v_prediction", spacing, 10, **changes) < LARGEST


def main():
    """The table."""
    columns = [
        (*pair, steps) for pair in itertools.product(PREDICTION_TYPES[:2], SPACINGS) for steps in (5, 20, 50)
    ]
    print(f"{'':18}" + "".join(f"{kind[:3] + ' ' + spacing[:5]:>27}" for kind, spacing, _ in columns[::3]))
    print(f"{'steps':18}" + "".join(f"{steps:9}" for *_, steps in columns))
    worst = 0.0
    for name, karras in itertools.product(SAMPLERS, (False, True)):
        if karras and name not in WITH_KARRAS:
            continue
        found = [difference(name, *column, karras) for column in columns]
        worst = max(worst, *found)
        print(
            f"{name + (', karras' if karras else ''):18}" + "".join(f"{value:9.0e}" for value in found),
            flush=True,
        )
    print("\norder on Gaussian data, of 320 and 640 steps (the method's)")
    for name, order in ORDERS.items():
        coarse, fine = errors_of(SAMPLERS[name], 0.5, (320, 640))
        print(f"{name:18}{np.log2(coarse / fine):9.2f} ({order})")
    return worst


if __name__ == "__main__":
    sys.exit(main() > LARGEST)

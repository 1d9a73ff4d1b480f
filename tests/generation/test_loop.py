"""The loop over batches draws for a family that it has never heard of."""

import numpy as np
import pytest

from sd_tf.diffusion.conditions import Condition
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.diffusion.thresholding import dynamic_thresholding
from sd_tf.generation.loop import Plan, batches, draw
from sd_tf.generation.request import Request
from sd_tf.generation.settings import Settings

SHAPE = (6, 6, 3)
SCHEDULE = NoiseSchedule(ScheduleConfig(prediction_type="sample"))


class UpsamplerOfAnotherFamily:
    """Told a pooled text and a low-resolution picture with its level, it draws their mean."""

    def __init__(self):
        self.batches = []

    def __call__(self, latents, timesteps, condition):
        self.batches.append(len(latents))
        assert condition.context is None and condition.low_res_level.shape == (len(latents),)
        assert latents.dtype == np.float32 and timesteps.shape == (len(latents),)
        wanted = 2 * condition.low_res + condition.pooled[:, None, None, :1]
        return np.broadcast_to(wanted, latents.shape)


def condition_of(number):
    low_res = np.full((1, 6, 6, 3), 0.1 * number, "float32")
    return Condition(pooled=np.zeros((1, 4), "float32"), low_res=low_res, low_res_level=np.full(1, 0.2))


def plan_of(request, **changes):
    conditions = [(condition_of(i), condition_of(i)) for i in range(request.number)]
    return Plan(
        conditions,
        lambda places: request.noise(places, 0, SHAPE),
        lambda places, step: request.noise(places, step + 1, SHAPE),
        Settings(steps=4).levels(SCHEDULE),
    )._replace(**changes)


def test_every_part_of_a_condition_reaches_the_network_with_its_picture():
    request, network = Request(["a", "b", "c"]), UpsamplerOfAnotherFamily()
    seen = []
    images = draw(
        network,
        lambda latents: latents,
        SCHEDULE,
        Settings(steps=4, guidance_scale=2.0),
        plan_of(request, finish=lambda latents, places: seen.append(list(places)) or latents),
        batch_size=2,
        progress=False,
    )
    assert network.batches == [4] * 4 + [2] * 4 and seen == [[0, 1], [2]]
    expected = [np.round((0.2 * i + 1) * 127.5) for i in range(3)]
    # The schedule ends with some noise, 3 % of it.
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), expected, atol=3)


def test_wrappers_apply_to_the_guided_denoiser_in_their_order():
    request, order = Request("a"), []

    def wrapper(name, change):
        def wrap(denoise, places, condition):
            assert list(places) == [0] and condition.pooled.shape == (1, 4)
            return lambda x, level: order.append(name) or change(denoise)(x, level)

        return wrap

    wrappers = [wrapper("inner", dynamic_thresholding), wrapper("outer", lambda denoise: denoise)]
    plan = plan_of(request, wrappers=wrappers, conditions=[(condition_of(30), condition_of(30))])
    image = draw(
        UpsamplerOfAnotherFamily(),
        lambda latents: latents,
        SCHEDULE,
        Settings(steps=4),
        plan,
        8,
        progress=False,
    )
    assert order == ["outer", "inner"] * 4
    assert image.mean() == pytest.approx(255, abs=3)  # of 6, thresholded to 1


def test_batches_hold_one_kind_each_and_all_pictures_once():
    kinds = [(1,), (2,), (1,), (1,), (2,)]
    assert [list(each) for each in batches(kinds, 2)] == [[0, 2], [3], [1, 4]]
    assert [list(each) for each in batches(["a"] * 5, 2)] == [[0, 1], [2, 3], [4]]

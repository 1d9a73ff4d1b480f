"""A request is checked once, and its noise belongs to seeds, whatever is drawn and in whichever batch."""

import numpy as np
import pytest

from sd_tf.diffusion.conditions import Condition
from sd_tf.errors import InputError
from sd_tf.generation.checks import check_text
from sd_tf.generation.request import Interpolation, Request


def test_pictures_are_prompt_by_prompt_with_seeds_that_count_up():
    request = Request(["a", "b"], ["x", "y"], num_images=3, seed=5)
    assert request.number == 6
    np.testing.assert_array_equal(request.seeds, [5, 6, 7, 5, 6, 7])
    np.testing.assert_array_equal(request.for_each_picture(np.array([[1], [2]])).ravel(), [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(request.for_each_picture(np.array([[4]])).ravel(), [4] * 6)
    assert (
        Request("a", "x").negative_prompts == ["x"] and Request(["a", "b"], "x").negative_prompts == ["x"] * 2
    )


@pytest.mark.parametrize("shape", [(4, 4, 2), (3, 4, 4, 1), (7,)], ids=["latents", "volumes", "vectors"])
def test_noise_is_a_pictures_own_alone_and_within_a_batch_in_any_number_of_dimensions(shape):
    request = Request(["a", "b"], num_images=3, seed=5)
    together = request.noise(np.arange(6), 2, shape)
    assert together.shape == (6, *shape) and together.dtype == np.float32
    np.testing.assert_array_equal(Request("a", seed=7).noise(np.array([0]), 2, shape)[0], together[2])
    assert np.abs(together - request.noise(np.arange(6), 3, shape)).max() > 0.1


BAD = [
    ({"prompt": 5}, "prompt is 5: give a string or a list of strings"),
    ({"prompt": []}, r"prompt is \[\]: give a string"),
    ({"prompt": ["a", None]}, "the prompt is None: give a string"),
    ({"prompt": " "}, "the prompt is empty"),
    ({"prompt": "a \ud800"}, r"the prompt 'a \\ud800' has characters that are not valid Unicode"),
    ({"negative_prompt": 3}, "negative_prompt is 3"),
    ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ({"num_images": 0}, "num_images is 0: give a whole number from 1 to 1048576"),
    ({"seed": 2**32 - 1, "num_images": 2}, "seed is 4294967295"),
    ({"batch_size": True}, "batch_size is True"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=str)
def test_bad_requests_are_refused_in_one_line_that_names_the_thing(changes, message):
    with pytest.raises(InputError, match=message):
        Request(**{"prompt": "a dress"} | changes)


def test_a_text_may_be_as_long_as_it_is_allowed_to_be():
    check_text("prompt", "x" * 2000, longest=2000)
    check_text("prompt", "x" * 5000)
    with pytest.raises(InputError, match="the prompt has 2001 characters: give 2000 or fewer"):
        check_text("prompt", "x" * 2001, longest=2000)


@pytest.mark.parametrize(
    ("shape", "latents", "message"),
    [
        ((4, 4, 2), np.zeros((1, 4, 4, 2)), r"the shape \(1, 4, 4, 2\): give \(2, height, width, 2\)"),
        ((4, 4, 4, 1), np.zeros((2, 4, 4, 1)), r"give \(2, depth, height, width, 1\), one for each picture"),
        ((4, 4, 2), np.zeros((2, 4, 0, 2)), "the shape"),
        ((4, 4, 2), np.zeros((2, 4, 4, 2), int), "latents are int64"),
        ((4, 4, 2), np.full((2, 4, 4, 2), np.nan), "or not all finite"),
    ],
)
def test_noise_that_does_not_fit_is_named_with_the_axes_of_what_is_drawn(shape, latents, message):
    with pytest.raises(InputError, match=message):
        Request("a", num_images=2).checked_latents(latents, shape)


def test_given_noise_is_copied_and_may_be_of_another_size():
    given = np.ones((1, 6, 8, 2))
    checked = Request("a").checked_latents(given, (4, 4, 2))
    checked[:] = 0
    assert checked.dtype == np.float32 and given.min() == 1


def test_frames_go_from_the_first_prompt_and_seed_to_the_last():
    way = Interpolation(["a", "b", "c"], [1, 2, 3], frames=5)
    context = np.arange(4, dtype="float32").reshape(4, 1, 1)  # of the negative prompt, then a, b and c
    mask = np.array([[True, False, False]] * 2 + [[True, True, False]] * 2)
    found = way.conditions(Condition(context, mask))
    assert [positive.context.item() for _, positive in found] == [1, 1.5, 2, 2.5, 3]
    pooled_alone = way.conditions(Condition(pooled=context[:, 0]))
    assert [positive.pooled.item() for _, positive in pooled_alone] == [1, 1.5, 2, 2.5, 3]
    assert {negative.context.item() for negative, _ in found} == {0}
    np.testing.assert_array_equal(found[1][1].mask, [[True, True, False]])  # of either prompt
    noise = way.noise(np.arange(5), 0, (32, 32, 4))
    for place, seed in ((0, 1), (2, 2), (4, 3)):
        own = Request("a", seed=seed).noise(np.array([0]), 0, (32, 32, 4))[0]
        np.testing.assert_allclose(noise[place], own, atol=1e-6)
    assert noise[1].std() == pytest.approx(1, abs=0.03)


def test_seeds_are_counted_on_given_one_by_one_or_drawn():
    assert Request(["a", "b", "a"], num_images=2, seed=5).seeds.tolist() == [5, 6, 5, 6, 7, 8]
    assert Request(["a", "a"], ["x", "y"], seed=5).seeds.tolist() == [5, 5]
    assert Request(["a", "b"], num_images=2, seed=[9, 3]).seeds.tolist() == [9, 10, 3, 4]
    assert Request(["a", "b"], num_images=2, seed=(1, 2, 3, 4)).seeds.tolist() == [1, 2, 3, 4]
    assert Request("a", num_images=np.int32(2), seed=np.uint32(2**32 - 2)).seeds.tolist() == [
        2**32 - 2,
        2**32 - 1,
    ]
    drawn = [Request("a", num_images=3, seed=None).seeds for _ in range(20)]
    assert all((np.diff(seeds) == 1).all() and seeds[0] >= 0 and seeds[-1] < 2**32 for seeds in drawn)
    assert len({int(seeds[0]) for seeds in drawn}) > 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seed": [1, 2, 3]},
            r"seed has 3 numbers: give one, one for each prompt \(2\), or one for each picture \(4\)",
        ),
        ({"seed": [1, -2]}, "seed is -2"),
        ({"seed": [1, 2**32 - 1]}, "seed is 4294967295"),
        ({"seed": "1"}, "seed is '1': give a whole number"),
        ({"seed": 2**32 - 3, "prompt": ["a", "a"]}, "seed is 4294967293"),
    ],
    ids=str,
)
def test_seeds_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        Request(**{"prompt": ["a", "b"], "num_images": 2} | changes)

"""Drawing for many: each gets what `generate` draws, in turn, within the time, while they wait for it."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from sd_tf.demo.drawing import Drawings, Drawn, Progress
from sd_tf.errors import InputError

SETTINGS = {"prompt": "a dress", "num_images": 1, "steps": 5, "strength": 1.0}


class SlowModel:
    """Takes a while for each step and notes what it does; its pictures show their seed."""

    def __init__(self, seconds=0.05):
        self.seconds, self.steps_done, self.at_once, self.most_at_once = seconds, 0, 0, 0

    def generate(self, prompt, steps, callback, seed=0, **settings):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for step in range(steps):
                time.sleep(self.seconds)
                self.steps_done += 1
                callback(step, None, SimpleNamespace(x0=np.zeros((1, 2, 2, 4))))
            return np.full((1, 2, 2, 3), seed, np.uint8)
        finally:
            self.at_once -= 1

    def decode_latents(self, latents, engine):
        return np.zeros((1, 2, 2, 3), np.uint8)


def test_it_draws_what_generate_draws_and_shows_guesses_on_the_way(tiny_model):
    drawings = Drawings(tiny_model, max_seconds=300, engine="tensorflow")
    settings = {"prompt": "a red dress", "num_images": 2, "steps": 3, "seed": 7, "sampler": "euler"}
    *under_way, drawn = drawings.draw(**settings)
    expected = tiny_model.generate(**settings, engine="tensorflow")
    assert isinstance(drawn, Drawn) and drawn.warnings == []
    assert (drawn.images == expected).all()
    steps = [progress for progress in under_way if progress.steps]
    assert [(progress.step, progress.steps) for progress in steps if progress.guesses is not None][0] == (
        1,
        3,
    )
    assert steps[-1].step == 3
    assert steps[0].guesses.shape == expected.shape and steps[0].guesses.dtype == np.uint8


def test_steps_of_a_part_of_the_way_are_counted(tiny_model):
    drawings = Drawings(tiny_model, max_seconds=300, engine="tensorflow")
    image = np.zeros((16, 16, 3), np.uint8)
    settings = {"prompt": "a bag", "num_images": 1, "steps": 4, "image": image, "strength": 0.5}
    *under_way, drawn = drawings.draw(**settings)
    assert {progress.steps for progress in under_way} <= {0, 2}
    assert (drawn.images == tiny_model.generate(**settings, engine="tensorflow")).all()


def test_what_generate_warns_of_comes_with_the_pictures_each_time(tiny_model):
    drawings = Drawings(tiny_model, max_seconds=300, engine="tensorflow")
    for _ in range(2):
        *_, drawn = drawings.draw(prompt="a (red:1.3 dress", num_images=1, steps=1, strength=1)
        [warning] = drawn.warnings
        assert "is read as text, without weights: the parenthesis of a weight is not closed" in warning


def test_what_generate_refuses_is_raised(tiny_model):
    drawings = Drawings(tiny_model, max_seconds=300, engine="tensorflow")
    with pytest.raises(InputError, match="has the weight 11: give -10 to 10"):
        list(drawings.draw(prompt="a (dress:11)", num_images=1, steps=1, strength=1))
    assert isinstance(list(drawings.draw(**SETTINGS))[-1], Drawn)


def test_drawing_ends_when_the_time_is_up():
    drawings = Drawings(model := SlowModel(), max_seconds=0.2)
    with pytest.raises(InputError, match="drawing took longer than 0.2 seconds, the most here"):
        list(drawings.draw(**SETTINGS | {"steps": 1000}))
    assert model.steps_done < 100
    assert isinstance(list(Drawings(model, 60).draw(**SETTINGS))[-1], Drawn)


def test_who_leaves_stops_their_drawing_and_the_next_one_begins():
    drawings = Drawings(model := SlowModel(), max_seconds=60)
    leaving = drawings.draw(**SETTINGS | {"steps": 1000})
    assert isinstance(next(leaving), Progress)
    leaving.close()
    *_, drawn = drawings.draw(**SETTINGS, seed=3)
    assert (drawn.images == 3).all()
    assert model.steps_done < 100 and model.most_at_once == 1


def test_who_leaves_before_their_turn_takes_none_of_the_time():
    drawings = Drawings(model := SlowModel(), max_seconds=60)
    first = drawings.draw(**SETTINGS | {"steps": 20})
    next(first)
    second = drawings.draw(**SETTINGS | {"steps": 1000})
    assert next(second) == Progress(0, 0, None)
    second.close()
    list(first)
    list(drawings.draw(**SETTINGS))
    assert model.steps_done == 25


def test_twenty_at_once_are_drawn_one_after_the_other_each_their_own():
    drawings = Drawings(model := SlowModel(0.001), max_seconds=60)

    def drawn(seed):
        return list(drawings.draw(**SETTINGS, seed=seed))[-1].images

    with ThreadPoolExecutor(20) as pool:
        images = list(pool.map(drawn, range(20)))
    assert [image.flat[0] for image in images] == list(range(20))
    assert model.most_at_once == 1


def test_closing_stops_what_is_drawn_and_draws_no_more():
    drawings = Drawings(SlowModel(), max_seconds=60)
    drawing = drawings.draw(**SETTINGS | {"steps": 1000})
    next(drawing)
    drawings.close()
    with pytest.raises(InputError, match="the page is being closed"):
        list(drawing)


def test_warnings_are_shown_as_before_once_a_drawing_is_done():
    shown = warnings.showwarning
    list(Drawings(SlowModel(), 60).draw(**SETTINGS))
    assert warnings.showwarning is shown

"""A drawing begins, and goes on, only while somebody reads what becomes of it."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from sd_tf.demo.drawing import Drawn, Progress
from sd_tf.demo.files import Files
from sd_tf.demo.limits import Limits
from sd_tf.demo.listeners import Listeners
from tests.demo.asking import REQUEST


def test_who_does_not_read_or_does_not_come_is_no_listener():
    listeners = Listeners(patience=0.1, stalled=0.1)
    assert not listeners.wait("unexpected")
    listeners.expect("a")
    begun = time.monotonic()
    assert not listeners.wait("a") and 0.05 < time.monotonic() - begun < 1
    assert listeners.is_given_up("a")
    assert listeners.opened("a") and not listeners.opened("a")
    assert listeners.wait("a") and not listeners.is_given_up("a")
    listeners.sending("a", True)
    assert listeners.is_heard("a")
    time.sleep(0.15)
    assert not listeners.is_heard("a")  # it has not taken what it was sent
    listeners.sending("a", False)
    assert listeners.is_heard("a")
    listeners.closed("a")
    assert not listeners.is_heard("a") and not listeners.is_given_up("a")  # it may come back at once


class Drawings:
    """Says how far it is as often as it is asked, and notes that."""

    def __init__(self, steps):
        self.steps, self.done = steps, 0

    def draw(self, **settings):
        for step in range(1, self.steps + 1):
            self.done = step
            yield Progress(step, self.steps, None)
        yield Drawn(np.zeros((1, 2, 2, 3), np.uint8), [], 1.0)


@pytest.fixture
def drawn(tmp_path):
    """A function that draws for session "a": what the page is told."""
    pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
    from sd_tf.demo.actions import Actions

    def draw(drawings, listeners):
        files = Files(tmp_path)
        actions = Actions("tiny", drawings, Limits(), (2, 2), files, files, listeners)
        return actions.draw(*REQUEST.values(), SimpleNamespace(session_hash="a"))

    return draw


def test_nothing_is_drawn_for_nobody(drawn):
    listeners = Listeners(patience=0.1)
    listeners.expect("a")
    assert list(drawn(drawings := Drawings(5), listeners)) == [] and drawings.done == 0


def test_a_drawing_ends_when_nobody_listens_any_more(drawn):
    listeners = Listeners()
    listeners.opened("a")
    drawing = drawn(drawings := Drawings(1000), listeners)
    next(drawing)
    listeners.closed("a")
    assert list(drawing) == [] and drawings.done == 2


def test_slow_readers_get_the_pictures_without_all_that_was_said_on_the_way(drawn):
    listeners = Listeners(waiting=lambda session: 11)
    listeners.opened("a")
    [told] = drawn(Drawings(1000), listeners)
    assert len(told.gallery) == 1

"""Drawing for many: one request at a time, with guesses on the way, until it is done or nobody waits."""

import queue
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import sd_tf
from sd_tf.errors import InputError

REPORT_SECONDS = 0.1  # between two reports of progress at least, but for the last
PREVIEW_SECONDS = 0.3  # between two guesses
PREVIEW_SHARE = 0.2  # of the time, which guesses may take
BATCH = 64  # pictures at once
PACKAGE = Path(sd_tf.__file__).parent


class Progress(NamedTuple):
    """How far a drawing is.

    Attributes:
        step, steps: done, and of how many; both 0 before the first, as while another drawing ends.
        guesses: what the pictures would be if it ended here, uint8 (n, height, width, 3); None for none
    """

    step: int
    steps: int
    guesses: np.ndarray | None


class Drawn(NamedTuple):
    """What came of a drawing.

    Attributes:
        images: uint8 (n, height, width, 3).
        warnings: what is to be said about the request, a line each.
        seconds: what it took.
    """

    images: np.ndarray
    warnings: list[str]
    seconds: float


class _Left(Exception):
    """Nobody waits for the drawing any more."""


class Drawings:
    """Draws with one model for whoever asks, one after the other.

    Args:
        model: a `LatentDiffusion`.
        max_seconds: that one drawing may take.
        engine: of `generate`.
    """

    def __init__(self, model, max_seconds: float, engine: str = "auto"):
        self._model, self._max_seconds, self._engine = model, max_seconds, engine
        self._turn, self._closed = threading.Lock(), threading.Event()

    def draw(self, **settings) -> Iterator[Progress | Drawn]:
        """Draws, in a thread of its own, and says at least twice a second how far it is.

        A generator that is closed stops its drawing after the step that it is in; it does not wait for it.

        Args:
            settings: of `generate`.

        Yields:
            `Progress` as it goes, then one `Drawn`.

        Raises:
            InputError: `generate` refuses a setting, or the time is up.
        """
        happened, left = queue.SimpleQueue(), threading.Event()
        thread = threading.Thread(target=self._work, args=(happened, left, settings), daemon=True)
        thread.start()
        progress = Progress(0, 0, None)
        try:
            while not isinstance(progress, Drawn):
                try:
                    progress = happened.get(timeout=0.5)
                except queue.Empty:
                    progress = progress._replace(guesses=None)
                if isinstance(progress, Exception):
                    raise progress
                yield progress
        finally:
            left.set()

    def stop(self):
        """Draws no more, and ends what is drawn after its step."""
        self._closed.set()

    def close(self, seconds: float = 30.0):
        """Stops, and waits until that is done."""
        self.stop()
        self._turn.acquire(timeout=seconds)

    def _work(self, happened, left, settings):
        try:
            with self._turn, warnings.catch_warnings(record=True) as caught:  # of the process, hence in turn
                warnings.simplefilter("always", UserWarning)
                begun = time.monotonic()
                self._check_wanted(left)
                images = self._model.generate(
                    **settings,
                    batch_size=BATCH,
                    engine=self._engine,
                    callback=self._after_step(happened, left, begun, settings),
                    progress=False,
                )
                seconds = time.monotonic() - begun
            happened.put(Drawn(images, [str(each.message) for each in caught if _is_ours(each)], seconds))
        except Exception as error:
            happened.put(error)

    def _check_wanted(self, left):
        if left.is_set():
            raise _Left
        if self._closed.is_set():
            raise InputError("the page is being closed: nothing is drawn any more")

    def _after_step(self, happened, left, begun, settings):
        """The callback of `generate`."""
        share = settings["strength"] if "image" in settings else 1
        steps = int(settings["steps"] * share) * -(-settings["num_images"] // BATCH)
        done, next_report, next_guess = 0, begun, begun

        def after_step(step, latents, prediction):
            nonlocal done, next_report, next_guess
            now, done = time.monotonic(), done + 1
            self._check_wanted(left)
            if now - begun > self._max_seconds:
                raise InputError(
                    f"drawing took longer than {self._max_seconds:g} seconds, the most here: "
                    "take fewer steps or pictures"
                )
            if now < next_report and done < steps:
                return
            guesses, next_report = None, now + REPORT_SECONDS
            if now >= next_guess and done < steps:
                # All of them, as in the end: engines compile for every number of pictures.
                guesses = self._model.decode_latents(np.asarray(prediction.x0), self._engine)
                cost = time.monotonic() - now
                next_guess = time.monotonic() + max(PREVIEW_SECONDS, cost / PREVIEW_SHARE - cost)
            happened.put(Progress(done, steps, guesses))

        return after_step


def _is_ours(warning):
    return issubclass(warning.category, UserWarning) and Path(warning.filename).is_relative_to(PACKAGE)

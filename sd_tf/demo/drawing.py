"""Draws for many users, one request at a time, with previews, until it is done or nobody waits any more."""

import queue
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import sd_tf
from sd_tf.diffusion.editing import number_of_walks
from sd_tf.errors import InputError

REPORT_SECONDS = 0.1  # the least time between two reports of progress, except before the last
PREVIEW_SECONDS = 0.3  # the least time between two previews
PREVIEW_SHARE = 0.2  # the most that previews may take of the time
BATCH = 64  # the most pictures at once
PACKAGE = Path(sd_tf.__file__).parent


class Progress(NamedTuple):
    """How far a drawing is.

    Attributes:
        step, steps: the steps done and their total; both 0 before the first, and while another drawing ends.
        guesses: the network's present guess, uint8 (n, height, width, 3); None for no preview.
    """

    step: int
    steps: int
    guesses: np.ndarray | None


class Drawn(NamedTuple):
    """A finished drawing.

    Attributes:
        images: uint8 (n, height, width, 3).
        warnings: about the request, one line each.
        seconds: how long it took.
    """

    images: np.ndarray
    warnings: list[str]
    seconds: float


class _Left(Exception):
    """Raised inside a drawing when nobody waits for it any more."""


class Drawings:
    """Draws with one model, one request after the other.

    Args:
        model: of any family that draws from text.
        max_seconds: the longest that one drawing may take.
        engine: as the model's `generate` takes it.
        batch_size: the most pictures at once.
    """

    def __init__(self, model, max_seconds: float, engine: str = "auto", batch_size: int = BATCH):
        self._model, self._max_seconds, self._engine = model, max_seconds, engine
        self._batch_size = batch_size
        self._turn, self._closed = threading.Lock(), threading.Event()

    @property
    def resamples(self) -> int:
        """How often each step is drawn with a mask."""
        return self._model.recommended.resamples

    def draw(self, **settings) -> Iterator[Progress | Drawn]:
        """Draws in a thread of its own and reports progress at least twice a second.

        Closing the generator stops its drawing after the present step, without waiting for it.

        Args:
            settings: arguments of the model's `generate`.

        Yields:
            `Progress` during the drawing, then one `Drawn`.

        Raises:
            InputError: `generate` refuses a setting, or the drawing takes too long.
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
        """Refuses new drawings, and stops the present one after its step."""
        self._closed.set()

    def close(self, seconds: float = 30.0):
        """Stops, and waits for the present drawing to end, at most so many seconds."""
        self.stop()
        self._turn.acquire(timeout=seconds)

    def _work(self, happened, left, settings):
        try:
            with (
                self._turn,
                warnings.catch_warnings(record=True) as caught,
            ):  # for the whole process, hence one at a time
                warnings.simplefilter("always", UserWarning)
                begun = time.monotonic()
                self._check_wanted(left)
                images = self._model.generate(
                    **settings,
                    batch_size=self._batch_size,
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
            raise InputError("the page is being closed: no more drawings are started")

    def _after_step(self, happened, left, begun, settings):
        """The callback of `generate`."""
        share = settings["strength"] if "image" in settings else 1
        stages = [(int(settings["steps"] * share), settings.get("resamples"))]
        # Of a cascade, those that enlarge what the first stage has drawn.
        stages += [(later.steps, later.resamples) for later in getattr(self._model, "later_settings", ())]
        if "mask" in settings:
            stages = [(number_of_walks(*each), None) for each in stages]
        steps = sum(number for number, _ in stages) * -(-settings["num_images"] // self._batch_size)
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
                # All pictures, as at the end: an engine compiles once for each number of pictures.
                guesses = self._model.decode_latents(np.asarray(prediction.x0), self._engine)
                cost = time.monotonic() - now
                next_guess = time.monotonic() + max(PREVIEW_SECONDS, cost / PREVIEW_SHARE - cost)
            happened.put(Progress(done, steps, guesses))

        return after_step


def _is_ours(warning):
    return issubclass(warning.category, UserWarning) and Path(warning.filename).is_relative_to(PACKAGE)

"""The states of captions, computed once: the text encoder is frozen while a denoiser trains.

A cache is a folder named by a hash of everything its contents depend on. It is read row by row, so that
memory does not grow with the number of captions.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sd_tf.data.rows import append_rows
from sd_tf.data.staging import finished_folder
from sd_tf.errors import InputError, argument, shown
from sd_tf.files import CannotWrite, open_array, read_json, reason, remove_folder


class TextCache:
    """A finished cache.

    Args:
        folder: of the cache.
        captions: those that it was made of, in their order.

    Attributes:
        states: float16 (captions + 1, tokens, width); the last row is the empty caption.
        mask: bool (captions + 1, tokens), True at tokens of the caption and False at padding.
        seconds: how long it took to compute, which counts towards the run's budget.

    Raises:
        InputError: it is damaged. It lies in a run's folder, which may come from a stranger.
    """

    def __init__(self, folder: Path, captions: Sequence[str]):
        self.states, self.mask = (
            open_array(folder / f"{name}.npy", folder.parent) for name in ("states", "mask")
        )
        self.seconds = read_json(folder / "cache.json", folder.parent).get("seconds")
        number, tokens = len(captions) + 1, self.states.shape[1:2]
        if self.states.dtype != np.float16 or self.states.ndim != 3 or len(self.states) != number:
            raise InputError(f"{folder / 'states.npy'} has the shape {self.states.shape}, which no cache has")
        if self.mask.dtype != bool or self.mask.shape != (number, *tokens):
            raise InputError(f"{folder / 'mask.npy'} has the shape {self.mask.shape}, which no cache has")
        seconds = self.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
            raise InputError(f"{folder / 'cache.json'} has the seconds {shown(seconds)}, expected a number")
        self._rows = {caption: row for row, caption in enumerate(captions)}

    def rows_of(self, captions: Sequence[str]) -> np.ndarray:
        """The rows of some captions, int64 (n,)."""
        return np.array([self._rows[caption] for caption in captions], np.int64)


def text_cache(
    folder, key: str, captions: Sequence[str], encode: Callable, batch_size=64, progress=None
) -> TextCache:
    """Opens the cache of `key`, or computes it.

    Args:
        folder: of all caches.
        key: of this one, from `fingerprint`.
        captions: distinct ones.
        encode: list of n captions -> (states, float (n, tokens, width), and mask, bool (n, tokens)).
        batch_size: captions encoded at once.
        progress: called as `progress(done, total)`.

    Raises:
        InputError: the folder cannot be written.
    """
    final = Path(folder) / key
    if os.path.lexists(final):
        try:
            return TextCache(final, captions)
        except InputError as error:
            warnings.warn(f"{error}; the cache is made again", stacklevel=2)
            remove_folder(final)
    began = time.monotonic()
    try:
        with finished_folder(final) as new:
            _write(new, [*captions, ""], encode, batch_size, progress)
            (new / "cache.json").write_text(json.dumps({"seconds": time.monotonic() - began}))
    except OSError as error:
        raise _cannot_write(final, reason(error)) from None
    except CannotWrite as error:
        raise _cannot_write(final, error.why) from None
    return TextCache(final, captions)


def _write(folder, texts, encode, batch_size, progress):
    for start in range(0, len(texts), batch_size):
        states, mask = encode(texts[start : start + batch_size])
        append_rows(folder / "states.npy", np.asarray(states, np.float16))
        append_rows(folder / "mask.npy", np.asarray(mask, bool))
        if progress is not None:
            progress(min(start + batch_size, len(texts)), len(texts))


def _cannot_write(final, why):
    return InputError(
        f"cannot write the cache {final} ({why}): make room, or name another {argument('cache_dir')}"
    )

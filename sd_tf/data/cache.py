"""Latents and caption embeddings, computed once: both networks are frozen while the denoiser trains.

A cache is a folder named by a hash of everything its contents depend on. It holds, for each cached
picture, the mean and the standard deviation of its latents (so that each epoch draws fresh ones) and the
number of its caption, and the embedding of each different caption. They are written as they are encoded and
read row by row, so that memory does not grow with the number of pictures.
"""

import contextlib
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np

from sd_tf.data.rows import append_rows
from sd_tf.data.staging import finished_folder
from sd_tf.errors import InputError, argument, shown
from sd_tf.files import CannotWrite, open_array, read_json, reason, remove_folder


class LatentCache:
    """A finished cache.

    Attributes:
        mean, std: float16 (examples, h, w, channels), of the scaled latents.
        caption: int32 (examples,), rows of `contexts`.
        contexts: float16 (captions, tokens, width), or what else captions were encoded as; the last row
            is the empty caption.
        seconds: how long it took to compute, which counts towards the run's budget.

    Raises:
        InputError: it is damaged. It lies in a run's folder, which may come from a stranger.
    """

    def __init__(self, folder: Path):
        self.mean, self.std, self.caption, self.contexts = (
            open_array(folder / f"{name}.npy", folder.parent)
            for name in ("mean", "std", "caption", "contexts")
        )
        self.seconds = read_json(folder / "cache.json", folder.parent).get("seconds")
        self._check(folder)

    def _check(self, folder):
        """Checks that its parts fit together."""
        if self.caption.dtype != np.int32 or self.caption.ndim != 1:
            raise InputError(f"{folder / 'caption.npy'} is {_described(self.caption)}, expected int32 (n,)")
        for name, rank in (("mean", (4,)), ("std", (4,)), ("contexts", (2, 3))):
            found = getattr(self, name)
            kinds = (np.float16, np.int32, np.int64) if name == "contexts" else (np.float16,)
            if found.ndim not in rank or found.dtype not in kinds or 0 in found.shape:
                raise InputError(f"{folder / name}.npy is {_described(found)}, which no cache holds")
        if not self.mean.shape == self.std.shape == (len(self.caption), *self.mean.shape[1:]):
            raise InputError(
                f"{folder} has mean of {self.mean.shape}, std of {self.std.shape} and {len(self.caption)} "
                "captions, which do not go together"
            )
        if not 0 <= self.caption.min() <= self.caption.max() < len(self.contexts):
            raise InputError(f"{folder / 'caption.npy'} has rows that contexts.npy has not")
        seconds = self.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
            raise InputError(f"{folder / 'cache.json'} has the seconds {shown(seconds)}, expected a number")

    def __len__(self):
        return len(self.caption)


def _described(array):
    return f"{array.dtype} {array.shape}"


def latent_cache(
    folder,
    key,
    dataset,
    encode_images,
    encode_captions,
    num_examples,
    max_seconds=None,
    batch_size=256,
    progress=None,
    at_least=1,
) -> LatentCache:
    """Opens the cache of `key`, or computes it.

    Args:
        folder: of all caches.
        key: of this one, from `fingerprint`.
        dataset: a `CaptionedImages`, cached epoch by epoch, so that a picture has several captions.
        encode_images: uint8 (n, size, size, 3) -> (mean, std), each (n, h, w, channels).
        encode_captions: list of n strings -> float (n, tokens, width), or token ids, int (n, tokens).
        num_examples: pictures to cache at most. They are taken in a shuffled order, so that a part
            of an epoch is a fair sample.
        max_seconds: stop after so long with what is done by then, and its captions; None for no limit.
        batch_size: pictures, or captions, encoded at once.
        progress: called as `progress(done, total)`.
        at_least: pictures that are cached however long they take.

    Raises:
        InputError: the folder cannot be written.
    """
    final = Path(folder) / key
    if os.path.lexists(final):
        try:
            return LatentCache(final)
        except InputError as error:
            warnings.warn(f"{error}; the cache is made again", stacklevel=2)
            remove_folder(final)
    began, done = time.monotonic(), 0
    try:
        with finished_folder(final) as new:
            writer = _Writer(new, encode_images, encode_captions, batch_size)
            for indices, epoch in _batches(len(dataset), num_examples, batch_size):
                is_late = max_seconds is not None and time.monotonic() - began >= max_seconds
                if is_late and done >= at_least:
                    break
                writer.add(dataset.examples(indices, epoch))
                done += len(indices)
                if progress is not None:
                    progress(done, num_examples)
            writer.finish(began)
    except CannotWrite as error:
        raise InputError(
            f"cannot write the cache {final} ({error.why}): make room, or name another "
            f"{argument('cache_dir')}"
        ) from None
    return LatentCache(final)


def _batches(size, num_examples, batch_size):
    """(indices, epoch) of the examples of one epoch after another, each in a shuffled order of its own."""
    done = 0
    while done < num_examples:
        epoch, start = divmod(done, size)
        if start == 0:
            order = np.random.default_rng([epoch, size]).permutation(size)
        indices = order[start : start + min(batch_size, num_examples - done)]
        yield indices, epoch
        done += len(indices)


class _Writer:
    """Encodes examples into the files of a cache; see `latent_cache` for the arguments.

    Raises:
        CannotWrite: a file cannot be written.
    """

    def __init__(self, folder, encode_images, encode_captions, batch_size):
        self._folder, self._encode_images, self._encode_captions = folder, encode_images, encode_captions
        self._batch_size = batch_size
        self._rows, self._waiting = {}, []  # caption -> its row of contexts; captions still to be encoded

    def add(self, examples):
        """Appends the latents of some examples, and the contexts of captions once they fill a batch."""
        mean, std = self._encode_images(examples.images)
        for caption in examples.captions:
            if caption not in self._rows:
                self._rows[caption] = len(self._rows)
                self._waiting.append(caption)
        captions = np.array([self._rows[caption] for caption in examples.captions], np.int32)
        self._write(mean=np.asarray(mean, np.float16), std=np.asarray(std, np.float16), caption=captions)
        while len(self._waiting) >= self._batch_size:
            self._write(contexts=self._encode_captions(self._waiting[: self._batch_size]))
            self._waiting = self._waiting[self._batch_size :]

    def finish(self, began):
        """Appends the contexts of the other captions and of the empty one, and the seconds since `began`."""
        self._write(contexts=self._encode_captions([*self._waiting, ""]))
        with self._writing():
            content = json.dumps({"seconds": time.monotonic() - began})
            (self._folder / "cache.json").write_text(content)

    def _write(self, **arrays):
        with self._writing():
            for name, rows in arrays.items():
                rows = rows.astype(np.float16) if rows.dtype.kind == "f" else rows
                append_rows(self._folder / f"{name}.npy", rows)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise CannotWrite(self._folder, reason(error)) from None

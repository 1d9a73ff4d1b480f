"""The states of a run's captions, which a frozen text encoder computes once."""

import contextlib

import numpy as np

from sd_tf.data.text_cache import text_cache
from sd_tf.hashing import fingerprint
from sd_tf.progress import tqdm

ENCODED_AT_ONCE = 64  # captions


class ShapesOnly:
    """A stand-in for a `TextCache`: only its shapes matter."""

    def __init__(self, tokens, width):
        self.states, self.seconds = np.zeros((1, tokens, width), np.float16), 0.0
        self.mask = np.ones((1, tokens), bool)

    def rows_of(self, captions):
        return np.zeros(len(captions), np.int64)


def cached_texts(run, encoder):
    """The `TextCache` of a run's captions; the chief makes it if it is missing.

    Args:
        run: the `Run`.
        encoder: the model's `TextEncoder`.
    """
    captions = run.dataset.distinct_captions
    key = fingerprint("texts", encoder.fingerprint, captions)
    if not run.workers.is_chief:
        run.workers.wait()  # the chief makes it
    with contextlib.closing(
        tqdm(total=len(captions) + 1, desc="captions    ", disable=not run.shows_progress, leave=False)
    ) as bar:

        def encode(texts):
            encoded = encoder.encode(*encoder.tokenize(texts))
            return encoded.states, encoded.mask

        def progress(done, total):
            bar.update(done - bar.n)

        cache = text_cache(run.cache_folder, key, captions, encode, ENCODED_AT_ONCE, progress)
    if run.workers.is_chief:
        run.workers.wait()
    return cache

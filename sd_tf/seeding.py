"""Random numbers that belong to a picture, not to its place in a batch; and networks' initial weights."""

import contextlib
import random
import threading
from collections.abc import Sequence

import numpy as np

_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int):
    """Networks that are built within the block have initial weights that follow from the seed alone.

    Keras draws the seeds of its initializers from Python's `random`, whose state is as before afterwards.
    Blocks in several threads wait for each other.
    """
    with _ONE_AT_A_TIME:
        before = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before)


def uniforms(key: Sequence[int], indices: Sequence[int], count: int) -> np.ndarray:
    """Random numbers that belong to an index, not to a place in a batch.

    A hash of (key, index, column) by the finaliser of SplitMix64 (Steele, Lea and Flood 2014), for
    any set of indices at once.

    Args:
        key: integers that name the stream, such as (seed, epoch).
        indices: non-negative integers (n,).
        count: numbers for each index.

    Returns:
        float64 (n, count), uniform in [0, 1).
    """
    rows = _mix(state_of(key) + (np.asarray(indices, np.uint64) + np.uint64(1)) * GOLDEN)  # (n,)
    columns = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return (_mix(rows[:, None] + columns) >> np.uint64(11)) * 2.0**-53


def state_of(key: Sequence[int]) -> np.ndarray:
    """What the numbers of a stream are hashed with, uint64 (1,)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state + np.uint64(int(part) & (2**64 - 1)) + GOLDEN)
    return state


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # (shift, what to multiply by)


def _mix(state):
    for shift, factor in MIXERS:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state


def normals(key: Sequence[int], indices: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Standard normal numbers by the transform of Box and Muller (1958).

    Args:
        key: integers that name the stream.
        indices: non-negative integers (n,); row i depends on `key` and `indices[i]` alone.
        shape: of one row.

    Returns:
        float32 (n, *shape).
    """
    count = int(np.prod(shape))
    half = (count + 1) // 2
    uniform = uniforms(key, indices, 2 * half)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, :half]))  # 1 - u is never 0
    angle = 2.0 * np.pi * uniform[:, half:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs[:, :count].reshape(-1, *shape).astype(np.float32)

"""From a captioned data set to an endless stream of batches that can resume at any step."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from sd_tf.errors import InputError


class Examples(NamedTuple):
    """Captioned pictures of one request, in the order of its indices."""

    images: np.ndarray  # uint8 (n, size, size, 3)
    captions: list[str]
    groups: np.ndarray  # int32 (n,); equal for examples whose captions mean the same


class CaptionedImages(Protocol):
    """What every captioned data set offers."""

    name: str
    image_size: int  # pixels along a side
    fingerprint: str  # short hex digest of everything that pictures and captions depend on
    preview_prompts: tuple[str, ...]  # captions, in plain text, that show what a model has learned
    distinct_epochs: int | None  # after so many epochs examples repeat exactly; None if they never do

    def __len__(self) -> int:
        """Pictures in one epoch."""
        ...

    def corpus(self) -> tuple[str, ...]:
        """All captions that there can be; a tokenizer learns its vocabulary from them."""
        ...

    @property
    def distinct_captions(self) -> tuple[str, ...]:
        """Every caption that `examples` can have, sorted."""
        ...

    def examples(self, indices: Sequence[int], epoch: int) -> Examples:
        """The pictures `indices` of an epoch, with captions: a pure function of (seed, epoch, index)."""
        ...


def pictures_at_once(most: int, image_size: int) -> int:
    """How many pictures take the memory that `most` pictures of 32 x 32 take; at least one."""
    return max(1, most * 32**2 // image_size**2)


def fair_sample(dataset: CaptionedImages, number: int) -> np.ndarray:
    """Indices of some pictures from all over a data set, whatever the order in which it has them.

    A folder has all pictures of a class behind each other, and of drawn garments every tenth is of the same
    class. So neither the first pictures nor every nth are like the whole.

    Args:
        dataset: any captioned pictures.
        number: of pictures; all where there are no more.

    Returns:
        int64 (number,) or fewer, sorted and distinct; the same in every process.
    """
    return np.sort(_permutation(len(dataset), 0, 0)[:number])


def stream(
    fetch: Callable[[np.ndarray, int], dict[str, np.ndarray]],
    num_examples: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Endless shuffled batches; batch k is a pure function of (seed, k).

    Every epoch visits each example once, in an order of its own. The epochs are laid end to end and
    cut into batches, so a batch may straddle two epochs and none is ever short. A run that stopped
    after k batches sees, with `first_step=k`, what it would have seen without the stop.

    Args:
        fetch: `fetch(indices, epoch)` -> arrays of b rows each, for int64 indices (b,). It is called
            from several threads. Row shapes and dtypes must not vary between calls.
        num_examples: examples in one epoch.
        batch_size: rows of every batch.
        seed: a non-negative integer.
        first_step: the number of the first batch.
        part: (i, n): the ith of n equal parts of each batch, rows that follow each other; n divides
            `batch_size`.

    Returns:
        A dataset of dictionaries with `fetch`'s keys, each value (batch_size / n, ...), static in shape. It,
        a dataset made of it or an iterator must be kept for as long as batches are wanted; a graph alone that
        reads it does not, and gets an error.

    Raises:
        InputError: for a `num_examples` or `batch_size` below 1, a `seed` or `first_step` below 0.
    """
    _check_limits(
        num_examples=(num_examples, 1), batch_size=(batch_size, 1), seed=(seed, 0), first_step=(first_step, 0)
    )

    def batch(step):
        number, of = part
        parts, missing = [], batch_size // of
        position = int(step) * batch_size + number * missing
        while missing:
            epoch, start = divmod(position, num_examples)
            indices = _permutation(num_examples, seed, epoch)[start : start + missing]
            parts.append(fetch(indices, epoch))
            position, missing = position + len(indices), missing - len(indices)
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    one = fetch(_permutation(num_examples, seed, 0)[:1], 0)  # a whole batch may be too large for a dry run
    rows = {key: tf.convert_to_tensor(value) for key, value in one.items()}
    specs = {
        key: tf.TensorSpec((batch_size // part[1], *row.shape[1:]), row.dtype) for key, row in rows.items()
    }
    held = [batch]

    def arrays_of(step):  # TensorFlow never lets go of this function, which so lets go of `fetch`
        for each in tuple(held):
            return list(each(step).values())
        raise StopIteration  # nobody waits for what was to be prefetched

    def load(step):
        arrays = tf.numpy_function(arrays_of, [step], [spec.dtype for spec in specs.values()])
        return {
            key: tf.ensure_shape(array, spec.shape)
            for (key, spec), array in zip(specs.items(), arrays, strict=True)
        }

    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max)
    batches = steps.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    weakref.finalize(batches, held.clear).atexit = False
    batches = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return batches.prefetch(tf.data.AUTOTUNE)


def _check_limits(**values_and_limits):
    for name, (value, least) in values_and_limits.items():
        if value < least:
            raise InputError(f"{name} is {value}: give an integer of {least} or more.")


@functools.lru_cache(maxsize=4)
def _permutation(num_examples, seed, epoch):
    """int64 (num_examples,). Sorts raw bits, the one stream that numpy promises never to change."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)  # the cache hands the same array to every thread
    return order


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float pictures of any shape in [-1, 1] -> uint8, rounded; values beyond the range are clipped."""
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)

"""`Condition`: all conditioning inputs of a denoiser, in one object for every kind of network.

Guidance, samplers, predictions and losses pass it on to `network(latents, timesteps, condition)`. Only the
network, or its family's adapter, reads its parts.
"""

from typing import Any, NamedTuple

import numpy as np

from sd_tf.diffusion.arrays import operations
from sd_tf.errors import InputError

TEXT_PARTS = ("context", "mask", "pooled")


class Condition(NamedTuple):
    """The conditioning inputs of a batch. A part is None where the network does not take it.

    Parts are numpy arrays or tensors of Keras' backend. As a named tuple, a condition can be an argument of
    a `tf.function`, an element of a `tf.data.Dataset`, and a structure for `tf.nest`.

    Attributes:
        context: the text encoder's output for each token, for cross-attention, float (batch, tokens, width).
        mask: bool (batch, tokens), True at tokens of the caption and False at padding.
        pooled: pooled embedding of the caption, float (batch, width).
        low_res: the picture to upsample, float (batch, height, width, channels) in [-1, 1] (cascaded
            diffusion, Ho et al. 2022).
        low_res_level: the noise level of `low_res`, (batch,) (noise conditioning augmentation).
        guidance: the guidance scale, an input of guidance-distilled networks, float (batch,) (Meng et al.
            2023).
    """

    context: Any = None
    mask: Any = None
    pooled: Any = None
    low_res: Any = None
    low_res_level: Any = None
    guidance: Any = None

    @property
    def batch_size(self):
        """The number of rows: an int, or a scalar tensor in a graph with an unknown batch size."""
        part = next(part for part in self if part is not None)
        size = part.shape[0]
        return operations(part).shape(part)[0] if size is None else size

    def map(self, function) -> "Condition":
        """Applies `function` to each part that is not None."""
        return _map(function, self)

    def rows(self, places) -> "Condition":
        """The rows at `places`, a slice or int (n,), as a condition of n rows."""

        def rows_of(part):
            if isinstance(places, slice) or isinstance(part, np.ndarray):
                return part[places]
            return operations(part).take(part, places, axis=0)

        return self.map(rows_of)

    def repeat(self, number: int) -> "Condition":
        """Repeats each row `number` times, one after another."""
        return self.map(lambda part: operations(part).repeat(part, number, axis=0))

    def split(self, number: int) -> list["Condition"]:
        """Splits the rows into `number` conditions of equal size, in order."""
        sections = self.map(lambda part: operations(part).split(part, number))
        return [sections.map(lambda parts, i=i: parts[i]) for i in range(number)]


def concatenate(conditions) -> Condition:
    """Concatenates the rows of conditions, in order.

    Raises:
        InputError: a part is missing in some of them, or has another shape than in the first.
    """
    first, *others = conditions
    for other in others:
        check_same_parts(first, other)
    if not others:
        return first
    return _map(lambda *parts: operations(parts[0]).concatenate(parts), *conditions)


def drop_captions(condition: Condition, empty: Condition, dropped) -> Condition:
    """Replaces some rows' captions by the empty caption (Ho & Salimans 2022, algorithm 1).

    Args:
        condition: the condition of a batch.
        empty: one row: the text encoder's output for "". Its parts are cast to the condition's dtypes.
        dropped: bool (batch,), True for rows whose caption is dropped.

    Returns:
        A `Condition` of the same shapes and dtypes. Parts other than `TEXT_PARTS` are unchanged.

    Raises:
        InputError: `empty` lacks a text part of the condition, or its tokens or width differ.
    """
    text = Condition(**{name: getattr(condition, name) for name in TEXT_PARTS})
    empty = Condition(**{name: getattr(empty, name) for name in TEXT_PARTS})
    check_same_parts(text, empty)

    def replaced(part, empty_part):
        ops = operations(part)
        rows = ops.reshape(dropped, (-1,) + (1,) * (len(part.shape) - 1))
        return ops.where(rows, ops.cast(empty_part, part.dtype), part)

    found = _map(replaced, text, empty)
    return condition._replace(**{name: getattr(found, name) for name in TEXT_PARTS})


def check_same_parts(first: Condition, second: Condition, names=("one condition", "another")):
    """Raises `InputError` if two conditions have different parts, or parts of different shapes per row.

    Args:
        first, second: the conditions.
        names: their names in the error message.
    """
    for name, one, other in zip(Condition._fields, first, second, strict=True):
        if (one is None) != (other is None):
            has, lacks = names if other is None else names[::-1]
            raise InputError(f"{has} has {name}, {lacks} has none: give both the same parts")
        if one is not None and not _fits(one.shape[1:], other.shape[1:]):
            shapes = " and ".join(f"{tuple(part.shape)}" for part in (one, other))
            raise InputError(
                f"{name} has the shapes {shapes} in {names[0]} and {names[1]}: encode both by the same text "
                "encoder, to the same number of tokens"
            )


def _fits(one, other):
    """Whether two shapes may be equal; sizes that are unknown in a graph are None."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in pairs)


def _map(function, *conditions):
    """Applies `function` to each part that is not None, of all conditions at once."""
    parts = zip(*conditions, strict=True)
    return Condition(*(None if each[0] is None else function(*each) for each in parts))

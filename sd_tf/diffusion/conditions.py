"""What a denoiser is told beside the noisy latents and their timestep: one object for every kind of network.

Guidance, samplers, predictions and losses pass a `Condition` on to `network(latents, timesteps, condition)`.
Only the network, or its family's adapter, looks into it.
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
        context: states of the caption's tokens for cross-attention, float (batch, tokens, width).
        mask: bool (batch, tokens), True at tokens of the caption and False at padding.
        pooled: one vector for the caption, float (batch, width).
        low_res: the picture to upsample, float (batch, height, width, channels) in [-1, 1] (the cascade of
            Ho et al. 2022).
        low_res_level: the level of noise in `low_res`, (batch,) (noise conditioning augmentation).
        guidance: the guidance scale that a distilled network is told, float (batch,) (Meng et al. 2023).
    """

    context: Any = None
    mask: Any = None
    pooled: Any = None
    low_res: Any = None
    low_res_level: Any = None
    guidance: Any = None

    @property
    def batch_size(self):
        """The number of rows: an int, or a scalar tensor inside a graph that does not know it."""
        part = next(part for part in self if part is not None)
        size = part.shape[0]
        return operations(part).shape(part)[0] if size is None else size

    def map(self, function) -> "Condition":
        """`function` of each part that is not None."""
        return _map(function, self)

    def rows(self, places) -> "Condition":
        """The rows at `places`, a slice or int (n,), as a condition of n rows."""

        def of(part):
            if isinstance(places, slice) or isinstance(part, np.ndarray):
                return part[places]
            return operations(part).take(part, places, axis=0)

        return self.map(of)

    def repeat(self, number: int) -> "Condition":
        """Each row `number` times, in its place."""
        return self.map(lambda part: operations(part).repeat(part, number, axis=0))

    def split(self, number: int) -> list["Condition"]:
        """`number` conditions of equally many rows, in their order."""
        sections = self.map(lambda part: operations(part).split(part, number))
        return [sections.map(lambda parts, i=i: parts[i]) for i in range(number)]


def concatenate(conditions) -> Condition:
    """One condition of all rows, in their order.

    Raises:
        InputError: a part is missing in some of them, or is of another shape than in the first.
    """
    first, *others = conditions
    for other in others:
        check_same_parts(first, other)
    if not others:
        return first
    return _map(lambda *parts: operations(parts[0]).concatenate(parts), *conditions)


def drop_captions(condition: Condition, empty: Condition, dropped) -> Condition:
    """Replaces the text of some rows by the empty caption's (Ho & Salimans 2022, algorithm 1).

    Args:
        condition: of a batch.
        empty: one row: the text encoder's output for "". Its parts are cast to the dtype of the condition's.
        dropped: bool (batch,), which rows are to be without their caption.

    Returns:
        A condition like the one given. Parts other than `TEXT_PARTS` stay as they are.

    Raises:
        InputError: `empty` lacks a text part of the condition, or its tokens or width differ.
    """
    text = Condition(**{name: getattr(condition, name) for name in TEXT_PARTS})
    empty = Condition(**{name: getattr(empty, name) for name in TEXT_PARTS})
    check_same_parts(text, empty)

    def replaced(part, of_empty):
        ops = operations(part)
        rows = ops.reshape(dropped, (-1,) + (1,) * (len(part.shape) - 1))
        return ops.where(rows, ops.cast(of_empty, part.dtype), part)

    found = _map(replaced, text, empty)
    return condition._replace(**{name: getattr(found, name) for name in TEXT_PARTS})


def check_same_parts(first: Condition, second: Condition, names=("one condition", "another")):
    """Raises `InputError` where two conditions differ in their parts, or these in the shape of a row.

    Args:
        names: what the two are called in the message.
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
    """Whether two shapes may be the same; in a graph a size can be unknown."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in pairs)


def _map(function, *conditions):
    """`function` of each part that is not None, of all conditions."""
    parts = zip(*conditions, strict=True)
    return Condition(*(None if each[0] is None else function(*each) for each in parts))

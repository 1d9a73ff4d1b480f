"""Prompts as people type them: words that weigh more, and more words than a text tower reads at once.

"a (red:1.3) dress" gives the states of "red" 1.3 times their size; weights within others multiply, and a
backslash makes a parenthesis one of the text. The states of a prompt with weights are then rescaled to
the mean that they had, as the community's web interfaces do (diffusers' `lpw_stable_diffusion`).

A prompt longer than the tower is cut into parts of the tower's length, each of which it reads alone, and
the UNet attends to the states of all of them.
"""

import math
import re
import warnings
from typing import NamedTuple

import numpy as np

from sd_tf.errors import InputError, shown

# A backslash and what it protects; the end of a weighted part; a parenthesis; text.
MARKS = re.compile(r"\\([()\\])|:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)|([()])|[^\\:()]+|.", re.DOTALL)
LARGEST_WEIGHT = 10.0
MOST_PARTS = 8  # of the tower's length each
LEAST_MEAN = 0.1  # of states with weights, as a share of the mean that they had: they are divided by it


class Part(NamedTuple):
    """Some words of a prompt, and what they weigh."""

    text: str
    weight: float


def parts_of(prompt: str) -> list[Part]:
    """The parts of a prompt that weigh the same.

    A parenthesis that closes without a weight is text. So is a whole prompt whose weights stand in
    parentheses that do not match, with a warning.

    Raises:
        InputError: a weight above 10, or below -10.
    """
    opened = [[]]  # the parts of the prompt, of the parenthesis in it, of the one in that
    for mark in MARKS.finditer(prompt):
        protected, weight, parenthesis = mark.groups()
        if parenthesis == "(":
            opened.append([Part("(", 1.0)])
        elif weight is not None and len(opened) > 1:
            weight = _checked(float(weight), prompt)
            _, *inside = opened.pop()
            opened[-1] += [Part(text, weight * own) for text, own in inside]
        elif weight is not None:
            return _literally(prompt, f"{mark[0]!r} closes a parenthesis that is not open")
        elif parenthesis == ")" and len(opened) > 1:
            inside = opened.pop()
            opened[-1] += [*inside, Part(")", 1.0)]
        else:
            opened[-1].append(Part(protected or mark[0], 1.0))
    if len(opened) > 1 and any(re.search(r":\s*[-+.\d]", part.text) for part in _joined(opened[-1])):
        return _literally(prompt, "the parenthesis of a weight is not closed")
    return _joined(part for parts in opened for part in parts)


def _literally(prompt, reason):
    warnings.warn(f"prompt {shown(prompt)} is taken as it stands: {reason}", stacklevel=2)
    return [Part(prompt, 1.0)]


def _checked(weight, prompt):
    if abs(weight) > LARGEST_WEIGHT:
        raise InputError(
            f"prompt {shown(prompt)} has the weight {weight:g}: "
            f"give {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        )
    return weight


def _joined(parts):
    """With neighbours of one weight in one."""
    found = []
    for text, weight in parts:
        if found and found[-1].weight == weight:
            found[-1] = Part(found[-1].text + text, weight)
        else:
            found.append(Part(text, weight))
    return found


def encoded(groups, tokenizer, encode) -> list[np.ndarray]:
    """What a UNet attends to.

    Args:
        groups: lists of prompts; those of one group are given the same number of tokens.
        tokenizer: a `Tokenizer`.
        encode: the text tower, token ids int32 (n, tokens) -> states (n, tokens, width).

    Returns:
        For each group float32 (prompts of the group, tokens, width), tokens a multiple of the tower's.

    Raises:
        InputError: a weight is too large, or weights cancel.

    Warns:
        UserWarning: weights are taken as text, or a prompt is longer than eight towers.
    """
    room, rows, weights, numbers = tokenizer.max_length - 2, [], [], []
    for prompts in groups:
        read = [_read(prompt, tokenizer) for prompt in prompts]
        number = max(1, *(math.ceil(len(ids) / room) for ids, _ in read))
        numbers.append(number)
        for ids, of_ids in read:
            for first in range(0, number * room, room):
                rows.append(tokenizer.row(ids[first : first + room]))
                of_row = np.ones(tokenizer.max_length, "float32")
                of_row[1 : 1 + len(of_ids[first : first + room])] = of_ids[first : first + room]
                weights.append(of_row)
    states, weights = np.asarray(encode(np.stack(rows)), "float32"), np.stack(weights)
    found, first = [], 0
    for prompts, number in zip(groups, numbers, strict=True):
        end = first + len(prompts) * number
        own = states[first:end].reshape(len(prompts), -1, states.shape[-1])
        of_own = weights[first:end].reshape(len(prompts), -1)
        found.append(np.stack([_weighed(*each) for each in zip(own, of_own, prompts, strict=True)]))
        first = end
    return found


def _read(prompt, tokenizer):
    """Token ids of a prompt, and the weight of each."""
    parts = parts_of(prompt)
    ids = [tokenizer.ids(text) for text, _ in parts]
    weights = [weight for (_, weight), own in zip(parts, ids, strict=True) for _ in own]
    ids, most = [each for own in ids for each in own], MOST_PARTS * (tokenizer.max_length - 2)
    if len(ids) > most:
        warnings.warn(
            f"prompt {shown(prompt, 200)} has {len(ids)} tokens: the last {len(ids) - most} are cut off",
            stacklevel=2,
        )
    return ids[:most], weights[:most]


def _weighed(states, weights, prompt):
    if (weights == 1).all():
        return states
    weighed = states * weights[:, np.newaxis]
    before, after = (float(each.mean(dtype="float64")) for each in (states, weighed))
    if not before or after / before < LEAST_MEAN:
        raise InputError(
            f"the weights in prompt {shown(prompt)} cancel: little is left of it, change one of them"
        )
    return weighed * np.float32(before / after)

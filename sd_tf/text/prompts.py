"""Prompts as people type them: weights for words, and more words than CLIP's text tower reads at once.

"a (red:1.3) dress" multiplies the states of "red" by 1.3. Weights inside each other multiply, and a backslash
before a parenthesis makes it part of the text. The states of a prompt with weights are then rescaled to their
former mean, as the community's web interfaces do (diffusers' `lpw_stable_diffusion`).

A prompt longer than the tower is cut into rows of the tower's length. The tower reads each row by itself, and
the UNet attends to the states of all of them.
"""

import math
import re
import warnings
from typing import NamedTuple

import numpy as np

from sd_tf.diffusion.conditions import Condition
from sd_tf.errors import InputError, shown

# A backslash and what it protects; the end of a weighted part; a parenthesis; text.
MARKS = re.compile(r"\\([()\\])|:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)|([()])|[^\\:()]+|.", re.DOTALL)
LARGEST_WEIGHT = 10.0
MOST_PARTS = 8  # rows of the tower's length
LEAST_MEAN = 0.1  # the mean of weighted states as a share of the former one, by which they are divided


class Part(NamedTuple):
    """Some words of a prompt, and their weight."""

    text: str
    weight: float


def parts_of(prompt: str) -> list[Part]:
    """Cuts a prompt into parts of one weight each.

    Parentheses without a weight are text. A prompt with weights whose parentheses do not match is text as a
    whole, with a warning.

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
            return _as_text(prompt, f"{mark[0]!r} closes a parenthesis that is not open")
        elif parenthesis == ")" and len(opened) > 1:
            inside = opened.pop()
            opened[-1] += [*inside, Part(")", 1.0)]
        else:
            opened[-1].append(Part(protected or mark[0], 1.0))
    if len(opened) > 1 and any(re.search(r":\s*[-+.\d]", part.text) for part in _joined(opened[-1])):
        return _as_text(prompt, "the parenthesis of a weight is not closed")
    return _joined(part for parts in opened for part in parts)


def _as_text(prompt, reason):
    warnings.warn(f"prompt {shown(prompt)} is read as text, without weights: {reason}", stacklevel=2)
    return [Part(prompt, 1.0)]


def _checked(weight, prompt):
    if abs(weight) > LARGEST_WEIGHT:
        raise InputError(
            f"prompt {shown(prompt)} has the weight {weight:g}: "
            f"give {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        )
    return weight


def _joined(parts):
    """The same parts, neighbours of equal weight merged."""
    found = []
    for text, weight in parts:
        if found and found[-1].weight == weight:
            found[-1] = Part(found[-1].text + text, weight)
        else:
            found.append(Part(text, weight))
    return found


def encode_prompts(groups, encoder, batch_size: int) -> list[Condition]:
    """Prompts with weights, of any length, to what a UNet attends to.

    Args:
        groups: lists of prompts. All prompts of a group get the same number of tokens.
        encoder: a `CLIPTextEncoder`.
        batch_size: the most rows of `encoder.length` tokens that are encoded at once, which bounds memory.

    Returns:
        For each group a `Condition` of its prompts: context float32 (prompts, tokens, width) and mask, tokens
        being a multiple of `encoder.length`.

    Raises:
        InputError: a weight is too large, or weights cancel.

    Warns:
        UserWarning: weights are taken as text, or a prompt is longer than eight rows.
    """
    found = [_group_rows(prompts, encoder.tokenizer) for prompts in groups]
    ids, mask, weights = (np.concatenate(each) for each in zip(*found, strict=True))
    starts = range(0, len(ids), batch_size)
    chunks = [encoder.encode(ids[i : i + batch_size], mask[i : i + batch_size]).states for i in starts]
    states = np.concatenate([np.asarray(chunk, "float32") for chunk in chunks])  # (rows, length, width)
    conditions, first = [], 0
    for prompts, (of_group, _, _) in zip(groups, found, strict=True):
        rows = slice(first, first + len(of_group))
        first = rows.stop
        own = [each[rows].reshape(len(prompts), -1, *each.shape[2:]) for each in (states, weights, mask)]
        context = np.stack([_weighted(*each) for each in zip(*own[:2], prompts, strict=True)])
        conditions.append(Condition(context, own[2]))
    return conditions


def _group_rows(prompts, tokenizer):
    """Rows of a group of prompts, equally many for each: (ids, mask, weights), each (rows, length)."""
    room = tokenizer.max_length - 2  # beside the start and the end of a row
    read = [_read(prompt, tokenizer) for prompt in prompts]
    number = max(1, *(math.ceil(len(ids) / room) for ids, _ in read))
    rows, lengths = [], []
    weights = np.ones((len(prompts) * number, tokenizer.max_length), "float32")
    for ids, of_ids in read:
        for first in range(0, number * room, room):
            own = ids[first : first + room]
            weights[len(rows), 1 : 1 + len(own)] = of_ids[first : first + room]
            rows.append(tokenizer.row(own))
            lengths.append(len(own) + 2)
    return np.stack(rows), np.arange(tokenizer.max_length) < np.array(lengths)[:, np.newaxis], weights


def _read(prompt, tokenizer):
    """The token ids of a prompt and the weight of each, cut to what is read."""
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


def _weighted(states, weights, prompt):
    if (weights == 1).all():
        return states
    weighted = states * weights[:, np.newaxis]
    before, after = (float(each.mean(dtype="float64")) for each in (states, weighted))
    if not before or after / before < LEAST_MEAN:
        raise InputError(f"the weights in prompt {shown(prompt)} cancel each other: change one of them")
    return weighted * np.float32(before / after)

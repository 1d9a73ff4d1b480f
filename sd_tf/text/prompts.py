"""Prompts as people type them: weights for words, and more words than CLIP's text tower reads at once.

A prompt longer than the tower is cut into rows of the tower's length. The tower reads each row by itself, and
the UNet attends to the states of all of them. What weights do, and where rows end, is in
`sd_tf.text.prompt_syntax`. An encoder that reads one row only, such as T5, gets the beginning of the prompt.
"""

import itertools
import re
import warnings

import numpy as np

from sd_tf.diffusion.conditions import Condition
from sd_tf.errors import InputError, shown
from sd_tf.text.encoder import CLIP_ROWS
from sd_tf.text.prompt_syntax import parts_of

MOST_PARTS = CLIP_ROWS  # rows of the tower's length
LEAST_LEFT = 0.1  # the magnitude of weighted states as a share of the former one, by which they are divided
COMMA_BACKTRACK = 20  # tokens: a1111 ends a row at its last comma, if that is as near
LONGEST_WORD = 8  # tokens: comfyui lets a longer word go on in the next row


def encode_prompts(groups, encoder, batch_size: int, syntax: str = "weights") -> list[Condition]:
    """Prompts with weights, of any length, to what a UNet attends to.

    Args:
        groups: lists of prompts. All prompts of a group get the same number of tokens.
        encoder: a `TextEncoder`.
        batch_size: the most rows of `encoder.length` tokens that are encoded at once, which bounds memory.
        syntax: one of `sd_tf.text.prompt_syntax.SYNTAXES`.

    Returns:
        For each group a `Condition` of its prompts: context float32 (prompts, tokens, width) and mask, tokens
        being a multiple of `encoder.length`.

    Raises:
        InputError: a weight is too large, or weights cancel.

    Warns:
        UserWarning: weights are taken as text, or a prompt is longer than the rows that the encoder reads:
            eight of CLIP, one of T5 and BERT.
    """
    found = [_group_rows(prompts, encoder, syntax) for prompts in groups]
    if syntax == "comfyui":  # which weighs from the states of the empty prompt
        found.append(_group_rows([""], encoder, syntax))
    ids, mask, weights = (np.concatenate(each) for each in zip(*found, strict=True))
    starts = range(0, len(ids), batch_size)
    chunks = [encoder.encode(ids[i : i + batch_size], mask[i : i + batch_size]).states for i in starts]
    states = np.concatenate([np.asarray(chunk, "float32") for chunk in chunks])  # (rows, length, width)
    empty = states[-1] if syntax == "comfyui" else None
    conditions, first = [], 0
    for prompts, (of_group, _, _) in zip(groups, found, strict=False):
        rows = slice(first, first + len(of_group))
        first = rows.stop
        own = [each[rows].reshape(len(prompts), -1, *each.shape[1:]) for each in (states, weights, mask)]
        context = np.stack(
            [_weighted(*each, syntax, empty, encoder) for each in zip(*own[:2], prompts, strict=True)]
        )
        conditions.append(Condition(context, own[2].reshape(len(prompts), -1)))
    return conditions


def _group_rows(prompts, encoder, syntax):
    """Rows of a group of prompts, equally many for each: (ids, mask, weights), each (rows, length)."""
    tokenizer = encoder.tokenizer
    read = [_read(prompt, encoder, syntax) for prompt in prompts]
    number = max(map(len, read))
    rows = [row for own in read for row in (*own, *([[]] * (number - len(own))))]
    weights = np.ones((len(rows), tokenizer.max_length), "float32")
    for of_row, row in zip(weights, rows, strict=True):
        of_row[tokenizer.first : tokenizer.first + len(row)] = [weight for _, weight in row]
    ids = np.stack([tokenizer.row([token for token, _ in row]) for row in rows])
    around = tokenizer.max_length - tokenizer.room  # tokens that begin and end a row
    lengths = np.array([[len(row) + around] for row in rows])
    return ids, np.arange(tokenizer.max_length) < lengths, weights


def _read(prompt, encoder, syntax):
    """Rows of a prompt, one at least: lists of (token id, weight); cut to what is read."""
    # Where a prompt has one row, a syntax cannot begin another.
    rows_of = _ROWS[syntax] if encoder.most_rows > 1 else _full_rows
    rows = rows_of(parts_of(prompt, syntax), encoder.tokenizer, encoder.tokenizer.room) or [[]]
    if len(rows) > encoder.most_rows:
        numbers = [sum(map(len, some)) for some in (rows, rows[encoder.most_rows :])]
        warnings.warn(
            f"prompt {shown(prompt, 200)} has {numbers[0]} tokens: the last {numbers[1]} are cut off",
            stacklevel=2,
        )
    return rows[: encoder.most_rows]


def _full_rows(parts, tokenizer, room):
    """One row after another, each full but the last."""
    tokens = [(token, weight) for text, weight in parts if text for token in tokenizer.ids(text)]
    return [tokens[i : i + room] for i in range(0, len(tokens), room)]


def _rows_of_a1111(parts, tokenizer, room):
    """Rows end at a BREAK, at the last comma if it is near, and before a word of several tokens."""
    rows, comma = [[]], -1  # comma: the length of the row up to its last comma
    of_comma = next(iter(tokenizer.ids(",")), None)

    def next_row(tokens=()):
        nonlocal comma
        rows.append(list(tokens))
        comma = -1

    for text, weight in parts:
        if text is None:
            next_row()
            continue
        for word in _words_of_several(tokenizer.ids(text), tokenizer):
            if len(word) > 1:
                if len(rows[-1]) + len(word) > room:
                    next_row()
            elif word[0] == of_comma:
                comma = len(rows[-1]) + 1
            elif len(rows[-1]) == room and comma != -1 and room - (comma - 1) <= COMMA_BACKTRACK:
                moved, rows[-1] = rows[-1][comma:], rows[-1][:comma]
                next_row(moved)
            if len(rows[-1]) == room:
                next_row()
            rows[-1] += [(token, weight) for token in word]
    return rows


def _rows_of_comfyui(parts, tokenizer, room):
    """Words stay whole: one that does not fit begins the next row, unless it is long."""
    rows = [[]]
    for text, weight in parts:
        for word in filter(None, re.split(r"[ \n]", text)):
            tokens = [(token, weight) for token in tokenizer.ids(word)]
            is_long = len(tokens) >= LONGEST_WORD
            while tokens:
                left = room - len(rows[-1])
                if left and (is_long or len(tokens) <= left):
                    rows[-1] += tokens[:left]
                    tokens = tokens[left:]
                else:
                    rows.append([])
    return rows


_ROWS = {"weights": _full_rows, "a1111": _rows_of_a1111, "comfyui": _rows_of_comfyui}


def _words_of_several(ids, tokenizer):
    """Token ids, those of a word of several tokens together."""
    ids = iter(ids)
    for token in ids:
        yield [token, *itertools.islice(ids, len(tokenizer.continued.get(token, (token,))) - 1)]


def _weighted(states, weights, prompt, syntax, empty, encoder):
    """The states of a prompt, (rows, length, width), as its weights make them, (rows x length, width)."""
    weights, is_plain = weights[..., np.newaxis], (weights == 1).all()
    if is_plain:
        found = states
    elif syntax == "comfyui":
        found = empty + weights * (states - empty)
    elif syntax == "a1111":
        found = np.stack([_rescaled(*each, prompt, encoder) for each in zip(states, weights, strict=True)])
    else:
        found = _rescaled(states, weights, prompt, encoder)
    return found.reshape(-1, states.shape[-1])


def _rescaled(states, weights, prompt, encoder):
    """States times weights, with their former magnitude."""
    if (weights == 1).all():
        return states
    weighted = states * weights
    before, after = encoder.magnitude(states), encoder.magnitude(weighted)
    if not before or after / before < LEAST_LEFT:
        raise InputError(f"the weights in prompt {shown(prompt)} cancel each other: change one of them")
    return weighted * np.float32(before / after)

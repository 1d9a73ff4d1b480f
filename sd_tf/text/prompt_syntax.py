"""What parentheses in a prompt mean: weights alone, as in AUTOMATIC1111's web interface, or as in ComfyUI.

                             weights               a1111                 comfyui
    (x)                      text                  1.1                   1.1
    [x]                      text                  1 / 1.1               text
    (x:1.3)                  1.3                   1.3                   1.3
    ((x:1.3):2)              2.6                   2.6                   1.3: the innermost number counts
    BREAK                    text                  begins a new row      text
    states of such tokens    times the weight,     the same, row by row  that far from those of the
                             then all rescaled                           empty prompt
                             to their mean

In all of them a backslash makes a parenthesis text, and in `a1111` a bracket too. Rows are the parts that a
prompt longer than the text encoder is read in. T5 and BERT read one row, in which BREAK is a space; their
states keep their root mean square, as their mean is about 0.

References: AUTOMATIC1111/stable-diffusion-webui, `modules/prompt_parser.py` and `modules/sd_hijack_clip.py`;
comfyanonymous/ComfyUI, `comfy/sd1_clip.py`.
"""

import re
import warnings
from typing import NamedTuple

from sd_tf.errors import InputError, shown

SYNTAXES = ("weights", "a1111", "comfyui")
LARGEST_WEIGHT = 10.0
STEP = 1.1  # what a parenthesis without a weight multiplies by
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
# A backslash and what it protects; the end of a weighted part; a parenthesis; text.
MARKS = re.compile(rf"\\([()\\])|:\s*({NUMBER})\s*\)|([()])|[^\\:()]+|.", re.DOTALL)
MARKS_OF_A1111 = re.compile(rf"\\([()\[\]\\])|:\s*({NUMBER})\s*\)|([()\[\]])|[^\\:()\[\]]+|.", re.DOTALL)
LORA = re.compile(rf"\s*<lora:([^<>:]+)(?::\s*({NUMBER})\s*)?>")
TAG = re.compile(r"<((?:lora|lyco|hypernet):[^<>]*>)")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
PROTECTED = {  # by a backslash, which in ComfyUI is text before anything but a parenthesis
    "weights": re.compile(r"[()\\]"),
    "a1111": re.compile(r"[()\[\]\\]"),
    "comfyui": re.compile(r"[()]"),
}


class Part(NamedTuple):
    """Some words of a prompt, and their weight.

    Attributes:
        text: the words; None for a break, after which a new row begins.
        weight: 1 for words without one.
    """

    text: str | None
    weight: float


NEW_ROW = Part(None, 1.0)


def parts_of(prompt: str, syntax: str = "weights") -> list[Part]:
    """Cuts a prompt into parts of one weight each.

    What does not match is text, with a warning: in "weights" the whole prompt, in the others what their own
    interfaces make of it.

    Args:
        prompt: as it was typed.
        syntax: one of `SYNTAXES`.

    Raises:
        InputError: a weight above 10, or below -10.
    """
    return _PARSERS[syntax](prompt)


def without_loras(prompts: list[str]) -> tuple[list[str], dict[str, float]]:
    """Prompts of a1111 without "<lora:name:0.7>", and name -> weight; a name without a weight has 1.

    Other tags are text, with a warning.

    Raises:
        InputError: two prompts give a LoRA different weights: a model has one at a time.
    """
    found = [
        {name.strip(): float(weight or 1) for name, weight in LORA.findall(prompt)} for prompt in prompts
    ]
    for prompt, weights in zip(prompts, found, strict=True):
        if weights != found[0]:
            raise InputError(
                f"prompt {shown(prompt)} has other LoRAs than {shown(prompts[0])}: draw them one by one"
            )
    without = [LORA.sub("", prompt) for prompt in prompts]
    for prompt in without:
        if tag := TAG.search(prompt):
            _warn(prompt, f"{tag[0]} is read as text: LoRAs are written <lora:name:0.7>")
    return without, found[0]


def text_of(prompt: str, syntax: str = "weights") -> str:
    """The words of a prompt, without weights."""
    return "".join(" " if part.text is None else part.text for part in parts_of(prompt, syntax))


def prompt_of(text: str, syntax: str = "weights") -> str:
    r"""The prompt that draws a plain text, such as a caption: `a \(red:1.3\) dress`; undoes `text_of`.

    In "a1111" nothing protects BREAK and "<lora:": these become `break` and `< lora:`, in which CLIP reads
    the same tokens.

    Args:
        text: any.
        syntax: one of `SYNTAXES`.
    """
    prompt = PROTECTED[syntax].sub(r"\\\g<0>", text)
    return TAG.sub(r"< \1", re.sub(r"\bBREAK\b", "break", prompt)) if syntax == "a1111" else prompt


def _weights(prompt):
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


def _a1111(prompt):
    parts, opened = [], {"(": [], "[": []}  # of each that is open: the number of parts before it

    def multiply(first, weight):
        parts[first:] = [part._replace(weight=part.weight * weight) for part in parts[first:]]

    for mark in MARKS_OF_A1111.finditer(prompt):
        protected, weight, parenthesis = mark.groups()
        if parenthesis in opened:
            opened[parenthesis].append(len(parts))
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), float(weight))
        elif parenthesis == ")" and opened["("]:
            multiply(opened["("].pop(), STEP)
        elif parenthesis == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / STEP)
        elif protected:
            parts.append(Part(protected, 1.0))
        else:
            first, *others = BREAK.split(mark[0])
            parts.append(Part(first, 1.0))
            for text in others:
                parts += [NEW_ROW, Part(text, 1.0)]
    for parenthesis, weight in (("(", STEP), ("[", 1 / STEP)):
        for first in opened[parenthesis]:
            _warn(prompt, f"{parenthesis!r} is not closed, and holds to the end")
            multiply(first, weight)
    for part in parts:
        _checked(part.weight, prompt)
    return _joined(part if part.text is not None else NEW_ROW for part in parts)


def _comfyui(prompt):
    protected = prompt.replace(r"\(", "\0\1").replace(r"\)", "\0\2")
    if protected.count("(") != protected.count(")"):
        _warn(prompt, "its parentheses do not match, and some of them are text")
    found = _of_comfyui(protected, 1.0, prompt)
    return _joined(Part(text.replace("\0\1", "(").replace("\0\2", ")"), weight) for text, weight in found)


def _of_comfyui(text, weight, prompt):
    for part in _by_outer_parentheses(text):
        if not (part.startswith("(") and part.endswith(")") and len(part) > 1):
            yield part, weight
            continue
        inside, own = part[1:-1], weight * STEP
        before, colon, said = inside.rpartition(":")
        if before and re.fullmatch(rf"\s*{NUMBER}\s*", said):
            inside, own = before, float(said)
        yield from _of_comfyui(inside, _checked(own, prompt), prompt)


def _by_outer_parentheses(text):
    """Parts outside of all parentheses, and those in one with them."""
    part, depth = "", 0
    for letter in text:
        if letter == "(" and depth == 0:
            yield part
            part = ""
        depth += {"(": 1, ")": -1}.get(letter, 0)
        part += letter
        if letter == ")" and depth == 0:
            yield part
            part = ""
    yield part


_PARSERS = {"weights": _weights, "a1111": _a1111, "comfyui": _comfyui}


def _as_text(prompt, reason):
    warnings.warn(f"prompt {shown(prompt)} is read as text, without weights: {reason}", stacklevel=2)
    return [Part(prompt, 1.0)]


def _warn(prompt, reason):
    warnings.warn(f"prompt {shown(prompt)}: {reason}", stacklevel=2)


def _checked(weight, prompt):
    if abs(weight) > LARGEST_WEIGHT:
        raise InputError(
            f"prompt {shown(prompt)} has the weight {weight:g}: "
            f"give {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        )
    return weight


def _joined(parts):
    """The same parts, neighbours of equal weight merged, none empty."""
    found = []
    for part in parts:
        if part.text == "":
            continue
        if found and None not in (part.text, found[-1].text) and found[-1].weight == part.weight:
            found[-1] = Part(found[-1].text + part.text, part.weight)
        else:
            found.append(part)
    return found

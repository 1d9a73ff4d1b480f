"""Captions of garments: a small grammar that writes them, and its reading back.

Classes, colours and patterns are indices into `CLASS_NAMES`, `COLOUR_NAMES` and `PATTERN_NAMES`
everywhere; None stands for a caption that names no colour, or no pattern. The first word of every
list below is the canonical one and is drawn with probability `CANONICAL`; the others share the rest.
"""

import functools
import itertools
import re
from collections.abc import Sequence

GRAMMAR_VERSION = 1  # part of every data set's fingerprint: raise it with any change to this file
CANONICAL = 0.4

# In the order of the Fashion-MNIST labels. A word belongs to one class only, so that `parse` is exact.
NOUNS = {
    "t-shirt": ("t-shirt", "tee", "tee shirt"),
    "trouser": ("trouser", "trousers", "pants", "slacks"),
    "pullover": ("pullover", "sweater", "jumper"),
    "dress": ("dress", "gown", "frock"),
    "coat": ("coat", "jacket", "overcoat"),
    "sandal": ("sandal", "sandals", "heels", "flip-flop"),
    "shirt": ("shirt", "blouse", "collared shirt"),
    "sneaker": ("sneaker", "sneakers", "trainers", "running shoe"),
    "bag": ("bag", "handbag", "purse", "tote"),
    "ankle boot": ("ankle boot", "boot", "boots", "ankle boots"),
}
COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "navy", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
}
PATTERNS = {"striped": ("striped", "stripy"), "dotted": ("dotted", "polka-dot")}

# {thing} is the noun with its pattern and, where the template has no {colour} of its own, its colour;
# {a thing} is the same behind its article. The first is the plain caption.
TEMPLATES = (
    "{a thing}",
    "{thing}",
    "a photo of {a thing}",
    "a picture of {a thing}",
    "{a thing} on a black background",
)
COLOUR_TEMPLATES = TEMPLATES + ("{thing} in {colour}", "{a thing} in {colour}", "{a thing}, {colour}")

CLASS_NAMES = tuple(NOUNS)
COLOUR_NAMES = tuple(COLOURS)
PATTERN_NAMES = tuple(PATTERNS)
PALETTE = (  # red, green, blue, 0...255, in the order of COLOUR_NAMES
    (255, 0, 0),
    (255, 128, 0),
    (255, 255, 0),
    (0, 160, 0),
    (0, 0, 255),
    (128, 0, 200),
    (255, 105, 180),
    (139, 69, 19),
)

PREVIEW_PROMPTS = (
    "a red dress",
    "a blue bag",
    "a t-shirt",
    "a green pullover",
    "an ankle boot",
    "a pink shirt",
)

_PLURALS = frozenset(
    ("trousers", "pants", "slacks", "sandals", "heels", "sneakers", "trainers", "boots", "ankle boots")
)
_WORDS = {
    "class": tuple(NOUNS.values()),
    "colour": tuple(COLOURS.values()),
    "pattern": tuple(PATTERNS.values()),
}


def caption(label: int, colour: int | None, numbers: Sequence[float], pattern: int | None = None) -> str:
    """One caption, chosen by four numbers.

    Args:
        label: the garment, an index into `CLASS_NAMES`.
        colour: an index into `COLOUR_NAMES`, or None.
        numbers: four floats in [0, 1), which choose the template, the noun, the colour word and
            the pattern word. Uniform numbers draw the canonical word of each with probability 0.4.
        pattern: an index into `PATTERN_NAMES`, or None.

    Returns:
        A lower-case caption such as "a photo of a navy striped gown".
    """
    template = _draw(TEMPLATES if colour is None else COLOUR_TEMPLATES, numbers[0])
    noun = _draw(_WORDS["class"][label], numbers[1])
    colour_word = "" if colour is None else _draw(_WORDS["colour"][colour], numbers[2])
    pattern_word = "" if pattern is None else _draw(_WORDS["pattern"][pattern], numbers[3])
    return _write(template, noun, colour_word, pattern_word)


@functools.cache
def corpus(patterns: bool = False) -> tuple[str, ...]:
    """Every caption the grammar can write, sorted and distinct.

    Args:
        patterns: whether captions may name a pattern. Without (Fashion-MNIST), there are about
            5,000 captions; with (drawn garments), five times as many.
    """
    pattern_words = ("",) + (tuple(itertools.chain(*_WORDS["pattern"])) if patterns else ())
    colour_words = ("",) + tuple(itertools.chain(*_WORDS["colour"]))
    nouns = itertools.chain(*_WORDS["class"])
    captions = {
        _write(template, noun, colour, pattern)
        for noun, colour, pattern in itertools.product(nouns, colour_words, pattern_words)
        for template in (COLOUR_TEMPLATES if colour else TEMPLATES)
    }
    return tuple(sorted(captions))


def parse(text: str) -> tuple[int | None, int | None]:
    """The class and the colour that a caption names.

    Only whole words count, in any case, with or without hyphens and a plural s; the longest phrase
    wins, so that "tee shirt" is no shirt.

    Returns:
        (label, colour), indices into `CLASS_NAMES` and `COLOUR_NAMES`. Each is None where the text
        names none, or more than one, of its kind.
    """
    found = {"class": set(), "colour": set()}
    for match in _phrases().finditer(" ".join(re.findall(r"[a-z0-9]+", text.lower()))):
        kind, index = _vocabulary()[match.group()]
        found[kind].add(index)
    label, colour = (next(iter(s)) if len(s) == 1 else None for s in (found["class"], found["colour"]))
    return label, colour


def _draw(words, number):
    """The canonical word for `number` below CANONICAL, else one of the others, all equally likely."""
    if number < CANONICAL:
        return words[0]
    others = len(words) - 1
    return words[1 + min(int((number - CANONICAL) / (1 - CANONICAL) * others), others - 1)]


def _write(template, noun, colour, pattern):
    adjectives = (pattern,) if "{colour}" in template else (colour, pattern)
    thing = " ".join(word for word in (*adjectives, noun) if word)
    article = "" if noun in _PLURALS else "an " if thing[0] in "aeiou" else "a "
    return (
        template.replace("{a thing}", article + thing).replace("{thing}", thing).replace("{colour}", colour)
    )


@functools.cache
def _vocabulary():
    """Each word or phrase, hyphens as spaces -> ("class" or "colour", index)."""
    meanings = {}
    for kind in ("class", "colour"):
        for index, words in enumerate(_WORDS[kind]):
            for word in words:
                plain = word.replace("-", " ")
                plurals = (plain + "es",) if plain.endswith("s") else (plain + "s",)
                meanings |= dict.fromkeys((plain, *plurals), (kind, index))
    return meanings


@functools.cache
def _phrases():
    longest_first = sorted(_vocabulary(), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")

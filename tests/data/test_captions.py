import re
from collections import Counter

import numpy as np
import pytest
from PIL import ImageColor

from sd_tf.data import captions


def drawn(count, label=3, colour=0, pattern=None):
    numbers = np.random.default_rng(0).random((count, 4)).tolist()
    return [captions.caption(label, colour, four, pattern) for four in numbers]


def test_classes_are_in_the_order_of_the_official_labels():
    official = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle boot"
    assert " ".join(captions.CLASS_NAMES) == official
    assert len(captions.CLASS_NAMES) == 10


@pytest.mark.parametrize(
    "name, css", [("red",) * 2, ("yellow",) * 2, ("blue",) * 2, ("pink", "hotpink"), ("brown", "saddlebrown")]
)
def test_palette_has_the_css_values_of_its_colours(name, css):
    assert captions.PALETTE[captions.COLOUR_NAMES.index(name)] == ImageColor.getrgb(css)


def test_no_word_means_two_classes_or_two_colours():
    for lists in (captions.NOUNS, captions.COLOURS):
        words = [word for words in lists.values() for word in words]
        assert len(words) == len(set(words))
        assert all(words[0] == name for name, words in lists.items())


@pytest.mark.parametrize("pattern", [None, 0, 1])
def test_every_drawn_caption_reads_back_and_is_in_the_corpus(pattern):
    corpus = set(captions.corpus(patterns=pattern is not None))
    for label in range(10):
        for colour in (None, *range(8)):
            for text in drawn(60, label, colour, pattern):
                assert captions.parse(text) == (label, colour), text
                assert text in corpus


def test_drawing_reaches_every_caption_of_the_corpus():
    levels = np.linspace(0, 0.999, 40)  # finer than any word's share of the numbers
    reached = {
        captions.caption(0, 4, (template, noun, word, 0.0))
        for template in levels
        for noun in levels[::3]
        for word in levels[::3]
    }
    assert reached == {text for text in captions.corpus() if captions.parse(text) == (0, 4)}


def test_corpus_is_small_enough_to_embed_whole():
    assert len(captions.corpus()) == len(set(captions.corpus())) < 30_000
    assert set(captions.corpus()) < set(captions.corpus(patterns=True))


def test_canonical_words_and_the_plain_template_are_drawn_four_times_in_ten():
    texts = drawn(20_000)
    error = 4 * np.sqrt(0.4 * 0.6 / 20_000)  # four standard deviations of a share
    for pattern in (r"\bdress\b", r"\bred\b", r"^an? \w+ \w+$"):
        assert abs(np.mean([bool(re.search(pattern, text)) for text in texts]) - 0.4) < error
    others = Counter(re.search(r"gown|frock", text).group() for text in texts if "dress" not in text)
    assert abs(others["gown"] / 20_000 - 0.3) < error


def test_articles_follow_the_sound_of_the_next_word():
    # No word of the grammar begins with a vowel letter that sounds like a consonant, or with a silent h.
    for text in captions.corpus(patterns=True):
        for article, initial in re.findall(r"\b(an?) (\w)", text):
            assert (article == "an") == (initial in "aeiou"), text


@pytest.mark.parametrize("noun", ["trousers", "pants", "sandals", "sneakers", "boots", "ankle boots"])
def test_plurals_take_no_article(noun):
    texts = [text for text in captions.corpus(patterns=True) if text.endswith(" " + noun)]
    assert f"a photo of red {noun}" in texts
    assert not any(re.search(r"\ban? (?!photo|picture)", text) for text in texts)


def test_pattern_is_named_between_colour_and_noun():
    assert captions.caption(3, 0, (0, 0, 0, 0), pattern=0) == "a red striped dress"
    assert captions.caption(3, None, (0, 0, 0, 0), pattern=1) == "a dotted dress"
    assert captions.caption(9, 1, (0, 0, 0, 0)) == "an orange ankle boot"
    assert captions.caption(1, None, (0.999, 0, 0, 0)) == "a trouser on a black background"


@pytest.mark.parametrize(
    "text, label, colour",
    [
        ("A RED DRESS!", "dress", "red"),
        ("tee shirt", "t-shirt", None),
        ("a t shirt in navy", "t-shirt", "blue"),
        ("two green dresses", "dress", "green"),
        ("her violet handbags", "bag", "purple"),
        ("ankle boots", "ankle boot", None),
        ("polka dot flip flops, rose", "sandal", "pink"),
        ("redress the infrared shirting", None, None),
        ("a dress and a bag", None, None),
        ("a red and blue coat", "coat", None),
        ("orange", None, "orange"),
        ("", None, None),
    ],
)
def test_parse_understands_whole_words_only(text, label, colour):
    found_label, found_colour = captions.parse(text)
    assert found_label == (None if label is None else captions.CLASS_NAMES.index(label))
    assert found_colour == (None if colour is None else captions.COLOUR_NAMES.index(colour))

"""Words that a model cannot know are named; a word is known from captions, or taught."""

import pytest

from sd_tf.errors import InputError
from sd_tf.text.known_words import FILE, read_words, warnings_about, words_of, write_words
from sd_tf.text.tokenizer import Tokenizer

KNOWN = words_of(["a red dress", "A blue bag, größer"])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(["a red dress", "a blue bag"], 530, max_length=10)


def test_words_of_no_caption_are_named_once(tokenizer):
    assert warnings_about(["A RED bag", "a größer dress", "(red:1.3) 12 BREAK bag"], tokenizer, KNOWN) == []
    [said] = warnings_about(["a purple tiger, a tiger"] * 2, tokenizer, KNOWN)
    assert said.endswith("has learned from: purple, tiger")
    assert warnings_about(["a purple tiger"], tokenizer, None) == []


def test_a_word_that_was_not_taught_is_named(tokenizer):
    [said] = warnings_about(["a <mine> bag"], tokenizer, KNOWN)
    assert said.startswith("<mine> is no word of this model") and "load_textual_inversion" in said
    taught = tokenizer.with_word("<mine>")
    assert warnings_about(["a <mine> bag"], taught, KNOWN) == []
    [said] = warnings_about(["a <mine> bag"], tokenizer, None)
    assert said.startswith("<mine>")


def test_a_folder_keeps_them(tmp_path):
    assert read_words(tmp_path) is None
    write_words(tmp_path, KNOWN)
    assert read_words(tmp_path) == KNOWN
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=f"{FILE} is no text in UTF-8"):
        read_words(tmp_path)

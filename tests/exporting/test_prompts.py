"""The tokenizer in a graph gives the ids of the tokenizer, whatever people type."""

import unicodedata
import warnings

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import AddedToken

from sd_tf.errors import InputError
from sd_tf.exporting.prompts import MOST_BYTES, GraphTokenizer
from sd_tf.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import nasty_prompts, openai_folder  # noqa: F401

NUL_AND_MARKS = {"\0", *map(chr, range(0x10F000, 0x110000))}
LENGTH = 12


@pytest.fixture(scope="module")
def learned():
    return Tokenizer.learn(["a red dress", "a dress", "it's a bag, isn't it?"] * 2, 540, LENGTH)


def ids_of(tokenizer, prompts):
    graph = GraphTokenizer(tokenizer)
    ids = tf.function(graph.ids, [tf.TensorSpec([None], tf.string)])
    return [
        row for i in range(0, len(prompts), 200) for row in ids(tf.constant(prompts[i : i + 200])).to_list()
    ]


def known_to_both(prompt):
    """Composed, without what is said to differ: letters that only the newer of two Unicode versions knows."""
    return unicodedata.is_normalized("NFC", prompt) and not any(
        letter in NUL_AND_MARKS or unicodedata.category(letter) == "Cn" or "\ua7c0" <= letter <= "\ua7ff"
        for letter in prompt
    )


def as_text(prompt):
    return prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_ids_equal_the_tokenizers_on_nasty_prompts(learned):
    prompts = [prompt for prompt in map(as_text, nasty_prompts(2000)) if known_to_both(prompt)]
    assert len(prompts) > 1200
    for prompt, ids in zip(prompts, ids_of(learned, prompts), strict=True):
        assert ids == learned.ids(prompt), ascii(prompt)


def test_ids_equal_those_of_openais_vocabulary(openai_folder):  # noqa: F811
    tokenizer = Tokenizer.load(openai_folder)
    prompts = [prompt for prompt in map(as_text, nasty_prompts(600, seed=1)) if known_to_both(prompt)]
    for prompt, ids in zip(prompts, ids_of(tokenizer, prompts), strict=True):
        assert ids == tokenizer.ids(prompt), ascii(prompt)


def test_added_tokens_are_cut_out(learned):
    tokenizer = learned.with_word("<my toy>", 3)
    prompts = [
        "a <my toy>_1 <my toy>_5",
        "a <my toy> bag",
        "a<my toy>",
        "a <MY TOY>",
        "<|startoftext|>a<|endoftext|>b",
        "<|STARTOFTEXT|>",
    ]
    for prompt, ids in zip(prompts, ids_of(tokenizer, prompts), strict=True):
        assert ids == tokenizer.ids(prompt), prompt


def test_added_tokens_that_stand_alone_are_refused(learned):
    added = learned.added_tokens | {learned.vocab_size: AddedToken("toy", single_word=True)}
    tokenizer = Tokenizer(learned.vocab, learned.merges, LENGTH, added_tokens=added)
    with pytest.raises(InputError, match="'toy' is a single_word"):
        GraphTokenizer(tokenizer)


def test_rows_equal_the_tokenizers(learned):
    prompts = ["", "a red dress", "a dress " * 20]
    graph = GraphTokenizer(learned)
    rows = graph.rows(graph.ids(tf.constant(prompts)), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(rows[:, 0], learned(prompts))


def test_long_prompts_are_divided(learned):
    room = LENGTH - 2
    graph, prompt = GraphTokenizer(learned), "a dress " * 7
    ids = learned.ids(prompt)
    assert room < len(ids) < 2 * room
    in_graph = graph.ids(tf.constant([prompt, "a bag"]))
    assert graph.numbers_of_parts(in_graph).numpy().tolist() == [2, 1]
    rows = graph.rows(in_graph, 2).numpy()
    np.testing.assert_array_equal(rows[0, 0], learned.row(ids[:room]))
    np.testing.assert_array_equal(rows[0, 1], learned.row(ids[room:]))
    np.testing.assert_array_equal(rows[1, 1], learned.row([]))


def test_prompts_that_would_take_minutes_are_refused(learned):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"longer than {MOST_BYTES} bytes"):
        ids_of(learned, ["e" * (MOST_BYTES + 1)])
    assert ids_of(learned, ["e" * MOST_BYTES]) == [learned.ids("e" * MOST_BYTES)]

"""Weights in prompts, and prompts longer than the text tower."""

import warnings

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.text.config import CLIPTextConfig
from sd_tf.text.encoder import CLIPTextEncoder
from sd_tf.text.prompt_syntax import parts_of
from sd_tf.text.prompts import encode_prompts
from sd_tf.text.tokenizer import Tokenizer

WIDTH, LENGTH = 5, 8


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(["a red dress", "a blue bag"] * 2, 560, LENGTH)


class Tower:
    """Random states for each token at each place, that remembers what it was asked."""

    def __init__(self):
        self.table = np.random.default_rng(0).standard_normal((1000, WIDTH)).astype("float32")
        self.rows = []

    def __call__(self, token_ids):
        self.rows += token_ids.tolist()
        return self.table[token_ids] + np.arange(LENGTH, dtype="float32")[:, np.newaxis]


def encoder_of(tokenizer, tower):
    return CLIPTextEncoder(tokenizer, CLIPTextConfig(hidden_size=WIDTH), None, run=tower)


def encoded(groups, tokenizer, tower, batch_size=64):
    """The contexts of groups of prompts."""
    encoder = encoder_of(tokenizer, tower)
    return [condition.context for condition in encode_prompts(groups, encoder, batch_size)]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red dress", [("a red dress", 1)]),
        ("", []),
        ("a (red:1.3) dress", [("a ", 1), ("red", 1.3), (" dress", 1)]),
        ("(a red: .5 ) dress", [("a red", 0.5), (" dress", 1)]),
        ("((red:1.5) dress:2)", [("red", 3), (" dress", 2)]),
        ("(a (red) dress:2)", [("a (red) dress", 2)]),
        ("(red:-1)(blue:0)", [("red", -1), ("blue", 0)]),
        ("a (red) dress :)", [("a (red) dress :)", 1)]),
        ("(seen: above)", [("(seen: above)", 1)]),
        ("12:30 (noon)", [("12:30 (noon)", 1)]),
        (r"a \(red:1.3\) dress", [("a (red:1.3) dress", 1)]),
        (r"(a\\b\):2)", [("a\\b)", 2)]),
        ("(a (red:2) dress", [("(a ", 1), ("red", 2), (" dress", 1)]),
    ],
)
def test_weights_are_read_from_parentheses_and_the_rest_is_text(prompt, parts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parts_of(prompt) == parts


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a (red:1.3 dress", "the parenthesis of a weight is not closed"),
        ("a red:1.3) dress", r"':1.3\)' closes a parenthesis that is not open"),
        ("(a:2) red:3)", "not open"),
    ],
)
def test_weights_that_do_not_match_are_taken_as_text_with_a_warning(prompt, reason):
    with pytest.warns(UserWarning, match=f"is read as text, without weights: .*{reason}"):
        assert parts_of(prompt) == [(prompt, 1)]


@pytest.mark.parametrize("weight", ["11", "-10.5", "99999999999999999999"])
def test_a_weight_that_is_a_mistake_is_refused(weight):
    with pytest.raises(InputError, match="has the weight .*: give -10 to 10"):
        parts_of(f"a (red:{weight}) dress")


def test_plain_prompts_are_what_the_tower_says_of_their_tokens(tokenizer):
    tower = Tower()
    [found] = encoded([("a red dress", "")], tokenizer, tower)
    np.testing.assert_array_equal(tower.rows, tokenizer(["a red dress", ""]))
    np.testing.assert_array_equal(found, Tower()(tokenizer(["a red dress", ""])))


def test_weights_scale_states_which_then_have_their_mean_again(tokenizer):
    plain = Tower()(tokenizer(["a red dress"]))[0].astype("float64")
    [[found]] = encoded([["a (red:1.6) (dress:0.5)"]], tokenizer, Tower())
    assert [len(tokenizer.ids(word)) for word in ("a", "red", "dress")] == [1, 1, 1]
    weighted = plain * np.array([1, 1, 1.6, 0.5, 1, 1, 1, 1])[:, np.newaxis]
    np.testing.assert_allclose(found, weighted * plain.mean() / weighted.mean(), rtol=1e-5)
    [[same]] = encoded([["a (red:1.0) (dress:1)"]], tokenizer, Tower())
    np.testing.assert_array_equal(same, Tower()(tokenizer(["a red dress"]))[0])


def test_weights_that_cancel_are_named(tokenizer):
    class Ones(Tower):
        def __call__(self, token_ids):
            return np.ones((*token_ids.shape, WIDTH))

    for weight in ("-7", "-6.9", "-9"):  # all, nearly all, and more than all, which would turn it round
        with pytest.raises(InputError, match=rf"weights in prompt 'a \(red:{weight}\) dress' cancel"):
            encoded([[f"a (red:{weight}) dress"]], tokenizer, Ones())


def test_what_is_longer_than_the_tower_is_read_in_parts_and_its_group_is_as_long(tokenizer):
    long = "a red dress a blue bag a (red:2) dress"
    tower = Tower()
    short, [found, empty] = encoded([["a red dress"], [long, ""]], tokenizer, tower)
    assert short.shape == (1, LENGTH, WIDTH)
    assert found.shape == empty.shape == (2 * LENGTH, WIDTH)
    ids = tokenizer.ids(long.replace("(", "").replace(":2)", ""))
    assert len(ids) == 9
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tower.rows[1] == [begin, *ids[:6], end]
    assert tower.rows[2] == [begin, *ids[6:], end, *[tokenizer.pad_token_id] * 3]
    assert tower.rows[3] == tower.rows[4] == tokenizer([""])[0].tolist()
    states = np.concatenate(list(Tower()(np.array(tower.rows[1:3])))).astype("float64")
    weighted = states.copy()
    weighted[LENGTH + 2] *= 2  # "red" of the second part: a, red, dress
    np.testing.assert_allclose(found, weighted * states.mean() / weighted.mean(), rtol=1e-5)


def test_what_is_longer_than_eight_towers_is_cut_with_a_warning(tokenizer):
    with pytest.warns(UserWarning, match="has 60 tokens: the last 12 are cut off"):
        [[found]] = encoded([["a red dress " * 20]], tokenizer, Tower())
    assert found.shape == (8 * LENGTH, WIDTH)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_at_most_a_batch_of_rows_is_encoded_at_once_however_many_prompts_there_are(tokenizer, batch_size):
    """Rows of all parts and negative prompts count: memory stays within what `batch_size` promises."""
    prompts = [f"a {'red dress ' * (i % 5)}(blue:1.5) bag" for i in range(50)]
    pairs, sizes = [("a dress", prompt) for prompt in prompts], []
    tower = Tower()

    def counting(ids):
        sizes.append(len(ids))
        return tower(ids)

    found = encoded(pairs, tokenizer, counting, batch_size)
    assert max(sizes) <= batch_size and sum(sizes) == len(tower.rows) > 100
    for of_pair, pair in zip(found, pairs, strict=True):
        [alone] = encoded([pair], tokenizer, Tower())
        np.testing.assert_array_equal(of_pair, alone)


def test_the_mask_is_true_at_the_start_the_words_and_the_end_of_each_row(tokenizer):
    encoder = encoder_of(tokenizer, Tower())
    long = "a red dress a blue bag a (red:2) dress"  # 9 tokens, 6 in a row
    [condition] = encode_prompts([[long, "a bag", ""]], encoder, 64)
    assert condition.mask.dtype == bool
    first, second = [1] * 8, [1] * 5 + [0] * 3
    np.testing.assert_array_equal(
        condition.mask, [first + second, [1] * 4 + [0] * 4 + [1, 1] + [0] * 6, ([1, 1] + [0] * 6) * 2]
    )

"""What parentheses mean in A1111's web interface and in ComfyUI, and where their rows end."""

import warnings

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.text.prompt_syntax import NEW_ROW, SYNTAXES, parts_of, prompt_of, text_of, without_loras
from sd_tf.text.prompts import encode_prompts
from sd_tf.text.tokenizer import Tokenizer
from tests.text.test_prompts import LENGTH, Tower, encoder_of

ROOM = LENGTH - 2


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(["a red dress", "a blue bag", "a, b"] * 3, 560, LENGTH)


def encoded(prompts, tokenizer, tower, syntax):
    [condition] = encode_prompts([prompts], encoder_of(tokenizer, tower), 64, syntax)
    return condition.context


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red dress", [("a red dress", 1)]),
        ("", []),
        ("(red)[blue](green:1.3)", [("red", 1.1), ("blue", 1 / 1.1), ("green", 1.3)]),
        ("((red))", [("red", 1.21)]),
        ("((red:1.3):2)", [("red", 2.6)]),
        (r"\(red\) \[blue\]", [("(red) [blue]", 1)]),
        ("a :) or 12:30", [("a :) or 12:30", 1)]),
        ("a (b [c) d] e", [("a ", 1), ("b ", 1.1), ("c", 1), (" d", 1 / 1.1), (" e", 1)]),
        ("red BREAK blue", [("red", 1), NEW_ROW, ("blue", 1)]),
        ("(red BREAK blue:2) BREAKFAST", [("red", 2), NEW_ROW, ("blue", 2), (" BREAKFAST", 1)]),
    ],
)
def test_a1111(prompt, parts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = parts_of(prompt, "a1111")
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def test_the_example_of_a1111_itself():
    with pytest.warns(UserWarning, match="'\\(' is not closed, and holds to the end"):
        found = parts_of("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", "a1111")
    assert found == [
        ("a ", 1.0),
        ("house", pytest.approx(1.573)),
        (" ", pytest.approx(1.1)),
        ("on", pytest.approx(1.0)),
        (" a ", pytest.approx(1.1)),
        ("hill", pytest.approx(0.55)),
        (", sun, ", pytest.approx(1.1)),
        ("sky", pytest.approx(1.4641)),
        (".", pytest.approx(1.1)),
    ]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red dress", [("a red dress", 1)]),
        ("", []),
        ("a (red) [blue] (green:1.3)", [("a ", 1), ("red", 1.1), (" [blue] ", 1), ("green", 1.3)]),
        ("((red))", [("red", 1.21)]),
        ("((red:1.3) dress:2)", [("red", 1.3), (" dress", 2)]),
        ("((red) dress:2)", [("red", 2.2), (" dress", 2)]),
        (r"\(red\) BREAK", [("(red) BREAK", 1)]),
        ("(seen: above)", [("seen: above", 1.1)]),
    ],
)
def test_comfyui(prompt, parts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = parts_of(prompt, "comfyui")
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def test_parentheses_that_do_not_match_are_warned_of():
    with pytest.warns(UserWarning, match="its parentheses do not match, and some of them are text"):
        assert parts_of("a (red:1.3 dress", "comfyui") == [("a (red:1.3 dress", 1)]


@pytest.mark.parametrize("syntax", ["a1111", "comfyui"])
def test_a_weight_that_is_a_mistake_is_refused(syntax):
    for prompt in ("a (red:11) dress", "(" * 30 + "red" + ")" * 30):
        with pytest.raises(InputError, match="has the weight .*: give -10 to 10"):
            parts_of(prompt, syntax)


def test_the_words_alone():
    assert text_of("a (red:1.3) BREAK [dress]", "a1111") == "a red dress"


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "text",
    [
        "a red dress",
        "a (red:1.3) dress",
        "a (red) [dress]",
        "a (red:1.3 dress",
        "red:1.3) :)",
        r"\(red\) \\(blue:2\\) \ [",
        "BREAKFAST",
        "12:30",
    ],
)
def test_plain_text_is_a_prompt_in_each_syntax(text, syntax):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parts_of(prompt_of(text, syntax), syntax) == [(text, 1.0)]


def test_what_no_backslash_protects_in_a1111_has_the_same_tokens_in_plain_text(tokenizer):
    text = "a red BREAK <lora:dress:2> <lyco:b> BREAKFAST"
    prompt = prompt_of(text, "a1111")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert without_loras([prompt]) == ([prompt], {})
        [part] = parts_of(prompt, "a1111")
    assert part.weight == 1 and tokenizer.ids(part.text) == tokenizer.ids(text)
    assert prompt_of(text, "comfyui") == text


def test_a1111_rescales_each_row_to_its_own_mean(tokenizer):
    [found] = encoded(["a (red) dress BREAK a blue bag"], tokenizer, Tower(), "a1111")
    first = Tower()(tokenizer(["a red dress"]))[0].astype("float64")
    weighted = first * np.where(np.arange(LENGTH) == 2, 1.1, 1.0)[:, np.newaxis]
    np.testing.assert_allclose(found[:LENGTH], weighted * first.mean() / weighted.mean(), rtol=1e-5)
    np.testing.assert_array_equal(found[LENGTH:], Tower()(tokenizer(["a blue bag"]))[0])


def test_comfyui_weighs_from_the_states_of_the_empty_prompt(tokenizer):
    plain, empty = Tower()(tokenizer(["a red dress", ""])).astype("float64")
    [found, other] = encoded(["a (red:1.5) dress", ""], tokenizer, Tower(), "comfyui")
    weights = np.where(np.arange(LENGTH) == 2, 1.5, 1.0)[:, np.newaxis]
    np.testing.assert_allclose(found, empty + weights * (plain - empty), rtol=1e-5)
    np.testing.assert_array_equal(other, empty.astype("float32"))


def rows(prompt, tokenizer, syntax):
    """The token ids of each row, without start, end and padding."""
    tower = Tower()
    encoded([prompt], tokenizer, tower, syntax)
    outside = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    found = [[i for i in row if i not in outside] for row in tower.rows]
    return found[:-1] if syntax == "comfyui" else found


def test_a1111_ends_a_row_at_its_last_comma(tokenizer):
    ids = tokenizer.ids("a red dress, a blue bag")
    assert len(ids) == 7 and ROOM == 6
    assert rows("a red dress, a blue bag", tokenizer, "a1111") == [ids[:4], ids[4:]]
    assert rows("a red dress a blue bag", tokenizer, "a1111") == [ids[:3] + ids[4:]]
    assert rows("a red dress BREAK", tokenizer, "a1111") == [ids[:3], []]


def test_a_word_of_several_tokens_stays_in_one_row_in_a1111(tokenizer):
    ids, known = tokenizer.ids("a red dress"), tokenizer.with_word("<mine>", 4)
    first = known.token_id("<mine>")
    assert rows("a red dress <mine>", known, "a1111") == [ids, [*range(first, first + 4)]]
    assert rows("a red <mine>", known, "a1111") == [[*ids[:2], *range(first, first + 4)]]


def test_comfyui_keeps_words_whole_unless_they_are_long(tokenizer):
    ids = tokenizer.ids("a red dress a blue")
    assert len(ids) == 5
    short, long = tokenizer.ids("xyz"), tokenizer.ids("qwertzuiop")
    assert 2 <= len(short) < 8 <= len(long)
    assert rows("a red dress a blue xyz", tokenizer, "comfyui") == [ids, short]
    divided = rows("a red dress a blue qwertzuiop", tokenizer, "comfyui")
    assert divided[0] == [*ids, long[0]] and sum(divided, []) == [*ids, *long]

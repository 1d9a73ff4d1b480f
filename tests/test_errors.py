"""Errors for users: one line, whatever they quote."""

from sd_tf.errors import LONGEST, InputError, printable, shown, unknown


def test_an_error_is_one_line_whatever_a_file_makes_it_quote():
    text = str(InputError("F: 'a\nb', \x1b[31m, \u2028, \ud800, \x00 and é: replace it"))
    assert text == "F: 'a\\nb', \\x1b[31m, \\u2028, \\ud800, \\x00 and é: replace it"


def test_an_error_does_not_quote_without_end():
    assert str(InputError("x" * LONGEST)) == "x" * LONGEST
    assert str(InputError("x" * 10**6)) == "x" * LONGEST + "…"
    assert len(str(unknown("name", "x" * 10**6, ["y"]))) < 200


def test_values_are_shown_as_python_writes_them_and_cut_where_they_are_long():
    assert shown("a\n") == repr("a\n")
    assert shown(list(range(1000)), longest=10) == "[0, 1, 2, …"
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a deeply nested list"


def test_text_from_outside_is_printed_on_one_line():
    assert printable("a\nb\x1b[2Jü\udcff\u2028") == r"a\nb\x1b[2Jü\udcff\u2028"

"""Checks of single arguments. Each raises a one-line `InputError`."""

import numbers

from sd_tf.errors import InputError, shown


def check_text(name: str, text, longest: int | None = None):
    """Checks a text that a user typed.

    Args:
        name: its name in error messages, such as "prompt".
        text: the value to check.
        longest: the most characters; None for no limit.

    Raises:
        InputError: it is not a string, too long, or has lone surrogates, which come from bytes that are not
            UTF-8 or from JSON, and which no file can hold.
    """
    if not isinstance(text, str):
        raise InputError(f"the {name} is {shown(text)}: give a string")
    if longest is not None and len(text) > longest:
        raise InputError(f"the {name} has {len(text)} characters: give {longest} or fewer")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"the {name} {shown(text)} has characters that are not valid Unicode: type it again")


def check_whole(name: str, value, least: int, most: int) -> int:
    """A whole number of Python's or numpy's, as an int.

    Raises:
        InputError: it is no whole number from `least` to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}: give a whole number from {least} to {most}")
    return int(value)


def check_number(name: str, value, least: float, most: float):
    """Raises `InputError` if a value is not a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}: give a number from {least} to {most}")


def check_interval(name: str, value):
    """Raises `InputError` if a value is not a pair of numbers from 0 to 1, the lower first."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InputError(f"{name} is {value!r}: give two numbers from 0 to 1, such as (0.2, 0.8)")
    for share in value:
        check_number(name, share, 0, 1)
    if value[0] > value[1]:
        raise InputError(f"{name} is {tuple(value)}: give the lower number first")

"""Checks of single arguments. Each raises a one-line `InputError`."""

import math
import numbers

from sd_tf.errors import InputError, argument, shown


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


def checked_size(height, width, own, multiple: int, most: int):
    """(height, width) in pixels of what is to be drawn; None where there is none.

    Args:
        height, width: whole numbers, or None for the model's own.
        own: (height, width) of the model.
        multiple: what both must be multiples of.
        most: pixels that there is memory for.

    Raises:
        InputError: the model cannot draw that size, or not in the memory that there is.
    """
    sides = []
    for name, side in (("height", height), ("width", width)):
        if side is not None:
            side = check_whole(argument(name), side, 1, most)
            lower = side - side % multiple
            if side != lower:
                nearest = " or ".join(str(each) for each in (lower, lower + multiple) if each)
                raise InputError(f"{argument(name)} is {side}: give {nearest}, a multiple of {multiple}")
        sides.append(side)
    whole = [side or each for side, each in zip(sides, own, strict=True)]
    if math.prod(whole) > most:
        raise InputError(
            f"height {whole[0]} and width {whole[1]} are more than this model has memory for: give at "
            f"most {most:,} pixels, such as {math.isqrt(most)} x {math.isqrt(most)}"
        )
    return tuple(sides)

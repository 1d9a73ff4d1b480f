"""What a user gets for bad input: one line that names the thing, its value and the way out."""

import difflib


class InputError(ValueError):
    """Bad input from a user. Command lines print it as one line and exit with status 2."""


def unknown(kind: str, name, valid) -> InputError:
    """An `InputError` for a name that is none of `valid`, with the nearest valid names first."""
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InputError(f"unknown {kind} {str(name)!r}: {hint}Valid: {', '.join(valid)}.")

"""What a user gets for bad input: one line that names the thing, its value and the way out."""

import contextlib
import difflib

LONGEST = 2000  # characters of a message; beyond that it quotes a file that says too much


class InputError(ValueError):
    """Bad input from a user. Command lines print it as one line and exit with status 2.

    One line it stays whatever a stranger's file makes it quote: characters that do not print, line
    breaks and a terminal's commands among them, are escaped.
    """

    def __init__(self, message: str):
        message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text on one line: line breaks, a terminal's commands and all else that does not print is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value, longest: int = 80) -> str:
    """A value from a file as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}…"


def unknown(kind: str, name, valid) -> InputError:
    """An `InputError` for a name that is none of `valid`, with the nearest valid names first."""
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name)[:80], valid, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InputError(f"unknown {kind} {shown(str(name))}: {hint}Valid: {', '.join(valid)}.")


@contextlib.contextmanager
def naming(source):
    """What is refused inside is said of that file or folder."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None

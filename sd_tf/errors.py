"""What a user gets for bad input: one line that names the thing, its value and the way out."""

import contextlib
import difflib
import re

LONGEST = 2000  # characters of a message; beyond that it quotes a file that says too much
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # around an argument's two names; Unicode keeps them from being characters
_ARGUMENT = re.compile(f"{_OPEN}(\\w+) (--[a-z-]+){_CLOSE}")


def argument(name: str, flag: str | None = None) -> str:
    """An argument in the message of an `InputError`: its name in Python, the flag on a command line.

    Args:
        name: of the argument in Python.
        flag: None for that name with dashes.
    """
    return f"{_OPEN}{name} {flag or '--' + name.replace('_', '-')}{_CLOSE}"


class InputError(ValueError):
    """Bad input from a user. Command lines print it as one line and exit with status 2.

    One line it stays whatever a stranger's file makes it quote: characters that do not print, line
    breaks and a terminal's commands among them, are escaped.

    Attributes:
        message: with the marks of `argument`; to be used where another message quotes this one.
    """

    def __init__(self, message: str):
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
        super().__init__(printable(_ARGUMENT.sub(r"\1", self.message)))

    def with_flags(self) -> "InputError":
        """The same error as a command line says it."""
        return InputError(_ARGUMENT.sub(r"\2", self.message))


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
        raise InputError(f"{source}: {error.message}") from None

"""`InputError`: one line that names what is wrong, its value, and what to do."""

import contextlib
import difflib
import re

LONGEST = 2000  # characters of a message, which may quote a file
_OPEN, _CLOSE = (
    "\ufdd0",
    "\ufdd1",
)  # around an argument's two names; noncharacters of Unicode, which no text has
_ARGUMENT = re.compile(f"{_OPEN}(\\w+) (--[a-z-]+){_CLOSE}")


def argument(name: str, flag: str | None = None) -> str:
    """Marks an argument in a message of `InputError`, which shows its Python name or its flag.

    Args:
        name: name of the argument in Python.
        flag: its command-line flag; None for that name with dashes.
    """
    return f"{_OPEN}{name} {flag or '--' + name.replace('_', '-')}{_CLOSE}"


class InputError(ValueError):
    """Bad input from a user. Command lines print it as one line and exit with status 2.

    Unprintable characters are escaped, such as line breaks and terminal escapes from an untrusted file.

    Attributes:
        message: with the marks of `argument`; use it to quote this error in another one.
    """

    def __init__(self, message: str):
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
        super().__init__(printable(_ARGUMENT.sub(r"\1", self.message)))

    def with_flags(self) -> "InputError":
        """The same error, naming flags instead of Python arguments."""
        return InputError(_ARGUMENT.sub(r"\2", self.message))


def printable(text: str) -> str:
    """Escapes line breaks, terminal escapes and all other unprintable characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value, longest: int = 80) -> str:
    """`repr(value)`, truncated to `longest` characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}…"


def unknown(kind: str, name, valid) -> InputError:
    """An `InputError` for a name that is not in `valid`, suggesting the nearest valid names."""
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name)[:80], valid, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return InputError(f"unknown {kind} {shown(str(name))}: {hint}Valid: {', '.join(valid)}.")


def install_extra(extra: str) -> str:
    """How to install an extra, for messages. The package comes from a git clone, not from an index."""
    return f'pip install -c constraints.txt ".[{extra}]" in the folder that git clone made'


@contextlib.contextmanager
def naming(source):
    """Within the block, messages of `InputError`s begin with that file or folder."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error.message}") from None

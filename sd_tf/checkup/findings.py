"""What a check finds, as lines of a section; a check that fails itself is a finding as well."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from sd_tf.errors import InputError, printable
from sd_tf.files import reason

LONGEST = 300  # characters of a value


class Finding(NamedTuple):
    """A line: what was looked at, what was found, and whether it is something needed that is missing."""

    name: str
    value: str
    is_missing: bool = False


def found_by(check: Callable[[], list[Finding]], name: str) -> list[Finding]:
    """The findings of a check; where it raises, one that says why.

    Args:
        check: returns findings.
        name: of the finding where the check fails.
    """
    try:
        return check()
    except Exception as error:  # nothing that is broken here hides what else is
        return [Finding(name, f"cannot be told ({type(error).__name__}: {reason(error)[:LONGEST]})")]


def run_apart(program: str, seconds: float = 180.0) -> dict:
    """Runs a program in a process of its own, which may crash, and returns the JSON of its last line.

    Raises:
        InputError: it failed, was killed or took too long; with its last words.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"it takes longer than {seconds:.0f} seconds") from None
    if done.returncode < 0:
        raise InputError(f"it ends by {signal.Signals(-done.returncode).name}")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise InputError(printable(lines[-1])[:LONGEST] if lines else f"it ends with {done.returncode}")
    return json.loads(lines[-1])


def size_in_words(size: float) -> str:
    """Bytes as a person writes them: "1.5 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

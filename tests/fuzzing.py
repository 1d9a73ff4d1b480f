"""What a fuzz of strangers' files is held to: an end in seconds, and memory, of its process."""

import contextlib
import faulthandler
import signal
from pathlib import Path

SECONDS = 20  # of one case


class TookTooLong(BaseException):
    """Raised by the alarm; no `except Exception` holds it back."""


@contextlib.contextmanager
def limited(seconds=SECONDS):
    """So many seconds and no longer, not even where the alarm finds no Python to interrupt."""

    def ring(*_):
        raise TookTooLong(f"no answer in {seconds} seconds")

    signal.signal(signal.SIGALRM, ring)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def memory(field):
    """Bytes of resident memory, "VmRSS" now or "VmHWM" at the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")

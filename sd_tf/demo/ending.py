"""The folder of a server and its end: whenever it is told to end, nothing of it stays."""

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

PREFIX = "sd_tf-demo-"
LOCK = "in-use"  # a file that the server holds locked: the system lets go of it, however the server ends
PICTURES = "pictures"
LONGEST_END = 15.0  # seconds from the order to end


class Ending:
    """A folder for temporary files that goes with the server.

    SIGTERM before `begin_serving` removes it and ends the process at once, whatever library is being
    loaded: an exception could be swallowed there. Afterwards the server has `LONGEST_END` seconds to end by
    itself.
    """

    def __init__(self):
        self._is_serving, self.folder, self._lock, self._before = False, None, None, None

    def __enter__(self):
        remove_abandoned()
        received = []  # between the folder and the note of its name; a mask would leave threads of libraries

        def keep(number, _):
            received.append(number)

        self._before, interrupt = signal.signal(signal.SIGTERM, keep), signal.signal(signal.SIGINT, keep)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # nobody else may read or write there
            self._lock = _locked(self.folder)
            (self.folder / PICTURES).mkdir()
            signal.signal(signal.SIGTERM, self._terminated)
            signal.signal(signal.SIGINT, interrupt)
            for number in received[:1]:
                signal.raise_signal(number)
        except BaseException:
            signal.signal(signal.SIGINT, interrupt)
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._remove()
        if self._lock is not None:
            os.close(self._lock)
        signal.signal(signal.SIGTERM, self._before)

    def begin_serving(self):
        """From now on SIGTERM raises `SystemExit`."""
        self._is_serving = True

    def limit(self, status: int):
        """Ends the process with `status` if it has not ended in time, for a thread may hang for good."""
        timer = threading.Timer(LONGEST_END, self._end_at_once, [status])
        timer.daemon = True
        timer.start()

    def _terminated(self, *_):
        if not self._is_serving:
            self._end_at_once(143)
        self.limit(143)
        raise SystemExit(143)

    def _end_at_once(self, status):
        self._remove()
        os._exit(status)

    def _remove(self):
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def remove_abandoned():
    """Removes the folders of servers that were killed: ours, by name and owner, whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another server was first, or it is none of ours
            state = folder.lstat()
            if state.st_uid != os.getuid() or folder.is_symlink() or not folder.is_dir():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder):
    """The lock of a folder. It gets its name when it is held, so that nobody finds it free."""
    lock = os.open(folder / f"{LOCK}-soon", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(folder / f"{LOCK}-soon", folder / LOCK)
    return lock

"""Pictures that were sent or drawn: a file counts only by the path that was given out for it."""

import contextlib
import os
import secrets
import stat
import threading
from collections import OrderedDict
from pathlib import Path

MOST_BYTES = 256 * 1024**2  # of one kind: sent, or drawn
MOST_FILES = 5_000  # of one kind
LONGEST_PATH = 4_096  # characters


class Files:
    """Files of one kind in a folder, under names that cannot be guessed; the oldest give way to new ones.

    The folder is never searched: what somebody else puts there is not known and therefore not served.
    Methods may be called from any thread.

    Args:
        folder: exists, and nobody else can write to it.
        most_bytes, most_files: that are kept.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES):
        self._folder = folder.resolve()
        self._most_bytes, self._most_files = most_bytes, most_files
        self._lock, self._sizes, self._size = threading.Lock(), OrderedDict(), 0  # path: bytes

    def keep(self, name: str, content: bytes) -> str:
        """Writes a file and returns its path.

        Args:
            name: of our own making; it is what a browser saves the file as.
            content: at most `most_bytes`.
        """
        with self._lock:
            self._make_room(len(content))
            path = self._folder / secrets.token_urlsafe(16) / name
            path.parent.mkdir(mode=0o700)
            self._sizes[str(path)] = len(content)
            self._size += len(content)
            try:
                path.write_bytes(content)
            except OSError:  # the disk is full: no half of a file stays
                self._drop(str(path))
                raise
            return str(path)

    def is_kept(self, path) -> bool:
        """Whether a path, of any type, was given out and still leads to that regular file."""
        if not isinstance(path, str) or len(path) > LONGEST_PATH or path not in self._sizes:
            return False
        try:
            return stat.S_ISREG(os.lstat(path).st_mode)
        except OSError:
            return False

    def _make_room(self, size):
        """For a file of `size` bytes: before it is written, so that the limit holds at every moment."""
        while self._sizes and (
            self._size + size > self._most_bytes or len(self._sizes) + 1 > self._most_files
        ):
            self._drop(next(iter(self._sizes)))

    def _drop(self, path):
        self._size -= self._sizes.pop(path)
        Path(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody put something else there
            os.rmdir(Path(path).parent)

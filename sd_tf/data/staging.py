"""Folders that are written under a hidden name and renamed when they are complete.

A process that is killed cannot remove its unfinished folder. So each process holds a lock on it, which the
system releases when the process ends. The next process that writes there removes the folders without a lock.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from sd_tf.files import CannotWrite, reason

try:
    import fcntl
except ImportError:  # Windows, where unfinished folders stay
    fcntl = None

# Hidden folders: the final name and a random number; in earlier versions a process id.
UNFINISHED = re.compile(r"\..+\.new-[0-9a-f]{16}|\.(pictures-)?[0-9a-f]{16}\.new-[0-9]+")


@contextlib.contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Yields a new, empty folder to write to, which is renamed to `folder` if the block succeeds.

    If another process has finished the same folder by then, its folder stays and this one is removed.

    Args:
        folder: path of the finished folder; missing parents are made.

    Raises:
        CannotWrite: an `InputError`: the folder cannot be made or renamed.
    """
    with unfinished_folder(folder) as new:
        yield new
        try:
            new.rename(folder)
        except OSError as error:
            if not Path(folder).is_dir():
                raise CannotWrite(folder, reason(error)) from None


@contextlib.contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Yields a new, empty, hidden folder beside `folder`, which is removed at the end of the block.

    Before, it removes such folders of processes that have ended.

    Args:
        folder: path of the folder or file to be written.

    Raises:
        CannotWrite: an `InputError`: the folder cannot be made.
    """
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.new-{secrets.token_hex(8)}")
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Under this lock no process looks for abandoned folders before `new` is made and locked.
            with _locked(folder.parent, wait=True) as may_remove:
                if may_remove:
                    _remove_abandoned(folder.parent)
                new.mkdir()
                stack.callback(shutil.rmtree, new, ignore_errors=True)
                stack.enter_context(_locked(new, wait=False))
        except OSError as error:
            raise CannotWrite(folder, reason(error)) from None
        yield new


@contextlib.contextmanager
def _locked(folder, wait):
    """Tries to hold a folder's lock during the block; yields whether it does.

    Windows and some network file systems have no locks on folders.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (OSError, AttributeError):
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_abandoned(parent):
    for found in parent.iterdir():
        if UNFINISHED.fullmatch(found.name) and found.is_dir() and not found.is_symlink():
            with _locked(found, wait=False) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(found, ignore_errors=True)

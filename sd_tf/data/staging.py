"""Folders that are written under a hidden name and get their own when they are whole.

A process that is killed cannot remove what it was writing. So each process holds a lock on its unfinished
folder, which the system releases when the process ends, however it ends. Whoever writes beside it next
removes the folders that nobody holds.
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
except ImportError:  # Windows, where nothing is removed
    fcntl = None

# A hidden folder: the name of what is written and a random number. Earlier versions put the number of a
# process behind the names of caches and decoded pictures.
UNFINISHED = re.compile(r"\..+\.new-[0-9a-f]{16}|\.(pictures-)?[0-9a-f]{16}\.new-[0-9]+")


@contextlib.contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder to write to, which gets the name `folder` if the block ends well.

    If another process has finished the same folder by then, that one stays and this one is removed.

    Args:
        folder: where the finished folder is to be; the folders above are made.

    Raises:
        CannotWrite: an `InputError`: no folder can be made there, or none renamed.
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
    """A new, empty, hidden folder beside `folder`, which is removed at the end of the block.

    First, those beside it are removed whose process is gone.

    Args:
        folder: what is going to be written, a folder or a file.

    Raises:
        CannotWrite: an `InputError`: no folder can be made there.
    """
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.new-{secrets.token_hex(8)}")
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # While this lock is held, nobody looks for abandoned folders, so that there is time for the next.
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
    """Holds a folder's lock during the block if it can; yields whether it does.

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

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

# A cache's or a store's name, a hash, and what tells one writer from the others.
UNFINISHED = re.compile(r"\.(pictures-)?[0-9a-f]{16}\.new-[0-9a-f]+")


@contextlib.contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder to write to, which gets the name `folder` if the block ends well.

    If another process has finished the same folder by then, that one stays and this one is removed. First,
    unfinished folders beside it are removed if the process that wrote them is gone.

    Args:
        folder: where the finished folder is to be; the folders above are made.

    Raises:
        CannotWrite: an `InputError`: no folder can be made there, or none renamed.
    """
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.new-{secrets.token_hex(8)}")
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Nobody looks for abandoned folders between the making of this one and its lock.
            with _locked(folder.parent, wait=True) as may_remove:
                if may_remove:
                    _remove_abandoned(folder.parent)
                new.mkdir()
                stack.callback(shutil.rmtree, new, ignore_errors=True)
                stack.enter_context(_locked(new, wait=False))
        except OSError as error:
            raise CannotWrite(folder, reason(error)) from None
        yield new
        try:
            new.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise CannotWrite(folder, reason(error)) from None


@contextlib.contextmanager
def _locked(folder, wait):
    """Holds the lock of a folder, if there is one to be had; whether it is held.

    Some network file systems and Windows have no locks on folders.
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

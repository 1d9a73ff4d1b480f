"""Folders that are written beside their place and then renamed into it: a killed save leaves the old one.

model           what is there
.model.new      what is being written
.model.old      what was there, between the two renames

Both carry a file, `MARKER`, for as long as they are half-way: folders without it are somebody else's, and
are neither deleted nor moved.
"""

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path

from safetensors import SafetensorError

from sd_tf.errors import InputError
from sd_tf.files import CannotWrite, reason

MARKER = ".sd_tf-is-replacing-this"
LONGEST_NAME = 240  # bytes; file systems have 255


@contextlib.contextmanager
def replacing(folder: Path, keep_others=False):
    """A new, empty folder that takes the place of `folder` when the block ends well.

    With `keep_others`, what the old folder has and the new one lacks moves over. A process killed
    between the two renames leaves `.name.old`, which `recover` puts back.

    Raises:
        InputError: it cannot be written, is a link, no folder or has no name, as ".", or has a stranger's
            thing in its way.
    """
    check_replaceable(folder)
    new, old = _beside(folder, "new"), _beside(folder, "old")
    try:
        recover(folder, keep_others)
        _clear(new)
        _clear(old)
        new.mkdir(parents=True)
        _mark(new)
        yield new
        if os.path.lexists(folder):
            check_replaceable(folder)
            _mark(folder)
            try:
                folder.rename(old)
            except OSError:
                (folder / MARKER).unlink()
                raise
        try:
            new.rename(folder)
        except OSError:
            if _is_ours(old):
                old.rename(folder)
                (folder / MARKER).unlink()
            raise
        recover(folder, keep_others)
    except CannotWrite as error:  # of a file beside its place, which a user does not know
        raise InputError(f"cannot write {folder}: {error.why}") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {reason(error)}") from None
    finally:
        if _is_ours(new):
            with contextlib.suppress(OSError):
                _remove(new)


def recover(folder: Path, keep_others):
    """Finishes, or undoes, a replacement that was killed half-way.

    Raises:
        OSError: what is there cannot be renamed or deleted.
    """
    old = _beside(folder, "old")
    if _is_ours(old):
        if not os.path.lexists(folder):
            old.rename(folder)
        else:
            for path in old.iterdir() if keep_others else ():
                if path.name != MARKER and not os.path.lexists(folder / path.name):
                    path.rename(folder / path.name)
            _remove(old)
    if _is_ours(folder):
        (folder / MARKER).unlink()


def _beside(folder, state):
    name = folder.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return folder.with_name(f".{name}.{state}")


def check_replaceable(folder: Path):
    """Raises `InputError` where `replacing` would refuse a folder, or what is at its place, by its name."""
    if folder.name in ("", "..") or os.path.ismount(folder):
        raise InputError(
            f"cannot write {folder}: what cannot be renamed is not replaced, name a folder inside it"
        )
    try:
        is_link = folder.is_symlink()
    except OSError as error:
        raise InputError(f"cannot write {folder}: {reason(error)}") from None
    if is_link:
        raise InputError(f"cannot write {folder}: it is a link, name the folder that it points to")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"cannot write {folder}: there is something that is no folder")


def _clear(beside):
    """Makes room for a folder of ours; of somebody else's, only one with nothing in it goes."""
    if _is_ours(beside):
        _remove(beside)
    if os.path.lexists(beside):
        try:
            beside.rmdir()  # a process was killed before it could mark it
        except OSError:
            raise InputError(
                f"{beside} is in the way, and was not made here: move it somewhere else"
            ) from None


def _mark(folder):
    """Puts the marker into a folder, in which it may be already, or a stranger's link of its name."""
    (folder / MARKER).unlink(missing_ok=True)
    os.close(os.open(folder / MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _is_ours(folder):
    """Whether it is a folder, and no link to one, with our marker in it."""
    try:
        return stat.S_ISDIR(os.lstat(folder).st_mode) and stat.S_ISREG(os.lstat(folder / MARKER).st_mode)
    except (OSError, ValueError):
        return False


def _remove(folder):
    """Deletes a folder of ours; the marker goes last, so that a process killed here can be finished."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name != MARKER:
            os.unlink(entry.path)
    (folder / MARKER).unlink()
    folder.rmdir()

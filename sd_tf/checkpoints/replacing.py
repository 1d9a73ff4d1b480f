"""Folders that are written beside their place and then renamed into it: a killed save leaves the old one."""

import contextlib
import shutil
from pathlib import Path

from safetensors import SafetensorError

from sd_tf.errors import InputError


@contextlib.contextmanager
def replacing(folder: Path, keep_others=False):
    """A new, empty folder that takes the place of `folder` when the block ends well.

    With `keep_others`, what the old folder has and the new one lacks moves over. A process killed
    between the two renames leaves `.name.old`, which `recover` puts back.
    """
    new, old = _beside(folder, "new"), _beside(folder, "old")
    try:
        recover(folder, keep_others)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        recover(folder, keep_others)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write {folder}: {reason}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(folder, state):
    return folder.with_name(f".{folder.name}.{state}")


def recover(folder, keep_others):
    """Finishes, or undoes, a replacement that was killed half-way."""
    old = _beside(folder, "old")
    if not old.exists():
        return
    if not folder.exists():
        old.rename(folder)
        return
    for path in old.iterdir() if keep_others else ():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(old)

"""The state of a stage on disk: whole or not there, checked when it is read, the last few kept.

<folder>/step-0000120/state.index, state.data-…     what `tf.train.Checkpoint` writes
<folder>/step-0000120/sums.json                     SHA-256 of each of these files
"""

import hashlib
import json
import math
import re
import shutil
import warnings
from pathlib import Path

import tensorflow as tf

from sd_tf.errors import InputError

SUMS = "sums.json"


class Checkpoints:
    """Checkpoints of one `tf.train.Checkpoint` in a folder of their own.

    Each is written beside its place and renamed into it, so that a process killed at any moment leaves
    those before it as they were.

    Args:
        state: a `tf.train.Checkpoint`.
        folder: made when the first one is written.
        keep: the newest so many stay.
    """

    def __init__(self, state, folder, keep):
        self.state, self.folder, self.keep = state, Path(folder), keep

    @property
    def steps(self):
        """Of the checkpoints that are there, damaged or not, in ascending order."""
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def place(self, step):
        """The folder of a checkpoint."""
        return self.folder / f"step-{step:07d}"

    def save(self, step):
        """Writes the state of now.

        Raises:
            InputError: it cannot be written; those before it stay.
        """
        new, final = self.folder / f".step-{step:07d}.new", self.place(step)
        try:
            shutil.rmtree(new, ignore_errors=True)  # a save was killed
            new.mkdir(parents=True)
            self.state.write(str(new / "state"))
            (new / SUMS).write_text(json.dumps(_sums(new)))
            if final.exists():  # a damaged one, which `restore` passed over
                shutil.rmtree(final)
            new.rename(final)
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(new, ignore_errors=True)
            reason = getattr(error, "strerror", None) or _plain(error)
            before = f"step {self.steps[-1]} is kept" if self.steps else "there is none before it"
            raise InputError(
                f"cannot write the checkpoint {final}: {reason}; {before}: make room, then start the same "
                "command again to resume"
            ) from None
        for old in self.steps[: -self.keep]:
            shutil.rmtree(self.place(old), ignore_errors=True)

    def restore(self, workers):
        """Reads the newest checkpoint that is whole; returns its step, or None where there is none.

        Args:
            workers: `Workers` that all restore: the newest one that is whole for each of them.

        Warns:
            UserWarning: a newer one is damaged.
        """
        newest = math.inf
        while True:
            found = workers.gathered(self._newest_whole(newest))[:, 0]
            newest = int(found.min())
            if newest == found.max():
                break
        if newest < 0:
            return None
        self.state.read(str(self.place(newest) / "state")).assert_existing_objects_matched()
        return newest

    def _newest_whole(self, newest):
        """Of the steps up to that one, -1 where there is none."""
        for step in reversed(self.steps):
            if step > newest:
                continue
            damage = _damage(self.place(step))
            if damage is None:
                return step
            warnings.warn(
                f"checkpoint {self.place(step)} is damaged ({damage}): the one before it is used",
                stacklevel=3,
            )
        return -1


def _plain(error):
    """What TensorFlow's error says, without the names of its operations."""
    return re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", str(error).splitlines()[0]).strip()


def _sums(folder):
    sums = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums


def _damage(folder):
    """What is wrong with a checkpoint's files, None where they are as they were written."""
    try:
        expected = json.loads((folder / SUMS).read_text())
        found = _sums(folder)
    except (OSError, ValueError) as error:
        return str(error)
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{name} is {'missing' if name not in found else 'not what was written'}"
    return None

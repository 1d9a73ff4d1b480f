"""Checkpoints of a stage's training state: written atomically, checked when read, the newest few kept.

<folder>/step-0000120/state.index, state.data-…     what `tf.train.Checkpoint` writes
<folder>/step-0000120/sums.json                     SHA-256 of each of these files
"""

import contextlib
import hashlib
import json
import math
import os
import re
import warnings
from pathlib import Path

import tensorflow as tf

from sd_tf.errors import InputError, shown
from sd_tf.files import is_inside, open_file, read_json, reason
from sd_tf.training.options import FOLDER
from sd_tf.training.own_folder import name_of, remove, steps_in

SUMS = "sums.json"
LARGEST_SUMS = 1_000_000  # bytes
LARGEST_FILE = 200_000_000_000  # bytes; all of Stable Diffusion's UNet and its optimizer takes 14 GB
MOST_FILES = 1000


class Checkpoints:
    """Writes and restores a `tf.train.Checkpoint` in a folder of its own.

    Each checkpoint is written under a temporary name and then renamed, so a process killed at any moment
    leaves the earlier ones intact.

    Args:
        state: a `tf.train.Checkpoint`.
        folder: for the checkpoints; made when the first one is written.
        keep: how many of the newest stay.
    """

    def __init__(self, state, folder, keep):
        self.state, self.folder, self.keep = state, Path(folder), keep

    @property
    def steps(self):
        """The steps of the checkpoints on disk, damaged ones included, in ascending order."""
        return list(steps_in(self.folder))

    def place(self, step):
        """The folder of the checkpoint of a step."""
        return self.folder / name_of(step)

    def save(self, step):
        """Writes the current state.

        Raises:
            InputError: it cannot be written; earlier checkpoints are kept.
        """
        new, final = self.folder / f".{name_of(step)}.new", self.place(step)
        self._check_folder()
        try:
            remove(new)  # of a save that was killed
            new.mkdir(parents=True)
            self.state.write(str(new / "state"))
            (new / SUMS).write_text(json.dumps(_sums(new)))
            remove(final)  # a damaged one, which `restore` passed over
            new.rename(final)
        except (OSError, tf.errors.OpError) as error:
            with contextlib.suppress(OSError):
                remove(new)
            why = getattr(error, "strerror", None) or _first_line(error)
            before = f"step {self.steps[-1]} is kept" if self.steps else "there is no earlier one"
            raise InputError(
                f"cannot write the checkpoint {final}: {why}; {before}: make room, then run it again "
                "to resume"
            ) from None
        for old in self.steps[: -self.keep]:
            with contextlib.suppress(OSError):
                remove(self.place(old))

    def restore(self, workers):
        """Reads the newest intact checkpoint; returns its step, or None if there is none.

        Args:
            workers: `Workers`, which all restore the newest checkpoint that is intact for each of them.

        Warns:
            UserWarning: a newer one is damaged.

        Raises:
            InputError: intact checkpoints are there, but none fits this network.
        """
        self._check_folder()
        newest, mismatch = math.inf, None
        while True:
            found = workers.gathered(self._newest_intact(newest))[:, 0]
            newest = int(found.min())
            if newest != found.max():
                continue
            if newest < 0:
                break
            mismatch = self._read(newest)
            if workers.gathered(float(mismatch is None)).all():
                return newest
            mismatch = mismatch or "another worker cannot read it"
            self._warn(newest, mismatch)
            newest -= 1
        if mismatch is not None:  # some of its values may have been read into the network
            raise InputError(
                f"no checkpoint in {self.folder} can be read into this network: delete that folder to begin "
                f"the stage again, or name another {FOLDER}"
            )
        return None

    def _check_folder(self):
        for folder in (self.folder.parent, self.folder):
            if folder.is_symlink() and not is_inside(self.folder.parent.parent, folder):
                raise InputError(
                    f"{folder} is a link out of the run's folder: copy what it points to, or name "
                    f"another {FOLDER}"
                )

    def _read(self, step):
        """Reads a checkpoint whose checksums match; returns what does not fit the network, or None."""
        try:
            self.state.read(str(self.place(step) / "state")).assert_existing_objects_matched()
        except KeyboardInterrupt:
            raise
        except Exception as error:  # TensorFlow, protocol buffers and shapes each raise their own
            return _first_line(error)[:200] or type(error).__name__
        return None

    def _warn(self, step, damage):
        said = f"checkpoint {self.place(step)} is damaged ({damage}): the one before it is used"
        warnings.warn(str(InputError(said)), stacklevel=4)  # as `InputError` escapes what does not print

    def _newest_intact(self, newest):
        """The newest step up to `newest` whose files are intact, -1 if there is none."""
        for step in reversed(self.steps):
            if step > newest:
                continue
            damage = _damage(self.place(step))
            if damage is None:
                return step
            self._warn(step, damage)
        return -1


def _first_line(error):
    """The first line of TensorFlow's error, without the names of operations."""
    return re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", (str(error).splitlines() or [""])[0]).strip()


def _sums(folder):
    """File -> SHA-256, of all regular files of a checkpoint."""
    files, sums = sorted(folder.iterdir()), {}
    if len(files) > MOST_FILES:
        raise InputError(f"it has {len(files)} files, at most {MOST_FILES} are allowed")
    for file in files:
        with open_file(file, root=folder) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > LARGEST_FILE:
                raise InputError(f"{file} has {size:,} bytes, at most {LARGEST_FILE:,} are allowed")
            sums[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums


def _damage(folder):
    """What is wrong with a checkpoint's files; None if they are as they were written."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            return "it is not a folder"
        expected = read_json(folder / SUMS, root=folder, most=LARGEST_SUMS)
        found = _sums(folder)
    except (OSError, ValueError) as error:
        return reason(error)
    if not any(name.startswith("state.") for name in expected):
        return f"{SUMS} lists no state file"
    for name, digest in expected.items():
        if found.get(name) != digest:
            return f"{shown(name)[1:-1]} is {'missing' if name not in found else 'not as it was written'}"
    unknown = sorted(found.keys() - expected.keys() - {SUMS})
    return f"{unknown[0]} does not belong to it" if unknown else None

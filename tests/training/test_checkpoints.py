"""Checkpoints on disk: whole or not there, and what is done with damaged ones."""

import errno
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.errors import InputError
from sd_tf.training.checkpoints import Checkpoints
from sd_tf.training.workers import Workers

ALONE = Workers(tf.distribute.get_strategy())


@pytest.fixture
def value():
    return tf.Variable(0.0)


@pytest.fixture
def checkpoints(tmp_path, value):
    """Of steps 1, 2 and 3, each with its number as the value."""
    made = Checkpoints(tf.train.Checkpoint(value=value), tmp_path / "stage", keep=3)
    for step in (1, 2, 3):
        value.assign(step)
        made.save(step)
    value.assign(-1.0)
    return made


def restored(checkpoints, value):
    """The step that was read, with warnings as errors, and what was read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return checkpoints.restore(ALONE), float(value)


def data_file(checkpoints, step):
    return next(checkpoints.place(step).glob("state.data*"))


def test_the_newest_is_read(checkpoints, value):
    assert checkpoints.steps == [1, 2, 3]
    assert restored(checkpoints, value) == (3, 3.0)


def test_without_any_nothing_is_read(tmp_path, value):
    assert Checkpoints(tf.train.Checkpoint(value=value), tmp_path / "none", 2).restore(ALONE) is None


def truncated(file):
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncated, flipped, lambda file: file.unlink()])
def test_a_damaged_one_is_said_and_the_one_before_it_used(checkpoints, value, damage):
    file = data_file(checkpoints, 3)
    damage(file)
    with pytest.warns(UserWarning, match=f"step-0000003 is damaged.*{file.name}.*the one before it"):
        assert checkpoints.restore(ALONE) == 2
    assert float(value) == 2.0
    value.assign(30.0)
    checkpoints.save(3)  # what comes next takes its place
    value.assign(-1.0)
    assert restored(checkpoints, value) == (3, 30.0)


@pytest.mark.parametrize("sums", ["", "{", None])
def test_one_without_sums_is_not_trusted(checkpoints, value, sums):
    file = checkpoints.place(3) / "sums.json"
    file.unlink() if sums is None else file.write_text(sums)
    with pytest.warns(UserWarning, match="step-0000003 is damaged"):
        assert checkpoints.restore(ALONE) == 2


def test_a_deleted_one_is_not_missed(checkpoints, value):
    shutil.rmtree(checkpoints.place(3))
    assert restored(checkpoints, value) == (2, 2.0)


def test_a_save_that_fails_leaves_those_before_it(checkpoints, value, monkeypatch):
    def full(self, path):
        (checkpoints.folder / ".step-0000004.new" / "state.data").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", full)
    with pytest.raises(InputError, match="step-0000004: No space left on device; step 3 is kept.*to resume"):
        checkpoints.save(4)
    assert len(list(checkpoints.folder.iterdir())) == 3
    monkeypatch.undo()
    assert restored(checkpoints, value) == (3, 3.0)


def test_what_a_killed_save_left_is_written_over(checkpoints, value):
    left = checkpoints.folder / ".step-0000004.new"
    left.mkdir()
    (left / "state.data").write_text("half")
    assert restored(checkpoints, value) == (3, 3.0)
    value.assign(4.0)
    checkpoints.save(4)
    assert checkpoints.steps == [2, 3, 4]
    assert restored(checkpoints, value) == (4, 4.0)


def test_workers_read_the_newest_that_is_whole_for_all(checkpoints, value):
    class Lagging:
        number, index, is_chief = 2, 0, True

        def gathered(self, *values):
            return np.array([values, [min(values[0], 1.0)]])

    assert checkpoints.restore(Lagging()) == 1
    assert float(value) == 1.0

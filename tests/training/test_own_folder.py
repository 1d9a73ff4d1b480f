"""The lock of a run's folder, where it is lost, cannot be had, or is somebody else's."""

import errno
import fcntl
import os

import pytest

from sd_tf.errors import InputError
from sd_tf.training.own_folder import locked


def test_nobody_else_has_the_lock_in_the_same_process_either(tmp_path):
    file = tmp_path / ".lock"
    with locked(file, "it"):
        with pytest.raises(InputError, match="it is being trained by another process"), locked(file, "it"):
            pass
        assert file.exists()
    assert not file.exists()


def test_who_ends_does_not_take_the_lock_away_that_another_has_got_meanwhile(tmp_path):
    file = tmp_path / ".lock"
    with locked(file, "it"):
        file.unlink()  # as a run does whose start-up has failed
        second = locked(file, "it")
        second.__enter__()
    with pytest.raises(InputError, match="another process"), locked(file, "it"):
        pass
    second.__exit__(None, None, None)
    assert not file.exists()


def test_a_file_system_without_locks_is_trained_on_with_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = "it cannot be locked .Operation not supported.: do not train in it twice"
    with pytest.warns(UserWarning, match=said), locked(tmp_path / ".lock", "it"):
        pass
    assert not any(tmp_path.iterdir())

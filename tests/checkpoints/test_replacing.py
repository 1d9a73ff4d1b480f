"""A folder takes another's place: whole or not at all, and what is somebody else's is not touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sd_tf
from sd_tf.checkpoints.replacing import MARKER, recover, replacing
from sd_tf.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """A folder with something in it, beside one that is nobody's business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "notes.txt").write_text("mine")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "weights").write_text("old")
    return tmp_path / "x"


def write(folder, keep_others=False):
    with replacing(folder, keep_others) as new:
        (new / "weights").write_text("new")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("state", ["old", "new"])
def test_a_folder_that_happens_to_have_such_a_name_is_kept(folder, state):
    theirs = folder.with_name(f".x.{state}")
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    before = contents(folder.parent)
    with pytest.raises(InputError, match=rf"\.x\.{state} is in the way, and was not made here: move it"):
        write(folder)
    assert contents(folder.parent) == before
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="in the way|no file or folder"):
        write(folder)
    with pytest.raises(InputError):
        sd_tf.load(folder)
    assert (theirs / "thesis.txt").read_text() == "years of work" and not folder.exists()


@pytest.mark.parametrize("state", ["old", "new"])
@pytest.mark.parametrize("target", ["outside", "nowhere", "marked"])
def test_a_link_of_such_a_name_is_not_followed(folder, state, target):
    (folder.parent / "marked").mkdir()
    (folder.parent / "marked" / MARKER).touch()
    folder.with_name(f".x.{state}").symlink_to(target)
    before = contents(folder.parent)
    with pytest.raises(InputError, match="is in the way"):
        write(folder, keep_others=True)
    assert contents(folder.parent) == before


@pytest.mark.parametrize("target", ["outside", "nowhere", "x"])
def test_a_link_is_not_replaced(folder, target):
    link = folder.with_name("link")
    link.symlink_to(target)
    before = contents(folder.parent)
    with pytest.raises(InputError, match="link: it is a link, name the folder that it points to"):
        write(link, keep_others=True)
    assert contents(folder.parent) == before and os.readlink(link) == target


def test_a_file_is_not_replaced(folder):
    with pytest.raises(InputError, match="there is something that is no folder"):
        write(folder / "weights")
    assert contents(folder) == {"weights": "old"}


def test_a_model_is_written_through_a_link_that_the_user_names(tiny_model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    for _ in range(2):
        tiny_model.save(tmp_path / "model")
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk" / "model_index.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["disk", "model"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_names_may_be_as_long_as_file_systems_have_them(tmp_path, name):
    for _ in range(2):
        write(tmp_path / name)
    assert os.listdir(tmp_path) == [name] and contents(tmp_path / name) == {"weights": "new"}
    with pytest.raises(InputError, match="cannot write .*: File name too long"):
        write(tmp_path / (name + "é"))
    with pytest.raises(InputError, match="no file or folder|unknown model"):
        sd_tf.load(tmp_path / (name + "é"))


def test_a_marker_that_is_a_link_marks_nothing(folder):
    theirs = folder.with_name(".x.old")
    theirs.mkdir()
    (theirs / MARKER).symlink_to("../outside/notes.txt")
    with pytest.raises(InputError, match="is in the way"):
        write(folder)
    (folder / MARKER).symlink_to("../outside/notes.txt")
    shutil.rmtree(theirs)
    write(folder, keep_others=True)
    assert contents(folder.parent) == {"outside/notes.txt": "mine", "x/weights": "new"}


KILLED = """
import os, sys
from pathlib import Path
from sd_tf.checkpoints.replacing import replacing

folder = Path(sys.argv[1])
events = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "open"}


def killed_at(moment):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in events and str(folder.parent) in str(arguments):
            seen += 1
            if seen == moment:
                os._exit(9)

    sys.addaudithook(hook)
    with replacing(folder, keep_others=True) as new:
        (new / "weights").write_text("new")
        (new / "sub").mkdir()
        (new / "sub" / "more").write_text("new")
    os._exit(0)


child = os.fork()
if not child:
    killed_at(int(sys.argv[2]))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_save_killed_at_any_moment_leaves_old_or_new_and_loses_nothing(tmp_path):
    """Before each change of the file system in turn; the next save is whole, and nothing is left over."""
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    found = set()
    for moment in range(1, 60):
        folder = tmp_path / str(moment) / "x"
        (folder / "sub").mkdir(parents=True)
        for name in ("weights", "sub/more"):
            (folder / name).write_text("old")
        (folder / "notes.txt").write_text("mine")
        command = [sys.executable, "-c", KILLED, str(folder), str(moment)]
        ended = subprocess.run(command, env=environment, timeout=60).returncode
        if not folder.exists():
            recover(folder, keep_others=True)
        state = {(folder / name).read_text() for name in ("weights", "sub/more")}
        assert len(state) == 1, moment
        found |= state
        write(folder, keep_others=True)
        assert os.listdir(folder.parent) == ["x"], moment
        assert contents(folder) in (
            {"weights": "new", "notes.txt": "mine"},
            {"weights": "new", "notes.txt": "mine", "sub/more": state.pop()},
        )
        if ended == 0:
            break
    assert ended == 0 and moment > 10 and found == {"old", "new"}


@pytest.mark.parametrize("name", [".", "..", "x/.."])
def test_a_folder_without_a_name_is_not_replaced(folder, monkeypatch, name):
    monkeypatch.chdir(folder if name != "x/.." else folder.parent)
    before = contents(folder.parent)
    with pytest.raises(InputError, match="cannot be renamed"):
        write(Path(name))
    assert contents(folder.parent) == before


def test_a_folder_that_cannot_be_renamed_has_no_marker_then(folder, monkeypatch):
    def rename(path, target):
        raise OSError(16, "Device or resource busy")

    before = contents(folder.parent)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="busy"):
        write(folder)
    assert contents(folder.parent) == before

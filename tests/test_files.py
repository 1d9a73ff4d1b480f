"""Files of strangers: what is no regular file, leads out of its folder or has no end is refused, at once."""

import errno
import os
import socket
import threading
import time

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.files import (
    DEEPEST,
    is_inside,
    open_array,
    open_file,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    replacing_file,
    write_json,
    write_new,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret.txt").write_text("a private word")
    return tmp_path / "folder"


@pytest.fixture
def special(folder):
    """Name -> a path at which there is no regular file of the folder."""
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("../secret.txt")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "pipe link").symlink_to("pipe")
    (folder / "self").symlink_to("/proc/self/environ")
    (folder / "sub").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)  # its path would be too long
    listening.bind("socket")
    os.chdir(before)
    yield [folder / name for name in sorted(os.listdir(folder))]
    listening.close()


def test_what_is_no_regular_file_of_the_folder_is_refused_at_once(folder, special):
    assert len(special) == 9
    for path in special:
        for read in (open_file, read_json, lambda file, root: read_bytes(file, 10, root=root), open_array):
            with pytest.raises(InputError) as refused:
                read(path, root=folder)
            assert str(path) in str(refused.value)
            assert "private" not in str(refused.value)


def test_a_file_that_the_user_named_may_be_a_link(folder, special):
    assert read_text(folder / "link") == "a private word"
    for name in ("pipe", "pipe link", "zero", "sub", "socket", "loop", "dangling", "nothing", "null\0"):
        with pytest.raises(InputError, match="is a|missing|cannot be read"):
            read_text(folder / name)


def test_a_replaced_file_never_shows_what_lies_outside(folder):
    """Another process changes the file into a link and back, as often as it can."""
    ours, others = folder / "ours", folder / "others"
    os.link(folder.parent / "secret.txt", folder.parent / "target")
    done = threading.Event()

    def swap():
        while not done.is_set():
            others.write_text("public")
            others.replace(ours)
            others.symlink_to("../target")
            others.replace(ours)

    ours.write_text("public")
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        found, reads, end = set(), 0, time.monotonic() + 60
        # On a busy machine either thread may rest while the other goes round a thousand times.
        while reads < 1500 or not {None, b"public"} <= found and time.monotonic() < end:
            reads += 1
            try:
                found.add(read_bytes(ours, 100, root=folder))
            except InputError:
                found.add(None)
    finally:
        done.set()
        thread.join()
    assert found <= {None, b"public", b""} and None in found and b"public" in found


def test_a_file_has_an_end(folder):
    (folder / "large").write_bytes(b"x" * 1001)
    assert len(read_bytes(folder / "large", 1001)) == 1001
    with pytest.raises(InputError, match="1,001 bytes, of which 1,000 are the most"):
        read_bytes(folder / "large", 1000)
    with pytest.raises(InputError, match="of which 1,000 are the most"):
        read_bytes("/proc/self/maps", 1000)  # says that it has none


def test_a_line_has_an_end(folder):
    (folder / "lines").write_text("\ufeffone\nzwölf\n" + "x" * 50)
    assert list(read_lines(folder / "lines", 50)) == ["one\n", "zwölf\n", "x" * 50]
    with pytest.raises(InputError, match="line 3 has more than 49 characters"):
        list(read_lines(folder / "lines", 49))
    (folder / "lines").write_bytes(b"good\n\xff\n")
    with pytest.raises(InputError, match="line 2 is no text in UTF-8"):
        list(read_lines(folder / "lines"))


def test_json_is_an_object_of_bounded_depth(folder):
    file = folder / "some.json"
    write_json(file, {"a": [1, 2]})
    assert read_json(file) == {"a": [1, 2]}
    for text, said in [
        ('{"a":' + "[" * DEEPEST + "]" * DEEPEST + "}", "nests more than 50"),
        ("[" * 200_000, "cannot be read as JSON"),
        ("[1]", "holds a list"),
        ("{", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            read_json(file)


def test_a_hub_snapshot_links_to_its_own_model_alone(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs" / "x").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/x")
    assert read_json(snapshot / "config.json", root=snapshot) == {}
    (tmp_path / "other").write_text("{}")
    (snapshot / "other.json").symlink_to("../../../other")
    assert not is_inside(snapshot, snapshot / "other.json")


def test_an_array_is_as_large_as_it_says(folder):
    file = folder / "some.npy"
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(file, values)
    np.testing.assert_array_equal(open_array(file), values)
    content = file.read_bytes()
    for damaged in (content[:-1], content + b"x", content[:60], b"", content.replace(b"(3, 4)", b"(3,-4)")):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="some.npy is damaged"):
            open_array(file)
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="some.npy is damaged"):
        open_array(file)
    np.save(file, np.zeros((0, 3)))
    assert open_array(file).shape == (0, 3)


def test_a_write_that_fails_leaves_what_was_there(folder):
    file = folder / "some.txt"
    file.write_text("before")
    with pytest.raises(RuntimeError), replacing_file(file) as new:
        new.write_text("half")
        raise RuntimeError
    assert file.read_text() == "before" and os.listdir(folder) == ["some.txt"]
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text() == "before" and os.listdir(folder) == ["some.txt"]


def test_a_new_file_takes_the_next_free_number(folder, monkeypatch):
    (folder / "dress-2.png").symlink_to("nowhere")  # what is no file has a name, too
    written = [write_new(folder / "dress.png", str(i).encode()).name for i in range(3)]
    assert written == ["dress.png", "dress-1.png", "dress-3.png"]
    assert [(folder / name).read_bytes() for name in written] == [b"0", b"1", b"2"]

    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert write_new(folder / "dress.png", b"3").name == "dress-4.png"
    assert sorted(os.listdir(folder)) == [f"dress{number}.png" for number in ("-1", "-2", "-3", "-4", "")]
    assert (folder / "dress-4.png").read_bytes() == b"3"


def test_new_files_of_several_threads_are_all_there(folder):
    def write(own):
        for i in range(50):
            write_new(folder / "dress.png", f"{own} {i}".encode())

    threads = [threading.Thread(target=write, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {file.read_bytes().decode() for file in folder.iterdir()}
    assert found == {f"{own} {i}" for own in range(4) for i in range(50)}


def test_a_new_file_that_cannot_be_written_is_named(folder):
    with pytest.raises(InputError, match="cannot write .*nothing/dress.png: No such file"):
        write_new(folder / "nothing" / "dress.png", b"0")

"""Folders that appear whole or not at all, and what killed processes leave of them."""

import functools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.data.sources import folder_source
from sd_tf.data.staging import finished_folder
from sd_tf.errors import InputError
from tests.data.test_cache import build

KEY = "0123456789abcdef"
CACHING = f"""
import sys, time
from sd_tf.data.cache import latent_cache
from tests.data.test_cache import Dataset, Encoders

def encode(images):
    print("encoding", flush=True)
    time.sleep(float(sys.argv[2]))
    return Encoders().encode_images(images)

latent_cache(sys.argv[1], "{KEY}", Dataset(), encode, Encoders().encode_captions, 20, batch_size=4)
"""


def caching(folder, seconds):
    """A process that is in the middle of writing a cache, which takes five times so many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", CACHING, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "encoding\n"
    return process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_caching_leaves_is_removed_by_the_next(tmp_path):
    process = caching(tmp_path, 600)
    assert len(names(tmp_path)) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(names(tmp_path)) == 1  # nobody could
    build(tmp_path, key="fedcba9876543210")
    assert names(tmp_path) == ["fedcba9876543210"]


def test_two_processes_that_write_the_same_cache_at_once_both_have_it(tmp_path):
    process = caching(tmp_path, 0.6)
    built = build(tmp_path, key=KEY)
    assert len(built) == 20 and process.poll() is None
    assert len(names(tmp_path)) == 2  # the other one's is left alone
    assert process.wait(60) == 0
    assert names(tmp_path) == [KEY]
    assert len(build(tmp_path, key=KEY)) == 20


def test_what_a_killed_decoding_leaves_is_removed_by_the_next(tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    left = tmp_path / "store" / f".pictures-{KEY}.new-4711"
    left.mkdir(parents=True)
    (left / "pictures.npy").write_bytes(b"cut short")
    CaptionedPictures(folder_source(tmp_path, caption="black"), 8, tmp_path / "store").decode(progress=False)
    (store,) = (tmp_path / "store").iterdir()
    assert not store.name.startswith(".")


@pytest.mark.parametrize("name", [".git", f".{KEY}", f".{KEY}.new-", f"{KEY}.new-1", f".{KEY}.new-1.txt"])
def test_only_unfinished_folders_are_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / f".{KEY}.new-1").symlink_to(tmp_path / "mine")
    (tmp_path / f".{KEY}.new-2").write_text("a file")
    with finished_folder(tmp_path / KEY):
        pass
    assert names(tmp_path) == sorted([name, "mine", f".{KEY}.new-1", f".{KEY}.new-2", KEY])


def test_a_folder_appears_when_the_block_ends_well_and_not_before(tmp_path):
    with finished_folder(tmp_path / KEY) as new:
        (new / "file").write_text("content")
        assert not (tmp_path / KEY).exists()
    assert (tmp_path / KEY / "file").read_text() == "content"
    with pytest.raises(KeyError), finished_folder(tmp_path / "other"):
        raise KeyError
    assert names(tmp_path) == [KEY]


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(InputError, match="cannot write .*file/below"),
        finished_folder(tmp_path / "file/below"),
    ):
        pass


def write_many(folder, number):
    for _ in range(50):
        with finished_folder(folder / f"{number:016x}") as new:
            (new / "file").write_text("content")  # fails if another writer took the folder for abandoned
        (folder / f"{number:016x}" / "file").unlink()
        (folder / f"{number:016x}").rmdir()


def test_writers_never_take_each_others_folders_for_abandoned(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(functools.partial(write_many, tmp_path), range(4)))
    assert names(tmp_path) == []

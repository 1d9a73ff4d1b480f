"""Kept conversions: a stranger's is never used, a damaged one is made again, nobody's files are deleted."""

import json
import os
import shutil
import sys
import threading
import time

import numpy as np
import pytest

import sd_tf
from sd_tf.generation import conversions
from sd_tf.generation.conversions import MARK, Origin, discard, find, find_of, keep, key_of
from sd_tf.generation.engines import kept_conversion

pytest.importorskip("openvino")
PARTS = ("vae", "unet", "text_encoder")


def draw(model):
    return model.generate("a red dress", steps=2, engine="openvino", progress=False).astype(int)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where conversions are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sd_tf" / "conversions"


@pytest.fixture(scope="module")
def honest(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversions") / "honest"
    tiny_model.save(folder)
    return folder


@pytest.fixture
def folder(honest, tmp_path):
    """A copy of a model, which a test may damage."""
    return shutil.copytree(honest, tmp_path / "model")


@pytest.fixture
def files(tmp_path):
    """What stands for a conversion."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.xml").write_text("<xml/>")
    (tmp_path / "files" / "a.bin").write_bytes(b"weights")
    return tmp_path / "files"


def others_model(folder):
    """A model of other weights, with its conversion."""
    model = sd_tf.load(folder)
    for variable in model.unet.trainable_variables:
        variable.assign(0.5 * variable)
    model.save(folder)
    model = sd_tf.load(folder)
    return draw(model)


def test_what_a_strangers_folder_brings_is_neither_used_nor_touched(honest, tmp_path, cache):
    """A conversion of other weights, in every place and by every name that this or an earlier release had."""
    expected = draw(sd_tf.load(honest))
    (kept,) = cache.iterdir()
    other = shutil.copytree(honest, tmp_path / "other")
    wrong = others_model(other)
    assert np.abs(wrong - expected).max() > 2
    (others,) = set(cache.iterdir()) - {kept}
    for place in (honest / "openvino", honest / ".cache" / "sd_tf" / "conversions"):
        shutil.copytree(others, place / kept.name)
    brought = {file: file.read_bytes() for file in honest.rglob("*") if file.is_file()}
    discard(kept)  # now it is converted again
    assert np.abs(draw(sd_tf.load(honest)) - expected).max() == 0
    assert {file: file.read_bytes() for file in honest.rglob("*") if file.is_file()} == brought
    shutil.rmtree(honest / "openvino")
    shutil.rmtree(honest / ".cache")


def test_a_link_beside_the_model_leads_to_nothing_being_deleted(folder, tmp_path):
    precious = tmp_path / "precious"
    (precious / "unet").mkdir(parents=True)
    (precious / "unet" / "model.xml").write_text("another tool's")
    (folder / "openvino").symlink_to(precious)
    draw(sd_tf.load(folder))
    assert (precious / "unet" / "model.xml").read_text() == "another tool's"
    assert os.listdir(precious) == ["unet"]


def damaged(file, damage, outside):
    """Puts something else in the place of a file; `outside` gets its content."""
    content = file.read_bytes()
    outside.write_bytes(content)
    file.unlink()
    {
        "truncated": lambda: file.write_bytes(content[: len(content) // 2]),
        "changed": lambda: file.write_bytes(bytes([content[0] ^ 1]) + content[1:]),
        "missing": lambda: None,
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "link": lambda: file.symlink_to(outside),
        "folder": lambda: file.mkdir(),
    }[damage]()


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "pipe", "device", "link", "folder"])
@pytest.mark.parametrize("name", ["a.bin", MARK])
def test_a_damaged_conversion_is_not_used_but_replaced(files, cache, tmp_path, damage, name):
    key = key_of("x")
    keep(files, key, None)
    content = (cache / key / name).read_bytes()
    damaged(cache / key / name, damage, tmp_path / "outside")
    assert find(key) is None
    keep(files, key, None)
    assert (tmp_path / "outside").read_bytes() == content
    if name != MARK and damage != "folder":  # without a mark it may be somebody's, and stays
        assert find(key) == cache / key


def test_what_is_damaged_is_converted_again(folder, cache, tmp_path):
    expected = draw(sd_tf.load(folder))
    (kept,) = cache.iterdir()
    damaged(kept / "denoise.bin", "truncated", tmp_path / "outside")
    assert kept_conversion(Origin(folder, PARTS)) is None
    np.testing.assert_array_equal(draw(sd_tf.load(folder)), expected)
    assert kept_conversion(Origin(folder, PARTS)) == kept


def test_a_conversion_that_goes_while_it_is_being_used_is_made_again(folder, monkeypatch):
    """As where another process makes room for its own."""
    expected = draw(sd_tf.load(folder))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "keras")  # as in a process that has not imported it
        model = sd_tf.load(folder)
    assert model.engines._kept is not None
    (model.engines._kept / "encode.xml").unlink()
    np.testing.assert_array_equal(draw(model), expected)


@pytest.mark.parametrize(
    "mark",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"made_by": "sd_tf"}',
        '{"made_by": "sd_tf", "files": []}',
        '{"made_by": "sd_tf", "files": {"../../precious": "x"}}',
        '{"made_by": "sd_tf", "files": {"..": "x", ".": "x", "": "x"}}',
        '{"made_by": "another", "files": {"precious": "x"}}',
    ],
    ids=lambda mark: mark[:60],
)
def test_only_what_our_mark_names_is_deleted(cache, tmp_path, files, mark):
    folder = cache / key_of("x")
    folder.mkdir(parents=True, mode=0o700)
    (folder / "precious").write_text("mine")
    (cache.parent / "precious").write_text("mine")
    (folder / MARK).write_text(mark)
    discard(folder)
    keep(files, folder.name, None)
    assert find(folder.name) is None
    assert (folder / "precious").read_text() == (cache.parent / "precious").read_text() == "mine"


def test_a_cache_that_everybody_can_write_to_is_not_used(files, cache):
    keep(files, key_of("x"), None)
    assert find(key_of("x")) == cache / key_of("x")
    for path in (cache, cache / key_of("x")):
        path.chmod(0o777)
        assert find(key_of("x")) is None
        path.chmod(0o700)
    assert find(key_of("x")) is not None


def test_a_link_in_the_cache_is_not_followed(files, cache, tmp_path):
    keep(files, key_of("x"), None)
    (cache / key_of("x")).rename(tmp_path / "elsewhere")
    (cache / key_of("x")).symlink_to(tmp_path / "elsewhere")
    assert find(key_of("x")) is None
    discard(cache / key_of("x"))
    assert (tmp_path / "elsewhere" / "a.xml").exists()


def test_files_that_change_while_they_are_read_name_nothing(folder):
    origin = Origin(folder, PARTS)
    file = next((folder / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes())  # the same again: its time is another
    assert origin.key is None and not origin.is_unchanged
    assert Origin(folder, PARTS).key is not None
    os.mkfifo(folder / "unet" / "more.safetensors")
    assert Origin(folder, PARTS).key is None


def test_where_nothing_of_that_size_is_kept_nothing_is_hashed(folder, monkeypatch):
    monkeypatch.setattr(conversions, "_sha256_of_all", lambda *_: pytest.fail("hashed"))
    assert find_of(Origin(folder, PARTS)) is None


def test_the_least_recently_used_make_room(files, cache, monkeypatch):
    monkeypatch.setattr(conversions, "MOST_BYTES", 3 * 13)
    keys = [key_of(number) for number in range(4)]
    for key in keys[:3]:
        keep(files, key, None)
    for age, key in enumerate(keys[:3]):
        os.utime(cache / key / MARK, (time.time() - age, time.time() - age))
    assert find(keys[2]) is not None  # used now
    keep(files, keys[3], None)
    assert {path.name for path in cache.iterdir()} == {keys[0], keys[2], keys[3]}


def test_what_a_killed_process_left_is_swept_a_day_later(files, cache):
    keep(files, key_of("x"), None)
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        left = cache / f".new-{name}"
        left.mkdir(mode=0o700)
        (left / MARK).write_text(json.dumps({"made_by": "sd_tf", "files": {}}))
        (left / "denoise.bin").write_bytes(b"half")
        os.utime(left / MARK, (time.time() - age, time.time() - age))
    keep(files, key_of("y"), None)
    assert {path.name for path in cache.iterdir()} == {".new-new", key_of("x"), key_of("y")}


def test_several_processes_may_keep_the_same_at_once(files, cache):
    key, found = key_of("x"), []

    def work():
        for _ in range(20):
            keep(files, key, None)
            found.append(find(key))
            discard(cache / key)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and set(found) <= {cache / key, None} and cache / key in found
    keep(files, key, None)
    assert find(key) == cache / key and len(list(cache.iterdir())) == 1


def test_a_full_disk_leaves_nothing_behind(files, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversions, "_copy", full)
    keep(files, key_of("x"), None)
    assert list(cache.iterdir()) == []

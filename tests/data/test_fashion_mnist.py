import functools
import gzip
import hashlib
import http.server
import os
import struct
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from sd_tf.data import captions, fashion_mnist
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.errors import InputError

DATA = Path(os.environ.get("SD_TF_DATA_DIR", ""), "fashion-mnist")
needs_data = pytest.mark.skipif(
    not all((DATA / name).is_file() for name in fashion_mnist.FILES),
    reason="needs the Fashion-MNIST files in $SD_TF_DATA_DIR/fashion-mnist",
)


@pytest.fixture(scope="module")
def train():
    return FashionMNIST("train", DATA)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of 30 + 20 random pictures in the official format, which passes for the official one."""
    rng, files = np.random.default_rng(0), {}
    folder = tmp_path / "source"
    folder.mkdir()
    for prefix, count in (("train", 30), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        contents = {
            f"{prefix}-images-idx3-ubyte.gz": struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte.gz": struct.pack(">2I", 0x801, count) + labels.tobytes(),
        }
        for name, content in contents.items():
            packed = gzip.compress(content)
            (folder / name).write_bytes(packed)
            files[name] = (len(packed), hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.delenv("SD_TF_DATA_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return folder


# ------------------------------------------------------------------------------ the real pictures


@needs_data
def test_real_pictures_have_the_published_statistics(train):
    inner = train.grey[:, 2:-2, 2:-2] / np.float32(255)
    assert inner.shape == (60000, 28, 28)
    assert abs(inner.mean() - 0.2860) < 5e-5  # the constants that everyone normalises with
    assert abs(inner.std() - 0.3530) < 5e-5
    assert np.bincount(train.labels).tolist() == [6000] * 10


@needs_data
def test_padding_is_black_and_the_picture_is_centred(train):
    border = train.grey.copy()
    border[:, 2:-2, 2:-2] = 0
    assert not border.any() and train.grey.shape == (60000, 32, 32)
    raw = gzip.decompress((DATA / "train-images-idx3-ubyte.gz").read_bytes())[: 16 + 3 * 784]
    assert struct.unpack(">4I", raw[:16]) == (2051, 60000, 28, 28)
    third = np.array(list(raw[16 + 2 * 784 :])).reshape(28, 28)
    np.testing.assert_array_equal(train.grey[2, 2:30, 2:30], third)


@needs_data
def test_labels_name_what_is_seen(train):
    # Of all that is worn upright, only trousers are open low in the middle, between the legs.
    upright = [captions.CLASS_NAMES[c] for c in (0, 1, 2, 3, 4, 6)]
    gap = [train.grey[train.labels == c][:, 24:28, 15:17].mean() for c in (0, 1, 2, 3, 4, 6)]
    assert upright[np.argmin(gap)] == "trouser"
    # Shoes leave the top of their picture empty, and boots less of it than sneakers.
    top = {captions.CLASS_NAMES[c]: train.grey[train.labels == c][:, 2:12].mean() for c in range(10)}
    assert sorted(top, key=top.get)[0] == "sneaker" and top["ankle boot"] > 5 * top["sneaker"]
    assert train.labels[:4].tolist() == [9, 0, 0, 3]  # as in the authors' own figures


@needs_data
def test_test_split_is_the_other_ten_thousand():
    test = FashionMNIST("test", DATA)
    assert len(test) == 10000 and np.bincount(test.labels).tolist() == [1000] * 10
    assert test.fingerprint != FashionMNIST("test", DATA, seed=1).fingerprint


# ------------------------------------------------------------------------- pictures with captions


def test_captions_and_tints_tell_the_same(small):
    dataset = FashionMNIST("train", small)
    for epoch in range(5):
        images, texts, groups = dataset.examples(range(30), epoch)
        assert images.shape == (30, 32, 32, 3) and images.dtype == np.uint8 and groups.dtype == np.int32
        for i, text in enumerate(texts):
            label, colour = captions.parse(text)
            assert label == dataset.labels[i]
            tint = (255, 255, 255) if colour is None else captions.PALETTE[colour]
            exact = dataset.grey[i][..., None] * (np.array(tint) / 255)
            assert np.abs(images[i] - exact).max() <= 0.5 + 1e-9
            assert groups[i] == label * 9 + (0 if colour is None else 1 + colour)


def test_half_of_the_captions_carry_a_colour_and_all_colours_are_alike(small):
    dataset = FashionMNIST("train", small)
    colours = np.concatenate([dataset.examples(range(30), epoch).groups % 9 for epoch in range(200)])
    shares = np.bincount(colours, minlength=9) / 6000
    expected = np.array([1 / 2] + [1 / 16] * 8)
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / 6000)).all()


def test_examples_depend_on_seed_epoch_and_index_alone(small):
    dataset = FashionMNIST("train", small)
    images, texts, groups = dataset.examples(range(30), 4)
    some = FashionMNIST("train", small).examples([17, 3], 4)
    np.testing.assert_array_equal(some.images, images[[17, 3]])
    np.testing.assert_array_equal(some.groups, groups[[17, 3]])
    assert some.captions == [texts[17], texts[3]]
    assert dataset.examples(range(30), 5).captions != texts
    assert FashionMNIST("train", small, seed=1).examples(range(30), 4).captions != texts


def test_fingerprint_tells_splits_and_seeds_apart(small):
    prints = [FashionMNIST(split, small, seed).fingerprint for split in ("train", "test") for seed in (0, 1)]
    assert len(set(prints)) == 4 and FashionMNIST("train", small).fingerprint == prints[0]
    assert all(int(p, 16) >= 0 for p in prints)


# ------------------------------------------------------------------------- where the files are


def test_files_are_found_in_each_documented_place(small, tmp_path, monkeypatch):
    named = tmp_path / "pictures"
    named.mkdir()
    (named / "fashion-mnist").symlink_to(small)
    assert len(FashionMNIST("test", named)) == 20
    monkeypatch.setenv("SD_TF_DATA_DIR", str(named))
    assert len(FashionMNIST("test")) == 20
    monkeypatch.setenv("SD_TF_DATA_DIR", str(tmp_path))  # holds no such folder: the Keras cache is next
    (tmp_path / "keras" / "datasets").mkdir(parents=True)
    (tmp_path / "keras" / "datasets" / "fashion-mnist").symlink_to(small)
    assert len(FashionMNIST("test")) == 20


def test_a_named_folder_without_the_files_is_an_error_and_no_download(small, tmp_path, monkeypatch):
    monkeypatch.setenv("SD_TF_DATA_DIR", str(tmp_path))
    (tmp_path / "fashion-mnist").symlink_to(small)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(fashion_mnist, "_download", lambda folder: pytest.fail("downloaded"))
    with pytest.raises(InputError, match=r"empty lacks .*t10k-labels-idx1-ubyte\.gz.*data_dir"):
        FashionMNIST("train", tmp_path / "empty")


def test_one_missing_file_is_named_alone(small):
    (small / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"lacks the Fashion-MNIST files t10k-labels-idx1-ubyte\.gz:"):
        FashionMNIST("train", small)


def test_a_truncated_file_is_named_with_its_size(small):
    path = small / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz is truncated, 100 of [\d,]+ bytes"):
        FashionMNIST("train", small)


def test_a_file_that_is_not_the_official_one_is_refused(small):
    path = small / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = hashlib.md5(content).hexdigest()
    with pytest.raises(InputError, match=rf"train-labels-idx1-ubyte\.gz is not the official file.*{found}"):
        FashionMNIST("test", small)


def test_an_unknown_split_names_the_valid_ones(small):
    with pytest.raises(InputError, match="unknown split 'tset'.*train, test"):
        FashionMNIST("tset", small)


# ------------------------------------------------------------------------------------ download


def assert_names_every_way_out(error):
    message = str(error.value)
    assert "\n" not in message
    for way in ("data_dir", "$SD_TF_DATA_DIR", "source garments", *fashion_mnist.FILES):
        assert way in message


def test_without_tensorflow_datasets_the_error_names_every_way_out(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # its import fails
    with pytest.raises(InputError) as error:
        FashionMNIST("train")
    assert_names_every_way_out(error)


def test_without_a_network_the_error_comes_at_once_and_nothing_is_left(small, tmp_path, monkeypatch):
    refused = types.SimpleNamespace(URL="http://127.0.0.1:1/")
    library = types.SimpleNamespace(builder_cls=lambda name: refused)  # no DownloadManager: it is not reached
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)
    with pytest.raises(InputError, match="refused") as error:
        FashionMNIST("train")
    assert_names_every_way_out(error)
    assert not (tmp_path / "keras").exists()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(small, monkeypatch):
    """tensorflow-datasets itself, with `small` on a local server as the place of its Fashion-MNIST."""
    tfds = pytest.importorskip("tensorflow_datasets", exc_type=ImportError)
    from tensorflow_datasets.core.download import checksums

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=small))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    infos = {}
    for name in fashion_mnist.FILES:
        content = (small / name).read_bytes()
        infos[url + name] = checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), name)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: infos)
    monkeypatch.setattr(tfds, "builder_cls", lambda name: types.SimpleNamespace(URL=url))
    yield small
    server.shutdown()
    server.server_close()


def test_a_download_fills_the_keras_cache_with_the_official_files(served, tmp_path, monkeypatch):
    assert len(FashionMNIST("train")) == 30
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    assert sorted(p.name for p in cache.iterdir()) == sorted(fashion_mnist.FILES)
    assert all((cache / name).read_bytes() == (served / name).read_bytes() for name in fashion_mnist.FILES)
    assert [p.name for p in cache.parent.iterdir()] == ["fashion-mnist"]
    monkeypatch.setattr(fashion_mnist, "_download", lambda folder: pytest.fail("downloaded twice"))
    assert len(FashionMNIST("test")) == 20


def test_what_a_killed_download_leaves_is_removed_by_the_next(served, tmp_path, monkeypatch):
    used, read_verified = [], fashion_mnist._read_verified

    def recorded(path):
        used.append(path.parent)
        return read_verified(path)

    monkeypatch.setattr(fashion_mnist, "_read_verified", recorded)
    FashionMNIST("train")
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    left = next(folder for folder in used if folder != cache)
    left.mkdir()  # as if its process had been killed
    (left / "part").write_bytes(b"half")
    (cache / min(fashion_mnist.FILES)).unlink()
    FashionMNIST("train")
    assert [path.name for path in cache.parent.iterdir()] == ["fashion-mnist"]


def test_a_damaged_download_is_refused_and_leaves_no_file(served, tmp_path):
    (served / "t10k-images-idx3-ubyte.gz").write_bytes(b"half")
    with pytest.raises(InputError) as error:
        FashionMNIST("train")
    assert_names_every_way_out(error)
    assert [p for p in (tmp_path / "keras").rglob("*") if p.is_file()] == []


def test_a_pipe_is_no_official_file(small):
    file = small / min(fashion_mnist.FILES)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="lacks the Fashion-MNIST files"):
        FashionMNIST("train", small)
    with pytest.raises(InputError, match="is a named pipe"):
        fashion_mnist._read_verified(file)

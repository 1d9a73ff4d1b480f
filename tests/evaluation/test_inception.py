import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sd_tf.errors import InputError
from sd_tf.evaluation import inception


def graph(operation=None):
    """A graph with the names and the input of the real one, and arithmetic that a test can do again."""
    with tf.Graph().as_default() as made:
        picture = tf.compat.v1.placeholder(tf.float32, (299, 299, 3), name="Cast")
        x = tf.expand_dims(picture, 0, name="ExpandDims")
        x = tf.multiply(tf.subtract(x, 128.0, name="Sub"), 1.0 / 128.0, name="Mul")
        kernel = tf.constant(np.random.default_rng(0).normal(size=(1, 1, 3, 4)).astype("float32"))
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))
        if operation is not None:
            x = operation(x)
        tf.nn.avg_pool2d(x, 299, 1, "VALID", name="pool_3")
    return made.as_graph_def()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / inception.FILE
    path.write_bytes(graph().SerializeToString())
    return path


def test_the_graph_of_a_file_is_run_on_any_number_of_pictures(file):
    images = np.random.default_rng(1).integers(0, 256, (37, 32, 32, 3), np.uint8)  # more than a batch
    network = inception.Inception(file)
    found = network.features(images)
    resized = np.stack([inception.resized(image, 299) for image in images])
    kernel = np.random.default_rng(0).normal(size=(1, 1, 3, 4)).astype("float32")[0, 0]
    expected = np.maximum((resized - 128) / 128 @ kernel, 0).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(network.sha256) == 64


def test_resizing_is_antialiased_and_not_rounded():
    """Pillow's filter on floats: what the clean-fid package does."""
    image = np.random.default_rng(2).integers(0, 256, (400, 350, 3), np.uint8)
    found = inception.resized(image, 299)
    for channel in range(3):
        whole = Image.fromarray(image[..., channel].astype("float32")).resize(
            (299, 299), Image.Resampling.BICUBIC
        )
        np.testing.assert_allclose(found[..., channel], np.clip(np.asarray(whole), 0, 255))
    assert np.abs(found - np.round(found)).max() > 0.4
    stripes = np.zeros((598, 598, 3), np.uint8)
    stripes[::2] = 255  # every other row, which a filter without antialiasing would take or leave
    inner = inception.resized(stripes, 299)[5:-5]
    assert inner.min() > 120 and inner.max() < 135


def test_a_file_with_other_operations_is_refused(tmp_path):
    def writes(x):
        tf.io.write_file("a file", "what a stranger wants in it")
        return x

    path = tmp_path / "graph.pb"
    path.write_bytes(graph(writes).SerializeToString())
    with pytest.raises(InputError, match="WriteFile"):
        inception.Inception(path)


@pytest.mark.parametrize("content", [b"not a graph at all", b""])
def test_what_is_no_graph_is_named(tmp_path, content):
    path = tmp_path / "graph.pb"
    path.write_bytes(content)
    with pytest.raises(InputError, match="graph.pb"):
        inception.Inception(path)


def test_a_download_is_kept_and_what_a_killed_one_left_is_removed(tmp_path, monkeypatch):
    file = tmp_path / "models" / "inception-2015-12-05" / inception.FILE
    archive = tmp_path / "archive.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("folder"))
        info = tarfile.TarInfo(f"folder/{inception.FILE}")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"graph"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(
        inception.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(archive.read_bytes())
    )
    left = file.parent / f".{inception.FILE}.new-0123456789abcdef"  # by a process that was killed
    left.mkdir(parents=True)
    assert inception._cached() == file and file.read_bytes() == b"graph"
    assert list(file.parent.iterdir()) == [file]


def test_without_the_file_and_a_network_it_says_where_to_get_it(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(inception.urllib.request, "urlopen", offline)
    with pytest.raises(InputError, match=r"no route to host.*name it with inception"):
        inception.Inception()

"""Folders, Hugging Face's data sets and TensorFlow's by name, and what is said where one is not there."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from sd_tf.data.sources import find_source
from sd_tf.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three pictures of one colour each, with captions."""
    below = tmp_path / "mine"
    below.mkdir()
    rows = []
    for number, name in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (12, 8), name).save(below / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a {name} card", "other": name})
    (below / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return below


def colours(source):
    return [source.open(i, 8).getpixel((0, 0)) for i in range(len(source.captions))]


RED_GREEN_BLUE = [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_a_folder(folder):
    source = find_source("folder", str(folder))
    assert source.captions == ["a red card", "a green card", "a blue card"]
    assert colours(source) == RED_GREEN_BLUE
    assert find_source("folder", str(folder), "other").captions == ["red", "green", "blue"]
    with pytest.raises(InputError, match="--dataset folder needs --data-dir"):
        find_source("folder")


def test_pokemon_are_taken_from_a_folder_and_from_no_mirror(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("SD_TF_DATA_DIR", raising=False)
    with pytest.raises(InputError, match="--dataset pokemon is not downloaded: name a folder .* --data-dir"):
        find_source("pokemon")
    folder.rename(tmp_path / "pokemon")
    monkeypatch.setenv("SD_TF_DATA_DIR", str(tmp_path))
    assert find_source("pokemon").captions == find_source("pokemon", str(tmp_path / "pokemon")).captions


def test_a_data_set_of_hugging_face(folder):
    pytest.importorskip("datasets")
    source = find_source(f"hub:{folder}")
    assert source.captions == ["a red card", "a green card", "a blue card"]
    assert colours(source) == RED_GREEN_BLUE
    assert find_source(f"hub:{folder}", caption_column="other").captions == ["red", "green", "blue"]
    with pytest.raises(InputError, match="unknown caption column of hub:.* 'texts': did you mean 'text'"):
        find_source(f"hub:{folder}", caption_column="texts")


def test_a_data_set_that_is_not_there(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="cannot be loaded"):
        find_source(f"hub:{tmp_path / 'nowhere'}")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="--dataset hub:me/mine needs datasets: pip install datasets"):
        find_source("hub:me/mine")


def test_a_data_set_of_tensorflow(tmp_path):
    """One that is written here, with names of classes for captions."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")  # which tensorflow_datasets needs and does not ask for
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(names=["red", "dark_blue"]),
        }
    )

    class Cards(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (name, colour) in enumerate([("red", (255, 0, 0)), ("dark_blue", (0, 0, 99))]):
                yield number, {"image": np.full((8, 8, 3), colour, np.uint8), "label": name}

    Cards(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = find_source("tfds:cards", str(tmp_path))
    assert sorted(zip(source.captions, colours(source), strict=True)) == [
        ("dark blue", (0, 0, 99)),
        ("red", (255, 0, 0)),
    ]


def test_a_name_that_tensorflow_datasets_does_not_know(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match="tfds:no_such_thing cannot be had"):
        find_source("tfds:no_such_thing", str(tmp_path))

"""Folders, Hugging Face's data sets and TensorFlow's by name, and what is said where one is not there."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from sd_tf.data.captioned_pictures import CaptionedPictures
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
    with pytest.raises(InputError, match="source folder needs data_dir"):
        find_source("folder")


def test_pokemon_are_taken_from_a_folder_and_from_no_mirror(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("SD_TF_DATA_DIR", raising=False)
    with pytest.raises(InputError, match="source pokemon is not downloaded: name a folder .* data_dir"):
        find_source("pokemon")
    folder.rename(tmp_path / "pokemon")
    monkeypatch.setenv("SD_TF_DATA_DIR", str(tmp_path))
    assert find_source("pokemon").captions == find_source("pokemon", str(tmp_path / "pokemon")).captions


@pytest.mark.parametrize("dataset, way_out", [("pokemon", "hub:<id>"), ("emoji", "SD_TF_DATA_DIR")])
def test_what_is_not_there_is_no_other_data_set(folder, tmp_path, monkeypatch, dataset, way_out):
    missing = f"{tmp_path}/{dataset} is no folder: name a folder of captioned pictures .*{way_out}"
    monkeypatch.delenv("SD_TF_DATA_DIR", raising=False)
    with pytest.raises(InputError, match=missing):
        find_source(dataset, str(tmp_path))
    monkeypatch.setenv("SD_TF_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=missing):
        find_source(dataset)
    assert len(find_source(dataset, str(folder)).captions) == 3  # which is said to be it


def test_a_data_set_of_hugging_face(folder):
    pytest.importorskip("datasets")
    source = find_source(f"hub:{folder}")
    assert source.captions == ["a red card", "a green card", "a blue card"]
    assert colours(source) == RED_GREEN_BLUE
    assert find_source(f"hub:{folder}", caption_column="other").captions == ["red", "green", "blue"]
    with pytest.raises(InputError, match="unknown caption column of hub:.* 'texts': did you mean 'text'"):
        find_source(f"hub:{folder}", caption_column="texts")


@pytest.fixture
def hub(tmp_path):
    """`hub(kind, captions)`: the name of a data set with a picture of colour (i, i, i) for caption i."""
    datasets = pytest.importorskip("datasets")

    def make(kind, *columns):
        names = ["text", "other"][: len(columns)]
        pictures = []
        for number in range(len(columns[0])):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (number,) * 3).save(file, "PNG")
            pictures.append({"bytes": file.getvalue(), "path": None})
        features = datasets.Features({"image": datasets.Image()} | dict.fromkeys(names, kind(datasets)))
        table = datasets.Dataset.from_dict(
            {"image": pictures, **dict(zip(names, columns, strict=True))}, features=features
        )
        (tmp_path / "table").mkdir()
        table.to_parquet(tmp_path / "table" / "train.parquet")
        return f"hub:{tmp_path / 'table'}"

    return make


def test_classes_of_hugging_face_are_called_by_their_names(hub):
    name = hub(lambda datasets: datasets.ClassLabel(names=["red", "dark_blue"]), [1, 0, None])
    source = find_source(name)
    assert source.captions == ["dark blue", "red"] and source.problems == [f"{name}, row 2: has no caption"]


def test_several_captions_of_a_picture_are_kept_together(hub):
    name = hub(lambda datasets: [datasets.Value("string")], [["a dress", "red"], ["a bag"], []])
    assert find_source(name).captions == [("a dress", "red"), "a bag"]


def test_captions_that_are_no_text_are_refused_by_name(hub):
    name = hub(lambda datasets: datasets.Value("int64"), [7, 8])
    with pytest.raises(InputError, match="row 0: text is 7, which is no text: .* caption_column"):
        find_source(name)


def test_pictures_keep_their_captions_where_columns_share_decoded_pictures(hub, tmp_path):
    """Each column lacks the caption of another row."""
    numbers = [str(number) for number in range(40)]
    name = hub(lambda datasets: datasets.Value("string"), ["", *numbers[1:]], [numbers[0], "", *numbers[2:]])
    for column in ("text", "other"):
        pictures = CaptionedPictures(find_source(name, caption_column=column), 8, tmp_path / "store")
        pictures.decode(progress=False)
        examples = pictures.examples(range(39), 0)
        assert [str(number) for number in examples.images[:, 0, 0, 0]] == examples.captions


def test_a_data_set_that_is_not_there(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="cannot be loaded"):
        find_source(f"hub:{tmp_path / 'nowhere'}")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="source hub:me/mine needs datasets: pip install datasets"):
        find_source("hub:me/mine")


@pytest.fixture(scope="module")
def tfds():
    module = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")  # which tensorflow_datasets needs and does not ask for
    return module


def builder(tfds, called, features, examples, split="train"):
    """A data set that tensorflow_datasets then knows by that name, and nobody has prepared."""

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = called
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: enumerate(examples)}

        def _generate_examples(self):
            raise NotImplementedError

    return Builder


def test_a_data_set_of_tensorflow_is_prepared_once(tfds, tmp_path):
    """Whose captions are the names of its classes."""
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["red", "dark_blue"]),
    }
    examples = [
        {"image": np.full((8, 8, 3), colour, np.uint8), "label": name}
        for name, colour in [("red", (255, 0, 0)), ("dark_blue", (0, 0, 99))]
    ]
    builder(tfds, "cards", features, examples)
    for _ in range(2):
        source = find_source("tfds:cards", str(tmp_path))
        assert sorted(zip(source.captions, colours(source), strict=True)) == [
            ("dark blue", (0, 0, 99)),
            ("red", (255, 0, 0)),
        ]
        examples.clear()  # the second time there is nothing to prepare it from


@pytest.mark.parametrize(
    "kind, pixel, seen",
    [
        (np.uint8, (200,), (200, 200, 200)),
        (np.uint16, (128 * 257,), (128, 128, 128)),
        (np.uint16, (0, 128 * 257, 65535), (0, 128, 255)),
        (np.uint8, (255, 0, 0, 0), (10, 20, 30)),
        (np.uint8, (255, 0, 0, 255), (255, 0, 0)),
    ],
)
def test_pictures_of_tensorflow_are_opened_as_files_are(tfds, tmp_path, kind, pixel, seen):
    name = f"pixels_{np.dtype(kind).name}_{'_'.join(map(str, pixel))}"
    picture = np.full((8, 8, len(pixel)), pixel, kind)
    features = {
        "image": tfds.features.Image(shape=picture.shape, dtype=kind),
        "text": tfds.features.Sequence(tfds.features.Text()),
    }
    builder(tfds, name, features, [{"image": picture, "text": ["ein Kleid", "a dress"]}])
    source = find_source(f"tfds:{name}", str(tmp_path), background=(10, 20, 30))
    assert source.captions == [("ein Kleid", "a dress")] and colours(source) == [seen]


def test_what_cannot_be_read_of_tensorflow_is_said_on_one_line(tfds, tmp_path):
    picture = {"image": tfds.features.Image(shape=(8, 8, 3))}
    example = {"image": np.zeros((8, 8, 3), np.uint8)}
    labelled = picture | {"label": tfds.features.ClassLabel(names=["red"])}
    builder(tfds, "tests_alone", labelled, [example | {"label": 0}], split="test")
    with pytest.raises(InputError, match="tfds:tests_alone has no split train, but test"):
        find_source("tfds:tests_alone", str(tmp_path))
    records = builder(tfds, "records", labelled, [example | {"label": 0}])
    records(data_dir=tmp_path).download_and_prepare()  # as it does by itself
    with pytest.raises(InputError, match="was prepared as tfrecord, .*another data_dir, or remove .*records"):
        find_source("tfds:records", str(tmp_path))
    assert find_source("tfds:records", str(tmp_path / "another")).captions == ["red"]
    builder(tfds, "counted", picture | {"text": np.int64}, [example | {"text": 7}])
    with pytest.raises(InputError, match="tfds:counted, row 0: text is 7, which is no text"):
        find_source("tfds:counted", str(tmp_path))
    floats = {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32), "text": tfds.features.Text()}
    builder(tfds, "floats", floats, [{"image": np.zeros((8, 8, 1), np.float32), "text": "a dress"}])
    with pytest.raises(InputError, match="tfds:floats has floating-point pixels"):
        find_source("tfds:floats", str(tmp_path))


def test_a_name_that_tensorflow_datasets_does_not_know(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match="tfds:no_such_thing cannot be had"):
        find_source("tfds:no_such_thing", str(tmp_path))


def test_a_data_set_of_the_hub_names_no_files_of_this_machine(tmp_path):
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    (tmp_path / "table").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    os.mkfifo(tmp_path / "pipe")
    paths = [str(tmp_path / "private.png"), str(tmp_path / "pipe"), "/etc/passwd", "../private.png"]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    cells = [{"bytes": None, "path": path} for path in paths]
    table = {"image": cells, "text": ["a dress"] * len(paths)}
    made = datasets.Dataset.from_dict(table, features=features)
    parquet.write_table(made.data.table, tmp_path / "table" / "train.parquet")
    source = find_source(f"hub:{tmp_path / 'table'}")
    for i in range(len(paths)):
        with pytest.raises(InputError, match="was not downloaded with it"):
            source.open(i, 8)

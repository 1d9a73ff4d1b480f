"""The three layouts of captioned folders, what is skipped with a reason, and what is refused."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from sd_tf.data.captioned_folder import list_folder
from sd_tf.errors import InputError


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (255, 0, 0)).save(file)


def jsonl(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def found(folder, **options):
    return {
        str(file.relative_to(folder)): caption for file, caption in list_folder(folder, **options).pictures
    }


def test_metadata_jsonl(tmp_path):
    picture(tmp_path / "a b.png")
    picture(tmp_path / "ü/é.png")
    jsonl(
        tmp_path,
        {"file_name": "a b.png", "text": "a red  dress\n"},
        {"file_name": "ü/é.png", "text": "ein Kleid"},
    )
    assert found(tmp_path) == {"a b.png": "a red dress", "ü/é.png": "ein Kleid"}


def test_metadata_csv_with_another_column(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text('file_name,text,words\n1.png,short,"long, with a comma"\n')
    assert found(tmp_path) == {"1.png": "short"}
    assert found(tmp_path, caption_column="words") == {"1.png": "long, with a comma"}


def test_metadata_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture(tmp_path / "1.png")
    parquet.write_table(
        pyarrow.table({"file_name": ["1.png"], "text": ["a dress"]}), tmp_path / "metadata.parquet"
    )
    assert found(tmp_path) == {"1.png": "a dress"}


def test_metadata_of_folders_below_name_files_beside_them(tmp_path):
    for split in ("train", "more"):
        picture(tmp_path / split / "1.png")
        jsonl(tmp_path / split, {"file_name": "1.png", "text": split})
    assert found(tmp_path) == {"train/1.png": "train", "more/1.png": "more"}


def test_text_files_beside_pictures(tmp_path):
    for name in ("1.png", "below/2.jpg", "3.png"):
        picture(tmp_path / name)
    (tmp_path / "1.txt").write_text("\ufeffa dress\n")
    (tmp_path / "below" / "2.txt").write_text("a bag")
    assert found(tmp_path) == {"1.png": "a dress", "below/2.jpg": "a bag"}
    assert list_folder(tmp_path).problems == [f"{tmp_path}/3.png: 3.txt cannot be read (FileNotFoundError)"]


def test_class_folders(tmp_path):
    for name in ("red_dress/1.png", "red_dress/2.png", "ankle-boot/1.png", "lost.png"):
        picture(tmp_path / name)
    assert found(tmp_path) == {
        "red_dress/1.png": "red dress",
        "red_dress/2.png": "red dress",
        "ankle-boot/1.png": "ankle boot",
    }
    assert list_folder(tmp_path).problems == [f"{tmp_path}/lost.png: has no caption"]


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    picture(tmp_path / "1.png")
    rows = [("1.png", "a dress"), ("1.png", "again"), ("2.png", "gone"), ("3.png", ""), ("4.png", None)]
    jsonl(tmp_path, *({"file_name": name, "text": text} for name, text in rows))
    assert found(tmp_path) == {"1.png": "a dress"}
    assert [line.partition(": ")[2] for line in list_folder(tmp_path).problems] == [
        "1.png is there twice",
        "2.png is missing",
        "3.png has no caption",
        "4.png has no caption",
    ]


@pytest.mark.parametrize(
    "name", ["../out.png", "/etc/passwd", "below/../../out.png", "link.png", "linked/out.png"]
)
def test_nothing_outside_the_folder_is_read(tmp_path, name):
    folder = tmp_path / "mine"
    picture(tmp_path / "out.png")
    picture(folder / "1.png")
    os.symlink(tmp_path / "out.png", folder / "link.png")
    os.symlink(tmp_path, folder / "linked")
    jsonl(folder, {"file_name": "1.png", "text": "a dress"}, {"file_name": name, "text": "a bag"})
    with pytest.raises(InputError, match="lies outside"):
        list_folder(folder)


def test_links_out_of_a_folder_without_metadata_are_not_followed(tmp_path):
    picture(tmp_path / "out.png")
    picture(tmp_path / "mine" / "dress" / "1.png")
    os.symlink(tmp_path / "out.png", tmp_path / "mine" / "dress" / "2.png")
    assert found(tmp_path / "mine") == {"dress/1.png": "dress"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]\n", "a row is"),
        ("{", "is damaged"),
        ('{"text": "a dress"}\n', "has no file_name"),
        ('{"file_name": "1.png", "words": "x"}\n', "no column text or caption or prompt, but .*words"),
        ('{"file_name": 3, "text": "x"}\n', "the file_name is 3"),
        ('{"file_name": "1.png\\u0000", "text": "x"}\n', "the file_name is"),
        ("[" * 5000, "is damaged"),
        ("\udcff", "is damaged"),
    ],
)
def test_damaged_metadata_are_refused_by_name(tmp_path, text, message):
    picture(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=f"metadata.jsonl.*{message}"):
        list_folder(tmp_path)


def test_a_folder_without_what_is_needed_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        list_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no picture"):
        list_folder(tmp_path)
    picture(tmp_path / "1.png")
    with pytest.raises(InputError, match="no picture with a caption .*give a metadata.jsonl"):
        list_folder(tmp_path)
    with pytest.raises(InputError, match="with a column 'words'"):
        list_folder(tmp_path, caption_column="words")


def test_five_hundred_damaged_metadata_files_are_read_or_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}, of many"} for i in range(6)]
    for row in rows:
        picture(tmp_path / row["file_name"])
    jsonl(tmp_path, *rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    table = "file_name,text\n" + "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows)
    (tmp_path / "metadata.csv").write_text(table)
    whole = {file: file.read_bytes() for file in tmp_path.glob("metadata.*")}
    refused = 0
    for number in range(510):
        for file in whole:
            file.unlink(missing_ok=True)
        file = list(whole)[number % 3]
        content = bytearray(whole[file])
        place = int(generator.integers(len(content)))
        if generator.random() < 0.5:
            content[place] = int(generator.integers(256))
        else:
            del content[place:]
        file.write_bytes(content)
        try:
            assert len(list_folder(tmp_path).pictures) <= len(rows)
        except InputError:
            refused += 1
    assert 100 < refused < 510

"""The three layouts of captioned folders, what is skipped with a reason, and what is refused."""

import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from sd_tf.data import captioned_folder, tables
from sd_tf.data.captioned_folder import list_folder
from sd_tf.data.sources import folder_source
from sd_tf.errors import InputError
from tests.data.hostile import DAMAGES, SPECIAL, WORD, make, put
from tests.fuzzing import forget_peak, limited, memory


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
    assert list_folder(tmp_path).problems == [f"{tmp_path}/3.png: 3.txt is missing"]


def test_class_folders(tmp_path):
    for name in ("red_dress/1.png", "red_dress/2.png", "ankle-boot/1.png", "lost.png"):
        picture(tmp_path / name)
    assert found(tmp_path) == {
        "red_dress/1.png": "red dress",
        "red_dress/2.png": "red dress",
        "ankle-boot/1.png": "ankle boot",
    }
    assert list_folder(tmp_path).problems == [f"{tmp_path}/lost.png: has no caption"]


def test_of_several_metadata_files_in_a_folder_the_first_counts(tmp_path):
    picture(tmp_path / "1.png")
    jsonl(tmp_path, {"file_name": "1.png", "text": "of lines"})
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,of a table\n")
    assert list_folder(tmp_path) == ([(tmp_path / "1.png", "of lines")], [])


def test_a_picture_may_have_several_captions(tmp_path):
    picture(tmp_path / "1.png")
    jsonl(tmp_path, *({"file_name": "1.png", "text": text} for text in ("a red dress", "a dress", "a dress")))
    listing = list_folder(tmp_path)
    assert [caption for _, caption in listing.pictures] == ["a dress", "a red dress"]
    assert listing.problems == [f"{tmp_path}/metadata.jsonl, row 3: 1.png is there twice"]


def test_pictures_without_a_row_are_left_out_and_counted(tmp_path):
    for name in ("1.png", "2.png", "below/3.png"):
        picture(tmp_path / name)
    jsonl(tmp_path, {"file_name": "1.png", "text": "a dress"})
    with pytest.warns(UserWarning, match="pictures left out, without a row in .*metadata.jsonl: 2"):
        assert list_folder(tmp_path) == ([(tmp_path / "1.png", "a dress")], [])


def test_metadata_of_one_folder_do_not_hide_text_files_of_others(tmp_path):
    for name in ("1.png", "2.png", "old/1.png", "old/2.png"):
        picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"text of {name}")
    jsonl(tmp_path / "old", {"file_name": "1.png", "text": "a row"})
    with pytest.warns(UserWarning, match="pictures left out, .*: 1"):
        captions = found(tmp_path)
    assert captions == {"1.png": "text of 1.png", "2.png": "text of 2.png", "old/1.png": "a row"}


def test_what_is_held_out_is_not_trained_on(tmp_path):
    for split in ("train", "validation", "test"):
        picture(tmp_path / split / f"{split}.png")
        jsonl(tmp_path / split, {"file_name": f"{split}.png", "text": split})
    with pytest.warns(UserWarning, match="train/ alone is read, not what lies beside it, like validation/"):
        assert found(tmp_path) == {"train/train.png": "train"}


def test_metadata_above_parts_hold_them_together(tmp_path):
    for name in ("train/1.png", "test/2.png"):
        picture(tmp_path / name)
    jsonl(tmp_path, *({"file_name": name, "text": "a dress"} for name in ("train/1.png", "test/2.png")))
    assert found(tmp_path) == {"train/1.png": "a dress", "test/2.png": "a dress"}


def test_classes_may_be_called_as_parts_of_a_data_set_are(tmp_path):
    for name in ("train/1.png", "bus/1.png"):
        picture(tmp_path / name)
    assert found(tmp_path) == {"train/1.png": "train", "bus/1.png": "bus"}


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png", "dress/._1.png", "bag/.hidden/1.png"]
)
def test_what_is_hidden_is_no_picture(tmp_path, name):
    picture(tmp_path / "dress" / "1.png")
    picture(tmp_path / name)
    (tmp_path / "dress" / "2.png").mkdir()
    assert list_folder(tmp_path) == ([(tmp_path / "dress" / "1.png", "dress")], [])
    assert len(list_folder(tmp_path, caption="a thing").pictures) == 1


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    picture(tmp_path / "1.png")
    rows = [("1.png", "a dress"), ("1.png", "a dress"), ("2.png", "gone"), ("3.png", ""), ("4.png", None)]
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


@pytest.mark.parametrize("layout", ["classes", "texts", "one caption"])
def test_links_out_of_a_folder_are_listed_and_not_followed(tmp_path, layout):
    mine, options = tmp_path / "mine", {"caption": "a thing"} if layout == "one caption" else {}
    picture(tmp_path / "out" / "1.png")
    for name in ("1.png", "2.png"):
        picture(mine / "dress" / name)
    os.symlink("1.png", mine / "dress" / "3.png")  # which stays inside
    if layout == "texts":
        for name in ("1.txt", "2.txt", "3.txt"):
            (mine / "dress" / name).write_text("a dress")
    links = {
        "4.png": tmp_path / "out" / "1.png",
        "5.png": "nowhere.png",
        "6.png": "6.png",
        "more": tmp_path / "out",
    }
    for name, target in links.items():
        os.symlink(target, mine / "dress" / name)
    assert list(found(mine, **options)) == [f"dress/{number}.png" for number in (1, 2, 3)]
    assert list_folder(mine, **options).problems == [
        f"{mine}/dress/{name}: is a link that leads out of {mine}, or nowhere" for name in links
    ]


def test_metadata_that_are_a_link_out_of_the_folder_are_refused(tmp_path):
    picture(tmp_path / "mine" / "1.png")
    jsonl(tmp_path, {"file_name": "1.png", "text": "a dress"})
    os.symlink(tmp_path / "metadata.jsonl", tmp_path / "mine" / "metadata.jsonl")
    with pytest.raises(InputError, match="metadata.jsonl is a link that leads out of .*mine"):
        list_folder(tmp_path / "mine")


@pytest.mark.parametrize("name", ["{folder}/1.png", "../mine/1.png", "below/../1.png"])
def test_a_file_in_the_folder_may_be_named_in_any_way(tmp_path, monkeypatch, name):
    """Whether the folder is relative, absolute or a link."""
    folder = tmp_path / "mine"
    picture(folder / "1.png")
    (folder / "below").mkdir()
    jsonl(folder, {"file_name": name.format(folder=folder), "text": "a dress"})
    os.symlink(folder, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    for given in (folder, tmp_path / "link", "mine", "link"):
        source = folder_source(given)
        assert source.captions == ["a dress"] and source.open(0, 4).size == (4, 4)
        assert source.label(0) == f"{given}/1.png"


def test_a_name_too_long_for_a_file_is_missing(tmp_path):
    picture(tmp_path / "1.png")
    names = ("1.png", f"{'x' * 300}.png", "y/" * 3000)
    jsonl(tmp_path, *({"file_name": name, "text": "a dress"} for name in names))
    assert found(tmp_path) == {"1.png": "a dress"}
    assert [line.endswith(" is missing") for line in list_folder(tmp_path).problems] == [True, True]


def test_half_a_character_is_no_part_of_a_caption(tmp_path):
    picture(tmp_path / "1.png")
    jsonl(tmp_path, {"file_name": "1.png", "text": "a dress \ud83d"})
    assert found(tmp_path) == {"1.png": "a dress ?"}


# -- as people have them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[{"file_name": "1.png", "text": "a red dress"}, {"file_name": "2.png", "text": "größer, breiter"}]',
        '{"file_name": "1.png", "text": "a red dress"}\n{"file_name": "2.png", "text": "größer, breiter"}\n',
    ],
    ids=["a list", "lines"],
)
def test_metadata_json(tmp_path, text):
    for name in ("1.png", "2.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.json").write_text(text, encoding="utf-8")
    assert found(tmp_path) == {"1.png": "a red dress", "2.png": "größer, breiter"}


@pytest.mark.parametrize("name", ["metadata.json1", "Metadata.jsonl", "metadata.jsonl.txt", "meta_data.csv"])
def test_a_name_that_is_nearly_that_of_metadata_is_pointed_out(tmp_path, name):
    picture(tmp_path / "1.png")
    (tmp_path / name).write_text('{"file_name": "1.png", "text": "a red dress"}\n')
    with (
        pytest.warns(UserWarning, match=f"{name} is not read: if it has the captions, name it metadata"),
        pytest.raises(InputError, match="no picture with a caption"),
    ):
        list_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.filterwarnings("ignore:.*Windows-1252")
def test_metadata_csv_as_spreadsheets_write_it(tmp_path, delimiter, encoding):
    for name in ("1.png", "2.png"):
        picture(tmp_path / name)
    rows = [("file_name", "text"), ("1.png", f'"red{delimiter} and ""big"""'), ("2.png", "größer"), ("", "")]
    text = "".join(f"{delimiter.join(row)}\r\n" for row in rows)
    if encoding.endswith("mark"):
        text, encoding = f"\ufeff{text}", "utf-16-le"
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    assert found(tmp_path) == {
        "1.png": f'red{" " if delimiter == chr(9) else delimiter + " "}and "big"',
        "2.png": "größer",
    }


def test_excels_own_first_line_names_the_delimiter(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("sep=;\nfile_name;text\n1.png;a dress, red\n")
    assert found(tmp_path) == {"1.png": "a dress, red"}


def test_names_that_were_written_on_windows(tmp_path):
    picture(tmp_path / "images" / "001.png")
    jsonl(tmp_path, {"file_name": "images\\001.png", "text": "a red dress"})
    assert found(tmp_path) == {"images/001.png": "a red dress"}
    jsonl(tmp_path, {"file_name": "..\\..\\001.png", "text": "a red dress"})
    with pytest.raises(InputError, match="lies outside"):
        list_folder(tmp_path)


def test_kohyas_captions_and_repeats(tmp_path):
    for name in ("10_sks dog/1.png", "10_sks dog/2.png", "5_dog/3.png"):
        picture(tmp_path / name)
    with pytest.warns(UserWarning, match="pictures count (10|5) times, as its name says") as said:
        pictures = list_folder(tmp_path).pictures
    assert len(said) == 2
    counted = [(each.file.name, each.caption) for each in pictures]
    assert counted == [*[("1.png", "sks dog")] * 2, *[("2.png", "sks dog")] * 2, ("3.png", "dog")]
    (tmp_path / "10_sks dog" / "1.caption").write_text("a dog in the snow")
    with pytest.warns(UserWarning, match="count 10 times"):
        [only] = list_folder(tmp_path).pictures  # no other folder to count more than
    assert only.caption == "a dog in the snow"


def test_a_text_file_is_read_rather_than_a_caption_file(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "1.caption").write_text("another")
    (tmp_path / "1.txt").write_text("a red dress")
    assert found(tmp_path) == {"1.png": "a red dress"}


def test_several_captions_of_a_row_are_kept_together(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    jsonl(
        tmp_path,
        {"file_name": "1.png", "text": ["a red dress", " ", "a  gown"]},
        {"file_name": "2.png", "text": ["a bag"]},
    )
    assert found(tmp_path) == {"1.png": ("a red dress", "a gown"), "2.png": "a bag"}


def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path):
    picture(tmp_path / "a.jpg")
    for name in ("a.txt", "d.xcf", "d.txt", "a.npz"):
        (tmp_path / name).write_text("a red dress")
    (tmp_path / "e.avif").write_text("")
    listing = list_folder(tmp_path)
    assert [file.name for file, _ in listing.pictures] == ["a.jpg"]
    assert [line.split(": is no picture of a kind that is read")[0] for line in listing.problems] == [
        str(tmp_path / "d.xcf"),
        str(tmp_path / "e.avif"),
    ]


@pytest.mark.filterwarnings("ignore:.*pictures left out")
@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]\n", "a row is"),
        ("{", "is damaged"),
        ('{"text": "a dress"}\n', "has no file_name"),
        ('{"file_name": "1.png", "words": "x"}\n', "no column text or caption or prompt, but .*words"),
        ('{"file_name": 3, "text": "x"}\n', "the file_name is 3"),
        ('{"file_name": "1.png\\u0000", "text": "x"}\n', "the file_name is"),
        ('{"file_name": "\\ud800.png", "text": "x"}\n', r"the file_name is '\\ud800.png'"),
        ("", "has no row"),
        ("[" * 5000, "is damaged"),
        ("\udcff", "line 1 is no text in UTF-8"),
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


@pytest.mark.filterwarnings("ignore:.*pictures left out")
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
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
    assert 100 < refused < 510


@pytest.fixture
def case(tmp_path):
    """`case(layout)`: a folder of 24 pictures beside private files."""
    return lambda layout: make(tmp_path / layout, layout, np.random.default_rng(0))


@pytest.mark.parametrize("kind", SPECIAL)
def test_captions_are_of_regular_files_of_the_folder_alone(case, kind):
    texts = case("texts")
    put(kind, texts.data / "0.txt", texts)
    with limited(5):
        listing = list_folder(texts.data)
    assert len(listing.pictures) == 23 and WORD not in repr(listing)
    assert str(texts.data / "0.png: 0.txt ") in listing.problems[-1]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "zero", "private", "loop"])
def test_metadata_that_are_no_regular_file_are_refused_at_once(case, kind, name):
    classes = case("classes")
    put(kind, classes.data / name, classes)
    with limited(5), pytest.raises(InputError, match=name) as refused:
        list_folder(classes.data)
    assert WORD not in str(refused.value)


def test_what_is_called_like_a_picture_and_is_none_is_listed(case):
    classes = case("classes")
    for kind, name in (("pipe", "1"), ("socket", "3"), ("zero", "5")):
        put(kind, classes.data / "red_dress" / f"{name}.png", classes)
    with limited(5):
        listing = list_folder(classes.data)
    assert len(listing.pictures) == 21
    said = [line.partition(": ")[2] for line in listing.problems]
    assert said[:2] == ["is no regular file"] * 2 and said[2].startswith("is a link that leads out of")


BOMBS = [name for name in DAMAGES if name.startswith(("table: ", "Parquet: "))]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_metadata_take_little_memory_whatever_they_unpack_to(tmp_path, name):
    import random

    pytest.importorskip("pyarrow")
    folder = make(tmp_path / "case", "jsonl", random.Random(0))
    DAMAGES[name](folder)
    forget_peak()
    before = memory("VmRSS")
    with limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            list_folder(folder.data)
        except InputError as error:
            assert "metadata." in str(error)
    assert memory("VmHWM") - before < 700_000_000


def test_rows_and_captions_have_an_end(tmp_path, monkeypatch):
    for i in range(20):
        picture(tmp_path / f"{i}.png")
    jsonl(tmp_path, *({"file_name": f"{i}.png", "text": f"a dress {i}"} for i in range(20)))
    assert len(list_folder(tmp_path).pictures) == 20
    with monkeypatch.context() as changed, pytest.raises(InputError, match="metadata.jsonl has more than 19"):
        changed.setattr(tables, "MOST_ROWS", 19)
        list_folder(tmp_path)
    monkeypatch.setattr(captioned_folder, "MOST_TEXT", 1000)
    with pytest.raises(InputError, match="has names and captions of more than 1,000 bytes"):
        list_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", None])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_parquet_is_read_as_others_write_it(tmp_path, encoding, version):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = []
    for i in range(30):
        picture(tmp_path / f"{i}.png")
        rows.append({"more": i, "file_name": f"{i}.png", "text": f"a dress {i % 7}", "list": [i]})
    options = {"data_page_version": version, "row_group_size": 11}
    if encoding is not None:
        options |= {"use_dictionary": False, "column_encoding": {"text": encoding, "file_name": encoding}}
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "metadata.parquet", **options)
    assert found(tmp_path) == {row["file_name"]: row["text"] for row in rows}


def test_what_runs_draw_is_not_learned_from(tmp_path):
    picture(tmp_path / "dress" / "1.png")
    for name in ("this", "other"):
        picture(tmp_path / "runs" / name / "samples" / "1.png")
    (tmp_path / "runs" / "other" / "run.json").write_text("{}")
    outputs = [tmp_path / "runs" / "this"]
    with pytest.warns(
        UserWarning, match="runs/(this|other) is left out: it is the folder of a run"
    ) as warned:
        listing = list_folder(tmp_path, outputs=outputs)
    assert listing == ([(tmp_path / "dress" / "1.png", "dress")], []) and len(warned) == 2
    jsonl(tmp_path, *({"file_name": f"{name}/1.png", "text": "a"} for name in ("dress", "runs/this/samples")))
    with pytest.warns(UserWarning):
        listing = list_folder(tmp_path, outputs=outputs)
    assert len(listing.pictures) == 1 and listing.problems[0].endswith("samples/1.png is of the run itself")
    for folder in (outputs[0], outputs[0] / "samples"):
        with pytest.raises(InputError, match="is also where the run writes"):
            list_folder(folder, outputs=outputs)


def test_names_that_do_not_print_are_escaped(tmp_path):
    folder = tmp_path / os.fsdecode(b"a\xff\x1b[2J\nb")
    for name in ("1.png", "2.png"):
        picture(folder / name)
    jsonl(folder, {"file_name": "1.png", "text": "a dress"})
    with pytest.warns(UserWarning, match="left out") as warned:
        source = folder_source(folder)
    assert all(str(each.message).isprintable() for each in warned)
    assert source.open(0, 4).size == (4, 4)

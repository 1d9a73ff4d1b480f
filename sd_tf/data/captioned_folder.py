"""A folder of pictures with captions: which pictures it holds, and what is said of each.

Read in this order, the first that is there:

1. `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, as Hugging Face's image folders have it: a row for
   each picture, whose `file_name` is relative to the metadata file. Folders below may have one each.
2. a text file beside each picture: `cat.png`, `cat.txt`.
3. a folder for each class, whose name is the caption: `red_dress/1.png` is "red dress".
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sd_tf.data.opening import SUFFIXES
from sd_tf.errors import InputError, shown, unknown

CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first of them that there is
LONGEST_CAPTION = 10_000  # characters; a file of more is no caption
LONGEST_ROW = 1_000_000


class Captioned(NamedTuple):
    """A picture's file and its caption."""

    file: Path
    caption: str


class Listing(NamedTuple):
    """What a folder holds, sorted by file, and a line for each picture that cannot be used."""

    pictures: list[Captioned]
    problems: list[str]


def list_folder(folder: Path, caption_column: str | None = None, caption: str | None = None) -> Listing:
    """Finds the pictures and captions of a folder; opens no picture.

    Args:
        folder: with pictures in one of the three layouts.
        caption_column: of the metadata; None for the first of `CAPTION_COLUMNS` that is there.
        caption: of every picture, in place of the folder's own, which are not looked for then.

    Raises:
        InputError: there is no such folder, no picture or no caption in it; metadata are damaged, have no
            such column, or name a file outside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name one with pictures and captions")
    if caption is not None:
        return Listing([Captioned(picture, caption) for picture in _pictures(folder)], [])
    metadata = sorted(folder.rglob("metadata.*"))
    metadata = [file for file in metadata if file.suffix in _READERS and _is_inside(file, folder)]
    if caption_column is not None and not metadata:
        raise InputError(f"{folder} has no metadata.jsonl, .csv or .parquet with a column {caption_column!r}")
    if metadata:
        listing = _of_metadata(folder, metadata, caption_column)
    else:
        pictures = _pictures(folder)
        beside = [file for file in pictures if file.with_suffix(".txt").is_file()]
        listing = _of_text_files(pictures) if beside else _of_class_folders(folder, pictures)
    if not listing.pictures:
        first = f" ({listing.problems[0]})" if listing.problems else ""
        raise InputError(
            f"{folder} has no picture with a caption{first}: give a metadata.jsonl with lines "
            '{"file_name": "1.png", "text": "a red dress"}, a .txt file beside each picture, or a folder for '
            "each class"
        )
    return listing


def _pictures(folder):
    pictures = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and _is_inside(file, folder)
    )
    if not pictures:
        raise InputError(f"{folder} holds no picture: name a folder of {', '.join(SUFFIXES)} files")
    return pictures


def _of_metadata(folder, files, caption_column):
    pictures, problems, seen = [], [], set()
    for file in files:
        for number, row in _READERS[file.suffix](file):
            place = f"{file}, row {number}"
            if "file_name" not in row:
                raise InputError(f"{place} has no file_name, but {shown(sorted(map(str, row)))}")
            column = caption_column or next((name for name in CAPTION_COLUMNS if name in row), None)
            if column is None:
                raise InputError(
                    f"{place} has no column {' or '.join(CAPTION_COLUMNS)}, but "
                    f"{shown(sorted(map(str, row)))}: name one with --caption-column"
                )
            if column not in row:
                raise unknown(f"caption column in {place}:", column, row)
            name, caption = row["file_name"], row[column]
            picture = _inside(file.parent, name, folder, place)
            if picture in seen:
                problems.append(f"{place}: {name} is there twice")
            elif not isinstance(caption, str) or not caption.strip():
                problems.append(f"{place}: {name} has no caption")
            elif not picture.is_file():
                problems.append(f"{place}: {name} is missing")
            else:
                pictures.append(Captioned(picture, _tidy(caption)))
            seen.add(picture)
    return Listing(sorted(pictures), problems)


def _of_text_files(pictures):
    captioned, problems = [], []
    for picture in pictures:
        file = picture.with_suffix(".txt")
        try:
            with open(file, encoding="utf-8-sig") as text:
                caption = _tidy(text.read(LONGEST_CAPTION))
        except (OSError, ValueError) as error:
            problems.append(f"{picture}: {file.name} cannot be read ({type(error).__name__})")
            continue
        if caption:
            captioned.append(Captioned(picture, caption))
        else:
            problems.append(f"{picture}: {file.name} is empty")
    return Listing(captioned, problems)


def _of_class_folders(folder, pictures):
    below = [picture for picture in pictures if picture.parent != folder]
    problems = [f"{picture}: has no caption" for picture in pictures if picture.parent == folder]
    return Listing([Captioned(picture, _words(picture.parent.name)) for picture in below], problems)


def _words(name):
    return _tidy(name.replace("_", " ").replace("-", " "))


def _tidy(caption):
    return " ".join(caption[:LONGEST_CAPTION].split())


def _inside(base, name, folder, place):
    """The file that metadata name, which may lie nowhere but in the folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{place}: the file_name is {shown(name)}: give a file's name")
    file = base / name
    if not _is_inside(file, folder):
        raise InputError(f"{place}: {shown(name)} lies outside {folder}: put the picture into the folder")
    return file


def _is_inside(file, folder):
    """Whether it is in the folder once links are followed."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return False


# -- rows of metadata files: (number, row), numbers from 1 -----------------------------------------


def _jsonl_rows(file) -> Iterator[tuple[int, dict]]:
    try:
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_ROW), ""), 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"a row is {shown(row, 40)}")
                    yield number, row
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({_reason(error)}): give a JSON object on each line") from None


def _csv_rows(file) -> Iterator[tuple[int, dict]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, strict=True), 1):
                if None in row or None in row.values():
                    raise ValueError(f"row {number} has not as many fields as the first line")
                yield number, row
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{file} is damaged ({_reason(error)}): give comma-separated values in UTF-8"
        ) from None


def _parquet_rows(file) -> Iterator[tuple[int, dict]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{file} needs pyarrow: pip install pyarrow, or write a metadata.jsonl") from None
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except InputError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{file} is damaged ({_reason(error)}): give a Parquet file") from None


def _reason(error):
    return str(error).partition("\n")[0] or type(error).__name__


_READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}

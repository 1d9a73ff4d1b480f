"""A folder of pictures with captions: which pictures it holds, and what is said of each.

Read in this order, the first that is there:

1. `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, as Hugging Face's image folders have it: a row for
   each picture, or for each caption of one, whose `file_name` is relative to the metadata file. Folders below
   may have one each, which says nothing of pictures elsewhere.
2. a text file beside each picture: `cat.png`, `cat.txt`.
3. a folder for each class, whose name is the caption: `red_dress/1.png` is "red dress".

As Hugging Face does, hidden files and folders are passed over, and folders like `__MACOSX`; where `train/`
stands beside `validation/` or `test/`, it alone is read.
"""

import csv
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sd_tf.data.opening import SUFFIXES
from sd_tf.errors import InputError, shown, unknown

CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first of them that there is
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # likewise
HELD_OUT = ("validation", "valid", "val", "test")  # folders beside train/
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

    A warning says what the layout leaves out: pictures without a row in metadata, and folders beside
    `train/`.

    Args:
        folder: with pictures in one of the three layouts.
        caption_column: of the metadata; None for the first of `CAPTION_COLUMNS` that is there.
        caption: of every picture, in place of the folder's own, which are not looked for then.

    Raises:
        InputError: there is no such folder, no picture or no caption in it; metadata are damaged, have no
            such column, lie outside the folder or name a file there.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: name one with pictures and captions")
    top = _training_part(folder)
    pictures, metadata, problems = _files(top, folder)
    if not pictures and (caption is not None or not metadata):
        raise InputError(
            f"{folder} holds no picture{_first(problems)}: name a folder of {', '.join(SUFFIXES)} files"
        )
    if caption is not None:
        return Listing([Captioned(picture, caption) for picture in pictures], problems)
    if caption_column is not None and not metadata:
        raise InputError(f"{folder} has no metadata.jsonl, .csv or .parquet with a column {caption_column!r}")
    if metadata:
        listing, named = _of_metadata(folder, metadata, caption_column)
        beside = _of_text_files(
            _apart_from(metadata, [each for each in pictures if each not in named], folder)
        )
        listing = Listing(sorted(listing.pictures + beside.pictures), listing.problems + beside.problems)
    else:
        has_texts = any(map(_has_text, pictures))
        listing = _of_text_files(pictures) if has_texts else _of_class_folders(top, pictures)
        listing = Listing(listing.pictures, problems + listing.problems)
    if not listing.pictures:
        reasons = listing.problems or [f"{file} has no row" for file in metadata]
        raise InputError(
            f"{folder} has no picture with a caption{_first(reasons)}: give a metadata.jsonl with lines "
            '{"file_name": "1.png", "text": "a red dress"}, a .txt file beside each picture, or a folder for '
            "each class"
        )
    return listing


def holds_pictures(folder: Path) -> bool:
    """Whether pictures or metadata lie in a folder itself, not below it."""
    try:
        return any(
            file.suffix.lower() in SUFFIXES or file.name in METADATA
            for file in folder.iterdir()
            if not file.name.startswith(".")
        )
    except OSError:
        return False


def _training_part(folder):
    """`train/` where it stands beside what is held out, unless metadata above hold them together."""
    train, held_out = folder / "train", [name for name in HELD_OUT if os.path.isdir(folder / name)]
    if not held_out or not os.path.isdir(train) or not _is_inside(train, folder):
        return folder
    if any(os.path.isfile(folder / name) for name in METADATA):
        return folder
    warnings.warn(
        f"{folder}: train/ alone is read, not what lies beside it, like {held_out[0]}/", stacklevel=3
    )
    return train


def _files(top, folder):
    """Pictures and metadata below `top`, sorted, and a line for what is not followed."""
    pictures, metadata, problems = [], [], []

    def not_listed(error):
        problems.append(f"{error.filename}: cannot be listed ({error.strerror})")

    for place, folders, files in os.walk(top, onerror=not_listed):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for file in (Path(place, name) for name in sorted(folders + files) if not name.startswith(".")):
            is_picture = file.suffix.lower() in SUFFIXES
            if is_picture and os.path.isfile(file) and _is_inside(file, folder):
                pictures.append(file)
            elif file.is_symlink() and (is_picture or os.path.isdir(file) and not _is_inside(file, folder)):
                problems.append(f"{file}: is a link that leads out of {folder}, or nowhere")
        metadata += [Path(place, name) for name in METADATA if name in files][:1]
    for file in metadata:
        if not _is_inside(file, folder):
            raise InputError(f"{file} is a link that leads out of {folder}, or nowhere: put the file there")
    return sorted(pictures), sorted(metadata), problems


def _of_metadata(folder, files, caption_column):
    """A listing, and all files that have a row."""
    captioned, problems, seen, named = [], [], set(), set()
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
            named.add(picture)
            if not isinstance(caption, str) or not caption.strip():
                problems.append(f"{place}: {name} has no caption")
            elif not os.path.isfile(picture):  # False for a name that no file can have, too
                problems.append(f"{place}: {name} is missing")
            elif (entry := Captioned(picture, _tidy(caption))) in seen:
                problems.append(f"{place}: {name} is there twice")
            else:
                captioned.append(entry)
                seen.add(entry)
    return Listing(captioned, problems), named


def _apart_from(metadata, pictures, folder):
    """Of pictures without a row, those of folders that no metadata describe, if any has a text file."""
    described = {file.parent for file in metadata}
    apart = [picture for picture in pictures if described.isdisjoint(picture.parents)]
    if not any(map(_has_text, apart)):
        apart = []
    if left_out := len(pictures) - len(apart):
        others = " or other metadata" if len(metadata) > 1 else ""
        warnings.warn(
            f"{folder}: pictures left out, without a row in {metadata[0]}{others}: {left_out}", stacklevel=3
        )
    return apart


def _has_text(picture):
    return picture.with_suffix(".txt").is_file()


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


def _of_class_folders(top, pictures):
    below = [picture for picture in pictures if picture.parent != top]
    problems = [f"{picture}: has no caption" for picture in pictures if picture.parent == top]
    return Listing([Captioned(picture, _words(picture.parent.name)) for picture in below], problems)


def _words(name):
    return _tidy(name.replace("_", " ").replace("-", " "))


def _tidy(caption):
    """On one line, without halves of characters, which JSON can escape and no tokenizer takes."""
    return " ".join(caption[:LONGEST_CAPTION].encode(errors="replace").decode().split())


def _first(problems):
    return f" ({problems[0]})" if problems else ""


def _inside(base, name, folder, place):
    """The file that metadata name, as a path below the folder: it may lie nowhere else."""
    if not _is_file_name(name):
        raise InputError(f"{place}: the file_name is {shown(name)}: give a file's name")
    file = base / name
    if not _is_inside(file, folder):
        raise InputError(f"{place}: {shown(name)} lies outside {folder}: put the picture into the folder")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return folder / file.resolve().relative_to(folder.resolve())
    return file


def _is_file_name(name):
    try:
        return isinstance(name, str) and name != "" and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half a character
        return False


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

"""The captions of a folder of pictures, in its `metadata.jsonl`: a line for each picture.

Lines are added in batches, each written whole; what is there is kept. A line that a killed process has left
unfinished is removed.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from sd_tf.data.captioned_folder import (
    CAPTION_COLUMNS,
    LONGEST_CAPTION,
    captions_of,
    contents_of,
    text_beside,
    tidy,
)
from sd_tf.data.tables import READERS
from sd_tf.errors import InputError, shown
from sd_tf.files import open_file, read_beginning, reason, write_text
from sd_tf.training.own_folder import locked

TABLE = "metadata.jsonl"
LOCK = ".captions.lock"
LONGEST_LAST_LINE = 4_000_000  # bytes


class Work(NamedTuple):
    """What is to be described.

    Attributes:
        table: the file for new captions.
        column: its column of captions.
        kept: number of pictures that have a caption.
        beside: picture -> its caption in a text file beside it, for pictures without a line in a table.
        left: pictures without a caption.
        problems: a line for each picture that cannot be read.
    """

    table: Path
    column: str
    kept: int
    beside: dict[Path, str]
    left: list[Path]
    problems: list[str]


def find_work(folder: Path) -> Work:
    """Finds the pictures of a folder that have no caption; opens no picture.

    Raises:
        InputError: there is no such folder or no picture in it; its captions are in another kind of table,
            or in a column that is not known.
    """
    folder = Path(folder)
    contents = contents_of(folder)
    if not contents.pictures:
        raise InputError(f"{folder} holds no picture: name a folder of pictures")
    table = contents.top / TABLE
    remove_unfinished_line(table)
    captioned, column = set(), CAPTION_COLUMNS[0]
    for file in contents.metadata:
        if file.parent == contents.top and file != table:
            raise InputError(
                f"{folder} has its captions in {file.name}, and {TABLE} would replace it: add captions "
                "there, or move it away"
            )
        for number, row in READERS[file.suffix](file, folder, CAPTION_COLUMNS):
            name = column_of(row, f"{file}, row {number}")
            column = name if file == table else column
            if captions_of(row[name]):
                captioned.add(_resolved(file.parent / str(row["file_name"])))
    rest = [picture for picture in contents.pictures if _resolved(picture) not in captioned]
    beside = {picture: caption for picture in rest if (caption := _caption_beside(picture, folder))}
    left = [picture for picture in rest if picture not in beside]
    kept = len(contents.pictures) - len(left)
    return Work(table, column, kept, beside, left, contents.problems)


def column_of(row: dict, place: str) -> str:
    """The name of a row's column of captions.

    Raises:
        InputError: it has none, or no `file_name`.
    """
    column = next((name for name in CAPTION_COLUMNS if name in row), None)
    if column is None or "file_name" not in row:
        raise InputError(
            f"{place} has {shown(sorted(map(str, row)))}: it needs file_name and "
            f"{' or '.join(CAPTION_COLUMNS)}"
        )
    return column


def _resolved(path):
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, a null character
        return path


def _caption_beside(picture, folder):
    """What a text file beside a picture says of it; None if there is none, or it is empty."""
    file = text_beside(picture)
    return tidy(read_beginning(file, LONGEST_CAPTION, folder)) or None if file is not None else None


def add_captions(table: Path, column: str, captions: dict[Path, str]):
    """Adds lines to the end of the table, in one write.

    Args:
        table: made if it is missing.
        column: the name of the captions.
        captions: picture -> caption.

    Raises:
        InputError: the table cannot be written.
    """
    rows = [
        {"file_name": picture.relative_to(table.parent).as_posix(), column: caption}
        for picture, caption in captions.items()
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(table, flags, 0o666), "ab", buffering=0) as stream:
            stream.write(lines)
            os.fsync(stream.fileno())
    except OSError as error:
        raise InputError(f"cannot write {table}: {reason(error)}") from None


def remove_unfinished_line(table: Path):
    """Ends the last line of a table: it is removed if a kill has cut it, otherwise it gets its line break.

    Raises:
        InputError: the table is no regular file, or cannot be written.
    """
    if not os.path.lexists(table):
        return
    try:
        with open_file(table, table.parent) as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - LONGEST_LAST_LINE))
            end = opened.read()
        last = end[end.rfind(b"\n") + 1 :]
        if last.strip() and _is_object(last):
            with open(table, "ab") as stream:
                stream.write(b"\n")
        elif last.strip() and len(last) < LONGEST_LAST_LINE:
            os.truncate(table, size - len(last))
    except OSError as error:
        raise InputError(f"cannot write {table}: {reason(error)}") from None


def _is_object(line):
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def rewrite(table: Path, rows: list[dict]):
    """Replaces the table, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    write_text(table, "".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def only_one_writer(folder: Path):
    """Within the block, no other process writes captions of this folder.

    Raises:
        InputError: another process does, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, str(folder)))
        except InputError:
            raise InputError(
                f"the captions of {folder} are being written by another process: wait for it"
            ) from None
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {reason(error)}") from None
        yield

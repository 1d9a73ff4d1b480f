"""The rows of metadata files, one by one: (number, row), with numbers from 1.

Files may come from strangers: the length of a row and the number of rows are limited.
"""

import csv
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence

from sd_tf.errors import InputError, printable, shown
from sd_tf.files import LARGEST_JSON, encoding_of, parse_json, read_bytes, read_lines

MOST_ROWS = 1_000_000  # of a file
LONGEST_ROW = 1_000_000  # characters
DELIMITERS = (",", ";", "\t", "|")  # of a CSV file: the first with which its first line has a file_name


def _jsonl_rows(file, root, columns) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(read_lines(file, LONGEST_ROW, root), 1):
        _check_number(number, file)
        if line.strip():
            try:
                row = parse_json(line, f"row {number}")
            except InputError as error:
                raise _damaged(file, error, "a JSON object on each line") from None
            yield number, _object(row, file)


def _json_rows(file, root, columns) -> Iterator[tuple[int, dict]]:
    """A list of rows; or rows on lines, in a file that should be called .jsonl."""
    content = read_bytes(file, LARGEST_JSON, root)
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _jsonl_rows(file, root, columns)
        return
    try:
        rows = parse_json(content, "it")
    except InputError as error:
        raise _damaged(file, error, "a list of JSON objects") from None
    for number, row in enumerate(rows, 1):
        _check_number(number, file)
        yield number, _object(row, file)


def _object(row, file):
    if not isinstance(row, dict):
        raise _damaged(file, f"a row is {shown(row, 40)}", "a JSON object for each picture")
    return row


def _csv_rows(file, root, columns) -> Iterator[tuple[int, dict]]:
    lines = _Lines(file, root)
    first = next(lines, "")
    told = re.fullmatch(r'"?sep=(.)"?\s*', first)  # Excel's own first line
    if told:
        first = next(lines, "")
    delimiter = told[1] if told else next((each for each in DELIMITERS if _has_names(first, each)), ",")
    try:
        reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        number = 0
        for values in reader:
            lines.taken = 0
            if not any(value.strip() for value in values):
                continue
            number += 1
            _check_number(number, file)
            if len(values) != len(names):
                raise csv.Error(f"row {number} has not as many fields as the first line")
            yield number, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise _damaged(file, error, "values separated by commas, semicolons or tabs") from None


def _has_names(line, delimiter):
    try:
        return "file_name" in [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return False


class _Lines:
    """Lines for `csv`, whatever they end with. A quoted row may span several, within `LONGEST_ROW`."""

    def __init__(self, file, root):
        self._file, self.taken = file, 0
        encoding = encoding_of(file, root)
        if encoding == "cp1252":
            warnings.warn(printable(f"{file} is not in UTF-8: it is read as Windows-1252"), stacklevel=2)
        # A carriage return alone ends a line as well.
        self._lines = (
            part
            for line in read_lines(file, LONGEST_ROW, root, encoding)
            for part in re.split(r"(?<=\r)(?!\n)", line)
        )

    def __iter__(self):
        return self

    def __next__(self):
        line = next(self._lines)
        self.taken += len(line)
        if self.taken > LONGEST_ROW:
            raise InputError(f"{self._file} has a row of more than {LONGEST_ROW:,} characters")
        return line


def _parquet_rows(file, root, columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
    from sd_tf.data.parquet import rows

    for number, row in enumerate(rows(file, root, ("file_name", *columns)), 1):
        _check_number(number, file)
        yield number, row


def _check_number(number, file):
    if number > MOST_ROWS:
        raise InputError(f"{file} has more than {MOST_ROWS:,} rows: divide it into folders")


def _damaged(file, why, way_out):
    return InputError(f"{file} is damaged ({why}): give {way_out}")


READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows, ".json": _json_rows}

"""The rows of metadata files, one by one: (number, row), with numbers from 1.

Files may come from strangers: the length of a row and the number of rows are limited.
"""

import csv
import re
from collections.abc import Iterator, Sequence

from sd_tf.errors import InputError, shown
from sd_tf.files import parse_json, read_lines

MOST_ROWS = 1_000_000  # of a file
LONGEST_ROW = 1_000_000  # characters


def _jsonl_rows(file, root, columns) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(read_lines(file, LONGEST_ROW, root), 1):
        _check_number(number, file)
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"row {number}")
            if not isinstance(row, dict):
                raise InputError(f"a row is {shown(row, 40)}")
        except InputError as error:
            raise InputError(f"{file} is damaged ({error}): give a JSON object on each line") from None
        yield number, row


def _csv_rows(file, root, columns) -> Iterator[tuple[int, dict]]:
    lines = _Lines(file, root)
    try:
        for number, row in enumerate(csv.DictReader(lines, strict=True), 1):
            _check_number(number, file)
            if None in row or None in row.values():
                raise csv.Error(f"row {number} has not as many fields as the first line")
            yield number, row
            lines.taken = 0
    except csv.Error as error:
        raise InputError(f"{file} is damaged ({error}): give comma-separated values in UTF-8") from None


class _Lines:
    """Lines for `csv`, whatever they end with. A quoted row may span several, within `LONGEST_ROW`."""

    def __init__(self, file, root):
        self._file, self.taken = file, 0
        # A carriage return alone ends a line as well.
        self._lines = (
            part for line in read_lines(file, LONGEST_ROW, root) for part in re.split(r"(?<=\r)(?!\n)", line)
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


READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}

"""Two columns of text from a Parquet file that may come from a stranger, within limits.

A Parquet file of a few hundred bytes can hold billions of values, or one long value a million times, and its
index may lie about sizes. So the pages of the columns are checked before pyarrow unpacks them, and columns
are read as dictionaries, in which each different value is stored once.

The format: https://github.com/apache/parquet-format
"""

import io
from collections.abc import Iterator, Sequence

from sd_tf.errors import InputError, shown
from sd_tf.files import read_bytes, reason

MOST_BYTES = 200_000_000  # of a file
LARGEST_INDEX = 5_000_000  # bytes at its end, which take fifty times as much memory when parsed
LARGEST_PAGE = 64_000_000  # bytes, unpacked
LARGEST_COLUMNS = 200_000_000  # of all pages that are read, unpacked
MOST_VALUES = 1_000_000  # of a column
MOST_GROUPS = 10_000
BATCH = 65_536  # rows
ENCODINGS = (0, 2, 3, 6, 8)  # not 7, in which a value can begin as the one before it, however long that is


def rows(file, root, columns: Sequence[str]) -> Iterator[dict]:
    """Rows with a picture's file name and caption.

    If one of these columns is missing, there is one row with None for each column that there is, so that a
    message can name them.

    Args:
        file: a path.
        root: see `sd_tf.files.open_file`.
        columns: "file_name", and columns of which the first that is there is read.

    Raises:
        InputError: pyarrow is not installed, the file is damaged, takes too much memory, or a column is no
            text.
    """
    try:
        from pyarrow import BufferReader, parquet
    except ImportError:
        raise InputError(f"{file} needs pyarrow: pip install pyarrow, or write a metadata.jsonl") from None
    content = read_bytes(file, MOST_BYTES, root)
    _check_index(content, file)
    try:
        metadata = parquet.read_metadata(BufferReader(content))
        names = metadata.schema.to_arrow_schema().names
        captions = [name for name in columns[1:] if name in names][:1]
        if "file_name" not in names or not captions:
            if metadata.num_rows:
                yield dict.fromkeys(names)
            return
        read = list(dict.fromkeys(["file_name", *captions]))
        coded = _check_columns(metadata, read, content, file)
        with parquet.ParquetFile(BufferReader(content), read_dictionary=coded) as table:
            for batch in table.iter_batches(BATCH, columns=read, use_threads=False):
                values = [_values(batch.column(name)) for name in read]
                for row in zip(*values, strict=True):
                    yield dict(zip(read, row, strict=True))
    except InputError:
        raise
    except Exception as error:  # pyarrow raises what a stranger's bytes lead it to
        raise InputError(f"{file} is damaged ({reason(error)[:200]}): give a Parquet file") from None


def _values(column):
    """A column's values; equal ones are the same object."""
    if not hasattr(column, "indices"):
        return column.to_pylist()
    indices = column.indices
    used = indices.unique().drop_null()
    texts = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
    return map(texts.get, indices.to_pylist())


def _check_index(content, file):
    """Checks the last bytes of a file: the length of its index, and a mark."""
    length = int.from_bytes(content[-8:-4], "little")
    if len(content) < 12 or content[-4:] != b"PAR1" or length > len(content) - 12:
        raise InputError(f"{file} is damaged (it has no index): give a Parquet file")
    if length > LARGEST_INDEX:
        raise InputError(f"{file} has an index of {length:,} bytes, more than the {LARGEST_INDEX:,} allowed")


def _check_columns(metadata, names, content, file):
    """Checks that columns hold text, and that their pages unpack to no more than memory takes.

    Returns:
        Names of the columns that are stored as dictionaries, at least in one page.
    """
    if metadata.num_rows > MOST_VALUES or metadata.num_row_groups > MOST_GROUPS:
        raise InputError(
            f"{file} has {metadata.num_rows:,} rows in {metadata.num_row_groups:,} groups, more than the "
            f"{MOST_VALUES:,} in {MOST_GROUPS:,} allowed: divide it, and its pictures, into folders"
        )
    numbers = []
    for name in names:
        found = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == name]
        kind = metadata.schema.to_arrow_schema().field(name).type
        kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
        if len(found) != 1 or str(kind) not in ("string", "large_string"):
            raise InputError(f"{file}: {shown(name)} is a column of {shown(str(kind))}, which is no text")
        numbers += found
    size, coded = 0, set()
    for name, number in zip(names, numbers, strict=True):
        values = 0
        for group in range(metadata.num_row_groups):
            for page_size, page_values, is_coded in _pages(metadata.row_group(group).column(number), content):
                size, values = size + page_size, values + page_values
                coded |= {name} if is_coded else set()
                if values > MOST_VALUES or size > LARGEST_COLUMNS:
                    raise InputError(
                        f"{file} unpacks to {size:,} bytes and {values:,} values or more, where "
                        f"{LARGEST_COLUMNS:,} and {MOST_VALUES:,} are allowed: divide it"
                    )
    return sorted(coded)


def _pages(chunk, content):
    """Of each page of a column's part: bytes when unpacked, values, whether they refer to a dictionary."""
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end = place + chunk.total_compressed_size
    if not 0 <= place <= end <= len(content):
        raise ValueError("a column lies outside the file")
    while place < end:
        stream = io.BytesIO(content[place : min(end, place + 2**20)])
        header = _struct(stream)
        unpacked, packed = header.get(2), header.get(3)
        about = next((header[key] for key in (5, 7, 8) if isinstance(header.get(key), dict)), None)
        if about is None:
            raise ValueError("a page says nothing of its values")
        encoding = about.get(4 if 8 in header else 2)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or min(unpacked, packed) < 0:
            raise ValueError("a page has no size")
        if unpacked > LARGEST_PAGE:
            raise ValueError(f"a page has {unpacked:,} bytes, more than the {LARGEST_PAGE:,} allowed")
        if encoding not in ENCODINGS:
            raise ValueError(f"its text is stored in the way {encoding} of Parquet, which is not read")
        yield max(unpacked, packed), about.get(1, 0) if 7 not in header else 0, encoding in (2, 8)
        place += stream.tell() + packed


# -- Thrift's compact protocol, as far as page headers need it ---------------------------------------

_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12


def _struct(stream, depth=0) -> dict:
    """Field number -> whole number, or a struct in it; None for values of other types."""
    if depth > 8:
        raise ValueError("a page's header is nested too deeply")
    fields, number = {}, 0
    while (head := _byte(stream)) & 15 != _STOP:
        number = number + (head >> 4) if head >> 4 else _signed(stream)
        fields[number] = _value(stream, head & 15, depth)
    return fields


def _value(stream, kind, depth):
    if kind in (_TRUE, _FALSE):
        return None
    if kind == _STRUCT:
        return _struct(stream, depth + 1)
    if kind == _BYTE:
        return _byte(stream)
    if kind < _DOUBLE:
        return _signed(stream)
    if kind == _DOUBLE:
        stream.seek(8, io.SEEK_CUR)
    elif kind == _BINARY:
        stream.seek(_unsigned(stream), io.SEEK_CUR)
    elif kind in (_LIST, _SET):
        head = _byte(stream)
        for _ in range(head >> 4 if head >> 4 < 15 else _unsigned(stream)):
            _byte(stream) if head & 15 in (_TRUE, _FALSE) else _value(stream, head & 15, depth + 1)
    else:
        raise ValueError(f"a page's header has a field of the kind {kind}")
    return None


def _byte(stream):
    byte = stream.read(1)
    if not byte:
        raise ValueError("a page's header has no end")
    return byte[0]


def _unsigned(stream):
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(stream)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a page's header has a number without end")


def _signed(stream):
    value = _unsigned(stream)
    return (value >> 1) ^ -(value & 1)

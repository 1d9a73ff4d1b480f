"""Files from outside: opened only where they are what they should be, read within bounds, written whole.

A checkpoint, a data set or a run may come from a stranger, who can put a named pipe, a device or a link to a
private file where a file is expected, or a file that never ends. Everything that reads such files does it
through this module; pictures go through `sd_tf.data.opening`, which does so as well.
"""

import codecs
import contextlib
import errno
import io
import itertools
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sd_tf.errors import InputError

LARGEST_JSON = 20_000_000  # bytes, of which thirty times as many are made; the largest index is far smaller
DEEPEST = 50  # objects and lists within each other
LONGEST_LINE = 1_000_000  # characters
MOST_GUESSED = 100_000_000  # bytes of a file from which its encoding is told

# A named pipe is opened without waiting for its writer, a terminal without becoming ours.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class CannotWrite(InputError):
    """A file or a folder cannot be written; `why` is the system's word for it."""

    def __init__(self, path, why: str):
        super().__init__(f"cannot write {path}: {why}")
        self.why = why


def open_file(file, root=None) -> BinaryIO:
    """Opens a regular file for reading.

    Args:
        file: a path.
        root: the folder that the file must lie in once links are followed; for a model in the hub's cache,
            whose snapshots link to their content, that model's folder in the cache. None where the user
            has named the file: links lead where they lead.

    Returns:
        A buffered binary file.

    Raises:
        InputError: it is missing, no regular file, a link out of `root`, or may not be read.
    """
    file = Path(file)
    try:
        if root is not None and not is_inside(root, file):
            raise InputError(f"{file} is a link out of its folder: copy what it points to")
        _check_regular(os.stat(file), file)  # opening a device can already do something
        descriptor = os.open(file, _FLAGS)
        opened = os.fdopen(descriptor, "rb")
        try:
            _check_regular(os.fstat(descriptor), file)
            if root is not None and not is_inside(root, _place_of(descriptor, file)):
                raise InputError(f"{file} was replaced while it was opened: try again")
        except BaseException:
            opened.close()
            raise
        return opened
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{file} is missing") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from None


def _place_of(descriptor, file):
    """Where what was opened lies, whatever has taken its name since; the name itself, but for Linux."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return file


def _check_regular(found, file):
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS.items() if is_kind(found.st_mode)), "something else")
        raise InputError(f"{file} is {kind}: a regular file is expected")


def is_regular(file) -> bool:
    """Whether there is a regular file, or a link to one; False also where that cannot be told."""
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except (OSError, ValueError):
        return False


def is_inside(root, path) -> bool:
    """Whether a path, its links followed, stays in a folder, or in the hub's cache of the model there."""
    try:
        root = Path(root).resolve()
        for parent in (root, *root.parents):
            if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
                root = parent.parent  # the hub's cache links each file of a snapshot to its content
        return Path(path).resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # a link to itself, before Python 3.13; a null character
        return False


def read_bytes(file, most: int, root=None) -> bytes:
    """The whole of a file.

    Args:
        file: a path.
        most: bytes that it may have.
        root: see `open_file`.

    Raises:
        InputError: see `open_file`; or the file is larger.
    """
    try:
        with open_file(file, root) as opened:
            size = os.fstat(opened.fileno()).st_size
            content = opened.read(most + 1) if size <= most else b""
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from None
    if max(size, len(content)) > most:
        raise InputError(f"{file} has {max(size, len(content)):,} bytes, of which {most:,} are the most")
    return content


def read_text(file, most: int = LARGEST_JSON, root=None) -> str:
    """The whole of a text file in UTF-8; see `read_bytes`."""
    try:
        return read_bytes(file, most, root).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8: {error}") from None


def read_beginning(file, most: int, root=None) -> str:
    """The first characters of a text file in UTF-8, however long it is.

    Args:
        file: a path.
        most: characters.
        root: see `open_file`.

    Raises:
        InputError: see `open_file`; or they are no UTF-8.
    """
    try:
        with open_file(file, root) as opened:
            content = opened.read(4 * most)  # a character has four bytes at the most
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content, len(content) < 4 * most)[:most]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from None


def read_lines(file, longest: int = LONGEST_LINE, root=None, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, one by one, with their ends.

    Args:
        file: a path.
        longest: characters of a line.
        root: see `open_file`.
        encoding: "utf-8" or another one of `encoding_of`.

    Raises:
        InputError: see `open_file`; or a line is longer, or of another encoding.
    """
    number = 0
    try:
        with open_file(file, root) as opened:
            for number, text in enumerate(_decoded(opened, longest, encoding), 1):
                if len(text) > longest:
                    raise InputError(f"{file}, line {number} has more than {longest:,} characters")
                yield text
    except UnicodeError as error:
        raise InputError(f"{file}, line {number + 1} is no text in {encoding.upper()}: {error}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from None


def _decoded(opened, longest, encoding):
    """Lines, cut after more than `longest` characters."""
    if encoding != "utf-8":
        text = io.TextIOWrapper(opened, encoding, newline="")
        yield from iter(lambda: text.readline(longest + 1), "")
        return
    yield from (
        line.decode("utf-8-sig" if number == 0 else "utf-8")
        for number, line in enumerate(iter(lambda: opened.readline(4 * longest), b""))  # at most 4 bytes each
    )


def encoding_of(file, root=None) -> str:
    """What the text file of a spreadsheet is written in.

    Args:
        file: a path.
        root: see `open_file`.

    Returns:
        "utf-16" if it begins with its mark, "utf-8" if it is that, and otherwise "cp1252", which Excel writes
        in western Europe and America.

    Raises:
        InputError: see `open_file`.
    """
    decoder, left = codecs.getincrementaldecoder("utf-8")(), MOST_GUESSED
    try:
        with open_file(file, root) as opened:
            if opened.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                return "utf-16"
            while left > 0 and (content := opened.read(min(left, 2**20))):
                decoder.decode(content)
                left -= len(content)
    except UnicodeDecodeError:
        return "cp1252"
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason(error)}") from None
    return "utf-8"


def read_json(file, root=None, most: int = LARGEST_JSON) -> dict:
    """A JSON object from a file.

    Args:
        file: a path.
        root: see `open_file`.
        most: bytes that it may have.

    Raises:
        InputError: see `read_bytes`; or the file holds no JSON object, or one nested too deeply.
    """
    values = parse_json(read_bytes(file, most, root), file)
    if not isinstance(values, dict):
        raise InputError(f"{file} holds a {type(values).__name__}, expected a JSON object")
    return values


def parse_json(text: str | bytes, source):
    """What a stranger's JSON says, in which nothing is nested too deeply.

    Args:
        text: JSON; bytes are UTF-8.
        source: what a message calls the place that it is from.

    Raises:
        InputError: it is no JSON, or nests more than `DEEPEST` objects and lists.
    """
    try:
        values = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
        if _is_deeper(values, DEEPEST):
            raise ValueError(f"it nests more than {DEEPEST} objects and lists")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} cannot be read as JSON: {reason(error)}") from None
    return values


def _is_deeper(values, levels) -> bool:
    """Whether more objects and lists than `levels` stand within each other."""
    inner = [values]
    for _ in range(levels):
        nested = [each for each in inner if isinstance(each, (dict, list))]
        inner = [value for each in nested for value in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, (dict, list)) for each in inner)


def write_json(file: Path, values: dict):
    """Writes an object as JSON, whole or not at all; see `replacing_file`."""
    write_text(file, json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_text(file: Path, text: str):
    """Writes the file, in UTF-8, whole or not at all; see `replacing_file`.

    Halves of characters, which JSON can hold and paths whose bytes are no UTF-8 have, are escaped.
    """
    with replacing_file(file) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def replacing_file(file):
    """A path beside `file` to write to, which takes its place when the block ends well.

    A full disk or a killed process leaves the file that was there as it was.

    Raises:
        CannotWrite: an `InputError`.
    """
    file = Path(file)
    new = file.with_name(f".{secrets.token_hex(8)}.new")  # short, and nobody could have put a link there
    try:
        yield new
        new.replace(file)
    except OSError as error:
        raise CannotWrite(file, reason(error)) from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def write_new(file, content: bytes) -> Path:
    """Writes a file whole or not at all; what is there already stays, and the file gets the next free number.

    Args:
        file: a path, such as "dress.png": if it is taken, "dress-1.png", "dress-2.png" and so on.
        content: what to write.

    Returns:
        The file that was written.

    Raises:
        CannotWrite: an `InputError`.
    """
    file = Path(file)
    new = file.with_name(f".{secrets.token_hex(8)}.new")
    try:
        new.write_bytes(content)
        for number in itertools.count():
            numbered = file.with_stem(f"{file.stem}-{number}") if number else file
            with contextlib.suppress(FileExistsError):
                _name_anew(new, numbered)
                return numbered
    except OSError as error:
        raise CannotWrite(file, reason(error)) from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _name_anew(file, name):
    """Gives a file another name; `FileExistsError` if that is taken, also by another process just now."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
        file.replace(name)


def remove_folder(folder):
    """Removes a folder of ours that is damaged; links in it are not followed.

    Raises:
        InputError: it is a link, which leads to what may not be ours, or cannot be removed.
    """
    folder = Path(folder)
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise OSError(None, "it is no folder")
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"{folder} is damaged and cannot be removed ({reason(error)}): remove it") from None


def open_array(file, root=None):
    """An array that numpy has written (`.npy`), mapped: read from the file piece by piece as it is used.

    Args:
        file: a path.
        root: see `open_file`.

    Raises:
        InputError: see `open_file`; or it is no such file, has Python objects in it, or another size than
            it says.
    """
    import numpy as np

    try:
        with open_file(file, root) as opened:
            version = np.lib.format.read_magic(opened)
            if version != (1, 0):
                raise ValueError(f"its format is {version}, 1.0 is what is written here")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(opened)
            begin, size = opened.tell(), os.fstat(opened.fileno()).st_size
            if is_fortran or dtype.hasobject or size != begin + dtype.itemsize * math.prod(shape):
                raise ValueError(f"it has {size:,} bytes, which do not fit its header")
            if math.prod(shape) == 0:
                return np.empty(shape, dtype)
            return np.memmap(opened, dtype, "r", begin, shape)
    except InputError:
        raise
    except Exception as error:  # numpy parses the header as Python, and raises what that leads to
        raise InputError(f"{file} is damaged: {reason(error)}") from None


def reason(error) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and error.errno == errno.EAGAIN:
        return "it has nothing to read"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__

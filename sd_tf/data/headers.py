"""Checks of what a picture's file says before its pixels, made before a decoder reads it.

Pillow keeps all of it in memory, and parses some of it: a few kilobytes of EXIF data can hold thousands of
entries that share one long value, of which each entry makes a copy.
"""

import io
import os
import struct
from typing import NamedTuple

from PIL.JpegImagePlugin import MARKER

from sd_tf.errors import InputError

MOST_BYTES = 300_000_000  # of a file: 64 million pixels without compression
LARGEST_HEADER = 8_000_000  # bytes read before the pixels: profiles, previews, a tool's own
LARGEST_GIF_HEADER = 500_000  # the time that comments take grows with the square of their length
MOST_SEGMENTS = 2000  # of a JPEG before its pixels
MOST_CHUNKS = 1000  # of a PNG, besides one for each kilobyte
MOST_SKIPPED = 100_000  # bytes between them
MOST_SCANS = 100  # of a JPEG; usual are ten
MOST_SCANNED = 20 * 64 * 1024**2  # pixels of all scans together
PROGRESSIVE = (0xFFC2, 0xFFC6, 0xFFCA, 0xFFCE)
LARGEST_EXIF = 500_000  # bytes that the values of its entries take together
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
ORIENTATION = 0x0112


class Metered(io.RawIOBase):
    """A binary file from which at most `left` bytes are read in all, also if the same ones are read again.

    It has no file descriptor, so that no decoder maps the file into memory: if another process cut the file
    short, touching a mapped page would kill this one.
    """

    def __init__(self, file, left: int):
        self._file, self.left = file, left

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        number = self._file.readinto(buffer)
        self.left -= number
        if self.left < 0:
            raise InputError("has more data beside its pixels than a picture needs: save it again")
        return number

    def seek(self, offset, whence=os.SEEK_SET):
        return self._file.seek(offset, whence)

    def tell(self):
        return self._file.tell()


class Header(NamedTuple):
    """What is known of a file before Pillow opens it."""

    most: int  # bytes that opening it may read
    is_buffered: bool = False  # a JPEG of several scans, which the decoder keeps until the last is read


def check_header(file, size: int) -> Header:
    """Reads as much of a file as Pillow would to open it, checks it, and goes back to the file's beginning.

    Args:
        file: a buffered binary file.
        size: its bytes.

    Raises:
        InputError: its header takes more memory or time than a picture's does.
    """
    if size > MOST_BYTES:
        raise InputError(f"has {size:,} bytes, more than the {MOST_BYTES:,} allowed: scale it down")
    begin = file.read(12)
    header = Header(LARGEST_HEADER)
    if begin.startswith(b"\xff\xd8"):
        header = Header(LARGEST_HEADER, _check_jpeg(file))
    elif begin.startswith(b"\x89PNG"):
        _check_png(file, size)
    elif begin.startswith(b"GIF8"):
        header = Header(LARGEST_GIF_HEADER)
    elif begin[8:] == b"WEBP" or begin[4:8] == b"ftyp":  # WebP and HEIC are read at once
        header = Header(size + LARGEST_HEADER)
    file.seek(0)
    return header


def _check_jpeg(file):
    """Checks the segments before the pixels, found as Pillow finds them; whether there are several scans."""
    file.seek(2)
    exif, pixels, components, is_progressive, segments, skipped = b"", 0, 0, False, 0, 0
    while segments < MOST_SEGMENTS and skipped < MOST_SKIPPED:
        if (byte := file.read(1)) != b"\xff":
            if not byte:
                return False
            skipped += 1
            continue
        while (code := file.read(1)) == b"\xff" and skipped < MOST_SKIPPED:
            skipped += 1
        marker = 0xFF00 | (code[0] if code else 0)
        _, _, handler = MARKER.get(marker, ("", "", None))
        segments += 1
        if handler is None:
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        content = file.read(max(0, length))
        if marker == 0xFFE1 and content.startswith(b"Exif\0\0"):
            exif = exif + content[6:] if exif else content
            check_exif(exif)
        elif marker == 0xFFE2 and content.startswith(b"MPF\0"):
            check_exif(content[4:])
        elif MARKER[marker][0].startswith("SOF") and len(content) >= 6:
            _, height, width, components = struct.unpack_from(">BHHB", content)
            pixels, is_progressive = height * width, marker in PROGRESSIVE
        elif marker == 0xFFDA:
            is_buffered = is_progressive or not content or content[0] < components
            if is_buffered:
                _check_scans(file, pixels)
            return is_buffered
    raise InputError("has more data before its pixels than a picture needs: save it again")


def _check_scans(file, pixels):
    """A scan of a few bytes takes as long to decode as a whole picture."""
    last, scans = b"", 1
    while block := file.read(2**20):
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    if scans > MOST_SCANS or scans * pixels > MOST_SCANNED:
        raise InputError(f"has {scans} scans, more than there is time for: save it again")


def _check_png(file, size):
    """Checks the number of chunks; Pillow itself limits what compressed chunks unpack to."""
    file.seek(8)
    for _ in range(MOST_CHUNKS + size // 1000):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        place = file.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)
        if place >= size:
            return
    raise InputError("has more chunks than a picture needs: save it again")


def check_exif(content: bytes):
    """Raises `InputError` where the values of EXIF data take more than `LARGEST_EXIF` together."""
    total = sum(_SIZES.get(kind, 1) * count for _, kind, count, _ in _entries(content))
    if total > max(LARGEST_EXIF, 2 * len(content)):
        raise InputError("has EXIF data that repeat one value many times: save it without them")


def orientation(content: bytes) -> int | None:
    """The orientation in EXIF data, 1 to 8; None if there is none."""
    for tag, kind, _, value in _entries(content):
        if tag == ORIENTATION and kind in (3, 4):
            return value
    return None


def _entries(content):
    """(tag, type, count, the value where it is one whole number) of the first directory."""
    content = memoryview(content)
    while bytes(content[:6]) == b"Exif\0\0":
        content = content[6:]
    if 43 in bytes(content[2:4]):  # the mark of files above 4 GB
        raise InputError("has EXIF data that no camera writes: save it without them")
    order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
    if order is None or len(content) < 8:
        return
    (start,) = struct.unpack_from(order + "I", content, 4)
    if start + 2 > len(content):
        return
    (number,) = struct.unpack_from(order + "H", content, start)
    for place in range(start + 2, min(start + 2 + 12 * number, len(content) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", content, place)
        yield tag, kind, count, struct.unpack_from(order + ("I" if kind == 4 else "H"), content, place + 8)[0]

"""Opens pictures that may come from strangers, as 8-bit RGB, within limits of size, memory and time.

The memory that decoding will take is reserved before, for all threads together: a file of a few hundred
kilobytes can hold as many pixels as are allowed.
"""

import contextlib
import functools
import importlib.util
import io
import os
import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from sd_tf.data.budget import Budget
from sd_tf.data.headers import Metered, check_header, orientation
from sd_tf.errors import InputError, printable
from sd_tf.files import open_file

HEIC = importlib.util.find_spec("pillow_heif") is not None  # the extra of that name: pictures of iPhones
# No decoder that starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *(("HEIF",) if HEIC else ()))
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SUFFIXES += (".heic", ".heif") if HEIC else ()
MOST_PIXELS = 64 * 1024**2  # of one picture: 200 MB as RGB
LONGEST_SIDE = 65_535  # pixels, as of a JPEG
SLOW = ("bmp_rle", "ppm", "ppm_plain")  # Pillow's decoders in Python: a second for 1.5 million numbers
MOST_SLOW_PIXELS = 1024**2
MOST_COMMENTS = 100  # in a PPM of text: each copies all that follows
BUDGET = Budget(1_300_000_000)  # bytes for pictures that are being decoded; the largest takes 1.1 billion
BAND = 1024**2  # pixels that are converted at once
WHITE = (255, 255, 255)

T = TypeVar("T")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_it_is(picture: Image.Image) -> Image.Image:
    """The picture itself: the `use` of a caller who wants just that."""
    return picture


def open_picture(
    file,
    background=WHITE,
    least_side: int | None = None,
    use: Callable[[Image.Image], T] = as_it_is,
    root=None,
) -> T:
    """Decodes a picture, turned as its EXIF data say; of an animation, the first frame.

    Palettes, grey, CMYK and 16 bits a channel become 8-bit RGB; what is transparent shows `background`.

    Args:
        file: a path, or a binary file.
        background: (red, green, blue), 0...255.
        least_side: pixels that the shorter side needs at least; a larger JPEG is decoded at a half, a quarter
            or an eighth of its size, which is faster.
        use: called with the picture while its memory is still reserved; the reservation ends on return.
        root: a folder that a path must not lead out of by links, see `open_file`.

    Returns:
        A PIL picture of mode "RGB", or what `use` makes of it.

    Raises:
        InputError: it is not a picture of one of `FORMATS`, is damaged, has more than `MOST_PIXELS`
            pixels or floating-point pixels, or takes more memory or time to decode than is allowed.
    """
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(file, (str, os.PathLike)):
                file = stack.enter_context(_opened(file, root))
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            header = check_header(file, size)
            metered = Metered(file, header.most)
            _register_heic()
            with BUDGET.taking(_bytes_of_header(min(size, header.most))):
                picture = stack.enter_context(Image.open(io.BufferedReader(metered), formats=FORMATS))
            _check_size(picture, file, size)
            metered.left = 2 * size + 8 * picture.width * picture.height + header.most
            needed = _bytes_of_pixels(picture, size, header.is_buffered, least_side)
            with BUDGET.taking(needed):
                picture.load()
                return use(_rgb(_turned(picture), background))
    except InputError:
        raise
    except UnidentifiedImageError:  # its message is the file's name
        raise InputError(f"cannot be read as a picture: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise whatever a stranger's bytes lead them to
        reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be read as a picture: {reason}") from None


def to_rgb(picture: Image.Image, background=WHITE) -> Image.Image:
    """A PIL picture as `open_picture` would have opened it: turned as its EXIF data say, mode "RGB".

    Args:
        picture: of any mode, decoded or not.
        background: (red, green, blue), 0...255, behind what is transparent.

    Raises:
        InputError: it is damaged, has no pixels or more than `MOST_PIXELS`, or pixels that are floating-point
            numbers.
    """
    width, height = picture.size
    if not 0 < width * height <= MOST_PIXELS:
        raise InputError(f"has {width} x {height} pixels, 1 to {MOST_PIXELS} are expected: scale it")
    try:
        return _rgb(_turned(picture), background)
    except InputError:
        raise
    except Exception as error:  # of a picture that was not decoded before
        why = (getattr(error, "strerror", None) or str(error)).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be read as a picture: {why}") from None


@functools.cache
def _register_heic():
    """Makes Pillow read HEIC, whose pictures come turned as they should be, where there is a reader of it."""
    if HEIC:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _opened(file, root):
    """As `open_file`, but messages do not name the file."""
    try:
        return open_file(file, root)
    except InputError as error:
        why = str(error).removeprefix(f"{printable(str(file))} ")
        raise InputError(f"cannot be read as a picture: it {why}") from None


def _check_size(picture, file, size):
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise InputError(f"has {width} x {height} pixels, more than the {MOST_PIXELS} allowed: scale it down")
    if max(width, height) > LONGEST_SIDE:
        raise InputError(
            f"has {width} x {height} pixels, more than {LONGEST_SIDE} along a side: scale it down"
        )
    if any(tile[0] in SLOW for tile in picture.tile):
        most = 1_000_000 + 16 * MOST_SLOW_PIXELS
        if width * height > MOST_SLOW_PIXELS or size > most or _comments(picture, file) > MOST_COMMENTS:
            raise InputError(
                f"has {width} x {height} pixels in {size:,} bytes, more than the {MOST_SLOW_PIXELS} in "
                f"{most:,} allowed in a format that is read slowly: save it as a PNG"
            )


def _comments(picture, file):
    """How many comments a PPM of text may have: its `#` signs."""
    if picture.tile[0][0] != "ppm_plain":
        return 0
    place = file.tell()
    file.seek(0)
    found = file.read().count(b"#")
    file.seek(place)
    return found


def _bytes_of_header(size):
    """Memory that Pillow may take for a header: at worst, a Python object for each number."""
    return 50 * size


def _bytes_of_pixels(picture, size, is_buffered, least_side):
    """Memory that decoding takes at most, as measured for each format and rounded up; drafts a JPEG."""
    pixels, decoder = picture.width * picture.height, 0
    if picture.format in ("JPEG", "MPO"):
        decoder = 2 * pixels * picture.layers if is_buffered else 0
        if least_side is not None and picture.format == "JPEG":
            picture.draft(None, (least_side, least_side))
            pixels = picture.width * picture.height
    elif picture.format in ("WEBP", "HEIF"):  # two canvases and the frame, as bytes
        decoder = 12 * pixels + 2 * size
    elif picture.format == "TIFF":
        decoder = 2 * size + _bytes_of_strip(picture)
    elif picture.format == "GIF":
        decoder = 4 * pixels
    elif any(tile[0] in SLOW for tile in picture.tile):
        decoder = 24 * pixels
    elif picture.format == "PNG":
        decoder = 2 * pixels
    stored = pixels * {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(picture.mode, 4)
    result = 0 if _is_rgb(picture) else 4 * pixels
    converting = 0 if _is_rgb(picture) else 50 * min(pixels, max(BAND, picture.width))
    return max(stored + decoder, 2 * stored, stored + result) + converting + 2**20


def _bytes_of_strip(picture):
    """Bytes of a TIFF that are unpacked at once: a strip or a tile, which may be larger than the picture."""
    tags = picture.tag_v2
    width, height = tags.get(322, picture.width), tags.get(323, min(tags.get(278, 2**32), picture.height))
    bits = tags.get(258, (8,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    samples = max(1, int(tags.get(277, len(bits))))
    return int(width) * int(height) * max(4, samples * int(max(bits)) // 8 + 1)


def _turned(picture):
    """The picture turned as its EXIF or XMP data say; Pillow has already turned a TIFF."""
    if picture.format == "TIFF":
        return picture
    turn = None
    with contextlib.suppress(Exception):  # damaged ones leave the picture as it lies
        info = picture.info
        exif = info.get("exif") or bytes.fromhex(
            "".join(str(info.get("Raw profile type exif", "")).split("\n")[3:])
        )
        turn = orientation(exif)
        if turn is None:
            said = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
            said = said.decode(errors="replace") if isinstance(said, bytes) else said
            found = re.search(r'tiff:Orientation(="|>)([0-9])', said)
            turn = int(found[2]) if found else None
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def _is_rgb(picture):
    return picture.mode == "RGB" and "transparency" not in picture.info


def _rgb(picture, background):
    """Converted to RGB in bands, so that what is made on the way takes little memory."""
    if picture.mode == "F":
        raise InputError("has floating-point pixels of an unknown range: save it with 8 or 16 bits")
    if _is_rgb(picture):
        return picture
    width, height = picture.size
    if width * height <= BAND:
        return _rgb_of_band(picture, background)
    page, rows = Image.new("RGB", picture.size), max(1, BAND // width)
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        page.paste(_rgb_of_band(band, background), (0, top))
    return page


def _rgb_of_band(picture, background):
    if picture.mode.startswith("I"):  # grey of 16 bits
        levels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = Image.fromarray(np.rint(levels / 257.0).astype(np.uint8))
    if "transparency" in picture.info or picture.mode.lower().endswith("a"):
        page = Image.new("RGBA", picture.size, (*background, 255))
        picture = Image.alpha_composite(page, picture.convert("RGBA"))
    return picture.convert("RGB")

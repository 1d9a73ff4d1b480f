"""`sd_tf.show`: pictures on one page, in a notebook or in a file."""

import contextlib
import importlib.util
import numbers
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sd_tf.errors import InputError, argument, printable, shown
from sd_tf.images import as_uint8, png, save_png, sheet

SIDE = 128  # most pixels along the longer side of an enlarged picture
WIDTH = 1100  # most pixels of a page with a default number of columns
MOST_COLUMNS = 8
MOST_PIXELS = 64_000_000  # of a page
GAP = 2  # pixels between pictures
DARK, LIGHT = (40, 40, 40), (235, 235, 235)  # background, as in `sheet`, and text
FONT_SIZE = 13  # pixels
MARGIN = 4  # pixels around a text
NARROWEST = 96  # least width of a caption below a picture, in pixels
MOST_LINES = 3  # of a caption
LONGEST_LINE = 500  # characters


def show(
    images,
    captions: str | Sequence[str] | None = None,
    columns: int | None = None,
    file=None,
    scale: int | None = None,
):
    """Shows pictures on one page in a notebook, or saves the page.

        sd_tf.show(model.generate("a red dress", num_images=8))
        sd_tf.show(model.generate(prompts, num_images=4), prompts)       # a row for each prompt
        sd_tf.show(images, captions, file="sheet.png")

    Args:
        images: uint8 (n, height, width, 3), what `generate` returns; one picture (height, width, 3); a list
            of pictures of one size; grey pictures (n, height, width); or rows of pictures
            (rows, columns, height, width, 3). Floating-point numbers from 0 to 1 are taken as well.
        captions: one string is a title. A list of as many strings as pictures: each is written below its
            picture. A shorter list: one for each row, written above it.
        columns: pictures in a row. None for one row for each caption or, without captions of rows, as many as
            fit into 1,100 pixels, at most 8.
        file: a .png file to save the page to, instead of showing it.
        scale: factor by which pictures are enlarged. None for the largest at which the pictures' longer side
            is at most 128 pixels, or 1 if it is longer anyway.

    Raises:
        InputError: there is neither a notebook nor a `file`; pictures are missing or differ in size; the
            number of captions does not fit; or the file cannot be written.
    """
    page = page_of(images, captions, columns, scale)
    if file is not None:
        if not str(file).lower().endswith(".png"):
            raise InputError(f"{argument('file')} is {shown(str(file))}: name a .png file")
        save_png(file, page)
        return
    if not _is_in_notebook():
        raise InputError(
            "there is no notebook to show pictures in: save them, show(images, file='sheet.png')"
        )
    from IPython.display import Image, display

    display(Image(data=png(page), format="png"))


def page_of(images, captions=None, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """The page that `show` shows, uint8 (height, width, 3); see there for the arguments."""
    pictures, in_row = _pictures(images)
    for name, value in (("columns", columns), ("scale", scale)):
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and not (is_whole and value >= 1):
            raise InputError(f"{name} is {shown(value)}: give a whole number of 1 or more")
    columns, scale = columns and int(columns), scale and int(scale)  # of numpy, they would overflow
    scale = scale or max(1, SIDE // max(pictures.shape[1:3]))
    title, below, above = _places_of(captions, len(pictures), in_row or columns)
    columns = columns or in_row or (len(pictures) // len(above) if above else None)
    columns = columns or _usual_columns(len(pictures), scale * pictures.shape[2] + GAP)
    if above and len(above) != -(-len(pictures) // columns):
        raise InputError(
            f"there are {len(above)} captions for {len(pictures)} pictures in rows of {columns}: give one "
            "for each picture or row, or one string as a title"
        )
    _check_page(pictures, columns, scale)
    if not (title or below or above):
        return sheet(pictures, columns, GAP, scale)
    return _captioned_page(pictures, columns, scale, title, below, above)


def _pictures(images):
    """Pictures as uint8 (n, height, width, 3), and the number in a row if `images` has rows, else None."""
    try:
        images = np.asarray(images)
    except ValueError:  # from numpy, for different sizes
        raise InputError(
            "the pictures differ in size: give pictures of one size, or show them separately"
        ) from None
    if images.dtype == object:
        raise InputError("the pictures are not arrays of one size: give uint8 (n, height, width, 3)")
    if images.size == 0:
        raise InputError(f"there are no pictures in an array of the shape {images.shape}")
    in_row = None
    if images.ndim == 5:
        in_row = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    elif images.ndim == 2 or images.ndim == 3 and images.shape[-1] == 3:
        images = images[np.newaxis]  # one picture
    if images.ndim == 3:
        images = images[..., np.newaxis]  # grey
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"the pictures have the shape {images.shape}: give (n, height, width, 3)")
    images = as_uint8(images, "the array of pictures")
    return np.repeat(images, 3 // images.shape[-1], axis=-1), in_row


def _places_of(captions, number, columns):
    """(title, texts below the pictures, texts above the rows), of which at most one is not empty."""
    if captions is None:
        return "", [], []
    if isinstance(captions, str):
        return captions, [], []
    try:
        texts = np.asarray(captions).tolist() if hasattr(captions, "__array__") else list(captions)
        texts = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in texts]
    except TypeError:
        raise InputError(f"captions is {shown(captions)}: give one text, or a list of texts") from None
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"captions[{i}] is {shown(text)}, which is not a string")
    if len(texts) == number:
        return "", texts, []
    if not texts or len(texts) > number or (columns is None and number % len(texts)):
        raise InputError(
            f"there are {len(texts)} captions for {number} pictures: give one for each picture or row, or "
            "one string as a title"
        )
    return "", [], texts


def _usual_columns(number, width):
    return max(1, min(number, MOST_COLUMNS, (WIDTH - GAP) // width))


def _check_page(pictures, columns, scale):
    number, height, width, _ = pictures.shape
    rows = -(-number // columns)
    if rows * columns * (height * scale + GAP) * (width * scale + GAP) > MOST_PIXELS:
        raise InputError(
            f"{number:,} pictures of {width} x {height}, {scale} times enlarged, are too large for one page: "
            "show fewer, such as images[:64], or give scale=1"
        )


def _captioned_page(pictures, columns, scale, title, below, above):
    """Pictures in rows, with texts; see `page_of`."""
    pictures = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    cell = max(pictures.shape[2], NARROWEST if below else 0)  # pixels, from one gap to the next
    width, font = columns * (cell + GAP) + GAP, _font()
    strips = [_text_strip([title], width, width, font)] if title else []
    for row, start in enumerate(range(0, len(pictures), columns)):
        some = slice(start, start + columns)
        if above:
            strips.append(_text_strip([above[row]], width, width, font))
        strips.append(_picture_strip(pictures[some], width, cell))
        if below:
            strips.append(_text_strip(below[some], width, cell, font))
    strips.append(np.full((GAP, width, 3), DARK, np.uint8))
    return np.concatenate(strips)


def _picture_strip(pictures, width, cell):
    """A row of pictures, with a gap above it."""
    strip = np.full((pictures.shape[1] + GAP, width, 3), DARK, np.uint8)
    for column, picture in enumerate(pictures):
        left = GAP + column * (cell + GAP)
        strip[GAP:, left : left + picture.shape[1]] = picture
    return strip


def _text_strip(texts, width, cell, font):
    """Texts beside each other, each broken into lines that fit its cell, uint8 (height, width, 3)."""
    from PIL import Image, ImageDraw

    lines = [_lines(text, cell - 2 * MARGIN, font) for text in texts]
    line_height = sum(font.getmetrics())
    height = line_height * max(map(len, lines)) + 2 * MARGIN
    strip = Image.new("RGB", (width, height), DARK)
    draw = ImageDraw.Draw(strip)
    for column, cell_lines in enumerate(lines):
        for number, line in enumerate(cell_lines):
            place = GAP + column * (cell + GAP) + MARGIN, MARGIN + number * line_height
            draw.text(place, line, fill=LIGHT, font=font)
    return np.asarray(strip)


def _lines(text, width, font):
    """Breaks a text into at most `MOST_LINES` lines of a width in pixels; the rest becomes an ellipsis."""
    words, lines = printable(" ".join(text.split())).split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], " ".join(lines[MOST_LINES - 1 :])]
    return [_cut(line, width, font) for line in lines]


def _cut(line, width, font):
    line = line[:LONGEST_LINE]
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def _font():
    """DejaVu Sans, which comes with Matplotlib and covers most alphabets, or else Pillow's font."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    if found is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        with contextlib.suppress(OSError):
            return ImageFont.truetype(file, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)


def _is_in_notebook():
    """Whether this is a notebook's kernel, and not IPython in a terminal, which cannot show pictures."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"

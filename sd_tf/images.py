"""PNG files that say how they were made, and sheets of many pictures."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_tf.errors import InputError
from sd_tf.files import replacing_file, write_new

LONGEST_NAME = 200  # bytes of a file's name; file systems take 255


def to_unit(images: np.ndarray) -> np.ndarray:
    """uint8 pictures of any shape -> float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def save_png(file, image: np.ndarray, settings: dict | None = None):
    """Writes uint8 (height, width, 3), with `settings` as PNG text chunks, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing_file(file) as new:
        new.write_bytes(png(image, settings))


def add_png(file, image: np.ndarray, settings: dict | None = None) -> Path:
    """As `save_png`, but never in the place of another file, see `write_new`; returns the file written."""
    return write_new(file, png(image, settings))


def png(image: np.ndarray, settings: dict | None = None) -> bytes:
    """The bytes of a PNG file; see `save_png`."""
    text = PngInfo()
    for name, value in (settings or {}).items():
        # A path whose bytes are no UTF-8 holds lone surrogates in their place.
        text.add_itxt(name, str(value).encode(errors="backslashreplace").decode())
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG", pnginfo=text)
    return encoded.getvalue()


def as_uint8(pixels, name: str) -> np.ndarray:
    """Pixels of any shape as uint8: uint8 as they are, floating-point numbers in [0, 1] times 255, rounded.

    Args:
        pixels: an array.
        name: of the picture or pictures, which an error begins with.

    Raises:
        InputError: they are of another type, beyond 0...1, or not finite.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise InputError(
            f"{name} has pixels of {pixels.dtype}: give uint8, from 0 to 255, or floats from 0 to 1"
        )
    if not np.isfinite(pixels).all():
        raise InputError(f"{name} has pixels that are NaN or infinite: give floats from 0 to 1, or uint8")
    low, high = pixels.min(initial=0.0), pixels.max(initial=0.0)
    if low < 0 or high > 1:
        raise InputError(
            f"{name} has floating-point pixels from {low:g} to {high:g}: give floats from 0 to 1, or uint8"
        )
    return np.rint(pixels * 255.0).astype(np.uint8)


def sheet(images: np.ndarray, columns: int, gap: int = 2, scale: int = 2) -> np.ndarray:
    """Pictures uint8 (n, height, width, 3), row by row on one page, uint8, with dark gaps between."""
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 40, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        page[top : top + height, left : left + width] = image
    return page


def save_sheet(file, images: np.ndarray, columns: int, settings: dict | None = None):
    """Writes pictures on one page, see `sheet`, as a PNG file, see `save_png`."""
    save_png(file, sheet(images, columns), settings)


def contact_sheet(images: np.ndarray, rows: list[str], columns: list[str], title: str) -> np.ndarray:
    """Pictures uint8 (rows, columns, height, width, 3) with the names of rows and columns; uint8."""
    from matplotlib.figure import Figure

    across, down = len(columns), len(rows)
    figure = Figure(figsize=(1.5 * across + 0.6, 1.5 * down + 0.6))
    grid = figure.subplots(down, across, squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        axes.imshow(images[row, column], interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        if row == 0:
            axes.set_title(columns[column], fontsize=8, parse_math=False)
        if column == 0:
            axes.set_ylabel(rows[row], fontsize=8, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    return drawn(figure)


def drawn(figure) -> np.ndarray:
    """A figure of Matplotlib, drawn without a window, as uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def file_name(prompt: str, seed: int) -> str:
    """A file name from a prompt and a seed: "a red dress", 7 -> "a-red-dress-7.png"."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:60]
    words = words.encode()[:LONGEST_NAME].decode(errors="ignore") or "picture"
    return f"{words}-{seed}.png"

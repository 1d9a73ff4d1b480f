"""Pictures of strangers, opened as 8-bit RGB: what a file holds is decoded within limits, or refused."""

import contextlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sd_tf.errors import InputError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no decoder that starts another program
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_PIXELS = 64 * 1024**2  # of one picture: 200 MB as RGB
WHITE = (255, 255, 255)


def open_picture(file, background=WHITE, least_side: int | None = None) -> Image.Image:
    """Decodes a picture, turned as its EXIF data say; of an animation, the first frame.

    Palettes, grey, CMYK and 16 bits a channel become 8-bit RGB; what is transparent shows `background`.

    Args:
        file: a path, or a binary file.
        background: (red, green, blue), 0...255.
        least_side: pixels that the shorter side needs at least; a JPEG of more than that is decoded at a
            half, a quarter or an eighth of its size, which is faster.

    Returns:
        A PIL picture of mode "RGB".

    Raises:
        InputError: it is not a picture of one of `FORMATS`, is damaged, has more than `MOST_PIXELS`
            pixels, or pixels that are floating-point numbers.
    """
    try:
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise InputError(
                    f"has {width} x {height} pixels, of which {MOST_PIXELS} are the most: scale it down"
                )
            if least_side is not None and picture.format == "JPEG":
                picture.draft(None, (least_side, least_side))
            picture.load()
            upright = picture
            with contextlib.suppress(Exception):  # damaged EXIF data leave the picture as it lies
                upright = ImageOps.exif_transpose(picture)
            return _rgb(upright, background)
    except InputError:
        raise
    except UnidentifiedImageError:  # its message is the file's name
        raise InputError(f"cannot be read as a picture: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise whatever a stranger's bytes lead them to
        reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be read as a picture: {reason}") from None


def _rgb(picture, background):
    if picture.mode == "F":
        raise InputError("has floating-point pixels, whose range nothing says: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # grey of 16 bits
        levels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = Image.fromarray(np.rint(levels / 257.0).astype(np.uint8))
    if "transparency" in picture.info or picture.mode.lower().endswith("a"):
        page = Image.new("RGBA", picture.size, (*background, 255))
        picture = Image.alpha_composite(page, picture.convert("RGBA"))
    return picture.convert("RGB")

"""Captioned pictures that are given in Python: read once, in order, into a temporary file.

The file has no name, so the system removes it when the process ends. So pictures take no memory, and are a
`Source` like those of a folder.
"""

import array
import contextlib
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

from sd_tf.data.captioned_folder import CAPTION_COLUMNS, tidy
from sd_tf.data.opening import BUDGET, MOST_PIXELS, as_it_is, to_rgb
from sd_tf.data.options import ARRAYS, ArrayOptions
from sd_tf.data.sources import Source
from sd_tf.errors import InputError, argument, shown
from sd_tf.files import reason
from sd_tf.images import as_uint8

IMAGE_KEYS = ("image", "img", "picture")  # keys of dictionaries; the first that exists is used
MOST_PICTURES = 1_000_000
MOST_BYTES = 50_000_000_000  # of the temporary file; at most half of the free space
_GIVE_CAPTIONS = "give pairs (image, caption), or captions=[...] with one string for each picture"


def arrays_source(given, captions=None, options: ArrayOptions | None = None) -> Source:
    """Reads all pictures and captions into a temporary file.

    Args:
        given: pictures, with `captions`, or rows of a picture and its caption; see `sd_tf.open_data`.
        captions: one string for each picture, or None if rows have them.
        options: `caption` replaces captions, `caption_column` is the key of captions in rows that are
            dictionaries, `background` shows through transparent pixels.

    Raises:
        InputError: see `sd_tf.open_data`.
    """
    options = options or ArrayOptions()
    _check_given(given, captions, options)
    pictures, texts, digest = _TemporaryPictures(), [], hashlib.sha256()
    for number, (image, caption) in enumerate(_captioned(given, captions, options)):
        if number == MOST_PICTURES:
            raise InputError(
                f"there are more than {MOST_PICTURES:,} pictures: take fewer, and check that what makes them "
                "has an end"
            )
        pixels, text = _pixels(image, number, options.background_colour), _text(caption, number)
        pictures.add(pixels)
        texts.append(text)
        digest.update(repr((pixels.shape, text)).encode())
        digest.update(pixels)
    pictures.finish()
    if not texts:
        used_up = ", which can be read only once: make a new one" if isinstance(given, Iterator) else ""
        raise InputError(f"there are no pictures in the {type(given).__name__}{used_up}")
    return Source(
        ARRAYS, texts, pictures.open, lambda i: f"images[{i}]", digest.hexdigest()[:16], problems=()
    )


# -- what is given ----------------------------------------------------------------------------------


def _check_given(given, captions, options):
    """Raises `InputError` for mistakes that show without reading."""
    if isinstance(given, (str, bytes)) or not _is_iterable(given):
        raise InputError(
            f"{argument('source', '--dataset')} is {shown(given)}: give the name of a data set, a folder, or "
            "pictures with captions"
        )
    shape = getattr(given, "shape", None)
    if shape is not None and len(shape) == 3 and shape[-1] in (3, 4):
        raise InputError(
            f"the pictures have the shape {tuple(shape)}, which is one picture: give (n, height, width, 3)"
        )
    if _is_tf_dataset(given) and int(given.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise InputError("the tf.data.Dataset has no end: leave out its repeat(), or add take(n)")
    if captions is not None:
        if not _is_iterable(captions):
            raise InputError(f"captions is {shown(captions)}: {_GIVE_CAPTIONS}")
        for name in ("caption", "caption_column"):
            if getattr(options, name) is not None:
                raise InputError(f"captions and {argument(name)} are both given: leave one out")
        if isinstance(captions, (str, bytes)):
            raise InputError(
                f"captions is one string: give a list, or {argument('caption')} for all pictures"
            )


def _is_iterable(given):
    """Whether something has elements to go through, unlike a number, or an array without axes."""
    is_scalar = getattr(given, "shape", None) == ()
    return not is_scalar and (isinstance(given, Iterable) or hasattr(given, "__getitem__"))


def _elements(given):
    """An iterator; of an object with `__len__` and `__getitem__` alone, a PyTorch data set, of so many."""
    if not isinstance(given, Iterable) and hasattr(given, "__len__"):
        return (given[i] for i in range(len(given)))  # it need not raise IndexError behind its end
    return iter(given)


def _is_tf_dataset(given):
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(given, tf.data.Dataset)


def _captioned(given, captions, options) -> Iterator[tuple]:
    """Yields (picture, caption) as given, one by one."""
    given = [given] if isinstance(given, Mapping) else given
    rows = given.as_numpy_iterator() if _is_tf_dataset(given) else _elements(given)
    if options.caption is not None:
        return ((image, options.caption) for image in _images(rows))
    if captions is not None:
        return _paired(_images(rows), captions)
    return itertools.chain.from_iterable(_pairs_of_row(row, i, options) for i, row in enumerate(rows))


def _images(rows):
    """Yields pictures, also from rows that are batches of pictures."""
    for number, row in enumerate(rows):
        if isinstance(row, (tuple, Mapping)):
            raise InputError(
                f"row {number} is a {type(row).__name__}, but captions are given separately: "
                "give pictures only, or leave the separate captions out"
            )
        if _rank(row) == 4:
            yield from row
        else:
            yield row


def _paired(images, captions):
    missing = object()
    for number, pair in enumerate(itertools.zip_longest(images, captions, fillvalue=missing)):
        image, caption = pair
        if image is missing or caption is missing:
            more, fewer = ("captions", "pictures") if image is missing else ("pictures", "captions")
            raise InputError(f"there are more {more} than the {number} {fewer}: give one caption for each")
        yield pair


def _pairs_of_row(row, number, options):
    """The (picture, caption) pairs of a row, which is a pair, a dictionary, or a batch of them."""
    if isinstance(row, Mapping):
        image = row[_key(row, number, IMAGE_KEYS, None)]
        caption = row[_key(row, number, CAPTION_COLUMNS, options.caption_column)]
    elif isinstance(row, (tuple, list)) and len(row) == 2:
        if options.caption_column is not None:
            raise InputError(
                f"{argument('caption_column')} is the captions' key in dictionaries: leave it out with pairs"
            )
        image, caption = row
    else:
        raise InputError(f"images[{number}] has no caption: {_GIVE_CAPTIONS}")
    return _paired(image, caption) if _rank(image) == 4 else [(image, caption)]


def _key(row, number, usual, given):
    """The key of a row's picture or caption."""
    key = given if given is not None else next((name for name in usual if name in row), None)
    if key is None or key not in row:
        wanted = f"no {shown(given)}" if given is not None else f"none of {', '.join(usual)}"
        way_out = (
            "" if usual is IMAGE_KEYS else f": name the key of captions with {argument('caption_column')}"
        )
        raise InputError(f"row {number} has {wanted}, but {shown(sorted(map(str, row)))}{way_out}")
    return key


def _rank(image):
    return len(getattr(image, "shape", ()))


# -- a caption and a picture ------------------------------------------------------------------------


def _text(caption, number):
    """A caption on one line, from a string, UTF-8 bytes, or the first of several."""
    found = caption
    if hasattr(found, "__array__"):  # of numpy or TensorFlow
        found = np.asarray(found).tolist()
    if isinstance(found, (list, tuple)):
        found = found[0] if found else ""
    if isinstance(found, bytes):
        found = found.decode(errors="replace")
    if not isinstance(found, str):
        raise InputError(
            f"captions[{number}] is {shown(found)}, which is not a string: give words, such as class names"
        )
    if not (text := tidy(found)):
        raise InputError(f"captions[{number}] is empty: say what the picture shows")
    return text


def _pixels(image, number, background):
    """A picture of any accepted kind as contiguous uint8 (height, width, 3)."""
    name = f"images[{number}]"
    if isinstance(image, Image.Image):
        try:
            return np.ascontiguousarray(to_rgb(image, background))
        except InputError as error:
            raise InputError(f"{name} {error.message}") from None
    if isinstance(image, (str, bytes, os.PathLike)):
        raise InputError(
            f"{name} is {shown(image)}: give pixels, or name the files' folder: open_data('folder:...')"
        )
    try:
        pixels = np.asarray(image)
    except Exception as error:  # of another library's object
        raise InputError(f"{name} is a {type(image).__name__}, not a picture ({reason(error)})") from None
    _check_shape(pixels, name)
    pixels = as_uint8(pixels, name)
    if pixels.shape[-1] == 4 and pixels.ndim == 3:
        pixels = to_rgb(Image.fromarray(pixels), background)
    elif pixels.ndim == 2 or pixels.shape[-1] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels)


def _check_shape(pixels, name):
    shape = pixels.shape
    if not (len(shape) == 2 or len(shape) == 3 and shape[-1] in (1, 3, 4)):
        channels_first = len(shape) == 3 and shape[0] in (1, 3, 4)
        way_out = ", channels last" if channels_first else " or (height, width)"
        raise InputError(f"{name} has the shape {shape}: give (height, width, 3){way_out}")
    if not 0 < shape[0] * shape[1] <= MOST_PIXELS:
        raise InputError(
            f"{name} has {shape[1]} x {shape[0]} pixels, 1 to {MOST_PIXELS} are expected: scale it"
        )


# -- the file ---------------------------------------------------------------------------------------


class _TemporaryPictures:
    """Pictures, uint8 (height, width, 3), in a temporary file that the system removes when it is closed."""

    def __init__(self):
        self._folder, self._lock = tempfile.gettempdir(), threading.Lock()
        with self._writing():
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115, open as long as this
            self._most = min(MOST_BYTES, shutil.disk_usage(self._folder).free // 2)
        self._size, self._places = 0, array.array("q")  # offset, height and width of each

    def add(self, pixels):
        """Appends a picture.

        Raises:
            InputError: there is not enough space.
        """
        height, width, _ = pixels.shape
        if self._size + pixels.nbytes > self._most:
            raise self._no_room(f"they take more than {self._most:,} bytes")
        with self._writing():
            self._file.write(pixels)
        self._places.extend((self._size, height, width))
        self._size += pixels.nbytes

    def finish(self):
        """Flushes buffered writes."""
        with self._writing():
            self._file.flush()

    def open(self, number, side, use=as_it_is):
        """`use(PIL picture)` of a picture; see `Source`."""
        offset, height, width = self._places[3 * number : 3 * number + 3]
        with BUDGET.taking(8 * height * width):  # the bytes, and the picture that Pillow makes of them
            with self._lock:
                self._file.seek(offset)
                content = self._file.read(3 * height * width)
            return use(Image.frombytes("RGB", (width, height), content))

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise self._no_room(reason(error)) from None

    def _no_room(self, why):
        return InputError(
            f"the pictures cannot be kept in {self._folder} ({why}): make room there, set TMPDIR to another "
            "folder, or save them as files and open their folder"
        )

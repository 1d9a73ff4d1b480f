"""`sd_tf.open_data`: data sets by name, from a folder, or from pictures given in Python."""

import dataclasses
import numbers
import os
from collections.abc import Sequence
from pathlib import Path

from sd_tf.data.arrays import arrays_source
from sd_tf.data.captions import PREVIEW_PROMPTS
from sd_tf.data.options import DATASETS, GARMENTS, ArrayOptions, DataOptions
from sd_tf.data.sources import Source, find_source, folder_of
from sd_tf.errors import InputError, argument, shown, unknown
from sd_tf.options import is_choice
from sd_tf.quiet import import_tensorflow

FASHION_MNIST_SIDE = 32  # pixels
NUMBER_OF_GARMENTS = 60_000  # pictures in an epoch of fashion_mnist and garments


class Data:
    """A captioned data set of no fixed image size; made by `open_data`.

    A named data set is not read before its pictures or their number are needed.

    Attributes:
        options: its `DataOptions`.
        fingerprint: a hash of pictures and captions that were given in Python; None for a named data set.

    Args:
        options: `DataOptions`; for pictures that were given, `ArrayOptions`.
        source: a `Source` of these.
    """

    def __init__(self, options: DataOptions, source: Source | None = None):
        self.options, self._given, self._counted = options, source, source
        self.fingerprint = None if source is None else source.fingerprint

    @property
    def name(self) -> str:
        """The name it was opened by, such as "fashion_mnist"; "arrays" for pictures given in Python."""
        return self.options.dataset

    @property
    def side(self) -> int | None:
        """Pixels along a side of its pictures if they have a fixed size, else None."""
        return FASHION_MNIST_SIDE if self.name == "fashion_mnist" else None

    def at(self, image_size: int, folder=None, seed: int = 0, outputs: Sequence[Path] = ()):
        """The data set with square pictures of one size.

        Args:
            image_size: pixels along a side.
            folder: folder for decoded pictures. None is enough for captions, for garments, and to look at a
                few pictures; `decode()` fails then.
            seed: non-negative random seed of captions, crops, flips and jitter.
            outputs: folders that a run writes to, whose pictures are left out.

        Returns:
            A `CaptionedImages`; for your own pictures, a `CaptionedPictures` whose `decode()` must be called
            before training.

        Raises:
            InputError: the data set is missing, or cannot have that size.
        """
        _check_size(image_size, self.side)
        import_tensorflow()  # which data sets of pictures need as they are imported
        if self.name == "garments":
            from sd_tf.data.garments import Garments

            return Garments(image_size, seed)
        if self.name == "fashion_mnist":
            from sd_tf.data.fashion_mnist import FashionMNIST

            return FashionMNIST("train", self.options.data_dir, seed)
        from sd_tf.data.captioned_pictures import CaptionedPictures

        options = self.options
        return CaptionedPictures(
            self._source(outputs),
            image_size,
            folder,
            options.fit,
            options.background_colour,
            options.flip,
            options.jitter,
            options.caption_template,
            options.shorten_captions,
            seed,
        )

    def _source(self, outputs=()):
        """Where captioned pictures come from."""
        if self._given is not None:
            return self._given
        options = self.options
        return find_source(
            options.dataset,
            options.data_dir,
            options.caption_column,
            options.background_colour,
            options.caption,
            outputs,
        )

    def __len__(self) -> int:
        """Pictures in one epoch, including unreadable ones. Loads the table of a hub data set."""
        if self.name in GARMENTS:
            return NUMBER_OF_GARMENTS
        if self._counted is None:
            self._counted = self._source()
        return len(self._counted.captions)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        """Such as "fashion_mnist: 60,000 pictures of 32 x 32, 'a red dress'"; downloads nothing."""
        name = self.name if self.options.data_dir is None else f"{self.name} {self.options.data_dir}"
        if self._counted is None and ":" in self.name:
            return f"{name}: not loaded yet"
        try:
            number = len(self)
        except InputError as error:
            return f"{name}: {error}"
        size = "" if self.side is None else f" of {self.side} x {self.side}"
        example = PREVIEW_PROMPTS[0] if self._counted is None else self._counted.captions[0]
        example = example if isinstance(example, str) else example[0]
        example = self.options.caption_template.replace("{}", example)
        return f"{name}: {number:,} picture{'s' if number > 1 else ''}{size}, {shown(example)}"


def open_data(source, captions=None, **options) -> Data:
    """Opens a data set of captioned pictures.

        data = sd_tf.open_data("fashion_mnist")
        data = sd_tf.open_data("folder:my-pictures", flip=True)
        data = sd_tf.open_data(images, captions=["a red dress", "a blue bag", ...])
        data = sd_tf.open_data([(image, "a red dress"), ...])

    Pictures that are given in Python are read once, in order and completely, into a temporary file that is
    removed with the process: at most 1,000,000 pictures, and half of the free space of the temporary folder.
    The given arrays may be changed afterwards.

    Args:
        source: what to open:

            - a name: "fashion_mnist", "garments", "pokemon", "emoji", "folder" with `data_dir`,
              "folder:<path>", "hub:<id>" for a data set of Hugging Face, "tfds:<name>" for one of TensorFlow
              Datasets;
            - a `pathlib.Path` of a folder of pictures with captions;
            - pictures, with `captions`: an array (n, height, width, 3) or (n, height, width), or an iterable
              of arrays, also of different sizes, or of PIL pictures;
            - (images, captions), a tuple of these;
            - an iterable, a generator or a finite `tf.data.Dataset` of pairs (image, caption), or of
              dictionaries with "image" and "text", "caption" or `caption_column`. An image of rank 4 is a
              batch, with as many captions.

            Pixels are uint8, or floating-point numbers from 0 to 1. Grey pictures become RGB, and
            `background` shows through transparent ones.
        captions: a string for each picture.
        **options: fields of `DataOptions`: `data_dir`, `caption` (one for all pictures), `caption_column`,
            `caption_template`, `shorten_captions`, `fit`, `background`, `flip`, `jitter`.

    Returns:
        A `Data`, which `fit` and `from_preset` take. A `Data` is returned unchanged.

    Raises:
        InputError: there is no such data set or option; pictures or captions are missing, differ in number or
            are invalid; or an iterable has no end.
    """
    if isinstance(source, Data):
        if captions is not None or options:
            raise InputError(
                "the data set is open already: give captions and options when it is first opened"
            )
        return source
    _check_names(options)
    if isinstance(options.get("data_dir"), os.PathLike):
        options["data_dir"] = os.fspath(options["data_dir"])
    if isinstance(source, (str, os.PathLike)):
        if captions is not None:
            raise InputError(
                f"captions are for pictures that are given: leave them out with {shown(str(source))}"
            )
        return _named(source, options)
    if captions is None and options.get("caption") is None and _is_pictures_with_captions(source):
        source, captions = source
    options = ArrayOptions(**options)
    return Data(options, arrays_source(source, captions, options))


def _check_names(options):
    names = [field.name for field in dataclasses.fields(DataOptions) if field.name != "dataset"]
    for name in options:
        if name not in names:
            raise unknown("option of open_data", name, names)


def _named(source, options):
    """A data set by its name, or a folder by its path."""
    name, path = (source, None) if isinstance(source, str) else ("folder", os.fspath(source))
    if isinstance(name, str) and name.startswith("folder:"):
        name, path = "folder", name.removeprefix("folder:")
    if path is not None:
        if "data_dir" in options:
            raise InputError(f"the folder {path} and {argument('data_dir')} are both given: leave one out")
        if not path:
            raise InputError("'folder:' has no path behind it: give folder:my-pictures")
        options = options | {"data_dir": path}
    elif not is_choice(name, DATASETS) and os.path.isdir(name):
        raise InputError(f"{name} is a folder: write folder: before its path, or give a pathlib.Path")
    data = Data(DataOptions(dataset=name, **options))
    data_dir = data.options.data_dir
    if name in GARMENTS and data_dir is not None and not os.path.isdir(data_dir):
        raise InputError(f"{argument('data_dir')} {data_dir} is not a folder: name the one with the data")
    if name not in GARMENTS and ":" not in name:
        folder = folder_of(name, data.options.data_dir)
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: name one with pictures and captions")
    return data


def _is_pictures_with_captions(source):
    """Whether it is (images, captions), rather than two pairs (image, caption)."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    if isinstance(source[1], (str, bytes)):
        raise InputError("there is one picture with one caption: give a list of such pairs")
    return not any(isinstance(each, (tuple, dict)) for each in source)


def _check_size(image_size, side):
    size = argument("image_size")
    if isinstance(image_size, bool) or not isinstance(image_size, numbers.Integral) or image_size < 1:
        raise InputError(f"{size} is {shown(image_size)}: give a whole number of pixels, 1 or more")
    if side is not None and image_size != side:
        raise InputError(
            f"{size} is {image_size}: fashion_mnist has pictures of {side} pixels: use that size, or another "
            f"{argument('preset')}"
        )

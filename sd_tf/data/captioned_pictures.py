"""Your own captioned pictures as a data set: decoded once to squares on disk, then read from there."""

import functools
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from sd_tf.data.opening import WHITE
from sd_tf.data.options import FITS
from sd_tf.data.pipeline import Examples
from sd_tf.data.sources import Source
from sd_tf.data.staging import finished_folder
from sd_tf.errors import InputError, argument, printable, shown, unknown
from sd_tf.files import CannotWrite, open_array, reason, remove_folder
from sd_tf.progress import tqdm
from sd_tf.seeding import uniforms

MARGIN = 1.125  # side of the square that "random" crops from, relative to the crop
MOST_UNREADABLE = 0.05  # of all pictures
STORE_VERSION = 1  # part of the fingerprint: raise it with any change to how squares are made
PREVIEWS = 6  # prompts
OWN_SETTINGS = {"prompt", "seed"}  # text in the PNG files that this library writes
CHUNK = 256  # pictures that are decoded before their squares are written
_FLIPPED, _LEFT, _TOP, _BRIGHTNESS, _CONTRAST, _SATURATION, _SHORTENED, _END, _CAPTION, _NUMBERS = range(10)
ENDS = re.compile(r",| (?:and|with|in|on|at|from|by|for|who|which|that) ")  # a caption may be cut here


class CaptionedPictures:
    """Pictures of any sizes with captions, as squares; a `CaptionedImages`.

    `decode`, to be called before training, writes squares of all pictures to a file under `folder`, which is
    then read piece by piece, so that memory does not grow with their number. Pictures that cannot be read are
    listed beside it. Until then, pictures are opened whenever they are asked for; one that cannot be read is
    replaced by black, with a warning.

    Args:
        source: a `Source`.
        image_size: pixels along a side.
        folder: for decoded pictures, in a folder of their own for each source and way of fitting; None if
            `decode` will not be called.
        fit: "center": the square in the middle; "random": another square, of 8/9 of the shorter side, in each
            epoch; "pad": the whole picture, on `background`.
        background: (red, green, blue) behind "pad".
        flip: whether half of the pictures are mirrored, left to right, in each epoch.
        jitter: how far brightness, contrast and saturation vary: 0.1 is up to a tenth. Hue stays, since
            captions name it.
        template: text around each caption, such as "a photo of {}"; {} is the caption.
        shorten: the share of captions that end early, before a comma, "with", "and" or the like, so that
            short prompts are learned as well. Others end early in each epoch.
        seed: a non-negative integer, of all that is random.

    Raises:
        InputError: for an unknown `fit`, or a `template` that leaves no place for the caption.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        folder: str | os.PathLike | None,
        fit: str = "center",
        background=WHITE,
        flip: bool = False,
        jitter: float = 0.0,
        template: str = "{}",
        shorten: float = 0.0,
        seed: int = 0,
    ):
        if fit not in FITS:
            raise unknown("fit", fit, FITS)
        if template.count("{}") != 1:
            raise InputError(
                f"the caption template is {shown(template)}: put one {{}} where the caption goes"
            )
        self.name, self.image_size, self._source, self._template = source.name, image_size, source, template
        self.flip, self.jitter, self._seed = flip, _Jitter(jitter) if jitter else None, seed
        self._shorten = shorten
        self._side = round(MARGIN * image_size) if fit == "random" else image_size
        key = (STORE_VERSION, source.fingerprint, self._side, fit == "pad", tuple(background))
        name = f"pictures-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
        self._store = None if folder is None else Path(folder) / name
        self._squares = None
        self._square = functools.partial(
            _padded if fit == "pad" else _cropped, side=self._side, background=tuple(background)
        )
        self._identity = (key, flip, jitter, seed, *([shorten] if shorten else []))
        self._keep(range(len(source.captions)))

    def decode(self, progress: bool = True):
        """Makes the squares, unless an earlier run has made them.

        Args:
            progress: whether to show how far it is.

        Raises:
            InputError: fewer than two pictures can be read, more than one in twenty cannot, or the folder
                cannot be written or has too little room; nothing is left there then. Or no folder was named.
        """
        if self._store is None:
            raise InputError(f"{self.name} has no {argument('folder')} for decoded pictures: name one")
        shape = (len(self._source.captions), self._side, self._side, 3)
        if os.path.lexists(self._store):
            try:
                self._squares, kept = _stored(self._store, shape)
            except InputError as error:
                _discard(self._store, error)
        if not os.path.lexists(self._store):
            _decode(self._source, self._store, self._square, self._side, progress)
            self._squares, kept = _stored(self._store, shape)
        self._keep(kept)

    def _keep(self, numbers):
        """Makes the source's pictures of these numbers the data set."""
        self._kept = np.asarray(numbers, np.int64)
        given = [self._source.captions[i] for i in numbers]
        given = [(each,) if isinstance(each, str) else each for each in given]
        self._captions = [tuple(self._template.replace("{}", text) for text in texts) for texts in given]
        found = {each for caption in set(self.corpus()) for each in self._ways_to_end(caption)}
        self._groups = {caption: group for group, caption in enumerate(sorted(found))}
        identity = repr((self._identity, [each if len(each) > 1 else each[0] for each in self._captions]))
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def distinct_epochs(self) -> int | None:
        """1; None if flips, crops, colours or captions differ from epoch to epoch."""
        several = any(len(captions) > 1 for captions in self._captions)
        varied = self.flip or self.jitter or self._shorten or self._side > self.image_size or several
        return None if varied else 1

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """Six captions, or as many as there are, from all over the list."""
        captions = sorted({captions[0] for captions in self._captions})
        return tuple(
            captions[i] for i in sorted({round(i) for i in np.linspace(0, len(captions) - 1, PREVIEWS)})
        )

    def __len__(self) -> int:
        return len(self._kept)

    def corpus(self) -> tuple[str, ...]:
        """Every picture's captions: what is said often, a tokenizer learns first."""
        return tuple(caption for captions in self._captions for caption in captions)

    @property
    def distinct_captions(self) -> tuple[str, ...]:
        """Every caption that `examples` can have, sorted."""
        return tuple(self._groups)

    def examples(self, indices: Sequence[int], epoch: int) -> Examples:
        """Pictures uint8 (n, size, size, 3), captions and groups: a pure function of (seed, epoch, index).

        Pictures of the same caption are of the same group.
        """
        indices = np.asarray(indices, np.int64)
        numbers = uniforms((self._seed, epoch), indices, _NUMBERS)
        images = self._squares_of(self._kept[indices])
        if self._side > self.image_size:
            starts = (numbers[:, (_TOP, _LEFT)] * (self._side - self.image_size + 1)).astype(int)
            images = np.stack(
                [
                    image[top : top + self.image_size, left : left + self.image_size]
                    for image, (top, left) in zip(images, starts, strict=True)
                ]
            )
        if self.flip:
            flipped = (numbers[:, _FLIPPED] < 0.5)[:, None, None, None]
            images = np.where(flipped, images[:, :, ::-1], images)
        if self.jitter:
            images = self.jitter(images, numbers[:, _BRIGHTNESS : _SATURATION + 1])
        of_pictures = [self._captions[i] for i in indices]
        captions = [
            texts[int(own[_CAPTION] * len(texts))] for texts, own in zip(of_pictures, numbers, strict=True)
        ]
        if self._shorten:
            captions = [
                self._shortened(caption, own[_SHORTENED], own[_END])
                for caption, own in zip(captions, numbers, strict=True)
            ]
        return Examples(images, captions, np.array([self._groups[caption] for caption in captions], np.int32))

    def _shortened(self, caption, chance, end):
        """A caption, cut short or not, as two numbers in [0, 1) decide."""
        short = self._ways_to_end(caption)[1:]
        return short[int(end * len(short))] if short and chance < self._shorten else caption

    def _ways_to_end(self, caption):
        """The whole caption, and all shorter ones that it can be cut to."""
        ends = [mark.start() for mark in ENDS.finditer(caption)] if self._shorten else []
        return [caption, *(caption[:end] for end in ends if caption[:end].strip())]

    def _squares_of(self, numbers):
        if self._squares is not None:
            return np.asarray(self._squares[numbers])
        return np.stack([self._opened(int(i)) for i in numbers])

    def _opened(self, i):
        try:
            return self._source.open(i, self._side, lambda picture: np.asarray(self._square(picture)))
        except InputError as error:
            said = printable(f"{self._source.label(i)}: {error}; training leaves it out")
            warnings.warn(said, stacklevel=2)
            return np.zeros((self._side, self._side, 3), np.uint8)


class _Jitter:
    """Changes brightness, contrast and saturation by Keras' layers, each picture by numbers of its own."""

    def __init__(self, strength):
        self.strength = strength
        options = {"value_range": (0.0, 1.0), "dtype": "float32"}
        self.brightness = keras.layers.RandomBrightness(strength, **options)
        self.contrast = keras.layers.RandomContrast(strength, **options)
        self.saturation = keras.layers.RandomSaturation(0.5, **options)

    def __call__(self, images, numbers):
        """uint8 (n, size, size, 3) and floats (n, 3) in [0, 1) -> uint8."""
        change = (self.strength * (2.0 * numbers - 1.0)).astype(np.float32)
        shift, factors = change[:, 0, None, None, None], 1.0 + change
        x = keras.ops.convert_to_tensor(images.astype(np.float32) / 255.0)
        x = self.brightness.transform_images(x, {"rgb_delta": shift})
        x = self.contrast.transform_images(x, {"contrast_factor": factors[:, 1, None, None, None]})
        x = self.saturation.transform_images(x, {"factor": factors[:, 2]})
        return np.rint(np.clip(keras.ops.convert_to_numpy(x), 0.0, 1.0) * 255.0).astype(np.uint8)


def _cropped(picture, side, background):
    """The square in the middle of a picture, scaled to `side` pixels."""
    least = min(picture.size)
    left, top = (picture.width - least) / 2, (picture.height - least) / 2
    box = (left, top, left + least, top + least)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _padded(picture, side, background):
    """The whole picture, scaled to fit a square of `side` pixels and padded."""
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    page = Image.new("RGB", (side, side), background)
    small = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    page.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return page


def _decode(source, store, square, side, progress):
    """Writes `store`: the squares of all pictures, which of them could be read, and a list of the others."""
    size = len(source.captions) * side * side * 3
    squares = _Squares(source, square, side)
    try:
        with finished_folder(store) as new:
            free = shutil.disk_usage(new).free
            if free < size:
                raise OSError(f"{free:,} are free")
            squares.write(new / "pictures.npy", progress)
            _check_readable(source, len(squares.kept), squares.skipped)
            np.save(new / "kept.npy", np.array(squares.kept, np.int64))
            lines = "".join(f"{printable(line)}\n" for line in squares.skipped)
            (new / "skipped.txt").write_text(lines, encoding="utf-8")
            about = {"source": source.name, "fingerprint": source.fingerprint}
            (new / "store.json").write_text(json.dumps(about))
    except (OSError, CannotWrite) as error:
        why = error.why if isinstance(error, CannotWrite) else reason(error)
        raise InputError(
            f"cannot write decoded pictures to {store}, {size:,} bytes ({why}): make room there, or name "
            "another folder"
        ) from None
    squares.report(store)


class _Squares:
    """The squares of a source's pictures as they are made.

    Attributes:
        kept: numbers of the pictures that could be read.
        skipped: a line for each of the others.
    """

    def __init__(self, source, square, side):
        self._source, self._square, self._side = source, square, side
        self.kept, self.skipped, self._generated = [], list(source.problems), []

    def write(self, file, progress):
        """Writes them to an .npy file, uint8 (pictures, side, side, 3), black where there is none.

        Raises:
            OSError: it cannot be written.
        """
        number, blank = len(self._source.captions), np.zeros((self._side, self._side, 3), np.uint8)
        header = {"descr": "|u1", "fortran_order": False, "shape": (number, *blank.shape)}
        bar = tqdm(total=number, desc="decoding", unit=" pictures", disable=not progress)
        # Written rather than mapped: where others fill the disk meanwhile, a write fails with a message, but
        # touching a mapped page kills the process.
        with open(file, "wb") as opened, ThreadPoolExecutor(os.cpu_count()) as threads, bar:
            np.lib.format.write_array_header_1_0(opened, header)
            for start in range(0, number, CHUNK):
                chunk = range(start, min(start + CHUNK, number))
                for i, found in zip(chunk, threads.map(self._made, chunk), strict=True):
                    if isinstance(found, str):
                        self.skipped.append(found)
                        found = blank
                    else:
                        self.kept.append(i)
                    opened.write(found.tobytes())
                    bar.update()
            opened.flush()
            os.fsync(opened.fileno())

    def _made(self, i):
        """A picture's square, uint8, or a line that says why there is none."""

        def made(picture):
            if picture.info.keys() >= OWN_SETTINGS:
                self._generated.append(i)
            return np.asarray(self._square(picture))

        try:
            return self._source.open(i, self._side, made)
        except InputError as error:
            return f"{self._source.label(i)}: {error}"

    def report(self, store):
        """Says what was skipped, and warns of pictures that a model has made."""
        name, kept = self._source.name, len(self.kept)
        if self.skipped:
            number = len(self.skipped)
            said = f"{number} of {kept + number} pictures skipped, see {store}/skipped.txt"
            print(printable(f"{name}: {said}"))
        if self._generated:
            example = self._source.label(min(self._generated))
            said = (
                f"{name}: {len(self._generated)} of {kept} pictures were drawn by a model, such as "
                f"{example}: learning from them repeats its faults"
            )
            warnings.warn(printable(said), stacklevel=4)


def _stored(store, shape):
    """The squares of a store, mapped into memory, and the numbers of the pictures that could be read.

    A store lies in a run's folder, which may come from a stranger, so everything is checked.

    Raises:
        InputError: it is damaged, or of other pictures.
    """
    squares, kept = (open_array(store / f"{name}.npy", store.parent) for name in ("pictures", "kept"))
    if squares.shape != shape or squares.dtype != np.uint8:
        raise InputError(f"{store / 'pictures.npy'} has the shape {squares.shape}, expected {shape}")
    kept = np.array(kept)
    in_order = kept.ndim == 1 and kept.dtype == np.int64 and len(kept) > 1 and (np.diff(kept) > 0).all()
    if not in_order or kept[0] < 0 or kept[-1] >= len(squares):
        raise InputError(f"{store / 'kept.npy'} holds other numbers than those of {len(squares)} pictures")
    return squares, kept


def _discard(store, error):
    """Removes a damaged store, so that it can be made again."""
    warnings.warn(f"{error}; it is made again", stacklevel=3)
    remove_folder(store)


def _check_readable(source, readable, skipped):
    found = readable + len(skipped)
    if len(skipped) > MOST_UNREADABLE * found:
        shown_first = "; ".join(skipped[:3])
        raise InputError(
            f"{source.name}: {len(skipped)} of {found} pictures cannot be used, more than one in twenty: "
            f"{shown_first}{'; …' if len(skipped) > 3 else ''}: mend or remove them"
        )
    if readable < 2:
        raise InputError(f"{source.name} has {readable} picture: give two or more, and many to learn from")

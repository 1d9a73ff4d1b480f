"""Where captioned pictures come from: a folder, Hugging Face's hub or TensorFlow Datasets, by name.

    folder           the folder `data_dir`, in a layout of `captioned_folder`
    pokemon, emoji   the folder of that name in `data_dir` or $SD_TF_DATA_DIR, or `data_dir` itself
    hub:<id>         a data set of Hugging Face with a column of pictures and a column of captions
    tfds:<name>      a data set of TensorFlow Datasets: the same, or with labels that have names

A column of captions holds texts, lists of texts, of which each epoch draws one, or classes that have names.

The Pokemon captions of the hub, `lambdalabs/pokemon-blip-captions`, were withdrawn on the notice of the
pictures' owner. No mirror of them is looked for: name one by `hub:<id>` if you may use it.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd_tf.data.captioned_folder import CAPTION_COLUMNS, captions_of, holds_pictures, list_folder
from sd_tf.data.opening import WHITE, as_it_is, open_picture
from sd_tf.errors import InputError, argument, shown, unknown
from sd_tf.files import is_inside

_DATASET = argument("source", "--dataset")


@dataclass(frozen=True)
class Source:
    """Captioned pictures of any sizes, wherever they are kept.

    Attributes:
        name: of the data set, as messages say it.
        captions: one for each picture, or a tuple of several, of which each epoch draws one.
        open: `open(number, side, use)` decodes a picture and returns `use(picture)`, of a PIL picture of mode
            "RGB"; its shorter side has at least `side` pixels if the original's has, see `open_picture`. It
            is called from several threads, and raises `InputError` for a picture that cannot be read.
        label: number of a picture -> its name in messages.
        fingerprint: changes with the pictures, as far as that can be told without decoding them.
        problems: a line for each picture that is known not to be usable before it is opened.
    """

    name: str
    captions: Sequence[str | tuple[str, ...]]
    open: Callable[[int, int, Callable], object]
    label: Callable[[int], str]
    fingerprint: str
    problems: Sequence[str] = ()


def find_source(
    dataset: str,
    data_dir: str | None = None,
    caption_column: str | None = None,
    background=WHITE,
    caption: str | None = None,
    outputs: Sequence[Path] = (),
) -> Source:
    """Opens the captions of a data set; its pictures are opened one by one, later.

    Args:
        dataset: "folder", "pokemon", "emoji", "hub:<id>" or "tfds:<name>".
        data_dir: the folder of "folder", "pokemon" and "emoji"; where "tfds:" keeps what it downloads.
        caption_column: that holds the captions, where they are in a table.
        background: (red, green, blue) behind what is transparent.
        caption: of every picture of a folder, in place of its own.
        outputs: folders that the run writes to, which are left out of a folder.

    Raises:
        InputError: it is not there, has no captions, or needs a library that is not installed.
    """
    kind, _, name = dataset.partition(":")
    if caption is not None and name:
        raise InputError(
            f"{argument('caption')} is of folders, {_DATASET} {dataset} has captions of its own: leave it out"
        )
    if kind == "hub":
        return _hub_source(name, caption_column, background)
    if kind == "tfds":
        return _tfds_source(name, data_dir, caption_column, background)
    return folder_source(folder_of(dataset, data_dir), caption_column, background, caption, outputs)


def folder_source(
    folder: Path,
    caption_column: str | None = None,
    background=WHITE,
    caption: str | None = None,
    outputs: Sequence[Path] = (),
) -> Source:
    """The pictures of a folder, see `captioned_folder`."""
    folder = Path(folder)
    pictures, problems = list_folder(folder, caption_column, caption, outputs)
    digest = hashlib.sha256(repr(tuple(background)).encode())
    for file, _ in pictures:
        try:
            found = file.stat()
            state = f"{found.st_size}\0{found.st_mtime_ns}"
        except OSError:  # gone since it was listed
            state = "gone"
        digest.update(f"{file.relative_to(folder)}\0{state}\0".encode(errors="surrogateescape"))
    return Source(
        str(folder),
        [caption for _, caption in pictures],
        lambda i, side, use=as_it_is: open_picture(pictures[i].file, background, side, use, folder),
        lambda i: str(pictures[i].file),
        digest.hexdigest()[:16],
        problems,
    )


def folder_of(dataset: str, data_dir: str | None) -> Path:
    """The folder of "folder", "pokemon" or "emoji".

    Raises:
        InputError: none is named, or the folder of a data set is not where it is looked for.
    """
    if dataset == "folder":
        if data_dir is None:
            raise InputError(
                f"{_DATASET} folder needs {argument('data_dir')}: name the folder of pictures and captions"
            )
        return Path(data_dir)
    root = data_dir or os.environ.get("SD_TF_DATA_DIR")
    if root is not None and (Path(root) / dataset).is_dir():
        return Path(root) / dataset
    if data_dir and holds_pictures(Path(data_dir)):
        return Path(data_dir)
    lacking = f", and {Path(root) / dataset} is no folder" if root is not None else ""
    mirror = "; the hub's was withdrawn, hub:<id> takes a mirror" if dataset == "pokemon" else ""
    raise InputError(
        f"{_DATASET} {dataset} is not downloaded{lacking}: name a folder of captioned pictures with "
        f"{argument('data_dir')}, or set SD_TF_DATA_DIR to the folder that has {dataset}/ in it{mirror}"
    )


def _hub_source(name, caption_column, background):
    datasets = _library("datasets", f"hub:{name}")
    with _on_one_line(f"hub:{name} cannot be loaded", "check the name and the network"):
        table = datasets.load_dataset(name, split="train")
    pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not pictures:
        raise InputError(f"hub:{name} has no column of pictures, but {', '.join(table.features)}")
    captions = _caption_column(f"hub:{name}", table.features, caption_column)
    undecoded = table.cast_column(pictures[0], datasets.Image(decode=False))

    places = _places_of_hub(datasets, name)

    def opened(row, side, use):
        again = f"remove {datasets.config.HF_DATASETS_CACHE} to download it again"
        with _on_one_line("cannot be read", again):
            cell = undecoded[row][pictures[0]] or {}
        if cell.get("bytes"):
            return open_picture(io.BytesIO(cell["bytes"]), background, side, use)
        path = cell.get("path") or ""
        root = next((place for place in places if is_inside(place, path)), None)
        if root is None:  # whoever made the data set wrote this path
            raise InputError(f"is at {shown(path)}, which was not downloaded with it")
        return open_picture(path, background, side, use, root)

    kind = table.features[captions]
    classes = kind if isinstance(kind, datasets.ClassLabel) else None
    texts = _texts(f"hub:{name}", captions, table[captions], classes)
    return _table_source(f"hub:{name}", texts, opened, (table._fingerprint, tuple(background)))


def _places_of_hub(datasets, name):
    """Folders in which a data set's pictures may lie: those of downloads, and its own if it is local."""
    places = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH]
    with contextlib.suppress(ImportError, AttributeError):
        import huggingface_hub

        places.append(huggingface_hub.constants.HF_HUB_CACHE)
    return [Path(place) for place in (*places, *([name] if os.path.isdir(name) else []))]


def _tfds_source(name, data_dir, caption_column, background):
    tfds = _library("tensorflow_datasets", f"tfds:{name}")
    with _on_one_line(f"tfds:{name} cannot be had", "check the name and the network"):
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare(file_format="array_record")
    features = builder.info.features
    pictures = [column for column, kind in features.items() if isinstance(kind, tfds.features.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    if not pictures:
        raise InputError(f"tfds:{name} has no pictures, but {', '.join(features)}")
    if features[pictures[0]].np_dtype == np.float32:
        raise InputError(f"tfds:{name} has floating-point pixels of an unknown range: take another")
    if "train" not in builder.info.splits:
        raise InputError(
            f"tfds:{name} has no split train, but {', '.join(builder.info.splits)}: take another"
        )
    named = any(column in features for column in CAPTION_COLUMNS)
    column = labels[0] if labels and not caption_column and not named else None
    column = column or _caption_column(f"tfds:{name}", features, caption_column)
    undecoded = {picture: tfds.decode.SkipDecoding() for picture in pictures}
    again = f"name another {argument('data_dir')}, or remove {builder.data_dir} to have it prepared again"
    with _on_one_line(f"tfds:{name} cannot be read", again):
        try:
            rows = builder.as_data_source("train", decoders=undecoded)
        except NotImplementedError:  # as this library prepares it by itself
            form = builder.info.file_format.value
            raise InputError(
                f"tfds:{name} was prepared as {form}, which cannot be read by row: {again}"
            ) from None
        cells = [row[column] for row in rows]
    texts = _texts(f"tfds:{name}", column, cells, features[column] if column in labels else None)

    def opened(row, side, use):
        return open_picture(io.BytesIO(rows[row][pictures[0]]), background, side, use)

    return _table_source(f"tfds:{name}", texts, opened, (name, builder.info.full_name, tuple(background)))


def _texts(name, column, cells, classes):
    """A column's captions: what `captions_of` makes of texts or of the names of classes.

    Args:
        name: of the data set.
        column: its name.
        cells: what it holds.
        classes: the `ClassLabel` of a column of numbers, which both libraries have, or None.
    """
    texts = []
    for row, cell in enumerate(cells):
        if classes is not None:
            is_known = cell is not None and 0 <= cell < classes.num_classes
            cell = classes.int2str(int(cell)).replace("_", " ") if is_known else None
        several = isinstance(cell, list | tuple | np.ndarray)
        parts = [
            part.decode(errors="replace") if isinstance(part, bytes) else part
            for part in (cell if several else [cell])
        ]
        for part in parts:
            if part is not None and not isinstance(part, str):
                raise InputError(
                    f"{name}, row {row}: {column} is {shown(part)}, which is no text: name another with "
                    f"{argument('caption_column')}"
                )
        texts.append(captions_of(parts))
    return texts


def _table_source(name, texts, opened, identity):
    """The rows of a table that have a caption; `opened(row, side, use)` is a row's picture."""
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        raise InputError(f"{name} has no caption in any of its {len(texts)} rows")
    return Source(
        name,
        [texts[row] for row in rows],
        lambda i, side, use=as_it_is: opened(rows[i], side, use),
        lambda i: f"{name}, row {rows[i]}",
        hashlib.sha256(repr((identity, rows)).encode()).hexdigest()[:16],
        [f"{name}, row {row}: has no caption" for row, text in enumerate(texts) if not text],
    )


def _caption_column(name, columns, given):
    if given is not None:
        if given not in columns:
            raise unknown(f"caption column of {name}:", given, columns)
        return given
    found = next((column for column in CAPTION_COLUMNS if column in columns), None)
    if found is None:
        raise InputError(
            f"{name} has no column {' or '.join(CAPTION_COLUMNS)}, but {', '.join(columns)}: name one with "
            f"{argument('caption_column')}"
        )
    return found


def _library(module, dataset):
    try:
        return __import__(module)
    except ImportError:
        raise InputError(
            f"{_DATASET} {dataset} needs {module}: pip install {module.replace('_', '-')}"
        ) from None


@contextlib.contextmanager
def _on_one_line(failure, way_out):
    """Turns whatever a library raises into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{failure} ({reason}): {way_out}") from None

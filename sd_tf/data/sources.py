"""Where captioned pictures come from, by name: a folder, Hugging Face's hub, TensorFlow Datasets.

    folder           --data-dir, in a layout of `captioned_folder`
    pokemon, emoji   the folder of that name in --data-dir or $SD_TF_DATA_DIR
    hub:<id>         a data set of Hugging Face with a column of pictures and one of captions
    tfds:<name>      a data set of TensorFlow Datasets, likewise, or with labels that have names

The Pokemon captions of the hub, `lambdalabs/pokemon-blip-captions`, were withdrawn on the notice of the
pictures' owner. No mirror of them is looked for: name one by `hub:<id>` if you may use it.
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from sd_tf.data.captioned_folder import CAPTION_COLUMNS, list_folder
from sd_tf.data.captioned_pictures import Source
from sd_tf.data.opening import WHITE, open_picture
from sd_tf.errors import InputError, unknown

FOLDERS = ("pokemon", "emoji")  # in $SD_TF_DATA_DIR


def find_source(
    dataset: str,
    data_dir: str | None = None,
    caption_column: str | None = None,
    background=WHITE,
    caption: str | None = None,
) -> Source:
    """Opens the captions of a data set; its pictures are opened one by one, later.

    Args:
        dataset: "folder", "pokemon", "emoji", "hub:<id>" or "tfds:<name>".
        data_dir: the folder of "folder", "pokemon" and "emoji"; where "tfds:" keeps what it downloads.
        caption_column: that holds the captions, where they are in a table.
        background: (red, green, blue) behind what is transparent.
        caption: of every picture of a folder, in place of its own.

    Raises:
        InputError: it is not there, has no captions, or needs a library that is not installed.
    """
    kind, _, name = dataset.partition(":")
    if caption is not None and name:
        raise InputError(
            f"--caption is of folders, --dataset {dataset} has captions of its own: leave it out"
        )
    if kind == "hub":
        return _of_hub(name, caption_column, background)
    if kind == "tfds":
        return _of_tfds(name, data_dir, caption_column, background)
    return folder_source(_folder(dataset, data_dir), caption_column, background, caption)


def folder_source(
    folder: Path, caption_column: str | None = None, background=WHITE, caption: str | None = None
) -> Source:
    """The pictures of a folder, see `captioned_folder`."""
    folder = Path(folder)
    pictures, problems = list_folder(folder, caption_column, caption)
    digest = hashlib.sha256(repr(tuple(background)).encode())
    for file, _ in pictures:
        found = file.stat()
        digest.update(
            f"{file.relative_to(folder)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="replace")
        )
    return Source(
        str(folder),
        [caption for _, caption in pictures],
        lambda i, side: open_picture(pictures[i].file, background, side),
        lambda i: str(pictures[i].file),
        digest.hexdigest()[:16],
        problems,
    )


def _folder(dataset, data_dir):
    if dataset == "folder":
        if data_dir is None:
            raise InputError("--dataset folder needs --data-dir: name the folder of pictures and captions")
        return Path(data_dir)
    root = data_dir or os.environ.get("SD_TF_DATA_DIR")
    if root is None:
        raise InputError(
            f"--dataset {dataset} is not downloaded: name a folder of captioned pictures with --data-dir, or "
            f"set SD_TF_DATA_DIR to the folder that has {dataset}/ in it"
        )
    below = Path(root) / dataset
    return below if below.is_dir() else Path(root)


def _of_hub(name, caption_column, background):
    datasets = _library("datasets", f"hub:{name}")
    try:
        table = datasets.load_dataset(name, split="train")
    except Exception as error:  # a network, a name, a format: the library has an exception for each
        raise InputError(
            f"hub:{name} cannot be loaded ({_reason(error)}): check the name and the network"
        ) from None
    pictures = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not pictures:
        raise InputError(f"hub:{name} has no column of pictures, but {', '.join(table.features)}")
    captions = _caption_column(f"hub:{name}", table.features, caption_column)
    undecoded = table.cast_column(pictures[0], datasets.Image(decode=False))

    def opened(row, side):
        cell = undecoded[row][pictures[0]]
        return open_picture(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"], background, side)

    texts = ["" if text is None else str(text) for text in table[captions]]
    return _of_rows(f"hub:{name}", texts, opened, (table._fingerprint, tuple(background)))


def _of_tfds(name, data_dir, caption_column, background):
    tfds = _library("tensorflow_datasets", f"tfds:{name}")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:
        raise InputError(
            f"tfds:{name} cannot be had ({_reason(error)}): check the name and the network"
        ) from None
    features = builder.info.features
    pictures = [column for column, kind in features.items() if isinstance(kind, tfds.features.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    if not pictures:
        raise InputError(f"tfds:{name} has no pictures, but {', '.join(features)}")
    named = any(column in features for column in CAPTION_COLUMNS)
    column = labels[0] if labels and not caption_column and not named else None
    column = column or _caption_column(f"tfds:{name}", features, caption_column)
    rows = builder.as_data_source(split="train")
    texts = [row[column] for row in rows]
    if column in labels:
        texts = [features[column].int2str(int(label)).replace("_", " ") for label in texts]
    else:
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]

    def opened(row, side):
        pixels = np.asarray(rows[row][pictures[0]])
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")

    return _of_rows(f"tfds:{name}", texts, opened, (name, builder.info.full_name, column))


def _of_rows(name, texts, opened, identity):
    """The rows of a table that have a caption; `opened(row, side)` is a row's picture."""
    rows = [row for row, text in enumerate(texts) if text.strip()]
    if not rows:
        raise InputError(f"{name} has no caption in any of its {len(texts)} rows")
    return Source(
        name,
        [" ".join(texts[row].split()) for row in rows],
        lambda i, side: opened(rows[i], side),
        lambda i: f"{name}, row {rows[i]}",
        hashlib.sha256(repr(identity).encode()).hexdigest()[:16],
        [f"{name}, row {row}: has no caption" for row, text in enumerate(texts) if not text.strip()],
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
            "--caption-column"
        )
    return found


def _library(module, dataset):
    try:
        return __import__(module)
    except ImportError:
        raise InputError(
            f"--dataset {dataset} needs {module}: pip install {module.replace('_', '-')}"
        ) from None


def _reason(error):
    return str(error).partition("\n")[0] or type(error).__name__

"""Fashion-MNIST with captions (Xiao, Rasul and Vollgraf 2017): 70,000 real pictures of ten garments."""

import gzip
import hashlib
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sd_tf.data import captions
from sd_tf.data.pipeline import Examples
from sd_tf.data.staging import unfinished_folder
from sd_tf.errors import InputError, argument, unknown
from sd_tf.files import is_regular, read_bytes
from sd_tf.seeding import uniforms

FILES = {  # name: (bytes, md5), as published by the authors
    "train-images-idx3-ubyte.gz": (26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte.gz": (29515, "25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte.gz": (4422102, "bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte.gz": (5148, "bb300cfdad3c16e7a12a480ee83cd310"),
}
PREFIXES = {"train": "train", "test": "t10k"}
CONNECT_SECONDS = 10
_TINTS = np.array(((255, 255, 255),) + captions.PALETTE, np.uint16)  # row 0: the picture stays grey


class FashionMNIST:
    """The pictures padded to 32x32 RGB, bright garments on black, with other captions in each epoch.

    Half of the captions name a colour of the palette, and tint their picture: rgb = grey * colour /
    255. The others leave it grey. The group of an example is class * 9 + (0 for grey, else 1 +
    colour).

    Args:
        split: "train" (60,000 pictures) or "test" (10,000).
        data_dir: a folder with the four official .gz files, or with a folder `fashion-mnist` of
            them. If None: $SD_TF_DATA_DIR/fashion-mnist, then the Keras cache, then a download
            through tensorflow-datasets into the Keras cache.
        seed: of the captions and colours.

    Attributes:
        grey: uint8 (n, 32, 32), the pictures in the official order.
        labels: uint8 (n,), indices into `class_names`.

    Raises:
        InputError: for an unknown split, files that are missing, truncated or not the official
            ones, and a download that fails.
    """

    name = "fashion_mnist"
    image_size = 32
    class_names = captions.CLASS_NAMES
    preview_prompts = captions.PREVIEW_PROMPTS
    distinct_epochs = None

    def __init__(self, split: str = "train", data_dir: str | os.PathLike | None = None, seed: int = 0):
        if split not in PREFIXES:
            raise unknown("split", split, PREFIXES)
        folder = _folder(data_dir)
        files = {name: _read_verified(folder / name) for name in FILES}
        prefix = PREFIXES[split]
        # An IDX file is a header of 4 bytes and 4 for each dimension, then the elements in C order.
        pixels = np.frombuffer(gzip.decompress(files[f"{prefix}-images-idx3-ubyte.gz"]), np.uint8, offset=16)
        self.labels = np.frombuffer(
            gzip.decompress(files[f"{prefix}-labels-idx1-ubyte.gz"]), np.uint8, offset=8
        )
        self.grey = np.pad(pixels.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
        self._key = (seed, list(PREFIXES).index(split))
        md5s = [md5 for _, md5 in FILES.values()]
        identity = repr((md5s, self._key, captions.GRAMMAR_VERSION, captions.corpus(), captions.PALETTE))
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def corpus(self) -> tuple[str, ...]:
        """Every caption, sorted and distinct."""
        return captions.corpus()

    @property
    def distinct_captions(self) -> tuple[str, ...]:
        """Every caption that `examples` can have, sorted."""
        return self.corpus()

    def examples(self, indices: Sequence[int], epoch: int) -> Examples:
        """Pictures uint8 (n, 32, 32, 3), captions and groups: a pure function of (seed, epoch, index)."""
        indices = np.asarray(indices, np.int64)
        numbers = uniforms((*self._key, epoch), indices, 6)
        labels = self.labels[indices]
        colours = 1 + (numbers[:, 1] * len(captions.PALETTE)).astype(np.int32)
        colours = np.where(numbers[:, 0] < 0.5, 0, colours)  # 0: grey
        tints = _TINTS[colours][:, None, None, :]
        images = (self.grey[indices].astype(np.uint16)[..., None] * tints + 127) // 255  # to the nearest
        texts = [
            captions.caption(label, colour - 1 if colour else None, words)
            for label, colour, words in zip(labels, colours, numbers[:, 2:].tolist(), strict=True)
        ]
        return Examples(images.astype(np.uint8), texts, labels * np.int32(9) + colours.astype(np.int32))


def _folder(data_dir):
    """The first place that has all four files; downloads them where none has."""
    if data_dir is not None:
        places = [Path(data_dir), Path(data_dir) / "fashion-mnist"]
    else:
        cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "fashion-mnist"
        places = [cache]
        if "SD_TF_DATA_DIR" in os.environ:
            places.insert(0, Path(os.environ["SD_TF_DATA_DIR"]) / "fashion-mnist")
    for place in places:
        if all(is_regular(place / name) for name in FILES):
            return place
    if data_dir is None:
        return _download(cache)
    lacking = [name for name in FILES if not any(is_regular(place / name) for place in places)]
    raise InputError(
        f"{data_dir} lacks the Fashion-MNIST files {', '.join(lacking or FILES)}: put the four official "
        f".gz files there, or leave {argument('data_dir')} out to look for them elsewhere and download them."
    )


def _read_verified(path):
    """The bytes of an official file."""
    size, md5 = FILES[path.name]
    content = read_bytes(path, 2 * size)
    way_out = f"delete it and fetch it again, or point {argument('data_dir')} at an intact copy."
    if len(content) < size:
        raise InputError(f"{path} is truncated, {len(content):,} of {size:,} bytes: {way_out}")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(f"{path} is not the official file, its md5 is {found} and not {md5}: {way_out}")
    return content


def _download(folder):
    """Fetches the official files through tensorflow-datasets, which checks its own SHA-256 sums.

    Only complete, verified files reach `folder`: they are downloaded to a hidden folder beside it.
    """
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_cls("fashion_mnist")
        # Without a network the ten retries of tensorflow-datasets take minutes: ask once before.
        request = urllib.request.Request(builder.URL + min(FILES), method="HEAD")
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder) as new:
            manager = tfds.download.DownloadManager(download_dir=new, force_checksums_validation=True)
            for name in FILES:  # one by one: after a failure, parallel downloads would go on writing
                os.replace(manager.download(builder.URL + name), new / name)
                _read_verified(new / name)
            for name in FILES:
                os.replace(new / name, folder / name)
    except Exception as error:  # a network, a proxy, a disk, another library: any of them can fail
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"Fashion-MNIST is not on this machine and its download failed ({reason}): put "
            f"{', '.join(FILES)} in a folder and name it with {argument('data_dir')}, or put them in "
            "$SD_TF_DATA_DIR/fashion-mnist, or use "
            f"{argument('source', '--dataset')} garments, which needs no data."
        ) from error
    return folder

"""Files: caches, bundled models, data sets, environment variables that lead to them, and the locale."""

import locale
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from sd_tf.checkpoints.header import read_header
from sd_tf.checkpoints.sources import BUNDLED, bundled_names
from sd_tf.checkup.findings import LONGEST, Finding, size_in_words
from sd_tf.errors import InputError, printable
from sd_tf.files import LARGEST_JSON, is_regular, parse_json, read_bytes, read_json, reason
from sd_tf.generation.conversions import place_of_all

MOST_FILES = 200_000  # that are counted in a cache
PREFIXES = ("TF_", "KERAS_", "HF_", "SD_TF_", "OMP_", "XDG_")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH")  # in a name whose value is not shown
TOKEN = re.compile(r"hf_\w{8,}|(?<=://)[^/@\s]+@")  # in a value: a token of the hub, a password in an address
GARMENTS = "*-ubyte.gz"  # files of Fashion-MNIST, of which there are four
CAPTIONED = ("pokemon", "emoji")  # folders of data sets in $SD_TF_DATA_DIR
WEIGHTS_OF_PARTS = ("vae", "unet", "text_encoder")
GAN, WEIGHTS_OF_GAN = "GigaGANPipeline", ("generator", "discriminator", "text_encoder")


# -- caches ---------------------------------------------------------------------------------------------


def caches() -> list[Finding]:
    """The folders that sd_tf keeps files in."""
    return [
        Finding("converted models", described(place_of_all())),
        Finding("data and judges of Keras", described(_keras_home())),
        Finding("latents and decoded pictures", "in each run's folder, or in --cache-dir"),
        Finding("temporary files", described(Path(tempfile.gettempdir()), counts=False)),
    ]


def hub_cache() -> list[Finding]:
    """The folder of models from the hub."""
    from huggingface_hub import constants

    return [Finding("models of the hub", described(Path(constants.HF_HUB_CACHE)))]


def _keras_home():
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def described(folder: Path, counts: bool = True) -> str:
    """A folder's path, its size, whether it can be written, and the space that is left.

    Args:
        folder: may be missing.
        counts: whether to add up the sizes of its files.
    """
    if not os.path.isdir(folder):
        parent = next(parent for parent in folder.absolute().parents if os.path.isdir(parent))
        return f"{folder}: not there yet, {'can' if _can_write(parent) else 'CANNOT'} be made"
    size = f"{_size(folder)}, " if counts else ""
    writable = "can be written" if _can_write(folder) else "CANNOT be written"
    return f"{folder}: {size}{writable}, {size_in_words(shutil.disk_usage(folder).free)} free on the disk"


def _can_write(folder):
    """Whether a file can be made there: permissions alone do not tell, on a file system that is read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _size(folder):
    total = number = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += _bytes_on_disk(os.lstat(os.path.join(place, name)))
            except OSError:  # removed meanwhile
                continue
        number += len(names)
        if number > MOST_FILES:
            return f"more than {size_in_words(total)}"
    return size_in_words(total)


def _bytes_on_disk(found):
    """Of a file, which may have holes."""
    return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size


# -- models and data ------------------------------------------------------------------------------------


def models() -> list[Finding]:
    """The bundled models, and whether their files are whole."""
    findings = [_model(name) for name in bundled_names()]
    return findings or [Finding("models", f"there are none in {BUNDLED}: install sd_tf again", True)]


def _model(name):
    folder = BUNDLED / name
    try:
        files = [file for file in folder.rglob("*") if file.is_file()]
        if is_regular(folder / "model_index.json"):
            parts = _parts_of(folder)
            lacking = [part for part in parts if not list((folder / part).glob("*.safetensors"))]
            if lacking:
                raise InputError(f"{folder} has no weights of {', '.join(lacking)}")
        elif not list(folder.glob("*.safetensors")):
            raise InputError(f"{folder} has no weights")
        for file in files:
            if file.suffix == ".safetensors":
                read_header(file)
            elif file.suffix == ".json":
                parse_json(read_bytes(file, LARGEST_JSON), file)  # sentence-transformers' is a list
    except (InputError, OSError) as error:
        return Finding(name, f"DAMAGED, install sd_tf again: {reason(error)[:LONGEST]}", is_missing=True)
    return Finding(name, f"whole, {size_in_words(sum(file.stat().st_size for file in files))}")


def _parts_of(folder):
    """The folders of a model that have weights; of a cascade each stage's, by its `model_index.json`."""
    index = read_json(folder / "model_index.json", root=folder)
    if index.get("_class_name") == GAN:
        return WEIGHTS_OF_GAN
    stages = index.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, str) for stage in stages):
        return WEIGHTS_OF_PARTS
    last = read_json(folder / stages[-1] / "model_index.json", root=folder) if len(stages) > 1 else {}
    of_last = ()
    if last.get("_class_name") == GAN:  # which enlarges what the stages before it draw
        *stages, name = stages
        of_last = (f"{name}/{part}" for part in WEIGHTS_OF_GAN)
    return [f"{stages[0]}/text_encoder", *(f"{stage}/unet" for stage in stages), *of_last]


def data() -> list[Finding]:
    """The data sets that are found without being named."""
    named = os.environ.get("SD_TF_DATA_DIR")
    if not named:
        root = Finding("SD_TF_DATA_DIR", "not set")
    else:
        root = Finding("SD_TF_DATA_DIR", named if os.path.isdir(named) else f"{named} is no folder")
    places = [Path(named) / "fashion-mnist"] if named else []
    places.append(_keras_home() / "datasets" / "fashion-mnist")
    place = next((each for each in places if len(list(each.glob(GARMENTS))) == 4), None)
    garments = Finding("fashion_mnist", str(place) if place else "not there yet: downloaded when it is used")
    folders = [Path(named or "") / name for name in CAPTIONED]
    return [
        root,
        garments,
        *(
            Finding(each.name, str(each) if named and each.is_dir() else "not there: see --data-dir")
            for each in folders
        ),
    ]


# -- settings -------------------------------------------------------------------------------------------


def environment() -> list[Finding]:
    """The environment variables that matter, without the values of secrets."""
    names = sorted(name for name in os.environ if name.startswith(PREFIXES))
    return [Finding(name, _shown_value(name)) for name in names] or [Finding("variables", "none is set")]


def _shown_value(name):
    if SECRET.search(name):
        return "set, not shown"
    return printable(TOKEN.sub("(not shown)", os.environ[name]))[:LONGEST]


def language() -> list[Finding]:
    """Whether any file name, prompt and caption can be read and printed."""
    files, output = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None) or "unknown"
    is_unicode = files == "utf-8" and output.replace("-", "").lower() == "utf8"
    advice = "" if is_unicode else "; set LANG=C.UTF-8 or PYTHONUTF8=1 for all names and captions"
    return [
        Finding("locale", ".".join(filter(None, locale.getlocale())) or "C"),
        Finding("encoding", f"{files} for files, {output} for output{advice}"),
    ]

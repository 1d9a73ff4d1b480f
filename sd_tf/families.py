"""The families of models, by name: the only list of them. Each is imported when it is first asked for."""

import importlib
import os
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.sources import BUNDLED, bundled_names
from sd_tf.errors import InputError
from sd_tf.files import read_json


class Home(NamedTuple):
    """Where a family lives.

    Attributes:
        name: of its class, such as "LatentDiffusion".
        loading: module with `load(name_or_folder, ...)`, which needs no Keras.
        commands: module with what `python -m sd_tf.train` asks for: `Options`, `model_for_training`, `recipe`
            and `defaults`.
        pipelines: what `model_index.json` calls its models.
    """

    name: str
    loading: str
    commands: str
    pipelines: tuple[str, ...]


FAMILIES = {
    "latent": Home(
        "LatentDiffusion",
        "sd_tf.latent.loading",
        "sd_tf.latent.commands",
        ("StableDiffusionPipeline",),
    ),
}
USUAL = "latent"  # where nothing says which


def load(name_or_folder, **options):
    """Reads a whole model of any family.

    Args:
        name_or_folder: a bundled name, a folder, a file or a hub id.
        options: of the family's own `load`, such as `dtype`: see `sd_tf.latent.loading.load`.

    Raises:
        InputError: there is no such model, or it is none that can be read.
    """
    return importlib.import_module(FAMILIES[_family_of(name_or_folder)].loading).load(
        name_or_folder, **options
    )


def commands_of(name: str):
    """The module by which the command line trains a family."""
    return importlib.import_module(FAMILIES[name].commands)


def _family_of(name_or_folder) -> str:
    """The name of the family of a model on disk; the usual one where its folder does not say."""
    name = str(name_or_folder)
    folder = BUNDLED / name if name in bundled_names() else Path(os.path.expanduser(name))
    try:
        pipeline = read_json(folder / "model_index.json", root=folder).get("_class_name")
    except (InputError, OSError, ValueError):  # the family's own `load` says what is wrong
        return USUAL
    return next((name for name, home in FAMILIES.items() if pipeline in home.pipelines), USUAL)

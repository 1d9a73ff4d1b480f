"""The list of model families. Each is imported when it is first used."""

import importlib
import os
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.sources import BUNDLED, bundled_names, index_from_hub
from sd_tf.errors import InputError
from sd_tf.files import read_json


class Home(NamedTuple):
    """Where to find a family's code.

    Attributes:
        name: name of its class, such as "LatentDiffusion".
        loading: module with `load(name_or_folder, ...)` and `check`, which can be imported without Keras; and
            with `needs_networks` if the family can draw without.
        commands: module with what `python -m sd_tf.train` needs: `Options`, `check`, `model_for_training`,
            `recipe` and `defaults`.
        pipelines: values of `_class_name` in `model_index.json`.
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
    "cascade": Home(
        "CascadedDiffusion",
        "sd_tf.cascade.loading",
        "sd_tf.cascade.commands",
        ("CascadedDiffusionPipeline", "IFPipeline", "IFSuperResolutionPipeline"),
    ),
}
USUAL = "latent"  # the default family


def load(name_or_folder, **options):
    """Reads a whole model of any family.

    Args:
        name_or_folder: a bundled name, a folder, a file or a hub id.
        options: arguments of the family's own `load`, such as `dtype`: see `sd_tf.latent.loading.load`.

    Raises:
        InputError: there is no such model, or it cannot be read.
    """
    family = FAMILIES[_family_of(name_or_folder, options.get("revision"))]
    return importlib.import_module(family.loading).load(name_or_folder, **options)


def check(name_or_folder, only: tuple[str, ...] | None = None, **options):
    """Raises `InputError` where `load` would, for all but the weights; imports neither Keras nor TensorFlow.

    Args:
        name_or_folder: as in `load`.
        only: families that the caller can use; None for all.
        options: `revision`, `variant`, `tokenizer`, `prediction_type`, as the family's own `load` has them.
    """
    name = _family_of(name_or_folder, options.get("revision"))
    if only is not None and name not in only:
        usable = " or ".join(FAMILIES[each].name for each in only)
        raise InputError(
            f"{name_or_folder} is a {FAMILIES[name].name}, which this command cannot use: name a {usable}"
        )
    importlib.import_module(FAMILIES[name].loading).check(name_or_folder, **options)


def needs_networks(name_or_folder, dtype=None, variant=None, revision=None) -> bool:
    """Whether `load` would read networks, and so import Keras and TensorFlow."""
    loading = importlib.import_module(FAMILIES[_family_of(name_or_folder, revision)].loading)
    return not hasattr(loading, "needs_networks") or loading.needs_networks(name_or_folder, dtype, variant)


def commands_of(name: str):
    """A family's module for `python -m sd_tf.train`."""
    return importlib.import_module(FAMILIES[name].commands)


def _family_of(name_or_folder, revision=None) -> str:
    """The family of a model, by its `model_index.json`; the default where there is none."""
    name = str(name_or_folder)
    folder = BUNDLED / name if name in bundled_names() else Path(os.path.expanduser(name))
    try:
        if not folder.exists():
            folder = index_from_hub(name, revision)
        pipeline = read_json(folder / "model_index.json", root=folder).get("_class_name")
    except (InputError, OSError, ValueError):  # the family's own `load` says what is wrong
        return USUAL
    return next((name for name, home in FAMILIES.items() if pipeline in home.pipelines), USUAL)

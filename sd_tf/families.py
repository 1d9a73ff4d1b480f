"""The families of models, by name: the only list of them. Each is imported when it is first asked for."""

import importlib
from typing import NamedTuple

from sd_tf.errors import unknown


class Home(NamedTuple):
    """Where a family lives."""

    module: str  # that has its class
    name: str  # of the class
    loading: str  # module with `load`, which needs no Keras
    training: str  # module with `Options`, `model_for_training` and `defaults`, for the command line


FAMILIES = {
    "latent": Home("sd_tf.latent.model", "LatentDiffusion", "sd_tf.latent.loading", "sd_tf.latent.commands"),
}
USUAL = "latent"  # where a command line names none


def family(name: str) -> type:
    """The class of a family.

    Raises:
        InputError: there is none of that name.
    """
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    home = FAMILIES[name]
    return getattr(importlib.import_module(home.module), home.name)


def load(name_or_folder, **options):
    """Reads a whole model of any family: see the `load` of its room, such as `sd_tf.latent.loading.load`.

    Args:
        name_or_folder: a bundled name, a folder, a file or a hub id.
        options: of the family's `load`.
    """
    return importlib.import_module(FAMILIES[USUAL].loading).load(name_or_folder, **options)


def training_of(name: str):
    """The module by which the command line trains a family."""
    return importlib.import_module(FAMILIES[name].training)

"""The list of model families. Each is imported when it is first used."""

import importlib
import inspect
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.sources import index_from_hub, path_of
from sd_tf.errors import InputError, argument
from sd_tf.files import read_json
from sd_tf.generation.settings import Settings


class Home(NamedTuple):
    """Where to find a family's code.

    Attributes:
        name: name of its class, such as "LatentDiffusion".
        loading: module with `load(name_or_folder, ...)`, `load_lazily` and `check`, which can be imported
            without Keras; with `settings_folder` and `with_snapshot`, see the functions here; with
            `needs_networks` if the family can draw without, and with `only_enlarges` if not all of its models
            draw from text.
        commands: module with what `python -m sd_tf.train` needs: `Options`, `check`, `model_for_training`,
            `recipe`, `stage_configs` and `defaults`.
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
    "gan": Home("GigaGAN", "sd_tf.gan.loading", "sd_tf.gan.commands", ("GigaGANPipeline",)),
}
USUAL = "latent"  # the default family


def load(name_or_folder, **options):
    """Reads a whole model of any family.

    Args:
        name_or_folder: a bundled name, a folder, a file or a hub id.
        options: arguments of the family's own `load`, such as `dtype`: see `sd_tf.latent.loading.load`
            and `sd_tf.cascade.loading.load`.

    Raises:
        InputError: there is no such model, or it cannot be read.
    """
    loading, options = _loading_with(name_or_folder, options)
    return loading.load(name_or_folder, **options)


def load_lazily(name_or_folder, **options):
    """As `load`, with networks that are read when first used; imports neither Keras nor TensorFlow."""
    loading, options = _loading_with(name_or_folder, options)
    return loading.load_lazily(name_or_folder, **options)


def check(name_or_folder, from_text=False, **options):
    """Raises `InputError` where `load` would, for all but the weights; imports neither Keras nor TensorFlow.

    Args:
        name_or_folder: as in `load`.
        from_text: whether the caller draws from text, which models that only enlarge pictures cannot.
        options: `revision`, `variant`, `tokenizer`, `prediction_type`, `followed_by`, as the family's own
            `load` has them.
    """
    loading, options = _loading_with(name_or_folder, options)
    loading.check(name_or_folder, **options)
    if from_text and hasattr(loading, "only_enlarges") and loading.only_enlarges(name_or_folder, **options):
        raise InputError(
            f"{name_or_folder} only enlarges pictures: name a model that draws from text, or enlarge by "
            "python -m sd_tf.generate --upscale"
        )


def open_enlarger(name_or_folder, dtype=None, variant=None):
    """As `load_lazily`, of a model that enlarges pictures in one call; None if it is of another kind.

    Families whose models end in one of another family are given this function: they know no other family.

    Args:
        name_or_folder, dtype, variant: as in `load`.

    Returns:
        An `sd_tf.generation.enlarging.Enlarger`, or None.
    """
    pipeline = _pipeline_of(name_or_folder)
    for home in FAMILIES.values():
        if pipeline in home.pipelines:
            loading = importlib.import_module(home.loading)
            if hasattr(getattr(loading, home.name), "enlarge"):
                return loading.load_lazily(name_or_folder, dtype=dtype, variant=variant)
    return None


def class_of(name_or_folder, revision=None) -> type:
    """The class that `load` gives an instance of; imports neither Keras nor TensorFlow."""
    return getattr(_loading_of(name_or_folder, revision), FAMILIES[_family_of(name_or_folder, revision)].name)


def check_takes(kind: type, names, method: str = "generate"):
    """Raises `InputError` for arguments that a family's models do not have.

    Args:
        kind: the family's class.
        names: of the arguments.
        method: that takes them.
    """
    if not hasattr(kind, method):
        raise InputError(f"{method}: this kind of model, {kind.__name__}, cannot")
    for name in names:
        if not takes(kind, name, method):
            flag = "--sr-steps" if name == "super_resolution" else f"--{name.replace('_', '-')}"
            raise InputError(
                f"{argument(name, flag)} is not for this kind of model, {kind.__name__}: leave it out"
            )


def check_draws_in_steps(name_or_folder, what: str, revision=None):
    """Raises `InputError` for models that draw in one pass.

    Args:
        what: names what is for the others.
    """
    kind = class_of(name_or_folder, revision)
    if not takes(kind, "steps"):
        raise InputError(
            f"{name_or_folder} is a {kind.__name__}, which draws in one pass, and {what} is for models that "
            "draw in steps: name one of these"
        )


def takes(kind: type, name: str, method: str = "generate") -> bool:
    """Whether a method of a family's models has an argument of that name."""
    known = inspect.signature(getattr(kind, method)).parameters
    has_settings = any(each.kind is each.VAR_KEYWORD for each in known.values())
    return name in known or (has_settings and name in vars(Settings()))


def settings_folder(folder: Path) -> Path:
    """The folder that holds the `generation_config.json` of the model in a folder: its own, or a stage's."""
    return _loading_of(folder).settings_folder(folder)


def with_snapshot(model, run, snapshot: Path, variant: str | None = None):
    """A finished run's model as it was when a snapshot of it was kept.

    Args:
        model: that of `load`; it stays as it is.
        run: the run's folder.
        snapshot: a folder in its `snapshots`, with a network.
        variant: of the weight files.

    Raises:
        InputError: the network is of another configuration than the model's, or cannot be read.
    """
    return _loading_of(run).with_snapshot(model, snapshot, variant)


def needs_networks(name_or_folder, dtype=None, variant=None, revision=None) -> bool:
    """Whether `load` would read networks, and so import Keras and TensorFlow."""
    loading = _loading_of(name_or_folder, revision)
    return not hasattr(loading, "needs_networks") or loading.needs_networks(name_or_folder, dtype, variant)


def commands_of(name: str):
    """A family's module for `python -m sd_tf.train`."""
    return importlib.import_module(FAMILIES[name].commands)


def _loading_of(name_or_folder, revision=None):
    return importlib.import_module(FAMILIES[_family_of(name_or_folder, revision)].loading)


def _loading_with(name_or_folder, options):
    """The family's module for a call with these options, and all options that it is called with."""
    loading = _loading_of(name_or_folder, options.get("revision"))
    known = inspect.signature(loading.load).parameters
    if "followed_by" in options and "followed_by" not in known:
        raise InputError(
            f"{argument('followed_by')} is for cascades, and {name_or_folder} is none: leave it out"
        )
    return loading, options | ({"open_enlarger": open_enlarger} if "open_enlarger" in known else {})


def _family_of(name_or_folder, revision=None) -> str:
    """The family of a model, by its `model_index.json`; the default where there is none."""
    pipeline = _pipeline_of(name_or_folder, revision)
    return next((name for name, home in FAMILIES.items() if pipeline in home.pipelines), USUAL)


def _pipeline_of(name_or_folder, revision=None) -> str | None:
    """`_class_name` of a model's `model_index.json`; None where there is none."""
    folder = path_of(name_or_folder)
    try:
        if not folder.exists():
            folder = index_from_hub(str(name_or_folder), revision)
        return read_json(folder / "model_index.json", root=folder).get("_class_name")
    except (InputError, OSError, ValueError):  # the family's own `load` says what is wrong
        return None

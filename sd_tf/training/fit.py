"""`fit`: the training loop behind every model's `fit` method and the command line."""

import contextlib
import dataclasses
import inspect
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sd_tf.data.open import open_data
from sd_tf.errors import InputError, argument, shown, unknown
from sd_tf.files import reason
from sd_tf.options import Options
from sd_tf.training.history import History
from sd_tf.training.options import FOLDER, OptimizerOptions, RunOptions
from sd_tf.training.run import Run


def fit(
    model,
    recipe_of: Callable,
    data,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    folder: str | Path | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    callbacks=(),
    seed: int | None = None,
    options=None,
    verbose="auto",
) -> History:
    """Trains the stages of a model that are not trained yet.

    Args:
        model: a model of any family.
        recipe_of: `recipe_of(model, options, folder)` -> the family's `Recipe`.
        data: a data set of `sd_tf.open_data`, or anything that it opens.
        minutes: training time of all stages together; None for the preset's.
        steps: training steps of each stage, instead of minutes.
        folder: run folder for checkpoints, logs, preview sheets and the finished model. The same call
            resumes a run that was stopped. None for a temporary folder, which is deleted at the end. What is
            trained in one folder is trained further by a run in another: a stage begins there from the
            weights that the model has, or from random ones if its training was stopped.
        batch_size: examples in a step; None for the preset's.
        learning_rate: peak learning rate; None for the preset's.
        optimizer: "muon" or "adamw"; None for the preset's.
        callbacks: `keras.callbacks.Callback`s, see `sd_tf.training.callbacks`.
        seed: random seed of the run; None for 0.
        options: a dictionary of further options, or one or several instances of `RunOptions`,
            `OptimizerOptions` and the family's own.
        verbose: "auto" or 1 to show progress, 0 to be silent.

    Returns:
        The `History` of the run, including earlier starts in the same folder.

    Raises:
        InputError: an argument has the wrong type, or contradicts another or the run in the folder.
            Nothing is written then.
        KeyboardInterrupt: Ctrl-C. With a `folder`, a checkpoint is saved, and the same call resumes.
    """
    data, shows = open_data(data), _shows_progress(verbose)
    given = {
        "max_minutes": minutes,
        "max_steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": _name_of_optimizer(optimizer),
        "seed": seed,
    }
    kinds = (RunOptions, OptimizerOptions, model.Options)
    found = merged_options(
        kinds, options, {name: value for name, value in given.items() if value is not None}
    )
    run_options, optimizing, own = (found[kind] for kind in kinds)
    _check_runs_here(run_options)
    run_options = dataclasses.replace(run_options, precision=_precision(model, run_options))
    with _run_folder(folder, data) as place:
        run_options = dataclasses.replace(run_options, output=str(place))
        run = Run(recipe_of(model, own, place), data, run_options, optimizing, callbacks, shows)
        try:
            return run.train()
        finally:
            if folder is None:
                run.recipe.read_model()


def check_names(settings):
    """Raises `InputError` for arguments that `fit` does not have, such as those of `keras.Model.fit`."""
    parameters = inspect.signature(fit).parameters.values()
    names = ["tune", *(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)]
    for name in settings:
        if name not in names:
            raise unknown("argument of fit", name, names)


def merged_options(kinds: tuple[type, ...], options, given: dict) -> dict[type, Options]:
    """Builds an instance of each options class.

    Args:
        kinds: `Options` dataclasses that share no field name.
        options: a mapping of fields, an instance, several instances, or None.
        given: field name -> value of those that `fit` has arguments for.

    Raises:
        InputError: there is no such option, or it is given twice.
    """
    values = dict(given)
    for name, value in _as_fields(kinds, options):
        if name == "output":
            raise InputError(f"{FOLDER} is given in {argument('options')}: give it as an argument")
        if name in given:
            raise InputError(f"{name} is given twice: as an argument, and in {argument('options')}")
        if name in values:
            raise InputError(f"{name} is given twice in {argument('options')}: leave one out")
        values[name] = value
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise unknown("option", name, names)
    return {
        kind: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        for kind in kinds
    }


def _as_fields(kinds, options):
    """The (name, value) pairs in `options`."""
    if options is None:
        return []
    if isinstance(options, Mapping):
        return list(options.items())
    several = options if isinstance(options, (list, tuple)) else [options]
    found = []
    for each in several:
        if not isinstance(each, kinds):
            raise InputError(
                f"{argument('options')} is {shown(each)}: give a dictionary, or instances of "
                + ", ".join(kind.__name__ for kind in kinds)
            )
        found += each.given.items()
    return found


def _name_of_optimizer(optimizer):
    """The optimizer's name; raises `InputError` for Keras' optimizers, which the training step cannot use."""
    if optimizer is None or isinstance(optimizer, str):
        return optimizer
    raise InputError(
        f"{argument('optimizer')} is {type(optimizer).__name__}: give 'adamw' or 'muon', with "
        "learning_rate, and weight_decay, warmup_steps, gradient_clip and ema_decay among options"
    )


def _check_runs_here(options):
    """Raises `InputError` for options that need other processes or a process-wide setting of TensorFlow."""
    from tensorflow.python.framework.config import is_op_determinism_enabled

    for name in ("workers", "dry_run"):
        if getattr(options, name):
            raise InputError(
                f"{options.said(name)} is only for the command line, python -m sd_tf.train: leave it out"
            )
    if options.deterministic and not is_op_determinism_enabled():
        raise InputError(
            f"{options.said('deterministic')} needs tf.config.experimental.enable_op_determinism(), which "
            "holds for the whole process: call it first"
        )


def _shows_progress(verbose):
    if not isinstance(verbose, (str, int)) or verbose not in ("auto", 0, 1, 2):
        raise InputError(f"{argument('verbose')} is {shown(verbose)}: give 'auto', 0 or 1")
    return verbose != 0


def _precision(model, options):
    """The model's precision, which its networks were made with."""
    if "precision" in options.given and options.precision != model.precision:
        raise InputError(
            f"{options.named_value('precision')}, but the model computes in {model.precision}: pass dtype "
            "to from_preset or load, which make it"
        )
    return model.precision


@contextlib.contextmanager
def _run_folder(folder, data):
    """The run folder; a temporary one, removed at the end, if none is given."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="sd_tf-run-") as temporary:
            yield Path(temporary) / "run"
        return
    if not isinstance(folder, (str, Path)):
        raise InputError(f"{FOLDER} is {shown(folder)}: give a path")
    yield run_folder(folder, data)


def run_folder(folder: str | Path, data) -> Path:
    """The run folder, with "{dataset}" in its path replaced by the data set's name.

    Raises:
        InputError: it is no path that a folder can have.
    """
    if not str(folder):
        raise InputError(f"{FOLDER} is '': give a path")
    path = Path(str(folder).replace("{dataset}", re.sub("[:/]", "-", data.name)))
    try:
        path = path.expanduser()
        path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # nobody's home, links in a circle, null characters
        raise InputError(f"{FOLDER} is {shown(str(folder))}: give a path ({reason(error)})") from None
    if path.is_symlink() and not path.exists():
        raise InputError(f"{FOLDER} {path} is a link to nothing: give another path")
    return path

"""A training run: a folder in which a model's stages are trained one after the other, and can be resumed.

run.json                the options and a hash of the captions, which must be the same at every start
log.jsonl tensorboard/  losses, images per second
samples/                preview sheets over time
snapshots/              copies of a network during training, with --snapshots
checkpoints/            training state of each stage
cache/                  decoded pictures, cached latents and caption embeddings
.lock                   held by the process that trains here

Other files are written by the family's stages: see its recipe.
"""

import contextlib
import dataclasses
import errno
import functools
import os
from pathlib import Path

import tensorflow as tf

from sd_tf.errors import InputError, argument, shown
from sd_tf.files import read_json, reason, write_json
from sd_tf.hashing import fingerprint
from sd_tf.training import strategy as strategies
from sd_tf.training.callbacks import KerasCallbacks
from sd_tf.training.history import History
from sd_tf.training.loop import Budget, Trainer
from sd_tf.training.observers import Log, Previews, ProgressBar, Snapshots, WeightsAndBiases
from sd_tf.training.options import FOLDER, OptimizerOptions, RunOptions
from sd_tf.training.own_folder import check_own, locked
from sd_tf.training.recipe import Recipe
from sd_tf.training.workers import Workers, lost_worker_named

OWN_FILES = ("run.json", "log.jsonl", "wandb-id.txt", ".lock")
OWN_FOLDERS = ("tensorboard", "samples", "snapshots", "checkpoints", "cache", "wandb")
CAPTIONS = "captions_fingerprint"  # in run.json: a hash of the captions, wherever the files are
LEARNING_SHARE = 0.5  # least share of a stage's minutes for training, however long its preparation took


class Run:
    """A run in its folder, new or resumed.

    Args:
        recipe: the family's `Recipe`.
        data: a `Data`, from `sd_tf.open_data`.
        options: `RunOptions`.
        optimizing: `OptimizerOptions`.
        callbacks: `keras.callbacks.Callback`s.
        verbose: whether to show progress.

    Attributes:
        folder, cache_folder: the run folder, and the folder for its caches.
        dataset: `data` at the recipe's image size, a `CaptionedImages`. A stage may replace it.
        strategy, workers: the `tf.distribute` strategy and the `Workers`.

    Raises:
        InputError: the folder holds a run with other options or cannot be written, or the data is missing.
            Nothing is written then.
    """

    def __init__(
        self,
        recipe: Recipe,
        data,
        options: RunOptions,
        optimizing: OptimizerOptions,
        callbacks=(),
        verbose=True,
    ):
        self.recipe, self.data, self.options, self.optimizing = recipe, data, options, optimizing
        self.callbacks, self.verbose = KerasCallbacks(callbacks), verbose
        self.folder = Path(options.output)
        if not _is_utf8(self.folder):
            raise InputError(
                f"{FOLDER} {self.folder} is not UTF-8, and TensorFlow cannot write there: name another"
            )
        self.cache_folder = Path(options.cache_dir or self.folder / "cache")
        self.result = recipe.result(self.folder)
        self._check_folder()
        before = self._check_resumable()
        self.strategy, replicas = self._find_strategy()
        self.workers, self.wandb = Workers(self.strategy), None
        self.stages = recipe.stages(self)
        for planned in self.stages:
            strategies.check_batch_size(planned.batch_size, replicas, options.accumulate, planned.unit)
        self.dataset = data.at(recipe.image_size, self.cache_folder, options.seed, [self.folder])
        self._check_captions(before)
        recipe.check(self)
        if not options.dry_run:
            self._begin_folder()

    def _find_strategy(self):
        """The `tf.distribute` strategy, and its number of replicas."""
        options = self.options
        if options.dry_run:
            return strategies.make("none", None), options.workers or options.replicas or 1
        strategy = strategies.make(options.strategy, options.replicas)
        return strategy, strategy.num_replicas_in_sync

    def train(self) -> History:
        """Trains the stages that are not finished, in order.

        Raises:
            InputError: a worker is lost, the disk is full, losses are not finite ...
            KeyboardInterrupt: Ctrl-C or, on a command line, SIGTERM; a checkpoint is saved first.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(lost_worker_named(self.workers))
            stack.enter_context(_explaining_full_disk(self.folder))
            if self.workers.is_chief:
                stack.enter_context(self._locked())
                self._check_resumable()  # again: another process may have begun a run meanwhile
            stack.enter_context(self._remove_run_file_if_startup_fails())
            self._check_folder_is_shared()
            if hasattr(self.dataset, "decode"):
                self.decode(self.dataset)
            if self.options.wandb and self.workers.is_chief:
                names = [planned.name for planned in self.stages]
                self.wandb = WeightsAndBiases(self.folder, self.identity, names)
                stack.callback(self.wandb.close)
            stack.enter_context(self.callbacks.training())
            for planned in self.recipe.stages_before(self):
                if self.is_done(planned.result):
                    planned.restore(self)
            for planned in self.stages:
                self._train_stage(planned)
            self.workers.wait()  # for what the chief writes
        self.recipe.finished(self)
        return History.of_folder(self.folder)

    def _train_stage(self, planned):
        if self.is_done(planned.result):
            planned.restore(self)
            return
        budget, self._trainer = self.budget(planned), None
        try:
            with self.strategy.scope():
                stage = planned.make(self, budget)
            if budget.seconds is not None and stage.seconds_spent:
                left = max(1.0, budget.seconds - stage.seconds_spent, LEARNING_SHARE * budget.seconds)
                budget = Budget(left, None)
            self._fit(stage, budget)
            if self.workers.is_chief:
                planned.finish(self, stage)
        except BaseException:
            planned.stopped(self, self._trainer is not None and self._trainer.steps_taken > 0)
            raise
        self.workers.wait()
        planned.restore(self)

    # -- for the recipe -------------------------------------------------------------------------

    def decode(self, dataset):
        """Lets the chief decode the pictures of a data set, which all workers then read."""
        if not self.workers.is_chief:
            self.workers.wait()
        dataset.decode(progress=self.shows_progress)
        if self.workers.is_chief:
            self.workers.wait()

    def stage_config(self, config):
        """A preset's `StageConfig`, overridden by the options."""
        config = self.optimizing.applied_to(config)
        if self.options.overfit:
            if self.optimizing.batch_size is not None:
                raise InputError(
                    f"{self.options.said('overfit')} and {self.optimizing.said('batch_size')} are both "
                    "given: leave one out, as the examples are the batch"
                )
            config = dataclasses.replace(config, batch_size=self.options.overfit)
        return config

    def budget(self, planned) -> Budget:
        """A stage's share of the run's minutes, or the given number of steps."""
        if self.options.max_steps is not None:
            return Budget(None, self.options.max_steps)
        minutes = self.options.max_minutes or self.recipe.minutes
        shares = sum(each.share for each in self.stages)
        return Budget(60.0 * minutes * planned.share / shares, None)

    def is_done(self, result: str) -> bool:
        """Whether the chief sees that file or folder in the run folder. Waits for all workers."""
        return bool(self.workers.gathered((self.folder / result).exists())[0, 0])

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress."""
        return self.verbose and self.workers.is_chief

    # -- training a stage -----------------------------------------------------------------------

    def trainer(self, stage, budget) -> Trainer:
        """The `Trainer` of a stage, at its last checkpoint if there is one."""
        options = self.options
        return Trainer(
            stage,
            self.strategy,
            budget,
            self.folder / "checkpoints" / stage.name,
            options.precision,
            options.checkpoint_seconds,
            options.checkpoint_every,
            options.keep_checkpoints,
            accumulate=options.accumulate,
            remat=options.remat,
            xla=options.xla,
        )

    def _fit(self, stage, budget):
        """Trains one stage; its networks then hold the averaged weights."""
        if self.options.overfit:
            batches = stage.batches
            stage.batches = lambda first, part=(0, 1): batches(0, part).take(1).cache().repeat()
        trainer = self._trainer = self.trainer(stage, budget)
        try:
            with contextlib.ExitStack() as stack:
                trainer.fit(self._observers(stage, trainer, stack) if self.workers.is_chief else ())
        except KeyboardInterrupt:
            steps = trainer.checkpoints.steps
            raise KeyboardInterrupt(
                f"stopped in stage {stage.name}: run it again to resume from "
                + (f"step {steps[-1]}" if steps else "the stage's start")
            ) from None
        trainer.step.copy_averages()

    def _observers(self, stage, trainer, stack):
        """The observers of a stage in the chief worker; `stack` closes them."""
        options, budget, progress = self.options, trainer.budget, trainer.progress
        bar = ProgressBar(stage, budget, progress, disable=not self.verbose)
        stack.callback(bar.close)
        log = Log(stage, self.folder, trainer.steps_taken, len(self.dataset), self.wandb)
        callbacks = self.callbacks.observer(stage, len(self.dataset))  # called first: they may end the stage
        previews = Previews(stage, self.folder / "samples", options.previews, budget, progress, bar.announce)
        observers = [callbacks, bar, log, previews]
        if options.snapshots and stage.keeps_snapshots:
            write = functools.partial(stage.save_snapshot, dtype=options.save_dtype)
            copies = Snapshots(
                write, self.folder / "snapshots", options.snapshots, budget, progress, log.first_step
            )
            observers.append(copies)
        if options.overfit and self.verbose:
            observers.append(_LossOnOneBatch(stage, options.overfit, stack))
        return observers

    # -- the folder -----------------------------------------------------------------------------

    @functools.cached_property
    def identity(self) -> dict:
        """Name -> value of all settings that distinguish two runs."""
        data_identity = self.data.options.identity | {"data": self.data.fingerprint}
        found = self.optimizing.identity | self.options.identity | data_identity | self.recipe.identity
        return {"family": self.recipe.family, "image_size": self.recipe.image_size} | found

    def _check_folder(self):
        """Checks that the run writes inside its folder, and that it would not overwrite another model."""
        stages = [
            f"{kind}/{planned}"
            for kind in ("tensorboard", "checkpoints")
            for planned in self.recipe.stage_names
        ]
        check_own(
            self.folder,
            (*OWN_FILES, *self.recipe.files, self.result),
            (*OWN_FOLDERS, *self.recipe.folders, *stages),
        )
        if os.path.lexists(self.folder / "run.json"):
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{FOLDER} {self.folder} is a file: name a folder")
        for result in (*self.recipe.results, self.result):
            if (self.folder / result).exists():
                raise InputError(
                    f"{FOLDER} {self.folder} holds a model that no run wrote: name another folder"
                )

    def _check_resumable(self):
        """The contents of run.json, {} if there is none; raises `InputError` if it is of another run."""
        file = self.folder / "run.json"
        if not os.path.lexists(file):
            return {}
        try:
            before = read_json(file, root=self.folder)
        except InputError as error:
            raise InputError(f"{error.message}: name another {FOLDER}") from None
        family = before.get("family", self.recipe.family)
        if family != self.recipe.family:
            raise InputError(
                f"{self.folder} holds a run of the family {shown(family)}, not {self.recipe.family}: name "
                f"another {FOLDER}"
            )
        # An earlier version without an option did what the option's default does.
        before = self._defaults | before
        self.recipe.check_same_base(before, self.folder)
        now = self.identity
        changed = [name for name in now if before.get(name, now[name]) != now[name]]
        if changed:
            changes = ", ".join(
                f"{self._option_name(name)} {_unquoted(before[name])} -> {now[name]}" for name in changed
            )
            raise InputError(
                f"{self.folder} holds a run with other options ({changes}): give the same ones to resume "
                f"it, or another {FOLDER}"
            )
        return before

    @functools.cached_property
    def _defaults(self):
        found = {}
        for options in (self.optimizing, self.options, self.data.options, *self.recipe.options):
            for field in dataclasses.fields(options):
                found[field.name] = field.default
        return found

    def _option_name(self, name):
        """An entry of `identity` as an error message names it."""
        for options in (self.optimizing, self.options, self.data.options, *self.recipe.options):
            if name in {field.name for field in dataclasses.fields(options)}:
                return options.said(name)
        return argument(name)

    def _check_captions(self, before):
        """Raises `InputError` if captions have changed, and so the vocabulary and the order of pictures."""
        self._captions = fingerprint(self.dataset.corpus())  # before `decode` leaves out unreadable pictures
        has_checkpoints = (self.folder / "checkpoints").exists()
        if has_checkpoints and before.get(CAPTIONS, self._captions) != self._captions:
            raise InputError(
                f"{self.folder} began with other captions than {self.dataset.name} has now: restore those "
                f"to resume it, or name another {FOLDER}"
            )

    def _begin_folder(self):
        """Makes the folder, and writes run.json."""
        if self.options.cache_dir:
            with _writing(argument("cache_dir"), self.cache_folder):
                self.cache_folder.mkdir(parents=True, exist_ok=True)
        if self.workers.is_chief:
            with _writing(FOLDER, self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    with self._locked():  # another process may have begun here since this one looked
                        self._check_resumable()
                        write_json(self.folder / "run.json", self.identity | {CAPTIONS: self._captions})
                except (InputError, OSError):
                    with contextlib.suppress(OSError):  # something else is in it
                        self.folder.rmdir()
                    raise

    def _locked(self):
        return locked(self.folder / ".lock", f"{FOLDER} {self.folder}")

    @contextlib.contextmanager
    def _remove_run_file_if_startup_fails(self):
        """Without run.json, the same folder can be used again with corrected options."""
        try:
            yield
        except InputError:
            if self.workers.is_chief and not (self.folder / "checkpoints").exists():
                for name in ("run.json", ".lock"):
                    (self.folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it is not empty
                    self.folder.rmdir()
            raise

    def _check_folder_is_shared(self):
        """Raises `InputError` if this worker does not see what the chief wrote."""
        self.workers.wait()
        if not (self.folder / "run.json").exists():
            raise InputError(
                f"{FOLDER} {self.folder} is not the folder that worker 0 writes to: name one on a file "
                "system that all workers share"
            )


class _LossOnOneBatch:
    """For --overfit: prints at the end of a stage how far the loss fell."""

    def __init__(self, stage, examples, stack):
        self.losses = {}
        stack.callback(self._report, stage.name, examples)

    def __call__(self, trainer, step, elapsed, means):
        loss = next(value for name, value in means.items() if name.split("/")[-1] == "loss")
        self.losses.setdefault("first", loss)
        self.losses["last"] = loss

    def _report(self, name, examples):
        if self.losses:
            first, last = (float(self.losses[when]) for when in ("first", "last"))
            print(f"{name}: loss {first:.4f} -> {last:.4f} on the same {examples} examples")


def _is_utf8(path):
    try:
        os.fsencode(path).decode()
    except UnicodeError:
        return False
    return True


def _unquoted(value):
    """A value of run.json as it is given to a flag."""
    return value if isinstance(value, str) and len(value) < 200 else shown(value)


@contextlib.contextmanager
def _writing(name, folder):
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a null character
        raise InputError(f"{name} {folder} cannot be written: {reason(error)}") from None


@contextlib.contextmanager
def _explaining_full_disk(folder):
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not folder.exists():
            raise InputError(f"{FOLDER} {folder} was removed while it was trained in: begin again") from None
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise InputError(
            f"there is no space left for {FOLDER} {folder}: make room, then run it again to resume"
        ) from None

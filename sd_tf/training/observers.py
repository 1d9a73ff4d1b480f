"""What reports on a run while it trains: progress bar, log, TensorBoard, preview sheets and snapshots.

Each is an observer of the `Trainer`, called after every step as `observer(trainer, step, elapsed, means)`.
"""

import json
import math
import secrets
import time
from pathlib import Path

import tensorflow as tf

from sd_tf.errors import InputError, argument, install_extra
from sd_tf.images import save_sheet
from sd_tf.progress import tqdm
from sd_tf.training.callbacks import quotients
from sd_tf.training.own_folder import append, keep_lines, name_of, remove, steps_in, written_once

SECONDS_BETWEEN_LINES = 5.0
PREVIEW_SHARE = 0.05  # of a stage's seconds that preview sheets may take
FIRST_PREVIEW_STEPS = 40  # the first sheet is expected to take as long as so many training steps


class ProgressBar:
    """One line: progress, loss, images per second and the time left."""

    def __init__(self, stage, budget, progress, disable=False):
        self.batch_size = stage.batch_size
        self.bar = tqdm(
            total=100.0,
            initial=round(100.0 * progress, 1),
            desc=f"{stage.name:<11}",
            bar_format="{desc} |{bar:24}| {percentage:3.0f}%{postfix}",
            mininterval=0.0,
            disable=disable,
        )
        self.budget, self.shown, self.first = budget, 0.0, None

    def __call__(self, trainer, step, elapsed, means):
        if self.first is None:
            self.first = (step, elapsed)
        progress = self.budget.progress(step, elapsed)
        if time.monotonic() - self.shown < 1.0 and progress < 1.0:
            return
        self.shown = time.monotonic()
        rate = _rate(self.first, (step, elapsed))
        self.bar.n = round(100.0 * progress, 1)
        skipped = trainer.step.skipped_moves
        self.bar.set_postfix_str(
            f"step {step}{f' ({skipped} skipped)' if skipped else ''}  {_losses(means)}  "
            f"{rate * self.batch_size:.0f} images/s  "
            f"{_clock(_seconds_left(self.budget, step, elapsed, rate))} left"
        )

    def announce(self, text):
        """Shows what is being done in place of the losses, until the next step."""
        self.shown = 0.0
        self.bar.set_postfix_str(text)

    def close(self):
        """Ends the bar's line."""
        self.bar.close()


def _losses(means):
    """ "loss 0.1234", or with several players "generator 0.1234 critic 0.5678"."""
    found = {name: float(value) for name, value in means.items() if name.split("/")[-1] == "loss"}
    return " ".join(f"{name.removesuffix('/loss')} {value:.4f}" for name, value in found.items())


class Log:
    """Writes means over the last seconds to `log.jsonl` and TensorBoard.

    A pair of metrics "name/sum" and "name/count" is logged as its quotient, "name": the mean over the
    examples that were counted in these seconds, if there were any.

    Args:
        stage: a `Stage`.
        folder: run folder.
        first_step: step that the stage resumes from; lines of later steps, from a killed run, are dropped.
        examples: examples in an epoch; None to log no epochs.
        also: `also(stage's name, entries)` is called for each line, if not None.
    """

    def __init__(self, stage, folder: Path, first_step, examples=None, also=None):
        self.also, self.first_step, self.examples = also, first_step, examples
        self.stage, self.file = stage, folder / "log.jsonl"
        _drop_later_lines(self.file, stage.name, first_step)
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard" / stage.name))
        self.sums, self.count, self.written = {}, 0, None

    def __call__(self, trainer, step, elapsed, means):
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        ended = trainer.budget.progress(step, elapsed) >= 1.0 or trainer.is_to_stop
        if self.written is None:
            self.written = (step, elapsed)
        if elapsed - self.written[1] < SECONDS_BETWEEN_LINES and not ended:
            return
        values = quotients({name: float(total) / self.count for name, total in self.sums.items()})
        values["images_per_second"] = self.stage.batch_size * _rate(self.written, (step, elapsed))
        values |= _optimizer_metrics(trainer.step)
        line = {"step": step, "elapsed": round(elapsed, 2), **values}
        if self.examples:
            line["epoch"] = round(step * self.stage.batch_size / self.examples, 3)
        append(self.file, json.dumps({"stage": self.stage.name} | line) + "\n")
        if self.also is not None:
            self.also(self.stage.name, line)
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{self.stage.name}/{name}", value)
        self.writer.flush()
        self.sums, self.count, self.written = {}, 0, (step, elapsed)


def _optimizer_metrics(step):
    """Learning rates, loss scales and skipped steps; names begin with the player's if there are several."""
    values = {}
    for name, learner in step.learners.items():
        prefix = "" if len(step.learners) == 1 else f"{name}/"
        values[f"{prefix}learning_rate"] = float(learner.optimizer.learning_rate.numpy())
        if learner.optimizer.loss_scale is not None:
            values[f"{prefix}loss_scale"] = float(learner.optimizer.loss_scale.numpy())
    return values | {"skipped_steps": step.skipped_moves}


class WeightsAndBiases:
    """Sends the lines of the log to Weights & Biases; WANDB_MODE=offline keeps them in the run's folder.

    Args:
        folder: run folder; a resumed run continues the same W&B run.
        config: the run's configuration, to be shown there.
        stages: names of the stages, each of which counts its own steps.

    Raises:
        InputError: wandb is not installed, or no user is logged in.
    """

    def __init__(self, folder: Path, config, stages):
        try:
            import wandb
        except ImportError:
            raise InputError(f"{argument('wandb')} needs its package: {install_extra('wandb')}") from None
        run_id = written_once(folder / "wandb-id.txt", r"[\w-]{1,64}", lambda: secrets.token_hex(4))
        settings = wandb.Settings(silent=True, console="off")
        try:
            self.run = wandb.init(
                project="sd_tf",
                name=folder.name,
                id=run_id,
                resume="allow",
                dir=folder,
                config=config,
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise InputError(
                f"{argument('wandb')}: {str(error).splitlines()[0]} Without an account, set "
                "WANDB_MODE=offline"
            ) from None
        for stage in stages:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def __call__(self, stage, line):
        self.run.log({f"{stage}/{name}": value for name, value in line.items()})

    def close(self):
        """Waits until everything is written or uploaded."""
        self.run.finish()


class Previews:
    """Saves up to `number` preview sheets over a stage, drawn with the averaged weights.

    If the stage trains for a number of seconds, the sheets take at most `PREVIEW_SHARE` of those that have
    passed: a sheet that would take more is left out. The last one is always drawn, as it comes after them.

    Args:
        stage: a `Stage`.
        folder: for the sheets "diffusion-0000100.png" and so on.
        number: how many sheets, at equal distances.
        budget, progress: those of the trainer.
        announce: called with what is being done, such as `ProgressBar.announce`.
    """

    def __init__(self, stage, folder: Path, number, budget, progress, announce=lambda text: None):
        self.stage, self.folder, self.budget, self.announce = stage, folder, budget, announce
        self.intervals = _EqualIntervals(number, budget, progress)
        self.first, self.spent, self.last = None, 0.0, None  # seconds of all sheets, and of the last

    def __call__(self, trainer, step, elapsed, means):
        if self.first is None:
            self.first = (step, elapsed)
        if not self.intervals.has_ended(step, elapsed) or not self._is_affordable(step, elapsed):
            return
        self.announce("drawing a preview")
        began = time.monotonic()
        with trainer.step.averages_in_place():
            preview = self.stage.preview()
        if preview is not None:
            file = self.folder / f"{self.stage.name}-{step:07d}.png"
            self.folder.mkdir(exist_ok=True)
            remove(file)  # of a killed run, or an untrusted link
            save_sheet(file, *preview)
        self.last = time.monotonic() - began
        self.spent += self.last

    def _is_affordable(self, step, elapsed):
        if self.budget.seconds is None or self.budget.progress(step, elapsed) >= 1.0:
            return True
        expected = self.last
        if expected is None:
            rate = _rate(self.first, (step, elapsed))
            expected = FIRST_PREVIEW_STEPS / rate if rate else math.inf
        return self.spent + expected <= PREVIEW_SHARE * (elapsed - self.first[1])


class Snapshots:
    """Saves `number` copies of a network over a stage, with the averaged weights.

    Args:
        write: `write(folder)` writes the network.
        folder: parent folder of the copies "step-0000100" and so on.
        number: how many copies, at equal distances; the last is written at the end.
        budget, progress: those of the trainer.
        first_step: step that the stage resumes from; later copies, from a killed run, are removed.
    """

    def __init__(self, write, folder: Path, number, budget, progress, first_step=0):
        self.write, self.folder = write, folder
        for step, later in steps_in(folder).items():
            if step > first_step:
                remove(later)
        self.intervals = _EqualIntervals(number, budget, progress)

    def __call__(self, trainer, step, elapsed, means):
        if self.intervals.has_ended(step, elapsed):
            with trainer.step.averages_in_place():
                self.write(self.folder / name_of(step))


class _EqualIntervals:
    """Divides a stage's budget into `number` equal intervals."""

    def __init__(self, number, budget, progress):
        self.number, self.budget, self.passed = number, budget, int(progress * number)

    def has_ended(self, step, elapsed):
        """Whether an interval has ended since the last call."""
        before, self.passed = self.passed, int(self.budget.progress(step, elapsed) * self.number)
        return self.passed > before


def _rate(before, now):
    """Steps per second between two pairs (step, seconds); 0 if no time has passed."""
    steps, seconds = now[0] - before[0], now[1] - before[1]
    return steps / seconds if seconds > 0 else 0.0


def _seconds_left(budget, step, elapsed, rate):
    if budget.seconds is not None:
        return max(0.0, budget.seconds - elapsed)
    return (budget.steps - step) / rate if rate else None


def _clock(seconds):
    if seconds is None:  # unknown after a single step
        return "-:--"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _drop_later_lines(file: Path, stage, step):
    """Drops the lines of steps after the last checkpoint, which a killed run took and this one repeats."""

    def is_kept(entry):
        known = isinstance(entry.get("stage"), str) and type(entry.get("step")) is int
        return known and (entry["stage"] != stage or entry["step"] <= step)

    keep_lines(file, is_kept)

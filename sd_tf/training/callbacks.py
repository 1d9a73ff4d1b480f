"""What a run shows while it trains: a progress bar, a log, TensorBoard and sheets of pictures.

Each is an observer of the `Trainer`, called after every step as `observer(trainer, step, elapsed, means)`.
"""

import json
import time
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from sd_tf.pictures import save_sheet

SECONDS_BETWEEN_LINES = 5.0
PREVIEWS = 8  # sheets of pictures in a stage


class ProgressBar:
    """One line: how far, the loss, pictures per second, the time left."""

    def __init__(self, stage, budget):
        self.batch_size = stage.config.batch_size
        self.bar = tqdm(
            total=100.0,
            desc=f"{stage.name:<11}",
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {postfix}",
            mininterval=0.0,
        )
        self.budget, self.shown, self.first = budget, 0.0, None

    def __call__(self, trainer, step, elapsed, means):
        if self.first is None:
            self.first = (step, elapsed)
        progress = self.budget.progress(step, elapsed)
        if time.monotonic() - self.shown < 1.0 and progress < 1.0:
            return
        self.shown = time.monotonic()
        seconds = elapsed - self.first[1]
        rate = (step - self.first[0]) / seconds if seconds else 0.0  # steps a second
        self.bar.n = round(100.0 * progress, 1)
        self.bar.set_postfix_str(
            f"step {step}  loss {float(means['loss']):.4f}  {rate * self.batch_size:.0f} images/s  "
            f"{_clock(_seconds_left(self.budget, step, elapsed, rate))} left"
        )
        if progress >= 1.0:
            self.bar.close()


class Log:
    """Means over the last seconds, as lines of JSON and in TensorBoard."""

    def __init__(self, stage, folder: Path, first_step):
        self.stage, self.file = stage, folder / "log.jsonl"
        _forget_after(self.file, stage.name, first_step)
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard" / stage.name))
        self.sums, self.count, self.written = {}, 0, None

    def __call__(self, trainer, step, elapsed, means):
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        ended = trainer.budget.progress(step, elapsed) >= 1.0
        if self.written is None:
            self.written = (step - 1, elapsed)
        if elapsed - self.written[1] < SECONDS_BETWEEN_LINES and not ended:
            return
        seconds = max(elapsed - self.written[1], 1e-9)
        values = {name: float(total) / self.count for name, total in self.sums.items()}
        values["images_per_second"] = (step - self.written[0]) * self.stage.config.batch_size / seconds
        values["learning_rate"] = float(trainer.optimizer.learning_rate)
        with self.file.open("a") as file:
            line = {"stage": self.stage.name, "step": step, "elapsed": round(elapsed, 2), **values}
            file.write(json.dumps(line) + "\n")
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{self.stage.name}/{name}", value)
        self.writer.flush()
        self.sums, self.count, self.written = {}, 0, (step, elapsed)


class Previews:
    """Sheets of pictures drawn with the averaged weights, some times in a stage."""

    def __init__(self, stage, folder: Path, budget):
        self.stage, self.folder, self.budget = stage, folder, budget
        self.due = None

    def __call__(self, trainer, step, elapsed, means):
        progress = self.budget.progress(step, elapsed)
        if self.due is None:
            self.due = (int(progress * PREVIEWS) + 1) / PREVIEWS
        if progress < self.due:
            return
        self.due += 1 / PREVIEWS
        with trainer.ema.in_place():
            preview = self.stage.preview()
        if preview is not None:
            self.folder.mkdir(exist_ok=True)
            save_sheet(self.folder / f"{self.stage.name}-{step:07d}.png", *preview)


def _seconds_left(budget, step, elapsed, rate):
    if budget.seconds is not None:
        return max(0.0, budget.seconds - elapsed)
    return (budget.steps - step) / rate if rate else 0.0


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _forget_after(file: Path, stage, step):
    """Drops the lines of steps that a killed run took after its last checkpoint: they are taken again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by the kill
        if entry["stage"] != stage or entry["step"] <= step:
            kept.append(line + "\n")
    file.write_text("".join(kept))

"""The compiled training step, and the loop around it that keeps time, checkpoints and can be killed."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from pathlib import Path

import tensorflow as tf

from sd_tf.compiled import parts, parts_of
from sd_tf.errors import InputError
from sd_tf.nn.fused import fusing
from sd_tf.training.optimizer import AdamW
from sd_tf.training.strategy import check_batch_size

KEPT_CHECKPOINTS = 2
LONGEST_SKIP = 25  # steps: a loss scale of float16 finds its size in less


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage lasts: so many seconds, or so many steps (the other is None)."""

    seconds: float | None
    steps: int | None

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, step / self.steps if self.steps is not None else elapsed / self.seconds)


class Trainer:
    """Trains the network of one stage.

    Args:
        stage: one of `sd_tf.training.stages`, made under the strategy's scope.
        strategy: a `tf.distribute.Strategy`.
        budget: a `Budget`, which the learning rate's decay follows.
        folder: where checkpoints go; a checkpoint found there is resumed.
        precision: a Keras policy; "mixed_float16" adds dynamic loss scaling.
        checkpoint_seconds: between two checkpoints.
    """

    def __init__(self, stage, strategy, budget, folder, precision, checkpoint_seconds):
        self.stage, self.strategy, self.budget = stage, strategy, budget
        self.checkpoint_seconds = checkpoint_seconds
        self._gradients_of_part = tf.function(self._gradients, autograph=False)  # traced once for all parts
        config = stage.config
        check_batch_size(config.batch_size, strategy)
        with strategy.scope():
            self.variables = stage.network.trainable_variables
            self.optimizer = AdamW(self.variables, config, loss_scaling=precision == "mixed_float16")
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
            self.elapsed = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="elapsed")
        checkpoint = tf.train.Checkpoint(
            # Named one by one: TensorFlow does not find those of layers that a Keras layer keeps in a list.
            weights=[variable.value for variable in stage.network.variables],
            optimizer=tf.train.Checkpoint(**self.optimizer.state),
            step=self.step,
            elapsed=self.elapsed,
        )
        self.checkpoints = tf.train.CheckpointManager(checkpoint, str(Path(folder)), KEPT_CHECKPOINTS)
        if self.checkpoints.latest_checkpoint:
            checkpoint.restore(self.checkpoints.latest_checkpoint).assert_existing_objects_matched()

    @property
    def progress(self) -> float:
        """Of the last checkpoint: 0 where there is none, 1 at the end of the budget."""
        return self.budget.progress(int(self.step.numpy()), float(self.elapsed.numpy()))

    @tf.function(autograph=False)
    def train_step(self, batch):
        """One step on a global batch; returns the means of the loss and of the stage's metrics."""
        losses, gradients = self.strategy.run(self._replica_step, args=(batch,))
        self.step.assign_add(1)
        with self.strategy.scope():
            self.optimizer.apply(gradients)
        return {
            name: self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for name, value in losses.items()
        }

    def _replica_step(self, batch):
        """Losses and gradients of one replica's part of the batch, which its cores divide."""
        number = 1
        if self.stage.divisible:
            replicas = self.strategy.num_replicas_in_sync
            number = parts_of(self.stage.config.batch_size // replicas, replicas)
        if number == 1:
            return self._gradients(batch)
        results = [self._gradients_of_part(part) for part in parts(batch, number)]
        return tf.nest.map_structure(lambda *values: tf.add_n(values), *results)

    def _gradients(self, batch):
        """Forward and backward: sums over the batch, each divided by the size of the global batch."""
        batch_size = self.stage.config.batch_size
        with fusing():
            with tf.GradientTape() as tape:
                losses = self.stage.loss(batch)  # name -> (examples,)
                means = {name: tf.reduce_sum(value) / batch_size for name, value in losses.items()}
                objective = self.optimizer.scaled(means["loss"])
            gradients = tape.gradient(objective, self.variables)
        return means, self.optimizer.flat(gradients)

    def fit(self, observers=()):
        """Trains to the end of the budget, from the last checkpoint where there is one.

        Args:
            observers: called after each step as `observer(trainer, step, elapsed, means)`, with the
                number of steps and the seconds so far.

        Raises:
            InputError: the weights, or many gradients in a row, are not finite; the last checkpoint stays.
            KeyboardInterrupt: Ctrl-C or SIGTERM came; the step that ran then is finished and saved.
        """
        step, restored = int(self.step.numpy()), float(self.elapsed.numpy())
        elapsed, untraced = restored, True
        ended = self.progress >= 1.0
        batches = iter(self.strategy.experimental_distribute_dataset(self.stage.batches(first_step=step)))
        began = saved = time.monotonic()
        with _interrupts_noted() as interrupted:
            while not ended:
                self._set_learning_rate(step, self.budget.progress(step, elapsed))
                means = self.train_step(next(batches))
                step += 1
                if untraced:  # tracing the step is start-up, not training
                    began, untraced = time.monotonic(), False
                elapsed = restored + time.monotonic() - began
                for observer in observers:
                    observer(self, step, elapsed, means)
                ended, stopped = self.budget.progress(step, elapsed) >= 1.0, interrupted.is_set()
                if ended or stopped or time.monotonic() - saved >= self.checkpoint_seconds:
                    self.save(elapsed)
                    saved = time.monotonic()
                if stopped:
                    raise KeyboardInterrupt

    def save(self, elapsed):
        """Writes a checkpoint; TensorFlow renames it into place."""
        step = int(self.step.numpy())
        diverged, skipped = None, int(self.optimizer.skipped.numpy())
        if not all(bool(tf.reduce_all(tf.math.is_finite(variable))) for variable in self.variables):
            diverged = "weights"
        elif skipped >= LONGEST_SKIP:
            diverged = f"gradients of the last {skipped} steps"
        if diverged is not None:
            raise InputError(
                f"stage {self.stage.name} diverged, {diverged} are not finite at step {step}: start another "
                f"--output with a --learning-rate below {self.stage.config.learning_rate}"
            )
        self.elapsed.assign(elapsed)
        self.checkpoints.save(step)

    def _set_learning_rate(self, step, progress):
        config = self.stage.config
        warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
        self.optimizer.learning_rate.assign(
            config.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))
        )


@contextlib.contextmanager
def _interrupts_noted():
    """An event that Ctrl-C and SIGTERM set, instead of interrupting; the second of them interrupts.

    Only signals with a Python handler are noted: those that are ignored, or end the process, still do.
    """
    event, handlers = threading.Event(), {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number, frame):
        event.set()
        restore()

    try:
        for number in handlers:
            signal.signal(number, note)
        yield event
    finally:
        restore()

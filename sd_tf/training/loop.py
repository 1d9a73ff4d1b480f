"""The loop around the training step, which keeps time, writes checkpoints and can be killed at any moment."""

import contextlib
import dataclasses
import math
import signal
import threading
import time

import tensorflow as tf

from sd_tf.errors import InputError, argument
from sd_tf.training.checkpoints import Checkpoints
from sd_tf.training.diagnosis import first_not_finite
from sd_tf.training.options import FOLDER
from sd_tf.training.step import Step
from sd_tf.training.workers import Workers

LONGEST_SKIP = 25  # moves: a loss scale of float16 finds its size in less


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage lasts: so many seconds, or so many steps (the other is None)."""

    seconds: float | None
    steps: int | None

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, step / self.steps if self.steps is not None else elapsed / self.seconds)


class Trainer:
    """Trains the networks of one stage.

    Args:
        stage: a `Stage`, made under the strategy's scope.
        strategy: a `tf.distribute.Strategy`.
        budget: a `Budget`, which the learning rate's decay follows.
        folder: where checkpoints go; a checkpoint found there is resumed.
        precision: a Keras policy; "mixed_float16" adds dynamic loss scaling.
        checkpoint_seconds: between two checkpoints.
        checkpoint_every: steps between two checkpoints, in place of seconds.
        keep_checkpoints: how many of them stay.
        options: of `Step`: `accumulate`, `remat`, `xla`.

    Attributes:
        is_to_stop: set by an observer that wants the stage to end after the step that runs now.

    Raises:
        InputError: the batch cannot be divided so, or XLA cannot compile the stage.
    """

    def __init__(
        self,
        stage,
        strategy,
        budget,
        folder,
        precision,
        checkpoint_seconds,
        checkpoint_every=None,
        keep_checkpoints=2,
        **options,
    ):
        self.stage, self.strategy, self.budget = stage, strategy, budget
        self.checkpoint_seconds, self.checkpoint_every = checkpoint_seconds, checkpoint_every
        self.is_to_stop = False
        self.step = Step(stage, strategy, precision, **options)
        with strategy.scope():
            self.elapsed = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="elapsed")
        state = tf.train.Checkpoint(step=self.step.state, elapsed=self.elapsed)
        self.workers = Workers(strategy)
        self.checkpoints = Checkpoints(state, folder, keep_checkpoints)
        found = self.checkpoints.restore(self.workers)
        number, elapsed = self.steps_taken, float(self.elapsed.numpy())
        if found is not None and not (number == found and 0 <= elapsed < math.inf):
            raise InputError(
                f"{self.checkpoints.place(found)} says that it is of step {number}, after {elapsed:g} "
                "seconds: "
                "delete it to resume from another one"
            )

    @property
    def steps_taken(self) -> int:
        """Since the start of the stage."""
        return int(self.step.number.numpy())

    @property
    def progress(self) -> float:
        """Of the last checkpoint: 0 where there is none, 1 at the end of the budget."""
        return self.budget.progress(self.steps_taken, float(self.elapsed.numpy()))

    def fit(self, observers=()):
        """Trains to the end of the budget, from the last checkpoint where there is one.

        Args:
            observers: called in the chief worker after each step as `observer(trainer, step, elapsed,
                means)`, with the number of steps and the seconds so far.

        Raises:
            InputError: many steps in a row had a loss or gradients that are not finite, or a checkpoint
                cannot be written; those before it stay.
            KeyboardInterrupt: Ctrl-C or SIGTERM came, to any of the workers; the step that ran then is
                finished and saved.
        """
        observers = observers if self.workers.is_chief else ()
        step, restored = self.steps_taken, float(self.elapsed.numpy())
        elapsed, untraced = restored, True
        ended = self.progress >= 1.0
        batches = iter(self._batches(step))
        began, saved = time.monotonic(), elapsed
        try:
            with _interrupts_noted() as interrupted:
                while not ended:
                    self._set_learning_rates(step, self.budget.progress(step, elapsed))
                    means = self.step(*(next(batches) for _ in self.stage.moves))
                    step += 1
                    if self.step.skipped >= LONGEST_SKIP:
                        raise self._not_finite(step)
                    if untraced:  # tracing the step is start-up, not training
                        began, untraced = time.monotonic(), False
                    elapsed = restored + time.monotonic() - began
                    for observer in observers:
                        observer(self, step, elapsed, means)
                    elapsed, interrupted_anywhere, ended = self._agreed(elapsed, interrupted.is_set(), step)
                    if ended or interrupted_anywhere or self._is_due(step, elapsed - saved):
                        self._check_finite(step, ended)
                        self.save(elapsed)
                        saved = elapsed
                    if interrupted_anywhere:
                        raise KeyboardInterrupt
                if self.workers.gathered(interrupted.is_set()).any():  # it came while the end was saved
                    raise KeyboardInterrupt
        finally:
            del batches  # and its threads: an exception would keep them until Python collects it

    def _agreed(self, elapsed, is_interrupted, step):
        """What all workers go by: the chief's seconds, whether one was interrupted, whether to end."""
        found = self.workers.gathered(elapsed, is_interrupted, self.is_to_stop)
        elapsed = float(found[0, 0])
        ended = self.budget.progress(step, elapsed) >= 1.0 or bool(found[:, 2].any())
        return elapsed, bool(found[:, 1].any()), ended

    def _batches(self, first_step):
        """The batches from that step on: each worker makes its own part, which its replicas share."""
        workers, replicas = self.workers, self.strategy.num_replicas_in_sync
        first = first_step * len(self.stage.moves)
        batches = self.stage.batches(first, (workers.index, workers.number))
        if replicas == workers.number:
            return batches
        own = batches.rebatch(self.stage.batch_size // replicas, drop_remainder=True)
        return self.strategy.distribute_datasets_from_function(lambda _: own)

    def save(self, elapsed):
        """Writes a checkpoint, in the chief worker; see `Checkpoints.save`."""
        self.elapsed.assign(elapsed)
        if self.workers.is_chief:
            self.checkpoints.save(self.steps_taken)

    def _is_due(self, step, seconds):
        if self.checkpoint_every is not None:
            return step % self.checkpoint_every == 0
        return seconds >= self.checkpoint_seconds

    def _check_finite(self, step, ended):
        """Raises `InputError` rather than save weights that are not finite, or end without an update."""
        skipped_all = self.step.skipped_moves == step * len(self.stage.moves)
        if ended and skipped_all:
            raise self._not_finite(step)
        if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.step.variables):
            raise self._not_finite(step)

    def _not_finite(self, step):
        """What to say where the run cannot go on."""
        first = first_not_finite(self.step, step - 1)
        steps = self.checkpoints.steps
        rates = [learner.config.learning_rate for learner in self.step.learners.values()]
        return InputError(
            f"stage {self.stage.name} stops at step {step}, {self.step.skipped} steps in a row were skipped: "
            f"{first} is not finite; "
            + (f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet")
            + f". Start another {FOLDER} with a {argument('learning_rate')} below "
            f"{min(rates)}, or mend the data"
        )

    def _set_learning_rates(self, step, progress):
        for learner in self.step.learners.values():
            learner.optimizer.learning_rate.assign(learning_rate(learner.config, step, progress))


def learning_rate(config, step: int, progress: float) -> float:
    """Of a step: it rises through the warm-up and falls with the progress, as the schedule says.

    Args:
        config: an `OptimizerConfig`.
        step: the first is 0.
        progress: of the stage's budget, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
    }
    return config.learning_rate * warmup * decay[config.lr_schedule]


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

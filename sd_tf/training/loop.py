"""The training loop: it keeps time, writes checkpoints and resumes from them after a kill at any moment."""

import contextlib
import dataclasses
import math
import signal
import threading
import time

import tensorflow as tf

from sd_tf.errors import InputError, argument
from sd_tf.graphs import free_with_their_graphs
from sd_tf.training.checkpoints import Checkpoints
from sd_tf.training.diagnosis import first_not_finite
from sd_tf.training.options import FOLDER
from sd_tf.training.step import Step
from sd_tf.training.workers import Workers

LONGEST_SKIP = 25  # moves in a row; float16's dynamic loss scale settles within fewer


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a stage trains: a number of seconds or of steps (the other is None)."""

    seconds: float | None
    steps: int | None

    def progress(self, step: int, elapsed: float) -> float:
        """The share of the budget that is used: 0 at the start, 1 at the end."""
        return min(1.0, step / self.steps if self.steps is not None else elapsed / self.seconds)


class Trainer:
    """Trains the networks of one stage.

    Args:
        stage: a `Stage`, made under the strategy's scope.
        strategy: a `tf.distribute.Strategy`.
        budget: a `Budget`, which the learning rate's decay follows.
        folder: where checkpoints go; a checkpoint found there is resumed.
        precision: a Keras policy; "mixed_float16" adds dynamic loss scaling.
        checkpoint_seconds: seconds between two checkpoints.
        checkpoint_every: steps between two checkpoints, instead of seconds.
        keep_checkpoints: how many of the newest stay.
        options: arguments of `Step`: `accumulate`, `remat`, `xla`.

    Attributes:
        is_to_stop: set by an observer to end the stage after the current step.

    Raises:
        InputError: the batch cannot be divided among replicas and accumulated parts, or XLA cannot
            compile the stage.
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
        parts = {"step": self.step.state, "elapsed": self.elapsed}
        if stage.state:
            parts["stage"] = tf.train.Checkpoint(**stage.state)
        state = tf.train.Checkpoint(**parts)
        self.workers = Workers(strategy)
        self.checkpoints = Checkpoints(state, folder, keep_checkpoints)
        found = self.checkpoints.restore(self.workers)
        number, elapsed = self.steps_taken, float(self.elapsed.numpy())
        if found is not None and not (number == found and 0 <= elapsed < math.inf):
            raise InputError(
                f"{self.checkpoints.place(found)} says that it is of step {number}, after {elapsed:g} "
                "seconds: delete it to resume from another one"
            )

    @property
    def steps_taken(self) -> int:
        """Steps since the start of the stage."""
        return int(self.step.number.numpy())

    @property
    def progress(self) -> float:
        """Share of the budget at the last checkpoint: 0 without one, 1 at the end."""
        return self.budget.progress(self.steps_taken, float(self.elapsed.numpy()))

    def fit(self, observers=()):
        """Trains to the end of the budget, from the last checkpoint if there is one.

        Args:
            observers: called in the chief worker after each step as `observer(trainer, step, elapsed,
                means)`, with the steps and seconds of the stage so far, and the means of its losses.

        Raises:
            InputError: `LONGEST_SKIP` moves in a row had gradients that are not finite, the stage has a
                reason to stop, or a checkpoint cannot be written; earlier checkpoints are kept.
            KeyboardInterrupt: a worker received Ctrl-C or SIGTERM; the current step is finished and saved
                first.
        """
        observers = observers if self.workers.is_chief else ()
        step, restored = self.steps_taken, float(self.elapsed.numpy())
        elapsed, untraced = restored, True
        ended = self.progress >= 1.0
        batches = iter(self._batches(step))
        began, saved = time.monotonic(), elapsed
        try:
            with _deferred_interrupts() as interrupted:
                while not ended:
                    self._set_learning_rates(step, self.budget.progress(step, elapsed))
                    means = self.step(*(next(batches) for _ in self.stage.moves))
                    step += 1
                    if self.step.skipped >= LONGEST_SKIP:
                        raise self._not_finite(step)
                    reason = self.stage.reason_to_stop(means)
                    if reason is not None:
                        why, way_out = reason
                        raise InputError(f"{self._stopped(step, why)}. {way_out}")
                    if untraced:  # tracing the step is start-up, not training
                        free_with_their_graphs()
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
            del batches  # ends its threads, which an exception's traceback would keep alive

    def _agreed(self, elapsed, is_interrupted, step):
        """What all workers act on: the chief's seconds, whether any was interrupted, whether to end."""
        found = self.workers.gathered(elapsed, is_interrupted, self.is_to_stop)
        elapsed = float(found[0, 0])
        ended = self.budget.progress(step, elapsed) >= 1.0 or bool(found[:, 2].any())
        return elapsed, bool(found[:, 1].any()), ended

    def _batches(self, first_step):
        """Batches from that step on: each worker makes its part, which is divided among its replicas."""
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
        """Raises `InputError` if weights are not finite, or the stage ends without a single update."""
        skipped_all = self.step.skipped_moves == step * len(self.stage.moves)
        if ended and skipped_all:
            raise self._not_finite(step)
        if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.step.variables):
            raise self._not_finite(step)

    def _not_finite(self, step):
        """The `InputError` that says what is not finite."""
        first = first_not_finite(self.step, step - 1)
        rates = [learner.config.learning_rate for learner in self.step.learners.values()]
        said = self._stopped(
            step, f"{first} is not finite", f", after {self.step.skipped} skipped steps in a row"
        )
        return InputError(
            f"{said}. Start in another {FOLDER} with a {argument('learning_rate')} below {min(rates)}, or "
            "fix the data"
        )

    def _stopped(self, step, reason, when=""):
        steps = self.checkpoints.steps
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        return f"stage {self.stage.name} stops at step {step}{when}: {reason}; {kept}"

    def _set_learning_rates(self, step, progress):
        for learner in self.step.learners.values():
            learner.optimizer.learning_rate.assign(learning_rate(learner.config, step, progress))


def learning_rate(config, step: int, progress: float) -> float:
    """The learning rate of a step: linear warm-up, then decay by the schedule over the stage's budget.

    Args:
        config: an `OptimizerConfig`.
        step: of the stage, from 0.
        progress: share of the stage's budget that is used, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
    }
    return config.learning_rate * warmup * decay[config.lr_schedule]


@contextlib.contextmanager
def _deferred_interrupts():
    """Yields an event that the first Ctrl-C or SIGTERM sets; the second interrupts as usual.

    Only signals with a Python handler are deferred; ignored signals and those that end the process are not.
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

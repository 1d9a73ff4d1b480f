"""The compiled training step, and the loop around it that keeps time, checkpoints and can be killed."""

import contextlib
import dataclasses
import math
import signal
import threading
import time

import tensorflow as tf

from sd_tf.errors import InputError
from sd_tf.graphs import batch_slices, sliced
from sd_tf.nn.fused import fusing
from sd_tf.nn.remat import rematerialising
from sd_tf.training.checkpoints import Checkpoints
from sd_tf.training.diagnosis import first_not_finite
from sd_tf.training.optimizer import Optimizer
from sd_tf.training.strategy import check_batch_size
from sd_tf.training.workers import Workers

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
        stage: one of `sd_tf.latent.stages`, made under the strategy's scope.
        strategy: a `tf.distribute.Strategy`.
        budget: a `Budget`, which the learning rate's decay follows.
        folder: where checkpoints go; a checkpoint found there is resumed.
        precision: a Keras policy; "mixed_float16" adds dynamic loss scaling.
        checkpoint_seconds: between two checkpoints.
        checkpoint_every: steps between two checkpoints, in place of seconds.
        keep_checkpoints: how many of them stay.
        accumulate: parts of a batch that follow each other in a step, for less memory; of a stage
            that is divisible.
        remat: whether functions that are `rematerialised` (`sd_tf.nn.remat`) are computed again in the
            backward pass, for less memory.
        xla: whether XLA compiles the gradients' computation.

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
        accumulate=1,
        remat=False,
        xla=False,
    ):
        self.stage, self.strategy, self.budget = stage, strategy, budget
        self.checkpoint_seconds, self.checkpoint_every = checkpoint_seconds, checkpoint_every
        self.accumulate = accumulate if stage.divisible else 1
        self.remat = remat
        config = stage.config
        if xla and not stage.divisible and strategy.num_replicas_in_sync > 1:
            raise InputError(
                f"--xla cannot compile stage {stage.name} on {strategy.num_replicas_in_sync} replicas, where "
                "an example's loss needs the others': leave --xla out, or train this stage on one"
            )
        # Traced once for all parts.
        self._compiled_gradients = tf.function(self._gradients, autograph=False, jit_compile=xla or None)
        self.xla = xla
        check_batch_size(config.batch_size, strategy.num_replicas_in_sync, self.accumulate)
        with strategy.scope():
            self.variables = stage.network.trainable_variables
            self.optimizer = Optimizer(self.variables, config, loss_scaling=precision == "mixed_float16")
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
            self.elapsed = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="elapsed")
        state = tf.train.Checkpoint(
            # Named one by one: TensorFlow does not find those of layers that a Keras layer keeps in a list.
            # The rest of a network that is fine-tuned is in the model that the run began from.
            weights=[variable.value for variable in self.variables],
            optimizer=tf.train.Checkpoint(**self.optimizer.state),
            step=self.step,
            elapsed=self.elapsed,
        )
        self.workers = Workers(strategy)
        self.checkpoints = Checkpoints(state, folder, keep_checkpoints)
        found = self.checkpoints.restore(self.workers)
        step, elapsed = int(self.step.numpy()), float(self.elapsed.numpy())
        if found is not None and not (step == found and 0 <= elapsed < math.inf):
            raise InputError(
                f"{self.checkpoints.place(found)} says that it is of step {step}, after {elapsed:g} seconds: "
                "delete it to resume from another one"
            )

    @property
    def progress(self) -> float:
        """Of the last checkpoint: 0 where there is none, 1 at the end of the budget."""
        return self.budget.progress(int(self.step.numpy()), float(self.elapsed.numpy()))

    @property
    def skipped_steps(self) -> int:
        """Those whose gradients were not finite, since the start."""
        return int(self.step.numpy()) - int(self.optimizer.updates.numpy())

    @tf.function(autograph=False)
    def train_step(self, batch):
        """One step on a global batch; returns the means of the loss and of the stage's metrics."""
        names = []

        def replica_step(batch):
            means, gradients = self._replica_step(batch)
            names[:] = means
            return tf.stack(list(means.values())), gradients  # one: each sum of workers takes its time

        means, gradients = self.strategy.run(replica_step, args=(batch,))
        self.step.assign_add(1)
        with self.strategy.scope():
            self.optimizer.apply(gradients)
        means = self.strategy.reduce(tf.distribute.ReduceOp.SUM, means, axis=None)
        return dict(zip(names, tf.unstack(means), strict=True))

    def _replica_step(self, batch):
        """Losses and gradients of one replica's part of the batch, one piece of it after another."""
        if self.accumulate == 1:
            return self._divided_gradients(batch)
        total = None
        for piece in sliced(batch, self.accumulate):
            before = [] if total is None else tf.nest.flatten(total)
            with tf.control_dependencies(before):  # no two pieces in memory at once
                piece = tf.nest.map_structure(tf.identity, piece)
            result = self._divided_gradients(piece)
            total = result if total is None else tf.nest.map_structure(tf.add, total, result)
        return total

    def _divided_gradients(self, batch):
        """Losses and gradients of a batch that the cores divide."""
        number = 1
        if self.stage.divisible:
            replicas = self.strategy.num_replicas_in_sync
            here = replicas // self.workers.number  # which share this machine's cores, or this worker's
            number = batch_slices(self.stage.config.batch_size // replicas // self.accumulate, here)
        if number == self.accumulate == 1 and not self.xla:
            return self._gradients(batch)
        results = [self._compiled_gradients(part) for part in sliced(batch, number)]
        return tf.nest.map_structure(lambda *values: tf.add_n(values), *results)

    def _gradients(self, batch):
        """Forward and backward: sums over the batch, each divided by the size of the global batch."""
        batch_size = self.stage.config.batch_size
        with fusing(), rematerialising(self.variables, self.remat):
            with tf.GradientTape() as tape:
                losses = self.stage.loss(batch)  # name -> (examples,)
                means = {name: tf.reduce_sum(value) / batch_size for name, value in losses.items()}
                objective = self.optimizer.scaled(means["loss"])
            gradients = tape.gradient(objective, self.variables)
        return means, self.optimizer.flat(gradients)

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
        step, restored = int(self.step.numpy()), float(self.elapsed.numpy())
        elapsed, untraced = restored, True
        ended = self.progress >= 1.0
        batches = iter(self._batches(step))
        began, saved = time.monotonic(), elapsed
        try:
            with _interrupts_noted() as interrupted:
                while not ended:
                    self._set_learning_rate(step, self.budget.progress(step, elapsed))
                    means = self.train_step(next(batches))
                    step += 1
                    if int(self.optimizer.skipped.numpy()) >= LONGEST_SKIP:
                        raise self._not_finite(step)
                    if untraced:  # tracing the step is start-up, not training
                        began, untraced = time.monotonic(), False
                    elapsed = restored + time.monotonic() - began
                    for observer in observers:
                        observer(self, step, elapsed, means)
                    found = self.workers.gathered(elapsed, interrupted.is_set())
                    elapsed, stopped = float(found[0, 0]), found[:, 1].any()  # the chief's clock
                    ended = self.budget.progress(step, elapsed) >= 1.0
                    if ended and self.skipped_steps == step:
                        raise self._not_finite(step)
                    if ended or stopped or self._is_due(step, elapsed - saved):
                        if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.variables):
                            raise self._not_finite(step)
                        self.save(elapsed)
                        saved = elapsed
                    if stopped:
                        raise KeyboardInterrupt
        finally:
            del batches  # and its threads: an exception would keep them until Python collects it

    def _batches(self, first_step):
        """The batches from that step on: each worker makes its own part, which its replicas share."""
        workers, replicas = self.workers, self.strategy.num_replicas_in_sync
        batches = self.stage.batches(first_step, (workers.index, workers.number))
        if replicas == workers.number:
            return batches
        own = batches.rebatch(self.stage.config.batch_size // replicas, drop_remainder=True)
        return self.strategy.distribute_datasets_from_function(lambda _: own)

    def save(self, elapsed):
        """Writes a checkpoint, in the chief worker; see `Checkpoints.save`."""
        self.elapsed.assign(elapsed)
        if self.workers.is_chief:
            self.checkpoints.save(int(self.step.numpy()))

    def _is_due(self, step, seconds):
        if self.checkpoint_every is not None:
            return step % self.checkpoint_every == 0
        return seconds >= self.checkpoint_seconds

    def _not_finite(self, step):
        """What to say where the run cannot go on."""
        batch = next(iter(self.stage.batches(step - 1).as_numpy_iterator()))
        first = first_not_finite(self.stage, batch, self.optimizer.scaled)
        skipped, steps = int(self.optimizer.skipped.numpy()), self.checkpoints.steps
        return InputError(
            f"stage {self.stage.name} stops at step {step}, {skipped} steps in a row were skipped: "
            f"{first} is not finite; "
            + (f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet")
            + f". Start another --output with a --learning-rate below {self.stage.config.learning_rate}, "
            "or mend the data"
        )

    def _set_learning_rate(self, step, progress):
        config = self.stage.config
        warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
        decay = {
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
            "linear": 1.0 - progress,
            "constant": 1.0,
        }
        self.optimizer.learning_rate.assign(config.learning_rate * warmup * decay[config.lr_schedule])


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

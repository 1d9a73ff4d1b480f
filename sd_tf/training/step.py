"""The compiled training step: every player's moves, on every replica, in one graph."""

import contextlib

import keras
import tensorflow as tf

from sd_tf.errors import InputError, argument
from sd_tf.graphs import sliced
from sd_tf.nn.fused import fusing
from sd_tf.nn.remat import rematerialising
from sd_tf.training.optimizer import Optimizer
from sd_tf.training.strategy import check_batch_size
from sd_tf.training.workers import slices_on_cores


class Learner:
    """A player in training: its trainable variables and its optimizer's state.

    Args:
        player: a `Player` of a stage.
        loss_scaling: see `Optimizer`.
    """

    def __init__(self, player, loss_scaling: bool):
        self.network, self.config = player
        self.variables = self.network.trainable_variables
        self.optimizer = Optimizer(self.variables, self.config, loss_scaling)

    @property
    def state(self) -> tf.train.Checkpoint:
        """What a checkpoint saves of it."""
        return tf.train.Checkpoint(
            # A list of variables, as TensorFlow does not track layers that a Keras layer keeps in a list.
            # Frozen weights are not saved: they are in the model that the run started from.
            weights=[variable.value for variable in self.variables],
            optimizer=tf.train.Checkpoint(**self.optimizer.state),
        )

    def call_average(self, *arguments, **options):
        """The network's output with the moving average of its weights, through which no gradient flows."""
        averages = zip(self.variables, self.optimizer.averages, strict=True)
        with keras.StatelessScope(state_mapping=averages):
            return self.network(*arguments, **options)


class Averages:
    """`averages[name](*arguments)`: a player's network with the moving average of its weights."""

    def __init__(self, learners: dict[str, Learner]):
        self._learners = learners

    def __getitem__(self, name):
        return self._learners[name].call_average


class Step:
    """One training step, with one batch for each move.

    Args:
        stage: a `Stage`, made under the strategy's scope.
        strategy: a `tf.distribute.Strategy`.
        precision: a Keras policy; "mixed_float16" adds dynamic loss scaling.
        accumulate: gradient accumulation: parts of a batch computed one after another, for less memory;
            ignored by a stage that is not divisible.
        remat: whether `rematerialised` functions (`sd_tf.nn.remat`) are computed again in the backward pass,
            for less memory.
        xla: whether XLA compiles the forward and backward pass.

    Attributes:
        learners: player's name -> `Learner`.
        number: steps taken so far, an int64 variable.

    Raises:
        InputError: the batch cannot be divided among replicas and accumulated parts, or XLA cannot
            compile the stage.
    """

    def __init__(self, stage, strategy, precision, accumulate=1, remat=False, xla=False):
        self.stage, self.strategy, self.remat, self.xla = stage, strategy, remat, xla
        self.accumulate = accumulate if stage.divisible else 1
        replicas = strategy.num_replicas_in_sync
        if xla and not stage.divisible and replicas > 1:
            raise InputError(
                f"{argument('xla')} cannot compile stage {stage.name} on {replicas} replicas, since "
                f"its loss compares examples of all of them: leave {argument('xla')} out, or use one replica"
            )
        check_batch_size(stage.batch_size, replicas, self.accumulate, stage.unit)
        with strategy.scope():
            scaling = precision == "mixed_float16"
            self.learners = {name: Learner(player, scaling) for name, player in stage.players.items()}
            self.number = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.averages = Averages(self.learners)
        # One trace serves all slices of a batch.
        self._compiled_gradients = {
            name: tf.function(self._gradients_of(name), autograph=False, jit_compile=xla or None)
            for name in self.learners
        }

    @property
    def state(self) -> tf.train.Checkpoint:
        """What a checkpoint saves."""
        players = {name: learner.state for name, learner in self.learners.items()}
        return tf.train.Checkpoint(players=tf.train.Checkpoint(**players), number=self.number)

    @property
    def variables(self):
        """The trainable variables of all players."""
        return [variable for learner in self.learners.values() for variable in learner.variables]

    @property
    def skipped(self) -> int:
        """Most moves that a player has just skipped in a row, as its gradients were not finite."""
        return max(int(learner.optimizer.skipped.numpy()) for learner in self.learners.values())

    @property
    def skipped_moves(self) -> int:
        """Moves skipped since the start of the stage."""
        step, skipped = int(self.number.numpy()), 0
        for name, learner in self.learners.items():
            skipped += step * self.stage.moves.count(name) - int(learner.optimizer.updates.numpy())
        return skipped

    @contextlib.contextmanager
    def averages_in_place(self):
        """Within the block, networks hold the averages of their weights."""
        with contextlib.ExitStack() as stack:
            for learner in self.learners.values():
                stack.enter_context(learner.optimizer.averages_in_place())
            yield

    def copy_averages(self):
        """Overwrites the networks' weights with their averages."""
        for learner in self.learners.values():
            learner.optimizer.copy_averages()

    @tf.function(autograph=False)
    def __call__(self, *batches):
        """Takes one step; returns the means of the losses, name -> float32 scalar.

        With several players, a name begins with the player's: "generator/loss". If a player moves
        several times, it is the mean over its moves.
        """
        self.number.assign_add(1)
        found = {}
        for name, batch in zip(self.stage.moves, batches, strict=True):
            for key, value in self._move(name, batch).items():
                found.setdefault(key if len(self.learners) == 1 else f"{name}/{key}", []).append(value)
        return {name: tf.add_n(values) / len(values) for name, values in found.items()}

    def _move(self, name, batch):
        """One update of one player; means over the global batch."""
        names = []

        def on_replica(batch):
            means, gradients = self._accumulated_gradients(name, batch)
            names[:] = means
            return tf.stack(
                list(means.values())
            ), gradients  # one tensor, as each sum over workers takes time

        means, gradients = self.strategy.run(on_replica, args=(batch,))
        with self.strategy.scope():
            norm = self.learners[name].optimizer.apply(gradients)
        means = self.strategy.reduce(tf.distribute.ReduceOp.SUM, means, axis=None)
        found = dict(zip(names, tf.unstack(means), strict=True))
        if len(self.learners) > 1:  # of two players, one's gradients say how the other does
            found["gradient norm"] = norm
        return found

    def _accumulated_gradients(self, name, batch):
        """Losses and gradients of a replica's batch, accumulated over its pieces."""
        if self.accumulate == 1:
            return self._divided_gradients(name, batch)
        total = None
        for piece in sliced(batch, self.accumulate, self.stage.unit):
            before = [] if total is None else tf.nest.flatten(total)
            with tf.control_dependencies(before):  # one piece in memory at a time
                piece = tf.nest.map_structure(tf.identity, piece)
            result = self._divided_gradients(name, piece)
            total = result if total is None else tf.nest.map_structure(tf.add, total, result)
        return total

    def _divided_gradients(self, name, batch):
        """Losses and gradients of a batch, divided among the CPU cores."""
        number = 1
        if self.stage.divides(name):
            number = slices_on_cores(self.stage.batch_size // self.accumulate, self.strategy, self.stage.unit)
        if number == self.accumulate == 1 and not self.xla:
            return self._gradients_of(name)(batch)
        results = [self._compiled_gradients[name](part) for part in sliced(batch, number, self.stage.unit)]
        return tf.nest.map_structure(lambda *values: tf.add_n(values), *results)

    def _gradients_of(self, name):
        """A player's forward and backward pass, as a function of a batch.

        It returns sums over the batch, each divided by the size of the global batch.
        """
        learner, batch_size = self.learners[name], self.stage.batch_size

        def gradients_of(batch):
            with fusing(), rematerialising(learner.variables, self.remat):
                with tf.GradientTape() as tape:
                    losses = self.stage.losses(batch, name, self.averages)  # name -> (examples,)
                    means = {key: tf.reduce_sum(value) / batch_size for key, value in losses.items()}
                    objective = learner.optimizer.scaled(means["loss"])
                gradients = tape.gradient(objective, learner.variables)
            for variable, gradient in zip(learner.variables, gradients, strict=True):
                if gradient is None:
                    raise ValueError(f"the loss of {self.stage.name} does not depend on {variable.path}")
            return means, learner.optimizer.flat(gradients)

        return gradients_of

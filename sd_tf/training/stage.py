"""What a stage of training is: networks that learn, batches, a loss, and pictures that show what was learned.

The `Trainer` knows no more of a stage than this. Everything random in a batch (captions, noise, timesteps) is
drawn with the batch, each example's by its own index. So batches are a pure function of (seed, step), the
losses are a pure function of the batch, and a resumed run goes on as if it had never stopped.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sd_tf.training.options import OptimizerConfig, StageConfig


class Player(NamedTuple):
    """A network that learns, and how its weights are updated."""

    network: Any  # a built keras.Model
    optimizer: OptimizerConfig


class Stage:
    """One or several players, and what they learn from.

    A subclass sets the attributes and overrides `batches` and `losses`.

    Attributes:
        name: of the stage, in logs and as the name of its folder of checkpoints.
        batch_size: examples in a batch, of all replicas together.
        players: name -> `Player`. A GAN has two; most stages have one.
        order: (player's name, moves) in turn, of which a step is made; by default each player moves once.
            Every move has a batch of its own.
        divisible: whether the losses of parts of a batch are the whole batch's.
        seconds_spent: on preparing the stage; they count as part of its budget.
    """

    name: str
    batch_size: int
    players: dict[str, Player]
    divisible = True
    seconds_spent = 0.0

    @property
    def order(self) -> tuple[tuple[str, int], ...]:
        """Who moves when."""
        return tuple((name, 1) for name in self.players)

    @property
    def moves(self) -> tuple[str, ...]:
        """The player of each move in a step."""
        return tuple(name for name, times in self.order for _ in range(times))

    def batches(self, first: int, part: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """Endless batches, name -> (batch, ...), one for each move.

        Args:
            first: number of the first batch: with m moves in a step, step k has the batches k m to k m + m -
            1.
            part: (i, n), the ith of n equal parts of each batch.
        """
        raise NotImplementedError

    def losses(self, batch, player: str, averages) -> dict[str, tf.Tensor]:
        """What a player is to make small, for each example.

        Args:
            batch: of `batches`.
            player: whose move it is. Gradients are taken by the weights of its network alone.
            averages: `averages[name](*arguments)` calls a player's network with the moving average of its
                weights, as a distillation's target does.

        Returns:
            Name -> float32 (batch,). "loss" is learned from, and the means of all are logged. A pair
            "name/sum" and "name/count", see `mean_of_some`, is logged as a quotient.
        """
        raise NotImplementedError

    def preview(self):
        """Pictures of what has been learned, uint8 (n, height, width, 3), and how many of them make a row;
        or None."""
        return None

    def save_snapshot(self, folder, dtype: str):
        """Writes the network that `--snapshots` keeps into a folder."""
        raise NotImplementedError

    @property
    def keeps_snapshots(self) -> bool:
        """Whether the stage has a network for `--snapshots`."""
        return type(self).save_snapshot is not Stage.save_snapshot


class SinglePlayerStage(Stage):
    """A stage with one network: a subclass overrides `loss(batch)`.

    Args:
        config: a `StageConfig`.
        network: a built Keras model.
    """

    def __init__(self, config: StageConfig, network):
        self.config, self.network = config, network

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def players(self) -> dict[str, Player]:
        return {self.name: Player(self.network, self.config)}

    def losses(self, batch, player, averages):
        return self.loss(batch)

    def loss(self, batch) -> dict[str, tf.Tensor]:
        """See `Stage.losses`."""
        raise NotImplementedError


def mean_of_some(name, values, chosen):
    """The entries of a stage's losses from which the log makes the mean of the chosen examples.

    Args:
        name: of the mean.
        values: float32, (examples,).
        chosen: bool, (examples,); the values of the others may be anything, NaN too.

    Returns:
        Name -> float32 (examples,), for two names: "/sum" has the chosen values, "/count" has ones for them,
        and both have zeros for the others.
    """
    return {f"{name}/sum": tf.where(chosen, values, 0.0), f"{name}/count": tf.cast(chosen, tf.float32)}


def gathered_rows(x):
    """The rows of the global batch, from every replica of every worker, where a loss needs them all.

    Each replica adds its rows to zeros: TensorFlow's own `all_gather` fails in workers that have one device.
    """
    context = tf.distribute.get_replica_context()
    number = context.num_replicas_in_sync
    if number == 1:
        return x
    own = tf.one_hot(context.replica_id_in_sync_group, number, dtype=x.dtype)
    places = tf.reshape(own, [number] + [1] * len(x.shape)) * x[tf.newaxis]
    rows = tf.reshape(places, [-1, *x.shape[1:]])
    return context.all_reduce(tf.distribute.ReduceOp.SUM, rows)


def own_rows(x):
    """This replica's rows of a global batch."""
    context = tf.distribute.get_replica_context()
    rows = tf.shape(x)[0] // context.num_replicas_in_sync
    return x[context.replica_id_in_sync_group * rows :][:rows]

"""A stage of training: networks, batches, losses, and previews.

The `Trainer` knows nothing else of a stage. Everything random in a batch (captions, noise, timesteps) is
drawn with the batch, from each example's own index. So batches are a pure function of (seed, step), losses
are a pure function of the batch, and a resumed run continues as if it had never stopped.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sd_tf.training.options import OptimizerConfig, StageConfig


class Player(NamedTuple):
    """A network that is trained, and its optimizer's configuration."""

    network: Any  # a built keras.Model
    optimizer: OptimizerConfig


class Stage:
    """One or several players, their batches and their losses.

    A subclass sets the attributes and overrides `batches` and `losses`.

    Attributes:
        name: name of the stage in logs and of its checkpoint folder.
        batch_size: examples in a batch, over all replicas.
        players: name -> `Player`. A GAN has two; most stages have one.
        order: pairs (player's name, number of moves), which make up a step. A move is one update of one
            player, on a batch of its own. By default each player moves once.
        divisible: whether an example's loss is independent of the others, so that a batch can be divided.
        unit: examples that stay together where a batch is divided, such as those that a layer compares.
        state: name -> `tf.Variable` that a checkpoint saves, besides the players.
        seconds_spent: seconds that preparing the stage took; they count towards its budget.
    """

    name: str
    batch_size: int
    players: dict[str, Player]
    divisible = True
    unit = 1
    seconds_spent = 0.0

    @property
    def state(self) -> dict[str, tf.Variable]:
        """See `Stage`."""
        return {}

    @property
    def order(self) -> tuple[tuple[str, int], ...]:
        """See `Stage`."""
        return tuple((name, 1) for name in self.players)

    @property
    def moves(self) -> tuple[str, ...]:
        """The player of each move in a step."""
        return tuple(name for name, times in self.order for _ in range(times))

    def divides(self, player: str) -> bool:
        """Whether that player's losses are `divisible`, which the others' may not be."""
        return self.divisible

    def batches(self, first: int, part: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
        """Endless batches, name -> (batch, ...), one for each move.

        Args:
            first: number of the first batch: with m moves in a step, step k has batches k m ... k m + m - 1.
            part: (i, n): yield only the ith of n equal parts of each batch.
        """
        raise NotImplementedError

    def losses(self, batch, player: str, averages) -> dict[str, tf.Tensor]:
        """The losses of a player, for each example.

        Args:
            batch: an element of `batches`.
            player: name of the player to update. Gradients are taken with respect to its network only.
            averages: `averages[name](*arguments)` calls a player's network with the moving average of its
                weights, such as for a distillation target.

        Returns:
            Name -> float32 (batch,). "loss" is minimised; the means of all are logged. A pair "name/sum" and
            "name/count", see `mean_of_some`, is logged as a quotient.
        """
        raise NotImplementedError

    def reason_to_stop(self, means: dict) -> tuple[str, str] | None:
        """Why training is of no more use, such as that one of two players has won, and the way out.

        Args:
            means: of the step's losses, as they are logged. It is called in every worker, after each step.
        """
        return None

    def preview(self):
        """Pictures, uint8 (n, height, width, 3), and how many of them make a row; None for no preview."""
        return None

    def save_snapshot(self, folder, dtype: str):
        """Writes the network for `--snapshots` to a folder, with weights of that dtype."""
        raise NotImplementedError

    @property
    def keeps_snapshots(self) -> bool:
        """Whether the stage implements `save_snapshot`."""
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
    """Loss entries that the log turns into the mean over the chosen examples.

    Args:
        name: name of the mean.
        values: float32 (examples,).
        chosen: bool (examples,); the other values are ignored, even NaN.

    Returns:
        Name -> float32 (examples,): "<name>/sum" holds the chosen values and "<name>/count" ones; both are
        zero elsewhere.
    """
    return {f"{name}/sum": tf.where(chosen, values, 0.0), f"{name}/count": tf.cast(chosen, tf.float32)}


def gathered_rows(x):
    """The rows of the global batch, from every replica of every worker, for losses that need them all.

    It sums over replicas, with zeros for the others' rows: TensorFlow's `all_gather` fails in workers with
    one device.
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

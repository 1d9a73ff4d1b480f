"""Networks that are read from their files, or made with random weights, when they are first used."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sd_tf.seeding import seeded


class Unread(NamedTuple):
    """A network that is read when it is first used.

    Attributes:
        config: its configuration.
        read: function without arguments that returns the network.
    """

    config: Any
    read: Callable


def random_network(kind: type, config: Any, dtype, seed: int) -> Unread:
    """A network with random weights, to be made when it is first used.

    Args:
        kind: the network's class, called as `kind(config, dtype=dtype)`.
        config: its configuration.
        dtype: a Keras precision policy; None for Keras' global one.
        seed: of the weights.
    """

    def make():
        with seeded(seed):
            network = kind(config, dtype=dtype)
            network.build()
        return network

    return Unread(config, make)

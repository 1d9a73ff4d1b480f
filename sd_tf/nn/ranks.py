"""Rank 2 for pictures, rank 3 for volumes: the number of spatial axes. Channels are last in both."""

from sd_tf.errors import InputError, shown

AXES = {2: "(batch, height, width, channels)", 3: "(batch, depth, height, width, channels)"}


def check_rank(rank) -> int:
    """`rank` itself.

    Raises:
        InputError: it is neither the integer 2 nor 3.
    """
    if type(rank) is not int or rank not in AXES:
        raise InputError(
            f"rank is {shown(rank)}: give 2 for pictures {AXES[2]} or 3 for volumes {AXES[3]} as an integer"
        )
    return rank


def check_axes(layer, shape):
    """That the input of a layer has the axes of its `rank`.

    Raises:
        InputError: it has more or fewer.
    """
    if len(shape) != layer.rank + 2:
        other = next((f", or make the layer with rank={rank}" for rank in AXES if rank + 2 == len(shape)), "")
        raise InputError(
            f"{layer.name} has rank {layer.rank} and its input the shape {tuple(shape)}: "
            f"pass {AXES[layer.rank]}{other}"
        )

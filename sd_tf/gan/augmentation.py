"""Differentiable augmentation of what a discriminator sees (DiffAugment, Zhao et al. 2020).

Real and drawn pictures are moved, mirrored and cut into at random, so that few pictures are not learned by
heart. Colours stay: they are what captions speak of.
"""

from keras import ops

NUMBERS = 6  # uniform ones that an example takes


def augmented(pictures, numbers, how):
    """The pictures, changed; they can be differentiated twice.

    Args:
        pictures: float (batch, side, side, channels), or a tuple of such of several sizes, which are changed
            alike.
        numbers: uniform in [0, 1), float (batch, NUMBERS).
        how: an `Augmentation`.
    """
    if isinstance(pictures, (list, tuple)):
        return tuple(augmented(each, numbers, how) for each in pictures)
    side, dtype = pictures.shape[1], pictures.dtype
    # Pixels that each picture is moved by.
    rows, columns = ((2.0 * numbers[:, axis] - 1.0) * how.translation * side for axis in (0, 1))
    mirrored = numbers[:, 2] < 0.5 if how.flip else ops.zeros_like(numbers[:, 2], dtype="bool")
    down = resampling_matrices(side, rows, ops.zeros_like(mirrored))
    across = resampling_matrices(side, columns, mirrored)
    moved = ops.einsum("byi,bijc->byjc", ops.cast(down, dtype), pictures)
    moved = ops.einsum("bxj,byjc->byxc", ops.cast(across, dtype), moved)
    return moved * ops.cast(_kept(side, numbers[:, 3:5], how.cutout), dtype) if how.cutout else moved


def _kept(side, centres, cutout):
    """(batch, side, side, 1): 0 within each example's square and 1 around it; its edges are soft."""
    places = (ops.arange(side, dtype="float32") + 0.5) / side
    distances = ops.abs(places - centres[:, :, None])  # (batch, 2, side)
    inside = ops.clip((cutout / 2 - distances) * side + 0.5, 0.0, 1.0)
    return 1.0 - (inside[:, 0, :, None] * inside[:, 1, None, :])[..., None]


def resampling_matrices(side, shifts, mirrored):
    """Matrices that move and mirror the pixels of an axis, by linear interpolation.

    Args:
        side: pixels.
        shifts: float (batch,), pixels that each example is moved by.
        mirrored: bool (batch,), whether it is mirrored first.

    Returns:
        float32 (batch, side, side). A row has the weights of the pixels that make one of the result. Behind
        an edge is the pixel at it.
    """
    places = ops.arange(side, dtype="float32")
    sources = places - ops.cast(shifts, "float32")[:, None]  # (batch, side)
    sources = ops.clip(sources, 0.0, side - 1.0)
    sources = ops.where(mirrored[:, None], side - 1.0 - sources, sources)
    return ops.relu(1.0 - ops.abs(sources[:, :, None] - places))

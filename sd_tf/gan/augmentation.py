"""Differentiable augmentation of what a discriminator sees (DiffAugment, Zhao et al. 2020).

Real and drawn pictures are moved, mirrored and cut into at random, so that few pictures are not learned by
heart. Colours stay: they are what captions speak of.
"""

from typing import NamedTuple

import tensorflow as tf

NUMBERS = 6  # uniform ones that an example takes


class Augmentation(NamedTuple):
    """How much pictures are changed.

    Attributes:
        translation: the longest way along each axis, as a share of the side.
        cutout: side of the square that is blotted out, as a share of the side; 0 for none.
        flip: whether half of the pictures are mirrored. Not for pictures that point one way.
    """

    translation: float = 0.125
    cutout: float = 0.0
    flip: bool = False

    def __call__(self, pictures, numbers):
        """The pictures, changed; they can be differentiated twice.

        Args:
            pictures: float (batch, side, side, channels), or a tuple of such of several sizes, which are
                changed alike.
            numbers: uniform in [0, 1), float (batch, NUMBERS).
        """
        if isinstance(pictures, (list, tuple)):
            return tuple(self(each, numbers) for each in pictures)
        side = pictures.shape[1]
        rows, columns = (
            (2.0 * numbers[:, axis] - 1.0) * self.translation * side for axis in (0, 1)
        )  # pixels that each picture is moved by
        mirrored = numbers[:, 2] < 0.5 if self.flip else tf.zeros_like(numbers[:, 2], tf.bool)
        down = resampling_matrices(side, rows, tf.zeros_like(mirrored))
        across = resampling_matrices(side, columns, mirrored)
        dtype = pictures.dtype
        moved = tf.einsum("byi,bijc->byjc", tf.cast(down, dtype), pictures)
        moved = tf.einsum("bxj,byjc->byxc", tf.cast(across, dtype), moved)
        return moved * tf.cast(self._kept(side, numbers[:, 3:5]), dtype) if self.cutout else moved

    def _kept(self, side, centres):
        """(batch, side, side, 1): 0 within each example's square and 1 around it; its edges are soft."""
        places = (tf.range(side, dtype=tf.float32) + 0.5) / side
        distances = tf.abs(places - centres[:, :, tf.newaxis])  # (batch, 2, side)
        inside = tf.clip_by_value((self.cutout / 2 - distances) * side + 0.5, 0.0, 1.0)
        return 1.0 - (inside[:, 0, :, tf.newaxis] * inside[:, 1, tf.newaxis, :])[..., tf.newaxis]


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
    places = tf.range(side, dtype=tf.float32)
    sources = places - tf.cast(shifts, tf.float32)[:, tf.newaxis]  # (batch, side)
    sources = tf.clip_by_value(sources, 0.0, side - 1.0)
    sources = tf.where(mirrored[:, tf.newaxis], side - 1.0 - sources, sources)
    return tf.nn.relu(1.0 - tf.abs(sources[:, :, tf.newaxis] - places))

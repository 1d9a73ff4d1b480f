"""The few array operations that sampling needs, for numpy arrays and for tensors of Keras' backend.

Latents are numpy arrays while pictures are drawn. They are small, and an engine other than TensorFlow
then needs neither TensorFlow nor Keras.
"""

from types import SimpleNamespace

import numpy as np

NUMPY_OPERATIONS = SimpleNamespace(  # under the names of `keras.ops`
    abs=np.abs,
    broadcast_to=np.broadcast_to,
    cast=np.asarray,
    clip=np.clip,
    concatenate=np.concatenate,
    exp=np.exp,
    quantile=np.quantile,
    repeat=np.repeat,
    reshape=np.reshape,
    shape=np.shape,
    split=np.split,
    std=np.std,
    take=np.take,
    where=np.where,
)


def operations(x):
    """The operations for `x`: numpy's for a numpy array, otherwise `keras.ops`."""
    if isinstance(x, np.ndarray):
        return NUMPY_OPERATIONS
    import keras

    return keras.ops

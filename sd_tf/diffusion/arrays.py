"""The few operations of drawing's mathematics, on numpy arrays or on the tensors of Keras' backend.

Latents are numpy arrays while pictures are drawn: they are small, and an engine other than TensorFlow
then needs neither TensorFlow nor Keras.
"""

from types import SimpleNamespace

import numpy as np

OF_NUMPY = SimpleNamespace(  # by the names of `keras.ops`
    broadcast_to=np.broadcast_to,
    cast=np.asarray,
    concatenate=np.concatenate,
    shape=np.shape,
    split=np.split,
    std=np.std,
)


def operations(x):
    """Those for `x`: numpy's for a numpy array, otherwise `keras.ops`."""
    if isinstance(x, np.ndarray):
        return OF_NUMPY
    import keras

    return keras.ops

"""In which float type statistics, softmax and norms are computed."""

import keras
from keras import ops


def at_least_float32(x):
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))

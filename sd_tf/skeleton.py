"""A model's shapes without its memory, and its values put in one variable at a time."""

import contextlib

NO_VALUE = object()


@contextlib.contextmanager
def skeleton():
    """Models built inside have variables with paths and shapes, and no values until `fill` gives them some.

    A stranger's configuration may ask for more memory than there is; so it is held against its file
    before anything is allocated. Nor are random values drawn, which the file's would only replace.
    Only the TensorFlow backend can: elsewhere models are built as usual.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    with tf.variable_creator_scope(lambda next_creator, **kwargs: NO_VALUE):
        yield


def fill(variable, values):
    """Gives a variable values of its shape and any float dtype, whether or not it has some."""
    from keras import ops

    if variable.value is NO_VALUE:
        variable._initialize(ops.convert_to_tensor(values, dtype=variable.dtype))
    else:
        variable.assign(values)

"""A model's shapes without its memory."""

import contextlib

import keras


@contextlib.contextmanager
def skeleton():
    """Models built inside have variables with paths and shapes, and no values.

    A stranger's configuration may ask for more memory than there is; so it is held against its file
    before anything is allocated. Only the TensorFlow backend can: elsewhere models are built as usual.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    with tf.Graph().as_default():
        yield

"""One way to compile a function, whatever backend Keras runs on."""

import keras


def compiled(function):
    """`function` of tensors, compiled where the backend can do so without knowing the batch's size.

    TensorFlow graphs are several times as fast as eager layers on small models and keep one graph
    for all batch sizes. On other backends the function is returned as it is.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False, reduce_retracing=True)

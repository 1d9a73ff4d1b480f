"""One way to compile a function, whatever backend Keras runs on."""

import keras


def compiled(function):
    """`function` of tensors, compiled where the backend can do so without knowing the batch's size.

    TensorFlow graphs are several times as fast as eager layers on small models. There is one for all
    batch sizes and each shape of an example, which networks need to know. On other backends the
    function is returned as it is.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    graphs = {}

    def call(*arrays):
        shapes = tuple(None if array is None else tuple(array.shape[1:]) for array in arrays)
        if shapes not in graphs:
            graphs[shapes] = tf.function(function, autograph=False, reduce_retracing=True)
        return graphs[shapes](*arrays)

    return call

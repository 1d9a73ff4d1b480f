"""Functions as graphs, whatever backend Keras runs on, and how a graph shares out the cores."""

import os


def compiled(function):
    """`function` of tensors, compiled where the backend can do so without knowing the batch's size.

    TensorFlow graphs are several times as fast as eager layers on small models. There is one for all
    batch sizes and each shape of an example, which networks need to know. On other backends the
    function is returned as it is.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    graphs = {}

    def call(*arrays):
        number = parts_of(len(arrays[0]))
        key = (number, *(None if array is None else tuple(array.shape[1:]) for array in arrays))
        if key not in graphs:
            divided = function if number == 1 else _in_parts(function, number)
            graphs[key] = tf.function(divided, autograph=False, reduce_retracing=True)
        return graphs[key](*arrays)

    return call


def one_core_for_each_operation():
    """From here on, operations run on one core each, and `compiled` functions and training steps divide
    their batches among the cores: for work whose batches have many examples each.

    Two halves of a batch on a core each are faster than two cores on each operation in turn: small
    operations are not worth dividing, and half the numbers stay in the caches. It is for the whole
    process, and too late once TensorFlow has started, or where it uses another device: then nothing
    is changed.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(max(2, cores()))
    except RuntimeError:  # started
        return


def parts_of(num_examples, replicas=1):
    """Into how many parts a batch is divided in each of `replicas` at work: 1 where operations are."""
    import tensorflow as tf

    alone = tf.config.threading.get_intra_op_parallelism_threads() == 1
    return min(cores() // replicas or 1, num_examples) if alone else 1


def parts(tensors, number):
    """A structure of tensors -> that of each part, of as equal sizes as can be."""
    import tensorflow as tf

    def part(tensor, i):
        size = tensor.shape[0] if tensor.shape[0] is not None else tf.shape(tensor)[0]
        return tensor[size * i // number : size * (i + 1) // number]

    return [tf.nest.map_structure(lambda tensor, i=i: part(tensor, i), tensors) for i in range(number)]


def _in_parts(function, number):
    import tensorflow as tf

    def call(*tensors):
        results = [function(*part) for part in parts(tensors, number)]
        return tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *results)

    return call


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

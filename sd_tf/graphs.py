"""Compiles functions to graphs, frees those that are done with, and divides batches among CPU cores."""

import os
import threading
import types
import weakref

EXAMPLES_FOR_A_CORE = 4  # with fewer, dividing a batch costs more memory than it saves time
_freeing = threading.Lock()


def compiled(function):
    """`function` compiled to TensorFlow graphs, for any batch size.

    For small models graphs are several times as fast as eager execution. One graph is traced for each shape
    of an example, which networks need to know; it serves all batch sizes. On other Keras backends the
    function is returned unchanged.

    Args:
        function: takes arrays whose first axis is the batch, or None, and returns tensors with the same
            first axis. Examples must be independent of each other.

    Returns:
        A function of the same arguments.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    graphs = {}

    def call(*arrays):
        number = batch_slices(len(arrays[0]))
        key = (number, *(None if array is None else tuple(array.shape[1:]) for array in arrays))
        if key not in graphs:
            divided = function if number == 1 else _in_slices(function, number)
            graphs[key] = tf.function(divided, autograph=False, reduce_retracing=True)
        graph = graphs[key]
        traced = graph.experimental_get_tracing_count()
        try:
            return graph(*arrays)
        finally:
            if graph.experimental_get_tracing_count() != traced:
                free_with_their_graphs()

    return call


def free_with_their_graphs():
    """Gives each gradient that `tf.custom_gradient` has registered to the graph that it belongs to.

    TensorFlow's registry keeps such gradients until the process ends. Each of them holds the tensors of its
    call, and these the whole graph: every model that was ever trained or drawn with would stay in memory.
    After this, the registry finds a gradient for as long as its graph lives.
    """
    from tensorflow.python.framework import ops

    registered = getattr(getattr(ops, "gradient_registry", None), "_registry", {})  # no public way leads here
    with _freeing:
        for name, entry in list(registered.items()):
            gradient = entry.get("type")
            if not name.startswith("CustomGradient-") or not isinstance(gradient, types.FunctionType):
                continue
            graph = _graph_of(gradient)
            if graph is not None:
                graph.kept_gradients = [*getattr(graph, "kept_gradients", ()), gradient]
                entry["type"] = _WhileItLives(gradient)


class _WhileItLives:
    """Calls a function that somebody else keeps."""

    def __init__(self, function):
        self._function = weakref.ref(function)

    def __call__(self, *arguments):
        function = self._function()
        if function is None:
            raise LookupError("the graph of this gradient is gone: keep the function that it was traced in")
        return function(*arguments)


def _graph_of(function):
    """The graph of the tensors that a function and the functions within it close over; None without any."""
    todo, seen = [function], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, types.FunctionType):
            todo += [cell.cell_contents for cell in each.__closure__ or ()]
        elif isinstance(each, (list, tuple)):
            todo += each
        elif isinstance(each, dict):
            todo += each.values()
        elif type(each).__name__ == "SymbolicTensor":
            return each.graph
    return None


def one_core_for_each_operation() -> bool:
    """Makes each TensorFlow operation use one core, and batches be divided among the cores instead.

    `compiled` functions and training steps then run slices of a batch side by side. That is faster than
    operations that each use all cores: small operations are not worth dividing, and a slice fits the caches
    better. It pays for batches of many examples.

    The setting holds for the whole process. TensorFlow accepts it only before it first runs, and nothing is
    set if there is a GPU or TPU.

    Returns:
        Whether operations use one core each. If not, batches are not divided.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"):
        return False
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(max(2, cores()))
    except RuntimeError:  # TensorFlow has run already
        pass
    return _operations_use_one_core()


def pays_to_divide(num_examples: int) -> bool:
    """Whether a batch has enough examples for `one_core_for_each_operation`; one core would idle with one."""
    return num_examples >= EXAMPLES_FOR_A_CORE * cores()


def _operations_use_one_core():
    import tensorflow as tf

    return tf.config.threading.get_intra_op_parallelism_threads() == 1


def batch_slices(num_examples, replicas=1, unit=1) -> int:
    """Slices of a replica's batch; 1 if TensorFlow parallelises inside operations.

    Args:
        num_examples: examples in the replica's batch, the most slices that it can have.
        replicas: replicas that share this process's cores.
        unit: examples that stay together; the batch is a multiple.
    """
    if not _operations_use_one_core():
        return 1
    return min(cores() // replicas or 1, num_examples // unit)


def sliced(tensors, number, unit=1):
    """Divides a batch into slices of nearly equal size.

    Args:
        tensors: a structure of tensors whose first axis is the batch; None stays.
        number: how many slices.
        unit: examples that stay together; the batch is a multiple.

    Returns:
        A list of structures like `tensors`, in order.
    """
    import tensorflow as tf

    def part(tensor, i):
        if tensor is None:
            return None
        size = tensor.shape[0] if tensor.shape[0] is not None else tf.shape(tensor)[0]
        units = size // unit
        return tensor[unit * (units * i // number) : unit * (units * (i + 1) // number)]

    return [tf.nest.map_structure(lambda tensor, i=i: part(tensor, i), tensors) for i in range(number)]


def _in_slices(function, number):
    """`function` applied to slices of its arguments, and the results concatenated."""
    import tensorflow as tf

    def call(*tensors):
        results = [function(*each) for each in sliced(tensors, number)]
        return tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *results)

    return call


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

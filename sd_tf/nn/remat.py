"""Activations computed again in the backward pass instead of kept: less memory, more arithmetic.

A training step keeps what every layer computed until its gradient has been taken. A function that is
`rematerialised` keeps nothing but its arguments, and is computed once more when the gradient of its
result is there (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; diffusers calls it
gradient checkpointing). The results are the same, and the gradients are to rounding.

Only where `rematerialising()` says so, that is in the training step. Elsewhere, and on other backends,
a function is called as it is.
"""

import contextlib

import keras

from sd_tf.nn.fused import fused_now, fusing

_learned = None  # ids of the variables of a `rematerialising` block; None outside of one


@contextlib.contextmanager
def rematerialising(variables, wanted=True):
    """Functions that are traced within the block, into a graph, are computed again in the backward pass.

    Args:
        variables: Keras variables whose gradients will be taken. TensorFlow knows nothing of those that
            Keras has frozen, and would compute theirs as well.
        wanted: whether they are.
    """
    global _learned
    before = _learned
    _learned = _ids(variables) if wanted and keras.backend.backend() == "tensorflow" else None
    try:
        yield
    finally:
        _learned = before


def _ids(variables):
    """Of TensorFlow's variables, and of each replica's part of them."""
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().experimental_local_results
    return {id(part) for variable in variables for part in (variable.value, *replicas(variable.value))}


def rematerialised(function, *tensors):
    """`function(*tensors)`: of float tensors and any variables, one float tensor, the same at each call."""
    if _learned is None:
        return function(*tensors)
    import tensorflow as tf

    is_learned = _learned.__contains__
    as_before = fusing if fused_now() else contextlib.nullcontext

    def with_gradient(*tensors):
        def gradient(upstream, variables=()):
            learned = [variable for variable in variables if is_learned(id(variable))]
            # Nothing else in the second computation waits for the backward pass to come this far: TensorFlow
            # would take it for the first one, or begin it at once, and keep what it computes until now.
            with as_before(), tf.control_dependencies([upstream]):
                copies = [tf.identity(tensor) for tensor in tensors]
                with tf.GradientTape() as tape:
                    tape.watch(copies)
                    result = function(*copies)
                found = tape.gradient(result, [*copies, *learned], upstream)
            of_tensors, of_learned = found[: len(copies)], found[len(copies) :]
            # And nothing else would wait for the variables' gradients, each of which keeps activations.
            with tf.control_dependencies(of_learned):
                of_tensors = [tf.identity(gradient) for gradient in of_tensors]
            if not variables:
                return of_tensors
            gradients = {id(variable): each for variable, each in zip(learned, of_learned, strict=True)}
            return of_tensors, [gradients.get(id(variable)) for variable in variables]

        return function(*tensors), gradient

    return tf.custom_gradient(with_gradient)(*tensors)

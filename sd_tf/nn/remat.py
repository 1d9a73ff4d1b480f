"""Rematerialisation: activations computed again in the backward pass, for less memory and more arithmetic.

A training step keeps what every layer computed until its gradient has been taken. A function that is
`rematerialised` keeps only its arguments, and runs once more when the gradient of its result arrives
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; diffusers calls it gradient
checkpointing). Results are the same, and gradients are equal up to rounding.

It happens only inside a `rematerialising()` block, that is in the training step. Elsewhere, and on other
backends, the function is called as usual.
"""

import contextlib
import contextvars

import keras

from sd_tf.nn.fused import fusing, is_fusing

# Ids of the variables whose gradients are taken, None outside of a block. Each thread has its own value.
_trained_ids = contextvars.ContextVar("trained_ids", default=None)


@contextlib.contextmanager
def rematerialising(variables, enabled=True):
    """Functions that this thread traces into a graph within the block are computed again when gradients are.

    Args:
        variables: Keras variables whose gradients will be taken. TensorFlow does not know which variables
            Keras has frozen, and would compute their gradients as well.
        enabled: False turns it off within the block.
    """
    on = enabled and keras.backend.backend() == "tensorflow"
    token = _trained_ids.set(_ids(variables) if on else None)
    try:
        yield
    finally:
        _trained_ids.reset(token)


def _ids(variables):
    """Ids of the TensorFlow variables, and of each replica's copy of them."""
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().experimental_local_results
    return {id(copy) for variable in variables for copy in (variable.value, *replicas(variable.value))}


def rematerialised(function, *tensors):
    """`function(*tensors)`, computed again in the backward pass inside a `rematerialising()` block.

    Args:
        function: takes float tensors, may use any variables, and returns one float tensor. It must give the
            same result when it is called again.
        *tensors: its arguments.
    """
    trained_ids = _trained_ids.get()
    if trained_ids is None:
        return function(*tensors)
    import tensorflow as tf

    fused_before = is_fusing()

    def with_gradient(*tensors):
        def gradient(upstream, variables=()):
            trained = [variable for variable in variables if id(variable) in trained_ids]
            # Without this dependency TensorFlow would merge the second computation with the first, or
            # start it at once, and keep its activations until the backward pass arrives here.
            with fusing(fused_before), tf.control_dependencies([upstream]):
                copies = [tf.identity(tensor) for tensor in tensors]
                with tf.GradientTape() as tape:
                    tape.watch(copies)
                    result = function(*copies)
                found = tape.gradient(result, [*copies, *trained], upstream)
            of_tensors, of_trained = found[: len(copies)], found[len(copies) :]
            # Each variable's gradient needs activations. With this dependency all are taken at once, so
            # that the activations can be freed.
            with tf.control_dependencies([each for each in of_trained if each is not None]):
                of_tensors = [each if each is None else tf.identity(each) for each in of_tensors]
            if not variables:
                return of_tensors
            gradients = {id(variable): each for variable, each in zip(trained, of_trained, strict=True)}
            return of_tensors, [gradients.get(id(variable)) for variable in variables]

        return function(*tensors), gradient

    return tf.custom_gradient(with_gradient)(*tensors)

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

_rematerialising = False


@contextlib.contextmanager
def rematerialising(wanted=True):
    """Functions that are traced within the block, into a graph, are computed again in the backward pass."""
    global _rematerialising
    before, _rematerialising = _rematerialising, wanted and keras.backend.backend() == "tensorflow"
    try:
        yield
    finally:
        _rematerialising = before


def rematerialised(function, *tensors):
    """`function(*tensors)`: of float tensors and any variables, one float tensor, the same at each call."""
    if not _rematerialising:
        return function(*tensors)
    import tensorflow as tf

    as_before = fusing if fused_now() else contextlib.nullcontext

    def with_gradient(*tensors):
        def gradient(upstream, variables=()):
            # Nothing else in the second computation waits for the backward pass to come this far: TensorFlow
            # would take it for the first one, or begin it at once, and keep what it computes until now.
            with as_before(), tf.control_dependencies([upstream]):
                copies = [tf.identity(tensor) for tensor in tensors]
                with tf.GradientTape() as tape:
                    tape.watch(copies)
                    result = function(*copies)
                found = tape.gradient(result, [*copies, *variables], upstream)
            of_tensors, of_variables = found[: len(copies)], found[len(copies) :]
            # And nothing else would wait for the variables' gradients, each of which keeps activations.
            with tf.control_dependencies(of_variables):
                of_tensors = [tf.identity(gradient) for gradient in of_tensors]
            return (of_tensors, of_variables) if variables else of_tensors

        return function(*tensors), gradient

    return tf.custom_gradient(with_gradient)(*tensors)

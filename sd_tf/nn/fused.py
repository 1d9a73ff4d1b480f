"""A layer's arithmetic in few passes over memory, for training on TensorFlow.

Outside matrix products and convolutions a training step is bound by memory, and by the number of
tensors that wait for the backward pass. A function that is `fused` is compiled by XLA, forward and
backward, keeps nothing but its arguments, and computes the rest again when the gradient asks for it.

Only where `fusing()` says so, that is in the training step, whose shapes never change: XLA compiles
anew for each shape. Elsewhere, and on other backends, a fused function is the plain one.
"""

import contextlib
import functools

import keras

_fusing = False


@contextlib.contextmanager
def fusing():
    """Functions traced within the block are fused."""
    global _fusing
    before, _fusing = _fusing, keras.backend.backend() == "tensorflow"
    try:
        yield
    finally:
        _fusing = before


def fused_now():
    """Whether functions traced here are fused."""
    return _fusing


def fused(function):
    """`function` of float tensors, and of numbers by keyword, elementwise but for reductions."""

    @functools.wraps(function)
    def call(*tensors, **numbers):
        if not _fusing:
            return function(*tensors, **numbers)
        return _islands(function)(numbers, *map(keras.ops.convert_to_tensor, tensors))

    return call


@functools.cache
def _islands(function):
    """`function` as two islands of XLA in a graph: `call(numbers, *tensors)`."""
    import tensorflow as tf

    def forward(tensors, numbers):
        return function(*tensors, **numbers)

    def backward(tensors, numbers, upstream):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(*tensors, **numbers)
        return tape.gradient(result, tensors, upstream)

    forward, backward = (tf.function(each, autograph=False, jit_compile=True) for each in (forward, backward))

    def call(numbers, *tensors):
        def with_gradient(*tensors):
            return forward(tensors, numbers), lambda upstream: backward(tensors, numbers, upstream)

        return differentiated(with_gradient)(*tensors)

    return call


def differentiated(function):
    """`function(*tensors) -> (result, gradient)`, as a function that gives the result alone."""
    import tensorflow as tf

    return tf.custom_gradient(function)

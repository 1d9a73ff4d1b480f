"""Fewer passes over memory for a layer's elementwise arithmetic, for training on TensorFlow.

Outside matrix products and convolutions a training step is bound by memory, and by the number of
tensors that are kept for the backward pass. A function that is `fused` is compiled by XLA, forward and
backward. It keeps only its arguments and computes everything else again in the backward pass.

Functions are fused only inside a `fusing()` block, that is in the training step, whose shapes never
change: XLA compiles again for each shape. Elsewhere, and on other backends, the plain function runs.
"""

import contextlib
import contextvars
import functools

import keras

_fusing = contextvars.ContextVar("fusing", default=False)  # each thread has its own value


@contextlib.contextmanager
def fusing(enabled=True):
    """Functions that this thread traces within the block are fused; on TensorFlow only.

    Args:
        enabled: False turns fusing off within the block.
    """
    token = _fusing.set(enabled and keras.backend.backend() == "tensorflow")
    try:
        yield
    finally:
        _fusing.reset(token)


def is_fusing():
    """Whether functions that are traced here are fused."""
    return _fusing.get()


def fused(function):
    """A decorator for functions that are compiled by XLA inside a `fusing()` block.

    Args:
        function: takes float tensors by position and Python numbers by keyword, and returns a tensor or a
            tuple of them. It should consist of elementwise operations and reductions.
    """

    @functools.wraps(function)
    def call(*tensors, **numbers):
        if not is_fusing():
            return function(*tensors, **numbers)
        return _compiled_by_xla(function)(numbers, *map(keras.ops.convert_to_tensor, tensors))

    return call


@functools.cache
def _compiled_by_xla(function):
    """`call(numbers, *tensors)`, whose forward and backward pass are each compiled by XLA."""
    import tensorflow as tf

    def forward(tensors, numbers):
        return function(*tensors, **numbers)

    def backward(tensors, numbers, upstream):  # a gradient for each of the results
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            results = tf.nest.flatten(function(*tensors, **numbers))
        return tape.gradient(results, tensors, upstream)

    forward, backward = (tf.function(each, autograph=False, jit_compile=True) for each in (forward, backward))

    def call(numbers, *tensors):
        def with_gradient(*tensors):
            return forward(tensors, numbers), lambda *upstream: backward(tensors, numbers, upstream)

        return custom_gradient(with_gradient)(*tensors)

    return call


def custom_gradient(function):
    """`tf.custom_gradient`, imported when it is called.

    Penalties such as R1 differentiate a gradient again, so it must consist of differentiable operations.

    Args:
        function: `function(*tensors)` returns a result and `gradient(upstream)`.

    Returns:
        A function of the same tensors that returns the result alone.
    """
    import tensorflow as tf

    return tf.custom_gradient(function)

"""What is fused says what the plain function says, and its gradient what automatic differentiation does."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.nn import attention, norm
from sd_tf.nn.fused import fusing


def value_and_gradients(function, arguments, upstream, fused):
    @tf.function
    def call(*arguments):
        with fusing() if fused else contextlib.nullcontext():
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                value = function(*arguments)
            return value, tape.gradient(value, arguments, tf.cast(upstream, value.dtype))

    value, gradients = call(*arguments)
    return [np.asarray(tf.cast(tensor, tf.float32)) for tensor in (value, *gradients)]


def normal(*shape, mean=0.0, dtype="float32", seed=0):
    values = mean + np.random.default_rng(seed).standard_normal(shape)
    return tf.cast(tf.constant(values, tf.float32), dtype)


CASES = {
    "group norm": (lambda x, g, b: norm.group_norm(x, g, b, 4, 1e-5), (2, 5, 6, 8), True),
    "group norm, SiLU": (lambda x, g, b: norm.group_norm(x, g, b, 2, 1e-6, silu=True), (3, 4, 4, 6), True),
    "group norm, one pixel": (
        lambda x, g, b: norm.group_norm(x, g, b, 2, 1e-5, silu=True),
        (3, 1, 1, 6),
        True,
    ),
    "group norm, wide": (lambda x, g, b: norm.group_norm(x, g, b, 32, 1e-5, True), (2, 16, 16, 64), True),
    "layer norm": (lambda x, g, b: norm._layer_norm(x, g, b, epsilon=1e-5), (3, 7, 10), True),
    "GEGLU": (attention._geglu, (3, 7, 12), False),
}


@pytest.mark.parametrize("mean", [0.0, 30.0], ids=["centred", "far from zero"])
@pytest.mark.parametrize("name", CASES)
def test_fused_arithmetic_is_the_plain_one(name, mean):
    function, shape, weighted = CASES[name]
    arguments = [normal(*shape, mean=mean)]
    if weighted:
        arguments += [normal(shape[-1], mean=1.0, seed=1), normal(shape[-1], seed=2)]
    upstream = normal(*np.asarray(function(*arguments)).shape, seed=3)
    plain = value_and_gradients(function, arguments, upstream, fused=False)
    for ours, theirs in zip(
        value_and_gradients(function, arguments, upstream, fused=True), plain, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, mean) * np.abs(theirs).max())


@pytest.mark.parametrize("name", CASES)
def test_in_half_precision_fused_arithmetic_is_near_that_of_float32(name):
    function, shape, weighted = CASES[name]
    weights = [normal(shape[-1], mean=1.0, seed=1), normal(shape[-1], seed=2)] if weighted else []
    half = normal(*shape, dtype="bfloat16")
    upstream = normal(*np.asarray(function(half, *weights)).shape, seed=3)
    exact = value_and_gradients(function, [tf.cast(half, tf.float32), *weights], upstream, fused=False)
    for ours, theirs in zip(
        value_and_gradients(function, [half, *weights], upstream, fused=True), exact, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=0.03 * np.abs(theirs).max())


def test_outside_the_block_nothing_is_fused():
    def operations(fused):
        @tf.function
        def call(x):
            with fusing() if fused else contextlib.nullcontext():
                return attention._geglu(x)

        graph = call.get_concrete_function(tf.TensorSpec((2, 8), tf.float32)).graph
        return {operation.type for operation in graph.get_operations()}

    assert "Erfc" in operations(fused=False) and "Erfc" not in operations(fused=True)

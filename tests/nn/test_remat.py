"""What is computed again is what was computed first, and its memory is free in between."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.nn.attention import SpatialTransformer
from sd_tf.nn.blocks import ResidualBlock
from sd_tf.nn.fused import fusing
from sd_tf.nn.remat import rematerialised, rematerialising
from sd_tf.training.dry_run import peak_memory
from tests.conftest import shake_variables

MIB = 2**20
BLOCKS, DEPTH = 16, 8  # of the chain whose memory is measured, and tensors within each block


class Network:
    """A residual block and a transformer, held in a list."""

    def __init__(self, precision="float32"):
        keras.utils.set_random_seed(0)
        options = {"groups": 2, "dtype": precision}
        self.layers = [ResidualBlock(8, **options), SpatialTransformer(2, **options)]
        for layer, channels in zip(self.layers, (4, 8), strict=True):
            layer.build((None, None, None, channels), (None, None, 6))
        self.variables = [v for layer in self.layers for v in layer.trainable_variables]
        shake_variables(self)

    def __call__(self, x, context):
        for layer in self.layers:
            x = rematerialised(layer, x, context if isinstance(layer, SpatialTransformer) else context[:, 0])
        return x


def inputs():
    rng = np.random.default_rng(0)
    return [tf.constant(rng.standard_normal(shape), tf.float32) for shape in ((3, 6, 5, 4), (3, 7, 6))]


def graph_of(network, remat, fused):
    """A graph: inputs -> result, and the gradients of inputs and variables."""
    variables = getattr(network, "variables", ())

    @tf.function(autograph=False)
    def call(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            with rematerialising(variables, remat), fusing() if fused else contextlib.nullcontext():
                result = network(*tensors)
            loss = tf.reduce_sum(tf.square(tf.cast(result, tf.float32)))
        return result, tape.gradient(loss, [*tensors, *variables])

    return call


def arrays(results):
    return [np.asarray(tf.cast(tensor, tf.float32)) for tensor in tf.nest.flatten(results)]


def assert_same(ours, theirs, tolerance):
    """To `tolerance` of the largest value of each."""
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    ("precision", "fused", "tolerance"),
    [
        ("float32", False, 1e-6),
        ("float32", True, 1e-6),
        ("mixed_bfloat16", True, 1e-2),
        ("mixed_float16", True, 1e-3),
    ],
)
def test_values_and_gradients_are_those_of_one_computation(precision, fused, tolerance):
    network = Network(precision)
    once, again = (arrays(graph_of(network, remat, fused)(*inputs())) for remat in (False, True))
    assert_same(again, once, tolerance)
    if fused:  # in a plain graph TensorFlow rewrites arithmetic whose steps nobody else asks for
        np.testing.assert_array_equal(again[0], once[0])
    assert len(again) == 1 + 2 + len(network.variables)
    assert all(np.abs(gradient).max() > 0 for gradient in again)


def operations(graph, *tensors):
    return [operation.type for operation in graph.get_concrete_function(*tensors).graph.get_operations()]


def chain(x):
    def block(x):
        for _ in range(DEPTH):
            x = tf.tanh(x)
        return x

    for _ in range(BLOCKS):
        x = rematerialised(block, x)
    return x


@pytest.mark.parametrize("remat", [False, True])
def test_every_operation_is_in_the_graph_twice_where_asked_for_and_nowhere_else(remat):
    types = operations(graph_of(chain, remat, False), tf.zeros(4))
    assert types.count("Tanh") == (1 + remat) * BLOCKS * DEPTH
    assert types.count("TanhGrad") == BLOCKS * DEPTH


def test_what_was_fused_is_fused_again():
    types = operations(graph_of(Network(), True, True), *inputs())
    assert "Erfc" not in types and "Rsqrt" in types  # GEGLU's and the norms' statistics


def needed(graph, *tensors):
    """Types of the operations that a result waits for."""
    graph = graph.get_concrete_function(*tensors).graph
    found, left = set(), [tensor.op for tensor in graph.outputs]
    while left:
        operation = left.pop()
        if operation not in found:
            found.add(operation)
            left += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return [operation.type for operation in found]


def test_of_frozen_weights_no_gradient_is_computed():
    whole, convolution = Network(), Network()
    convolution.variables = convolution.layers[0].conv1.trainable_variables
    filters = [
        needed(graph_of(network, True, False), *inputs()).count("Conv2DBackpropFilter")
        for network in (whole, convolution)
    ]
    assert filters[0] > 1 and filters[1] == 1
    result, *found = graph_of(convolution, True, False)(*inputs())
    _, *expected = graph_of(convolution, False, False)(*inputs())
    assert_same(arrays(found), arrays(expected), 1e-6)


@pytest.mark.parametrize("remat", [False, True])
def test_what_has_no_influence_has_no_gradient(remat):
    used, stopped = (keras.Variable(2.0, name=name) for name in ("used", "stopped"))

    @tf.function(autograph=False)
    def gradients(x, unused):
        with rematerialising([used, stopped], remat), tf.GradientTape() as tape:
            tape.watch([x, unused])
            result = rematerialised(lambda x, unused: used * x * tf.stop_gradient(stopped.value), x, unused)
            return tape.gradient(result, [x, unused, used.value, stopped.value])

    of_x, of_unused, of_used, of_stopped = gradients(tf.constant(3.0), tf.constant(5.0))
    assert (float(of_x), float(of_used)) == (4.0, 6.0)
    assert of_unused is None and of_stopped is None


def test_memory_is_free_between_the_two_and_replicas_agree():
    environment = os.environ | {
        "PYTHONPATH": str(Path(sd_tf.__file__).parent.parent),
        "MALLOC_MMAP_THRESHOLD_": str(MIB),  # larger tensors go back to the system when they are freed
    }
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True, text=True)
    again, once = (float(word) for word in done.stdout.split()[-2:])
    assert once > BLOCKS * DEPTH
    assert again < 1.5 * (BLOCKS + DEPTH)


def peaks():
    """The peaks of a step with `rematerialising` and of one without, above the memory before, in tensors."""
    x = tf.ones(MIB)  # 4 MiB

    def peak():
        return peak_memory() / (4 * MIB)

    before, found = peak(), []
    for remat in (True, False):  # a peak never falls, so the lower one is first
        graph_of(chain, remat, fused=False)(x)
        found.append(peak() - before)
    return found


def check_replicas():
    """Each replica has the gradients of one computation."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        network = Network()

    def results(remat):
        step = graph_of(network, remat, fused=False).python_function
        of_replicas = tf.function(lambda: strategy.run(step, args=inputs()), autograph=False)()
        local = [strategy.experimental_local_results(value) for value in tf.nest.flatten(of_replicas)]
        return [arrays(replica) for replica in zip(*local, strict=True)]

    for again, once in zip(results(True), results(False), strict=True):
        assert_same(again, once, 1e-6)


if __name__ == "__main__":  # in a process of its own: virtual devices come before all else
    cpus = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    found = peaks()
    check_replicas()
    print(*found)

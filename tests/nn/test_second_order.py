"""Gradients of the R1 penalty (Mescheder et al. 2018) through every layer, against finite differences."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from sd_tf.gan.discriminator import Head, JudgingLevel
from sd_tf.gan.layers import AdaptiveConv2D, DistanceAttention
from sd_tf.nn.attention import Attention, FeedForward, PixelAttention, SpatialTransformer, TransformerBlock
from sd_tf.nn.blocks import Downsample, ResidualBlock, Upsample
from sd_tf.nn.embeddings import TimestepEmbedding
from sd_tf.nn.fused import fusing
from sd_tf.nn.norm import GroupNorm, LayerNorm
from sd_tf.nn.perceptual import PerceptualNetwork
from sd_tf.nn.remat import rematerialised, rematerialising
from tests.conftest import shake_variables

STEP = 1e-5  # of finite differences, in float64
PICTURE, VOLUME, TOKENS, CONTEXT = (2, 4, 3, 4), (2, 3, 4, 3, 4), (2, 5, 4), (2, 3, 6)

LAYERS = {  # name -> the layer in float64, the shapes of its inputs
    "Attention": (lambda: Attention(2, True), [TOKENS]),
    "Attention on a context": (lambda: Attention(2), [TOKENS, CONTEXT]),
    "FeedForward": (FeedForward, [TOKENS]),
    "TransformerBlock": (lambda: TransformerBlock(2), [TOKENS, CONTEXT]),
    "LayerNorm": (LayerNorm, [TOKENS]),
    "TimestepEmbedding": (lambda: TimestepEmbedding(6), [(3, 4)]),
    "PerceptualNetwork": (lambda: PerceptualNetwork(3), [(2, 9, 8, 3)]),
    "AdaptiveConv2D": (lambda: AdaptiveConv2D(3, 3), [PICTURE, (2, 5)]),
    "AdaptiveConv2D of a bank": (lambda: AdaptiveConv2D(3, 3, num_kernels=2), [PICTURE, (2, 5)]),
    "DistanceAttention": (lambda: DistanceAttention(2), [PICTURE]),
    "JudgingLevel": (lambda: JudgingLevel(6, True, 3), [PICTURE]),
    "Head": (lambda: Head(True, groups=2), [(4, 4, 4, 4), (4, 5)]),
    **{
        f"{name}, rank {rank}": (make, [shape, *others])
        for rank, shape in ((2, PICTURE), (3, VOLUME))
        for name, make, *others in (
            ("GroupNorm", lambda: GroupNorm(2)),
            ("GroupNorm with SiLU", lambda: GroupNorm(2, silu=True)),
            ("ResidualBlock", lambda rank=rank: ResidualBlock(6, 2, rank=rank), (2, 5)),
            ("Downsample", lambda rank=rank: Downsample((0, 1), rank=rank)),
            ("Upsample", lambda rank=rank: Upsample(rank=rank)),
            ("SpatialTransformer", lambda rank=rank: SpatialTransformer(2, 2, rank=rank), CONTEXT),
            ("PixelAttention", lambda rank=rank: PixelAttention(2, rank=rank)),
        )
    },
}


@functools.cache
def made(name):
    """The built layer with random weights, and its inputs."""
    make, shapes = LAYERS[name]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    try:
        layer = make()
        layer.build(*shapes)
    finally:
        keras.config.set_dtype_policy(before)
    rng = np.random.default_rng(0)
    return shake_variables(layer), [tf.constant(rng.standard_normal(shape)) for shape in shapes]


def penalty(layer, inputs, remat=False):
    """Half the sum over examples of the squared norm of a score's gradient by the first input."""
    x, *others = inputs
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = rematerialised(layer, x, *others) if remat else layer(x, *others)
        score = tf.reduce_sum(tf.sin(result) + 0.5 * tf.square(result))
    return 0.5 * tf.reduce_sum(tf.square(tape.gradient(score, x)))


@functools.cache
def finite_differences(name):
    """The penalty's derivatives along one random direction for each variable, and those directions."""
    layer, inputs = made(name)
    plain = tf.function(lambda: penalty(layer, inputs), autograph=False)
    rng, found = np.random.default_rng(1), []
    for variable in layer.trainable_variables:
        value, direction = np.asarray(variable.value), rng.standard_normal(variable.shape)
        around = []
        for sign in (1, -1):
            variable.assign(value + sign * STEP * direction)
            around.append(float(plain()))
        variable.assign(value)
        found.append((direction, (around[0] - around[1]) / (2 * STEP)))
    return found


def second_order_gradients(name, fused, remat, run):
    layer, inputs = made(name)
    variables = layer.trainable_variables

    def gradients():
        with fusing() if fused else contextlib.nullcontext(), rematerialising(variables, remat):
            with tf.GradientTape() as tape:
                value = penalty(layer, inputs, remat)
            return value, tape.gradient(value, [variable.value for variable in variables])

    value, found = run(gradients)()
    assert float(value) == pytest.approx(float(penalty(layer, inputs)), rel=1e-9)
    return found


def assert_by_finite_differences(name, gradients):
    expected = finite_differences(name)
    scale = max(abs(derivative) for _, derivative in expected)
    assert scale > 1e-3
    for variable, gradient, (direction, derivative) in zip(
        made(name)[0].trainable_variables, gradients, expected, strict=True
    ):
        ours = 0.0 if gradient is None else float(np.sum(np.asarray(gradient) * direction))
        assert ours == pytest.approx(derivative, rel=1e-5, abs=1e-7 * scale), variable.path


def graph(function):
    return tf.function(function, autograph=False)


def compiled_by_xla(function):
    return tf.function(function, autograph=False, jit_compile=True)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused and rematerialised"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_r1_is_that_of_finite_differences(name, fused):
    assert_by_finite_differences(name, second_order_gradients(name, fused, fused, graph))


@pytest.mark.parametrize("name", [name for name in LAYERS if "rank 3" not in name])
def test_in_a_step_compiled_by_xla_too(name):
    assert_by_finite_differences(name, second_order_gradients(name, True, True, compiled_by_xla))


@pytest.mark.parametrize("name", ["GroupNorm with SiLU, rank 2", "LayerNorm", "FeedForward"])
def test_fused_functions_are_differentiable_twice_without_a_graph(name):
    assert_by_finite_differences(name, second_order_gradients(name, True, False, lambda call: call))

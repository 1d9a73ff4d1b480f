"""Models without values, and their values one at a time."""

import keras
import ml_dtypes
import numpy as np
import pytest

from sd_tf.skeleton import NO_VALUE, fill, skeleton


def dense(units=3, **options):
    layer = keras.layers.Dense(units, name="dense", **options)
    layer.build((None, 2))
    return layer


def test_a_skeleton_has_paths_and_shapes_and_draws_no_values():
    def draw(shape, dtype=None):
        raise AssertionError("drawn")

    with skeleton():
        layer = dense(10**9, kernel_initializer=draw)
    assert layer.kernel.value is NO_VALUE
    assert (layer.kernel.path, tuple(layer.kernel.shape)) == ("dense/kernel", (2, 10**9))
    assert dense().kernel.value is not NO_VALUE  # outside, variables are as ever


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_bfloat16"])
def test_filled_it_is_the_layer_that_assignment_makes(policy, dtype):
    values = np.arange(6).reshape(3, 2).astype(dtype).T, np.arange(3).astype(dtype)
    with skeleton():
        filled = dense(dtype=policy)
    assigned = dense(dtype=policy)
    for layer in (filled, assigned):
        for variable, value in zip(layer.variables, values, strict=True):
            fill(variable, value)
    for variable, other in zip(filled.variables, assigned.variables, strict=True):
        assert variable.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(variable, "float32"), np.asarray(other, "float32"))
    x = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(np.asarray(filled(x), "float32"), np.asarray(assigned(x), "float32"))


def test_a_filled_layer_trains():
    with skeleton():
        layer = dense()
    for variable in layer.variables:
        fill(variable, np.ones(variable.shape))
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2)), np.zeros((4, 3)), verbose=0)
    assert (np.asarray(layer.kernel) < 1).all()

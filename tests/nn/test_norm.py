"""Group normalisation against torch's."""

import keras
import numpy as np
import pytest
from keras import ops

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.nn.norm import GroupNorm

torch = pytest.importorskip("torch")


def picture(shape=(2, 5, 3, 12), offset=0.0):
    return (np.random.default_rng(0).standard_normal(shape) + offset).astype("float32")


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 1e-1])
def test_agrees_with_torch(groups, epsilon, copied, torch_call, distance):
    reference = torch.nn.GroupNorm(groups, 12, eps=epsilon)
    layer = GroupNorm(groups, epsilon)
    layer.build((None, None, None, 12))
    copied(reference, layer)
    x = picture() * np.linspace(0.01, 3, 12, dtype="float32")
    assert distance(layer(x), torch_call(reference, x)) < 1e-5


def test_a_mean_far_from_zero_costs_no_more_digits_than_torch(copied):
    reference = torch.nn.GroupNorm(4, 12, eps=1e-6)
    layer = GroupNorm(4, 1e-6)
    layer.build((None, None, None, 12))
    copied(reference, layer)
    x = picture(offset=300.0)
    exact = reference.double()(torch.from_numpy(x.transpose(0, 3, 1, 2)).double())
    exact = exact.detach().numpy().transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(layer(x)) - exact).max() < 3e-3


def test_statistics_are_float32_under_mixed_precision():
    x = ops.cast(
        picture((1, 128, 128, 12), offset=3.0), "bfloat16"
    )  # a sum of 49,152 in bfloat16 stops at 512
    layer = GroupNorm(4, dtype="mixed_bfloat16")
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16" and layer.gamma.dtype == "float32"
    exact = GroupNorm(4, dtype="float32")(ops.cast(x, "float32"))
    assert np.abs(np.asarray(y, "float32") - np.asarray(exact)).max() < 0.05


def test_compiled_equals_eager_and_config_makes_the_same_layer():
    layer = GroupNorm(3, 1e-3, name="norm")
    x = picture()
    np.testing.assert_allclose(compiled(layer)(x), layer(x), atol=1e-6)
    twin = GroupNorm.from_config(layer.get_config())
    np.testing.assert_allclose(twin(x), layer(x), atol=1e-6)
    assert np.abs(np.asarray(GroupNorm(3, 1e-1)(x)) - np.asarray(layer(x))).max() > 1e-2


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="12 channels do not divide into 5 groups"):
        GroupNorm(5).build((None, 4, 4, 12))


def test_the_pixels_of_a_large_picture_cost_no_digits():
    x = picture((1, 512, 384, 8))
    exact = torch.nn.GroupNorm(2, 8).double()(torch.from_numpy(x.transpose(0, 3, 1, 2)).double())
    exact = exact.detach().numpy().transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(GroupNorm(2)(x)) - exact).max() < 5e-6

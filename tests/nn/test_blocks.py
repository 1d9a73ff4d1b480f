"""Residual blocks and changes of resolution against diffusers'."""

import keras
import numpy as np
import pytest

from sd_tf.graphs import compiled
from sd_tf.nn.blocks import Downsample, ResidualBlock, Upsample

torch = pytest.importorskip("torch")
resnet = pytest.importorskip("diffusers.models.resnet")

TIME_WIDTH = 10


def picture(height, width, channels, batch=2):
    return np.random.default_rng(0).standard_normal((batch, height, width, channels)).astype("float32")


@pytest.mark.parametrize("channels", [(8, 8), (8, 12)], ids=["same width", "other width"])
@pytest.mark.parametrize("timed", [True, False], ids=["timed", "untimed"])
def test_residual_block_agrees_with_diffusers(channels, timed, copied, torch_call, distance):
    inputs, outputs = channels
    reference = resnet.ResnetBlock2D(
        in_channels=inputs,
        out_channels=outputs,
        temb_channels=TIME_WIDTH if timed else None,
        groups=4,
        eps=1e-3,
    )
    layer = ResidualBlock(outputs, groups=4, epsilon=1e-3)
    layer.build((None, None, None, inputs), (None, TIME_WIDTH) if timed else None)
    copied(reference, layer)
    x = picture(5, 7, inputs)
    time = np.random.default_rng(1).standard_normal((2, TIME_WIDTH)).astype("float32") if timed else None
    expected = torch_call(reference, x, time) if timed else torch_call(reference, x, temb=None)
    assert distance(layer(x, time), expected) < 1e-5
    assert distance(compiled(layer)(x, time), expected) < 1e-5


@pytest.mark.parametrize("size", [(8, 8), (8, 6), (7, 5)], ids=str)
@pytest.mark.parametrize("padding", [(1, 1), (0, 1)], ids=["UNet's padding", "autoencoder's padding"])
def test_downsample_agrees_with_diffusers(size, padding, copied, torch_call, distance):
    reference = resnet.Downsample2D(6, use_conv=True, padding=padding[0], name="conv")
    layer = Downsample(padding)
    layer.build((None, None, None, 6))
    # diffusers keeps its convolution under a second name too, which never reaches a file.
    copied(torch.nn.ModuleDict({"conv": reference.conv}), layer)
    x = picture(*size, 6)
    expected = torch_call(reference, x)
    assert distance(layer(x), expected) < 1e-5
    assert distance(compiled(layer)(x), expected) < 1e-5


def test_the_two_paddings_differ():
    layer = Downsample((0, 1))
    layer.build((None, None, None, 6))
    other = Downsample((1, 1))
    other.build((None, None, None, 6))
    other.set_weights(layer.get_weights())
    x = picture(8, 8, 6)
    assert np.abs(np.asarray(layer(x)) - np.asarray(other(x))).max() > 0.1


@pytest.mark.parametrize("size", [None, (6, 10), (5, 10), (6, 9), (5, 9)], ids=str)
def test_upsample_agrees_with_diffusers_at_even_and_odd_sizes(size, copied, torch_call, distance):
    reference = resnet.Upsample2D(6, use_conv=True)
    layer = Upsample()
    layer.build((None, None, None, 6))
    copied(reference, layer)
    x = picture(3, 5, 6)
    expected = torch_call(reference, x, output_size=size)
    assert expected.shape[1:3] == (size or (6, 10))
    assert distance(layer(x, size=size), expected) < 1e-5
    assert distance(compiled(lambda x: layer(x, size=size))(x), expected) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [ResidualBlock(12, groups=4, epsilon=1e-2, name="block"), Downsample((0, 1), name="down"), Upsample()],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_are_made_again_from_their_config(layer):
    x = picture(6, 6, 8)
    expected = layer(x)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    twin.set_weights(layer.get_weights())
    assert twin.name == layer.name
    np.testing.assert_allclose(twin(x), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [lambda **k: ResidualBlock(12, 4, **k), Downsample, Upsample])
def test_mixed_precision_computes_in_bfloat16_and_stays_near(kind):
    x = picture(6, 6, 8)
    exact, mixed = kind(dtype="float32"), kind(dtype="mixed_bfloat16")
    expected = np.asarray(exact(x))
    mixed.build(x.shape)
    mixed.set_weights(exact.get_weights())
    result = mixed(x)
    assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"
    assert all(variable.dtype == "float32" for variable in mixed.variables)
    difference = np.abs(np.asarray(result, "float32") - expected).max() / expected.std()
    assert 0 < difference < 0.1

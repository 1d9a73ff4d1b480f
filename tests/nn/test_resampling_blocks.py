"""Modulated residual blocks that change the resolution, against diffusers'."""

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.nn.resampling_blocks import DownsamplingBlock, ModulatedResidualBlock, UpsamplingBlock

torch = pytest.importorskip("torch")
resnet = pytest.importorskip("diffusers.models.resnet")

TIME_WIDTH = 10
KINDS = {ModulatedResidualBlock: {}, DownsamplingBlock: {"down": True}, UpsamplingBlock: {"up": True}}


def inputs(channels=8):
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, 6, 4, channels)).astype("float32"),
        rng.standard_normal((2, TIME_WIDTH)).astype("float32"),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["silu", "gelu"])
@pytest.mark.parametrize("scale_shift", [True, False], ids=["scale and shift", "shift"])
@pytest.mark.parametrize(
    ("channels", "skip_time_act", "output_scale"), [(8, False, 1.0), (12, True, 1.5)], ids=str
)
def test_agrees_with_diffusers(
    kind, act, scale_shift, channels, skip_time_act, output_scale, copied, torch_call, distance
):
    reference = resnet.ResnetBlock2D(
        in_channels=8,
        out_channels=channels,
        temb_channels=TIME_WIDTH,
        groups=4,
        eps=1e-3,
        non_linearity=act,
        time_embedding_norm="scale_shift" if scale_shift else "default",
        skip_time_act=skip_time_act,
        output_scale_factor=output_scale,
        **KINDS[kind],
    )
    layer = kind(channels, 4, 1e-3, act, scale_shift, skip_time_act, output_scale)
    layer.build((None, None, None, 8), (None, TIME_WIDTH))
    copied(reference, layer)
    assert distance(layer(*inputs()), torch_call(reference, *inputs())) < 1e-5


def test_compiled_equals_eager_and_a_twin_from_the_configuration_agrees(distance):
    layer = DownsamplingBlock(12, 4, 1e-3, "gelu", False, True, 1.5, name="block")
    layer.build((None, None, None, 8), (None, TIME_WIDTH))
    twin = DownsamplingBlock.from_config(layer.get_config())
    twin.build((None, None, None, 8), (None, TIME_WIDTH))
    twin.set_weights(layer.get_weights())
    result = np.asarray(layer(*inputs()))
    assert result.shape == (2, 3, 2, 12)
    assert distance(twin(*inputs()), result) == 0
    assert distance(compiled(layer)(*inputs()), result) < 1e-5


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_comes_back_as_such(kind, precision):
    layer = kind(8, 4, dtype=precision)
    layer.build((None, None, None, 8), (None, TIME_WIDTH))
    assert keras.backend.standardize_dtype(layer(*inputs()).dtype) == precision.removeprefix("mixed_")


def test_a_new_block_returns_its_input_at_the_new_size():
    x, time = inputs()
    for kind, expected in [
        (ModulatedResidualBlock, x),
        (DownsamplingBlock, x.reshape(2, 3, 2, 2, 2, 8).mean((2, 4))),
        (UpsamplingBlock, x.repeat(2, 1).repeat(2, 2)),
    ]:
        layer = kind(8, 4, output_scale=2.0)
        layer.build(x.shape, time.shape)
        np.testing.assert_allclose(layer(x, time), expected / 2, atol=1e-6)


def test_unknown_activations_are_refused():
    with pytest.raises(InputError, match="unknown activation 'gelo': did you mean 'gelu'"):
        ModulatedResidualBlock(8, act="gelo")

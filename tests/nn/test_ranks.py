"""Layers for volumes (rank 3) against torch's modules, and what a wrong rank gets."""

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.nn.attention import PixelAttention, SpatialTransformer
from sd_tf.nn.blocks import Downsample, ResidualBlock, Upsample, conv
from sd_tf.nn.norm import GroupNorm

torch = pytest.importorskip("torch")

CHANNELS, TIME_WIDTH, CONTEXT_WIDTH, HEADS = 8, 10, 6, 2
SIZES = [(4, 5, 3), (1, 4, 6)]  # depth, height, width


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


class TorchResidualBlock(torch.nn.Module):
    """diffusers' `ResnetBlock2D` with `Conv3d`."""

    def __init__(self, inputs, outputs, timed):
        super().__init__()
        self.norm1 = torch.nn.GroupNorm(4, inputs, eps=1e-3)
        self.conv1 = torch.nn.Conv3d(inputs, outputs, 3, padding=1)
        if timed:
            self.time_emb_proj = torch.nn.Linear(TIME_WIDTH, outputs)
        self.norm2 = torch.nn.GroupNorm(4, outputs, eps=1e-3)
        self.conv2 = torch.nn.Conv3d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = torch.nn.Conv3d(inputs, outputs, 1)

    def forward(self, x, time=None):
        hidden = self.conv1(torch.nn.functional.silu(self.norm1(x)))
        if time is not None:
            hidden = hidden + self.time_emb_proj(torch.nn.functional.silu(time))[:, :, None, None, None]
        hidden = self.conv2(torch.nn.functional.silu(self.norm2(hidden)))
        return hidden + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class TorchConv(torch.nn.Module):
    """A convolution named `conv`, after what `prepare` makes of its input."""

    def __init__(self, prepare, **options):
        super().__init__()
        self.prepare, self.conv = prepare, torch.nn.Conv3d(CHANNELS, CHANNELS, 3, **options)

    def forward(self, x):
        return self.conv(self.prepare(x))


def check(layer, reference, arrays, torch_call, distance, **options):
    expected = torch_call(reference, *arrays)
    assert distance(layer(*arrays, **options), expected) < 1e-5
    assert distance(compiled(lambda *arrays: layer(*arrays, **options))(*arrays), expected) < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("timed", [True, False], ids=["timed", "untimed"])
@pytest.mark.parametrize("outputs", [CHANNELS, 12])
def test_residual_block_agrees_with_torch(outputs, timed, size, copied, torch_call, distance):
    layer = ResidualBlock(outputs, 4, 1e-3, rank=3)
    layer.build((None, None, None, None, CHANNELS), (None, TIME_WIDTH) if timed else None)
    reference = TorchResidualBlock(CHANNELS, outputs, timed)
    copied(reference, layer)
    arrays = [random(2, *size, CHANNELS), random(2, TIME_WIDTH, seed=1)][: 1 + timed]
    check(layer, reference, arrays, torch_call, distance)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_agrees_with_torch(silu, size, copied, torch_call, distance):
    layer, reference = GroupNorm(4, 1e-3, silu=silu), torch.nn.GroupNorm(4, CHANNELS, eps=1e-3)
    layer.build((None, None, None, None, CHANNELS))
    copied(reference, layer)
    reference = torch.nn.Sequential(reference, torch.nn.SiLU()) if silu else reference
    check(layer, reference, [random(2, *size, CHANNELS) + 1], torch_call, distance)


@pytest.mark.parametrize("size", [(4, 6, 8), (5, 7, 3)], ids=str)
@pytest.mark.parametrize("padding", [(1, 1), (0, 1)], ids=str)
def test_downsample_agrees_with_torch(padding, size, copied, torch_call, distance):
    layer = Downsample(padding, rank=3)
    layer.build((None, None, None, None, CHANNELS))
    reference = TorchConv(lambda x: torch.nn.functional.pad(x, padding * 3), stride=2)
    copied(reference, layer)
    check(layer, reference, [random(2, *size, CHANNELS)], torch_call, distance)


@pytest.mark.parametrize("target", [None, (6, 10, 4), (5, 9, 3)], ids=str)
def test_upsample_agrees_with_torch_at_even_and_odd_sizes(target, copied, torch_call, distance):
    layer = Upsample(rank=3)
    layer.build((None, None, None, None, CHANNELS))
    depth, height, width = target or (6, 10, 4)

    def doubled(x):
        return torch.nn.functional.interpolate(x, scale_factor=2)[:, :, :depth, :height, :width]

    reference = TorchConv(doubled, padding=1)
    copied(reference, layer)
    check(layer, reference, [random(2, 3, 5, 2, CHANNELS)], torch_call, distance, size=target)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_agrees_with_torch(size, copied, torch_call, distance):
    layer, reference = conv(5, size, "conv", "float32", 3), torch.nn.Conv3d(CHANNELS, 5, size, padding="same")
    layer.build((None, None, None, None, CHANNELS))
    copied(reference, layer)
    check(layer, reference, [random(2, 4, 5, 3, CHANNELS)], torch_call, distance)


@pytest.mark.parametrize("layer_of", ["SpatialTransformer", "SpatialTransformer, linear", "PixelAttention"])
def test_attention_over_a_volume_is_that_over_a_picture_of_as_many_positions(layer_of, distance):
    """The two-dimensional layers are held to diffusers': positions have no order, so nothing else differs."""

    def made(rank):
        if layer_of == "PixelAttention":
            return PixelAttention(4, rank=rank)
        return SpatialTransformer(HEADS, 4, layer_of.endswith("linear"), rank=rank)

    volume, picture = made(3), made(2)
    x = random(2, 3, 4, 5, CHANNELS)
    flat = x.reshape(2, 12, 5, CHANNELS)
    context = [] if layer_of == "PixelAttention" else [random(2, 7, CONTEXT_WIDTH, seed=1)]
    shapes = [each.shape for each in context]
    volume.build(x.shape, *shapes)
    picture.build(flat.shape, *shapes)
    weights = [random(*variable.shape, seed=i) for i, variable in enumerate(picture.variables)]
    for variable, other, value in zip(picture.variables, volume.variables, weights, strict=True):
        variable.assign(value)
        other.assign(value.reshape(other.shape))
    expected = np.asarray(picture(flat, *context)).reshape(x.shape)
    assert np.abs(expected - x).max() > 0.1
    assert distance(volume(x, *context), expected) < 1e-5
    assert distance(compiled(volume)(x, *context), expected) < 1e-5


VOLUME, PICTURE = (2, 4, 3, 5, CHANNELS), (2, 6, 5, CHANNELS)
MADE = {
    "ResidualBlock": lambda **k: ResidualBlock(12, 4, **k),
    "Downsample": lambda **k: Downsample((0, 1), **k),
    "Upsample": Upsample,
    "SpatialTransformer": lambda **k: SpatialTransformer(HEADS, 4, **k),
    "PixelAttention": lambda **k: PixelAttention(4, **k),
    "conv": lambda rank=2, dtype=None: conv(4, 3, "conv", dtype, rank),
}


def inputs(name, shape):
    return [random(*shape), *([random(2, 4, CONTEXT_WIDTH)] if name == "SpatialTransformer" else [])]


@pytest.mark.parametrize("name", [*MADE, "GroupNorm"])
class TestEveryLayerOfVolumes:
    def layer(self, name, **options):
        layer = GroupNorm(4, **options) if name == "GroupNorm" else MADE[name](rank=3, **options)
        layer.build(*(array.shape for array in inputs(name, VOLUME)))
        for i, variable in enumerate(layer.variables):
            variable.assign(0.3 * random(*variable.shape, seed=i))
        return layer

    def test_is_saved_and_loaded_as_keras_does(self, name, tmp_path):
        arrays = inputs(name, VOLUME)
        tensors = [keras.Input(array.shape[1:]) for array in arrays]
        model = keras.Model(tensors, self.layer(name)(*tensors))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        expected = model(arrays)
        np.testing.assert_allclose(loaded(arrays), expected, atol=1e-6)
        np.testing.assert_allclose(loaded.predict(arrays, verbose=0), expected, atol=1e-5)
        assert getattr(loaded.layers[-1], "rank", 3) == 3

    def test_computes_in_bfloat16_under_mixed_precision(self, name):
        exact, mixed = self.layer(name, dtype="float32"), self.layer(name, dtype="mixed_bfloat16")
        arrays = inputs(name, VOLUME)
        expected, result = np.asarray(exact(*arrays)), mixed(*arrays)
        assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"
        assert all(variable.dtype == "float32" for variable in mixed.variables)
        assert 0 < np.abs(np.asarray(result, "float32") - expected).max() / expected.std() < 0.1


@pytest.mark.parametrize("rank", [1, 4, "2", 2.0, True, None])
@pytest.mark.parametrize("name", MADE)
def test_a_wrong_rank_is_named_in_one_line(name, rank):
    with pytest.raises(InputError, match=f"rank is {rank!r}: give 2 for pictures .* or 3 for volumes"):
        MADE[name](rank=rank)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", [name for name in MADE if name != "conv"])
def test_an_input_of_the_other_rank_is_refused_with_the_way_out(name, rank):
    message = rf"has rank {rank} and its input the shape \(.*\): pass \(batch, .*rank={5 - rank}$"
    with pytest.raises(InputError, match=message):
        MADE[name](rank=rank)(*inputs(name, PICTURE if rank == 3 else VOLUME))


def test_group_norm_of_neither_pictures_nor_volumes_is_refused():
    with pytest.raises(InputError, match=r"input of shape \(2, 8\): pass \(batch, height"):
        GroupNorm(4)(random(2, 8))


@pytest.mark.parametrize("name", [name for name in MADE if name != "conv"])
def test_a_configuration_without_a_rank_is_of_pictures(name):
    config = MADE[name]().get_config()
    assert config.pop("rank") == 2
    assert type(MADE[name]()).from_config(config).rank == 2

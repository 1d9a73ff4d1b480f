"""GigaGAN's layers against gigagan-pytorch where they mean the same, and against closed forms elsewhere."""

import importlib.util

import numpy as np
import pytest

from sd_tf.gan.layers import (
    AdaptiveConv2D,
    CrossAttention,
    DistanceAttention,
    TextLayers,
    adaptive_convolution,
    attention_by_distance,
    leaky_relu,
    unit_rows,
)
from sd_tf.nn.added_attention import attention_bias
from tests.conftest import shake_variables
from tests.parity import deviation

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


def to_torch(x):
    import torch

    return torch.from_numpy(np.array(x))


@pytest.fixture(scope="module")
def peer():
    for package in ("torch", "einops", "kornia", "accelerate", "ema_pytorch", "beartype", "gigagan_pytorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: see benchmarks/peers/as_installed.py")
    from benchmarks.peers.as_installed import gigagan_pytorch

    return gigagan_pytorch()


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("bank", [1, 3])
def test_adaptive_convolution_is_gigagan_pytorchs(peer, bank, size, demodulate):
    x, style, selection = normal(2, 6, 6, 5), normal(2, 5), normal(2, bank)
    layer = peer.AdaptiveConv2DMod(5, 4, size, demod=demodulate, num_conv_kernels=bank)
    kernels = layer.weights.detach().numpy().transpose(0, 3, 4, 2, 1)  # (bank, size, size, in, out)
    chosen = to_torch(selection) if bank > 1 else None
    theirs = layer(to_torch(x.transpose(0, 3, 1, 2)), to_torch(style), chosen).detach().numpy()
    ours = adaptive_convolution(x, kernels, 1.0 + style, selection if bank > 1 else None, demodulate)
    assert deviation(ours, theirs.transpose(0, 2, 3, 1)) < 1e-4


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_by_distance_is_gigagan_pytorchs(peer, heads):
    import torch

    layer = peer.SelfAttention(8, dim_head=4, heads=heads)
    with torch.no_grad():
        layer.null_kv[0] = 1e3  # so far away that nothing attends on it: ours has no such key
    x = normal(2, 3, 4, 8)
    theirs = layer(to_torch(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    normed = layer.norm(to_torch(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    to_q, to_v, to_out = (
        getattr(layer, name).weight.detach().numpy()[:, :, 0, 0].T for name in ("to_q", "to_v", "to_out")
    )
    tokens = normed.reshape(2, 12, 8)
    ours = np.asarray(attention_by_distance(tokens @ to_q, tokens @ to_v, 4)) @ to_out
    assert deviation(ours.reshape(2, 3, 4, 8), theirs) < 1e-4


def test_demodulated_channels_have_unit_variance_of_white_noise():
    x, kernels, style = normal(4, 64, 64, 8), normal(1, 3, 3, 8, 6), np.exp(normal(4, 8))
    result = np.asarray(adaptive_convolution(x, kernels, style))[:, 1:-1, 1:-1]
    np.testing.assert_allclose(result.std(axis=(1, 2)), 1.0, atol=0.06)


def test_a_bank_that_chooses_one_kernel_is_that_kernel():
    x, kernels, style = normal(3, 5, 5, 4), normal(3, 3, 3, 4, 2), normal(3, 4)
    chosen = np.eye(3, dtype="float32") * 1e4
    mixed = np.asarray(adaptive_convolution(x, kernels, style, chosen))
    for i in range(3):
        alone = adaptive_convolution(x[i : i + 1], kernels[i : i + 1], style[i : i + 1])
        assert deviation(mixed[i : i + 1], np.asarray(alone)) < 1e-5


def test_a_row_of_pixel_norm_has_mean_square_one_and_leaky_relu_keeps_the_deviation():
    np.testing.assert_allclose(np.square(unit_rows(7.0 * normal(3, 64))).mean(axis=1), 1.0, rtol=1e-5)
    wide = np.asarray(leaky_relu(normal(200_000)))
    assert np.sqrt(np.mean(np.square(wide))) == pytest.approx(np.sqrt(1 + 0.2**2), rel=0.01)


def test_new_attention_changes_nothing():
    x, tokens = normal(2, 4, 4, 8), normal(2, 3, 6)
    distance, cross = DistanceAttention(4), CrossAttention(4)
    distance.build((None, 4, 4, 8))
    cross.build((None, 4, 4, 8), (None, None, 6))
    np.testing.assert_allclose(distance(x), x)
    np.testing.assert_allclose(cross(x, tokens), x)


@pytest.mark.parametrize("layers", [0, 2])
def test_hidden_tokens_of_a_text_change_nothing(layers):
    text = TextLayers(8, layers, head_width=4)
    text.build((None, None, 6))
    shake_variables(text)
    states, mask = normal(2, 5, 6), np.arange(5) < np.array([[3], [5]])
    tokens, code = (np.asarray(each) for each in text(states, mask))
    assert tokens.shape == (2, 5, 8) and code.shape == (2, 8)
    other = np.where(mask[..., None], states, normal(2, 5, 6))
    tokens_of_other, code_of_other = (np.asarray(each) for each in text(other, mask))
    np.testing.assert_allclose(code_of_other, code, atol=1e-6)
    np.testing.assert_allclose(tokens_of_other[mask], tokens[mask], atol=1e-6)
    if layers:
        alone = np.asarray(text(states[:1, :3])[1])
        np.testing.assert_allclose(code[:1], alone, atol=1e-5)
        assert np.abs(np.asarray(text(states[::-1], mask[::-1])[1])[::-1] - code).max() < 1e-6


def test_cross_attention_does_not_see_hidden_tokens():
    cross = CrossAttention(4)
    cross.build((None, 4, 4, 8), (None, None, 6))
    shake_variables(cross)
    x, tokens = normal(1, 4, 4, 8), normal(1, 5, 6)
    hidden = cross(x, tokens, attention_bias(np.arange(5)[None] < 2))
    np.testing.assert_allclose(hidden, cross(x, tokens[:, :2]), atol=1e-5)
    assert np.abs(np.asarray(hidden) - np.asarray(cross(x, tokens))).max() > 1e-3


def test_a_layer_has_an_affine_style_whose_bias_is_one():
    layer = AdaptiveConv2D(3, 3, num_kernels=2)
    layer.build((None, 4, 4, 5), (None, 6))
    x, still = normal(1, 4, 4, 5), np.zeros((1, 6), "float32")
    plain = adaptive_convolution(x, np.asarray(layer.kernels), np.ones((1, 5)), np.zeros((1, 2)))
    np.testing.assert_allclose(layer(x, still), plain, atol=1e-6)

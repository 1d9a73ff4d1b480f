"""Attention and spatial transformers against diffusers' and torch's."""

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.nn.attention import (
    Attention,
    FeedForward,
    PixelAttention,
    SpatialTransformer,
    TransformerBlock,
    scaled_dot_product_attention,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

WIDTH, CONTEXT_WIDTH, HEADS = 12, 10, 3


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_scaled_dot_product_agrees_with_torch(heads, masked, distance):
    query, key, value = random(2, 5, 12), random(2, 7, 12, seed=1), random(2, 7, 12, seed=2)
    mask = np.where(random(5, 7, seed=3) > 0.5, -np.inf, 0).astype("float32") if masked else None

    def split(x):
        return torch.from_numpy(x).unflatten(-1, (heads, -1)).transpose(1, 2)

    reference = torch.nn.functional.scaled_dot_product_attention(
        split(query), split(key), split(value), attn_mask=None if mask is None else torch.from_numpy(mask)
    )
    reference = reference.transpose(1, 2).flatten(2).numpy()
    assert distance(scaled_dot_product_attention(query, key, value, heads, mask), reference) < 1e-5


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("across", [False, True], ids=["self", "cross"])
def test_attention_agrees_with_diffusers(qkv_bias, across, copied, torch_call, distance):
    from diffusers.models.attention_processor import Attention as Reference

    reference = Reference(
        WIDTH, CONTEXT_WIDTH if across else None, heads=HEADS, dim_head=WIDTH // HEADS, bias=qkv_bias
    )
    layer = Attention(HEADS, qkv_bias)
    context_shape = (None, None, CONTEXT_WIDTH) if across else None
    layer.build((None, None, WIDTH), context_shape)
    copied(reference, layer)
    arrays = [random(2, 6, WIDTH)] + [random(2, 4, CONTEXT_WIDTH, seed=1)] * across
    assert distance(layer(*arrays), torch_call(reference, *arrays)) < 1e-5


def test_feed_forward_is_geglu_with_the_exact_gelu(copied, torch_call, distance):
    from diffusers.models.attention import FeedForward as Reference

    reference, layer = Reference(WIDTH, activation_fn="geglu"), FeedForward()
    layer.build((None, None, WIDTH))
    copied(reference, layer)
    x = 3 * random(2, 6, WIDTH)
    assert distance(layer(x), torch_call(reference, x)) < 1e-5


@pytest.mark.parametrize("magnitude", [1, 1e-3])  # the epsilons of norms show where activations are small
def test_transformer_block_agrees_with_diffusers(magnitude, copied, torch_call, distance):
    from diffusers.models.attention import BasicTransformerBlock

    reference = BasicTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, cross_attention_dim=CONTEXT_WIDTH)
    layer = TransformerBlock(HEADS)
    layer.build((None, None, WIDTH), (None, None, CONTEXT_WIDTH))
    copied(reference, layer)
    x, context = magnitude * random(2, 6, WIDTH), random(2, 4, CONTEXT_WIDTH, seed=1)
    expected = torch_call(reference, x, encoder_hidden_states=torch.from_numpy(context))
    assert distance(layer(x, context), expected) < 1e-5


@pytest.mark.parametrize("use_linear_projection", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 6)], ids=str)
def test_spatial_transformer_agrees_with_diffusers(use_linear_projection, size, copied, torch_call, distance):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    reference = Transformer2DModel(
        HEADS,
        WIDTH // HEADS,
        in_channels=WIDTH,
        cross_attention_dim=CONTEXT_WIDTH,
        norm_num_groups=4,
        use_linear_projection=use_linear_projection,
    )
    layer = SpatialTransformer(HEADS, 4, use_linear_projection)
    layer.build((None, None, None, WIDTH), (None, None, CONTEXT_WIDTH))
    copied(reference, layer)
    x, context = random(2, *size, WIDTH), random(2, 4, CONTEXT_WIDTH, seed=1)
    expected = torch_call(reference, x, encoder_hidden_states=torch.from_numpy(context), return_dict=False)
    assert distance(layer(x, context), expected) < 1e-5
    assert distance(compiled(layer)(x, context), expected) < 1e-5


@pytest.mark.parametrize("magnitude", [1, 1e-3])
@pytest.mark.parametrize("size", [(4, 4), (5, 3)], ids=str)
def test_pixel_attention_agrees_with_diffusers(size, magnitude, copied, torch_call, distance):
    from diffusers.models.attention_processor import Attention as Reference

    reference = Reference(
        WIDTH,
        heads=1,
        dim_head=WIDTH,
        norm_num_groups=4,
        eps=1e-6,
        bias=True,
        residual_connection=True,
        _from_deprecated_attn_block=True,
    )
    layer = PixelAttention(4)
    layer.build((None, None, None, WIDTH))
    copied(reference, layer)
    x = magnitude * random(2, *size, WIDTH)
    assert distance(layer(x), torch_call(reference, x)) < 1e-5
    assert distance(compiled(layer)(x), torch_call(reference, x)) < 1e-5


LAYERS = [
    (Attention(HEADS, True, name="attention"), [(2, 6, WIDTH)]),
    (FeedForward(name="ff"), [(2, 6, WIDTH)]),
    (TransformerBlock(HEADS), [(2, 6, WIDTH), (2, 4, CONTEXT_WIDTH)]),
    (SpatialTransformer(HEADS, 4, True), [(2, 4, 3, WIDTH), (2, 4, CONTEXT_WIDTH)]),
    (PixelAttention(4), [(2, 4, 3, WIDTH)]),
]


@pytest.mark.parametrize(("layer", "shapes"), LAYERS, ids=[type(layer).__name__ for layer, _ in LAYERS])
class TestEveryLayer:
    def test_is_made_again_from_its_config(self, layer, shapes):
        arrays = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
        expected = layer(*arrays)
        twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        twin.set_weights(layer.get_weights())
        assert twin.name == layer.name
        np.testing.assert_allclose(twin(*arrays), expected, atol=1e-5)

    def test_computes_in_bfloat16_under_mixed_precision(self, layer, shapes):
        arrays = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
        expected = np.asarray(layer(*arrays))
        mixed = type(layer).from_config(layer.get_config() | {"dtype": "mixed_bfloat16"})
        mixed.build(*shapes)
        mixed.set_weights(layer.get_weights())
        result = mixed(*arrays)
        assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"
        assert all(variable.dtype == "float32" for variable in mixed.variables)
        assert 0 < np.abs(np.asarray(result, "float32") - expected).max() / expected.std() < 0.1


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="12 channels do not divide into 5 heads"):
        Attention(5).build((None, None, WIDTH))

"""Attention on a text with keys and values of its own, and the pooled text, against diffusers'."""

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.nn.added_attention import TextAndSelfAttention, TextAttention, attention_bias
from sd_tf.nn.text_pooling import AttentionPooling, TextTimeEmbedding

torch = pytest.importorskip("torch")
processors = pytest.importorskip("diffusers.models.attention_processor")
embeddings = pytest.importorskip("diffusers.models.embeddings")

RNG = np.random.default_rng(0)
PICTURE = RNG.standard_normal((2, 3, 4, 16)).astype("float32")
TEXT = RNG.standard_normal((2, 5, 32)).astype("float32")
MASK = np.array([[True] * 5, [True, True, False, False, False]])
KINDS = {TextAttention: True, TextAndSelfAttention: False}


def built(kind, **options):
    layer = kind(4, groups=4, **options)
    layer.build(PICTURE.shape, TEXT.shape)
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [None, "group_norm"])
def test_agrees_with_diffusers(kind, norm, copied, torch_call, distance):
    reference = processors.Attention(
        query_dim=16,
        cross_attention_dim=16,
        heads=4,
        dim_head=4,
        added_kv_proj_dim=32,
        norm_num_groups=4,
        bias=True,
        only_cross_attention=KINDS[kind],
        cross_attention_norm=norm,
        processor=processors.AttnAddedKVProcessor(),
    )
    layer = copied(reference, built(kind, context_norm=norm))
    context = torch.from_numpy(TEXT)
    expected = torch_call(reference, PICTURE, encoder_hidden_states=context)
    assert distance(layer(PICTURE, TEXT), expected) < 1e-5
    assert distance(compiled(layer)(PICTURE, TEXT), expected) < 1e-5
    if kind is TextAndSelfAttention:
        bias = torch.from_numpy(np.array(attention_bias(MASK))[:, 0])  # (batch, 1, tokens)
        expected = torch_call(reference, PICTURE, encoder_hidden_states=context, attention_mask=bias)
        assert distance(layer(PICTURE, TEXT, attention_bias(MASK)), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_mask_hides_does_not_matter_to_the_bit(kind):
    layer = built(kind)
    layer.to_out.kernel.assign(RNG.standard_normal((16, 16)))
    other = np.where(MASK[:, :, None], TEXT, 100.0).astype("float32")
    bias = attention_bias(MASK)
    np.testing.assert_array_equal(layer(PICTURE, TEXT, bias), layer(PICTURE, other, bias))
    np.testing.assert_array_equal(attention_bias(MASK.astype("int32")), bias)  # as tokenizers have it
    assert np.isfinite(np.asarray(layer(PICTURE, TEXT, attention_bias(np.zeros_like(MASK))))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_comes_back_as_such(kind, precision):
    layer = built(kind, context_norm="layer_norm", dtype=precision)
    result = layer(PICTURE, TEXT, attention_bias(MASK))
    assert keras.backend.standardize_dtype(result.dtype) == precision.removeprefix("mixed_")
    np.testing.assert_allclose(np.asarray(result, "float32"), PICTURE, atol=2e-2)  # a new layer


def test_twins_from_the_configuration_agree():
    layer = built(TextAndSelfAttention, context_norm="group_norm")
    twin = TextAndSelfAttention.from_config(layer.get_config())
    twin.build(PICTURE.shape, TEXT.shape)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(PICTURE, TEXT), layer(PICTURE, TEXT))


def test_pooled_text_agrees_with_diffusers(copied, torch_call, distance):
    reference = embeddings.TextTimeEmbedding(32, 12, num_heads=4)
    layer = TextTimeEmbedding(12, 4)
    layer.build(TEXT.shape)
    copied(reference, layer)
    expected = torch_call(reference, TEXT)
    assert distance(layer(TEXT), expected) < 1e-5
    assert distance(compiled(layer)(TEXT), expected) < 1e-5
    twin = TextTimeEmbedding.from_config(layer.get_config())
    twin.build(TEXT.shape)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(TEXT), layer(TEXT))


def test_what_does_not_divide_is_refused():
    for make, message in [
        (lambda: TextAttention(5, 4).build(PICTURE.shape, TEXT.shape), "16 channels .* into heads of 5"),
        (lambda: TextAttention(4, 5).build(PICTURE.shape, TEXT.shape), "16 channels .* into 5 groups"),
        (lambda: TextAttention(4, context_norm="rms"), "unknown context_norm 'rms'"),
        (lambda: AttentionPooling(5).build(TEXT.shape), "a text 32 wide does not divide into 5 heads"),
    ]:
        with pytest.raises(InputError, match=message):
            make()

"""T5's encoder against transformers': the same weights, the same states."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from sd_tf.checkpoints.networks import filled
from sd_tf.checkpoints.tensors import find
from sd_tf.errors import InputError
from sd_tf.text.config import T5Config
from sd_tf.text.encoder import T5TextEncoder
from sd_tf.text.prompts import encode_prompts
from sd_tf.text.subword_tokenizer import t5_tokenizer
from sd_tf.text.t5 import T5EncoderModel, relative_position_buckets
from tests.conftest import shake_variables
from tests.parity import deviation
from tests.text.vocabularies import t5_pieces

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = T5Config(vocab_size=99, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
GRID = {
    "1.0": TINY,
    "1.1": dataclasses.replace(TINY, feed_forward_proj="gated-gelu"),
    "1.0, one layer, heads wider than the model": dataclasses.replace(TINY, num_layers=1, d_kv=10),
    "1.1, three layers, heads narrower": dataclasses.replace(
        TINY, num_layers=3, d_kv=5, num_heads=2, feed_forward_proj="gated-gelu"
    ),
    "few buckets": dataclasses.replace(
        TINY, relative_attention_num_buckets=6, relative_attention_max_distance=9
    ),
    "1.1, many buckets": dataclasses.replace(
        TINY,
        relative_attention_num_buckets=40,
        relative_attention_max_distance=17,
        feed_forward_proj="gated-gelu",
    ),
    "coarse norms": dataclasses.replace(TINY, layer_norm_epsilon=0.1, num_heads=1),
}


def reference_of(config, scale=0.1):
    """transformers' encoder, with norms that are not 1 and weights that matter."""
    values = dataclasses.asdict(config)
    del values["kept"]
    torch.manual_seed(0)
    reference = transformers.T5EncoderModel(transformers.T5Config(**values)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(scale * torch.randn(parameter.shape))
    return reference


def ours_of(reference, config, folder, dtype=None):
    reference.save_pretrained(folder)
    return filled(lambda: T5EncoderModel(config, dtype=dtype), config, find(folder, "model"), folder)


def batch(config, tokens=23, rows=4):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, config.vocab_size, (rows, tokens)).astype("int32")
    mask = np.arange(tokens) < np.array([tokens, 1, 5, tokens // 2])[:rows, np.newaxis]
    return np.where(mask, ids, 0).astype("int32"), mask


def states_of(reference, ids, mask):
    with torch.no_grad():
        output = reference(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    return output.last_hidden_state.float().numpy()


@pytest.mark.parametrize("config", GRID.values(), ids=GRID)
def test_states_are_those_of_transformers(config, tmp_path):
    reference = reference_of(config)
    ids, mask = batch(config)
    states = np.asarray(ours_of(reference, config, tmp_path)(ids, mask))
    assert states.shape == (*ids.shape, config.d_model) and states.dtype == np.float32
    assert deviation(states[mask], states_of(reference, ids, mask)[mask]) < 1e-4


@pytest.mark.parametrize("buckets", [4, 5, 6, 12, 31, 32, 64, 100])
@pytest.mark.parametrize("farthest", [26, 40, 64, 128, 200, 1000])
def test_buckets_are_those_of_transformers(buckets, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(300)[None] - torch.arange(300)[:, None]
    expected = T5Attention._relative_position_bucket(offsets, True, buckets, farthest)
    found = relative_position_buckets(300, buckets, farthest)
    np.testing.assert_array_equal(found, expected.numpy())
    assert found.dtype == np.int32 and found.min() >= 0 and found.max() < buckets


def test_padding_changes_no_state_of_the_text(tmp_path):
    model = ours_of(reference_of(TINY), TINY, tmp_path)
    ids, mask = batch(TINY)
    states = np.asarray(model(ids, mask))
    others = np.asarray(model(np.where(mask, ids, 7), mask))
    np.testing.assert_allclose(others[mask], states[mask], atol=1e-5)
    short = np.asarray(model(ids[2:3, :5], mask[2:3, :5]))
    np.testing.assert_allclose(short[0], states[2, :5], atol=1e-5)


def test_a_row_of_padding_alone_is_finite():
    model = T5EncoderModel(TINY)
    ids, mask = batch(TINY)
    assert np.isfinite(np.asarray(model(ids, np.zeros_like(mask)))).all()


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("config", [GRID["1.0"], GRID["1.1"]], ids=["1.0", "1.1"])
def test_what_outgrows_float16_does_not_overflow(policy, config, tmp_path):
    """Sums over layers of 10^6, as those of the largest T5: twenty times what float16 holds."""
    reference = reference_of(config)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("wo.weight"):
                parameter.mul_(1e6)
    ids, mask = batch(config)
    expected = states_of(reference, ids, mask)
    with torch.no_grad():
        sums = reference.encoder.block[0](reference.shared(torch.from_numpy(ids).long()))[0]
    assert sums.abs().max() > 1e6
    model = ours_of(reference, config, tmp_path, policy)
    states = model(ids, mask)
    assert keras.backend.standardize_dtype(states.dtype) == model.compute_dtype
    states = np.asarray(ops.cast(states, "float32"))
    assert np.isfinite(states).all()
    tolerance = 0.02 if "bfloat" not in policy else 0.2
    assert deviation(states[mask], expected[mask]) < tolerance
    wo = next(variable for variable in model.variables if "/wo/" in variable.path)
    assert wo.dtype == "float32"


def test_a_model_is_the_same_after_its_configuration(tmp_path):
    model = T5EncoderModel(GRID["1.1"], dtype="mixed_bfloat16", name="theirs")
    again = T5EncoderModel.from_config(model.get_config())
    assert again.config == model.config and again.name == "theirs"
    assert again.dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "unknown feed_forward_proj 'gated-silu'"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance 8"),
    ],
)
def test_what_cannot_be_built_is_said(change, message):
    with pytest.raises(InputError, match=message):
        T5EncoderModel(dataclasses.replace(TINY, **change))


# -- as a text encoder --------------------------------------------------------------------------------


def encoder_of(length=12):
    tokenizer = t5_tokenizer(t5_pieces(), 2, max_length=length)
    network = T5EncoderModel(dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size + 5))
    network.build()
    return T5TextEncoder(tokenizer, network.config, lambda: network), network


def test_an_encoder_has_what_the_protocol_says():
    encoder, network = encoder_of()
    ids, mask = encoder.tokenize(["a red dress", ""])
    found = encoder.encode(ids, mask)
    assert found.states.shape == (2, encoder.length, encoder.width) == (2, 12, 24)
    np.testing.assert_array_equal(found.states, network(ids, mask))
    assert found.mask is mask and found.pooled is None
    assert mask.sum(1).tolist() == [len(encoder.tokenizer.ids("a red dress")) + 1, 1]


def test_the_fingerprint_changes_with_the_weights_and_the_length():
    encoder, network = encoder_of()
    before = encoder.fingerprint
    longer = T5TextEncoder(t5_tokenizer(t5_pieces(), 2, max_length=13), network.config, lambda: network)
    assert longer.fingerprint != before == encoder.fingerprint
    shake_variables(network)
    assert encoder.fingerprint != before


def test_a_tokenizer_of_another_network_is_refused():
    with pytest.raises(InputError, match="take the tokenizer that it was trained with"):
        T5TextEncoder(t5_tokenizer(t5_pieces(), 2), TINY, None)


@pytest.mark.parametrize("syntax", ["weights", "a1111", "comfyui"])
def test_weights_multiply_the_states_of_their_words(syntax):
    encoder, network = encoder_of()
    plain, mask = (
        np.asarray(each, "float64") for each in encoder.encode(*encoder.tokenize(["a red dress"]))[:2]
    )
    [condition] = encode_prompts([["a (red:1.5) dress"]], encoder, 64, syntax)
    weights = np.ones(12)
    before, words = (len(encoder.tokenizer.ids(text)) for text in ("a", "red"))
    weights[before : before + words] = 1.5  # no token begins a row
    if syntax == "comfyui":
        empty = np.asarray(encoder.encode(*encoder.tokenize([""])).states)
        expected = empty + weights[:, np.newaxis] * (plain - empty)
    else:
        expected = plain * weights[:, np.newaxis]
        expected *= np.sqrt((plain**2).mean() / (expected**2).mean())
    np.testing.assert_allclose(condition.context, expected, atol=1e-4)
    np.testing.assert_array_equal(condition.mask, mask)
    [same] = encode_prompts([["a red dress"]], encoder, 64, syntax)
    np.testing.assert_allclose(same.context, plain, atol=1e-5)


@pytest.mark.parametrize("syntax", ["weights", "a1111", "comfyui"])
def test_a_prompt_is_one_row_and_what_is_longer_is_cut_with_a_warning(syntax):
    encoder, _ = encoder_of()
    long = "a red dress and (a blue:1.2) bag BREAK " * 3
    with pytest.warns(UserWarning, match="tokens: the last .* are cut off"):
        [condition] = encode_prompts([[long, "a dress"]], encoder, 64, syntax)
    assert condition.context.shape == (2, 12, 24) and condition.mask[0].all()

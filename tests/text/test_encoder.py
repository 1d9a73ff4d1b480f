"""Text encoders: CLIP's ids and masks are those of transformers, states the network's, masks those of ids."""

import numpy as np
import pytest

from sd_tf.text.bert import BertModel
from sd_tf.text.clip import CLIPTextModel
from sd_tf.text.config import BertConfig, CLIPTextConfig, T5Config
from sd_tf.text.encoder import CLIPTextEncoder, text_encoder_of
from sd_tf.text.new_words import with_word
from sd_tf.text.subword_tokenizer import bert_tokenizer, t5_tokenizer
from sd_tf.text.t5 import T5EncoderModel
from sd_tf.text.tokenizer import Tokenizer
from tests.conftest import shake_variables
from tests.text.vocabularies import bert_vocab, t5_pieces

TEXTS = ["a red dress", "", "a dress", "a blue bag a blue bag a blue bag"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(["a red dress", "a blue bag"] * 2, 560, 10)


@pytest.fixture(scope="module")
def tower(tokenizer):
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        eos_token_id=tokenizer.eos_token_id,
    )
    tower = CLIPTextModel(config)
    tower.build()
    return shake_variables(tower)


def encoder_of(tokenizer, tower):
    return CLIPTextEncoder(tokenizer, tower.config, lambda: tower)


def test_ids_and_masks_are_those_of_transformers(tokenizer, tower, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
    tokenizer.save(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)(
        TEXTS, padding="max_length", max_length=10, truncation=True
    )
    with pytest.warns(UserWarning, match="a prompt holds at most 8 tokens"):
        ids, mask = encoder_of(tokenizer, tower).tokenize(TEXTS)
    np.testing.assert_array_equal(ids, theirs.input_ids)
    np.testing.assert_array_equal(mask, theirs.attention_mask)
    assert ids.dtype == np.int32 and mask.dtype == bool


def test_states_and_the_pooled_one_are_the_towers(tokenizer, tower):
    encoder = encoder_of(tokenizer, tower)
    ids, mask = encoder.tokenize(TEXTS[:3])
    output, found = tower(ids), encoder.encode(ids, mask)
    np.testing.assert_array_equal(found.states, output.last_hidden_state)
    np.testing.assert_array_equal(found.pooled, output.pooled)
    assert found.mask is mask
    assert (encoder.width, encoder.length) == found.states.shape[:0:-1] == (16, 10)


def test_another_runner_of_the_tower_has_no_pooled_state_and_needs_no_network(tokenizer, tower):
    def run(ids):
        return np.ones((*ids.shape, 16))

    encoder = CLIPTextEncoder(tokenizer, tower.config, lambda: pytest.fail("was read"), run)
    found = encoder.encode(*encoder.tokenize(["a dress"]))
    assert found.pooled is None and (found.states == 1).all()


@pytest.mark.parametrize("end", ["own", "padding"])
@pytest.mark.parametrize("kind", ["T5", "BERT"])
def test_states_attend_to_the_tokens_of_the_mask_whatever_token_ends_a_text(kind, end):
    if kind == "T5":
        roles = {"pad_token": "</s>"} if end == "padding" else {}
        words = t5_tokenizer(t5_pieces(), 2, max_length=10, roles=roles)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
        network = T5EncoderModel(T5Config(vocab_size=words.vocab_size, use_attention_mask=True, **sizes))
    else:
        words = bert_tokenizer(bert_vocab(), 10, {"pad_token": "[SEP]"} if end == "padding" else {})
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 10}
        network = BertModel(BertConfig(vocab_size=words.vocab_size, use_attention_mask=True, **sizes))
    network.build()
    shake_variables(network)
    encoder = text_encoder_of(network.config, words, lambda: network)
    assert words.ends_with_padding == (end == "padding")
    ids, mask = encoder.tokenize(["a red dress", "", "a", "a red dress a red dress a red dress"])
    assert mask[1].sum() == {"T5": 1, "BERT": 2}[kind] and mask[3].all()
    np.testing.assert_array_equal(encoder.states(ids), encoder.encode(ids, mask).states)


def test_the_fingerprint_changes_with_the_weights_and_the_words_alone(tokenizer, tower):
    again = CLIPTextModel(tower.config)
    again.build()
    for new, old in zip(again.variables, tower.variables, strict=True):
        new.assign(old.value)
    before = encoder_of(tokenizer, tower).fingerprint
    assert encoder_of(tokenizer, again).fingerprint == before
    again.variables[0].assign(again.variables[0] + 1)
    assert encoder_of(tokenizer, again).fingerprint != before
    extended, words = with_word(tower, tokenizer, "<mine>", np.zeros(16, "float32"))
    assert encoder_of(words, extended).fingerprint != encoder_of(tokenizer, extended).fingerprint

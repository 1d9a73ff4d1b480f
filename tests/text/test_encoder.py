"""CLIP's text tower as a text encoder: the ids and masks of transformers, the states of the tower."""

import numpy as np
import pytest

from sd_tf.text.clip import CLIPTextModel
from sd_tf.text.config import CLIPTextConfig
from sd_tf.text.encoder import CLIPTextEncoder
from sd_tf.text.new_words import with_word
from sd_tf.text.tokenizer import Tokenizer
from tests.conftest import shake_variables

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

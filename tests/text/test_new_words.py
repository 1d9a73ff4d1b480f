"""A word that a tower learns: cut out whole, with its own embedding, and nothing else changed."""

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.text.new_words import embedding_of, token_embeddings, with_word


def states(tower, tokenizer, prompts):
    return np.asarray(tower(tokenizer(prompts)).last_hidden_state)


def test_a_word_with_the_embedding_of_another_means_the_same(tiny_model):
    tower, tokenizer = tiny_model.text_encoder, tiny_model.tokenizer
    embedding = embedding_of(tower, tokenizer, "dress")
    assert len(set(tokenizer(["dress"])[0])) == 3, "one token"
    new_tower, new_tokenizer = with_word(tower, tokenizer, "<mine>", embedding)
    ours = states(new_tower, new_tokenizer, ["a red <mine>", "a red dress", "a <mine> bag"])
    theirs = states(tower, tokenizer, ["a red dress", "a red dress", "a dress bag"])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert (
        tokenizer.token_id("<mine>") is None and token_embeddings(tower).shape[0] == tower.config.vocab_size
    )


def test_a_word_of_several_tokens_begins_as_their_mean(tiny_model):
    tower, tokenizer = tiny_model.text_encoder, tiny_model.tokenizer
    ids = [i for i in tokenizer(["red dress"])[0] if i < tokenizer.bos_token_id]
    expected = np.asarray(token_embeddings(tower).value)[ids].mean(axis=0)
    np.testing.assert_allclose(embedding_of(tower, tokenizer, "red dress"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("dress</w>", "is a token already"),
        ("my word", "without spaces"),
        ("", "without spaces"),
    ],
)
def test_a_word_that_cannot_be_new_is_refused(tiny_model, token, message):
    tower, tokenizer = tiny_model.text_encoder, tiny_model.tokenizer
    with pytest.raises(InputError, match=message):
        with_word(tower, tokenizer, token, embedding_of(tower, tokenizer, "dress"))


def test_an_embedding_of_another_width_is_refused(tiny_model):
    with pytest.raises(InputError, match=r"is \(768,\), the text tower's are \(16,\)"):
        with_word(tiny_model.text_encoder, tiny_model.tokenizer, "<mine>", np.zeros(768))


def test_a_word_to_begin_with_must_have_a_token(tiny_model):
    with pytest.raises(InputError, match="has no token"):
        embedding_of(tiny_model.text_encoder, tiny_model.tokenizer, "  ")

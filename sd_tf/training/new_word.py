"""Textual inversion (Gal et al. 2023): trains the embedding of one new word and freezes everything else."""

import keras
import numpy as np
from keras import ops

from sd_tf.errors import InputError, argument
from sd_tf.text.new_words import embedding_of, token_embeddings


def teach_word(model, text_encoder, tokenizer, token: str, like: str):
    """Adds a new word to a model, initialised with the embedding of an existing one.

    A word that an earlier, interrupted training has added is kept.

    Args:
        model: with `add_word` and a `provenance`.
        text_encoder: its `CLIPTextModel`.
        tokenizer: the `Tokenizer` of that.
        token: the new word.
        like: the existing word.

    Raises:
        InputError: the model has LoRAs, or the words do not fit the tokenizer.
    """
    if token not in model.provenance.taught_words:
        model.add_word(token, embedding_of(text_encoder, tokenizer, like))
        model.provenance.taught_words.add(token)


class Word(keras.Model):
    """The embedding of one word, float32 (1, width)."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = self.add_weight(
            shape=(1, len(embedding)),
            initializer=lambda shape, dtype=None: ops.reshape(embedding, shape),
            name="embedding",
        )
        self.built = True


class LearnedWord:
    """A word of a text encoder whose embedding learns, while the text encoder is frozen.

    Args:
        text_encoder: a `CLIPTextModel` that knows the word, see `teach_word`.
        tokenizer: its `Tokenizer`.
        token: the word.

    Attributes:
        network: the `Word` that learns.
        row: the word's row in the text encoder's table of embeddings.
    """

    def __init__(self, text_encoder, tokenizer, token: str):
        self.text_encoder, self.token = text_encoder, token
        self.row, self.table = tokenizer.token_id(token), token_embeddings(text_encoder)
        self.network = Word(np.asarray(self.table.value, "float32")[self.row])

    def check_in(self, token_ids):
        """Raises `InputError` if no caption, of the token ids int (n, tokens), has the word."""
        if not (np.asarray(token_ids) == self.row).any():
            raise InputError(
                f"no caption has the new word {self.token!r} within the tokens that the text encoder reads: "
                f"use {argument('caption')} 'a photo of {self.token}', or another word"
            )

    def states(self, token_ids):
        """The text encoder's states with the word's current embedding, float32 (n, tokens, width)."""
        word = ops.cast(self.network.embedding, self.table.dtype)
        table = ops.scatter_update(self.table.value, [[self.row]], word)
        with keras.StatelessScope(state_mapping=[(self.table, table)]):
            return ops.cast(self.text_encoder(token_ids).last_hidden_state, "float32")

    def write(self) -> np.ndarray:
        """Writes the trained embedding into the text encoder, and returns it: float32 (width,)."""
        values, learned = np.asarray(self.table.value).copy(), np.asarray(self.network.embedding.value)[0]
        values[self.row] = learned
        self.table.assign(values)
        return learned

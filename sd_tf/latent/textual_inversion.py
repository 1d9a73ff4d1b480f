"""Textual inversion (Gal et al. 2023): of a whole model, the embedding of one new word is all that learns."""

import dataclasses

import keras
import numpy as np
from keras import ops

from sd_tf.errors import InputError, argument
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.stages import DiffusionStage
from sd_tf.text.new_words import embedding_of, token_embeddings


def teach_word(model: LatentDiffusion, token: str, like: str):
    """Gives a model a new word, which means what another one does until it has learned.

    A model that has been taught the word before, by a training that was stopped, stays what it is.
    """
    if token not in model.provenance.taught_words:
        model.add_word(token, embedding_of(model.text_encoder, model.tokenizer, like))
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


class TextualInversionStage(DiffusionStage):
    """As `DiffusionStage`, with captions as token ids: the text tower runs in every step.

    Args:
        config: a `StageConfig`, whose weight decay is not taken: an embedding has no reason to be small.
        model: that `teach_word` has given the word.
        cache: latents and the token ids of captions, of `data.cache`.
        token: the new word.
        others: of `DiffusionStage`.
    """

    def __init__(self, config, model, cache, caption_dropout, seed, token, **others):
        config = dataclasses.replace(config, weight_decay=0.0)
        super().__init__(config, model, cache, caption_dropout, seed, **others)
        self.row, self.table = model.tokenizer.token_id(token), token_embeddings(model.text_encoder)
        if not (np.asarray(cache.contexts) == self.row).any():
            raise InputError(
                f"no caption has the new word {token!r} in what the text tower reads of it: take "
                f"{argument('caption')} 'a photo of {token}', or another word"
            )
        self.empty_context = model.encode_prompts([""])
        self.network = Word(np.asarray(self.table.value, "float32")[self.row])

    def captions(self, indices):
        """Token ids int32 (n, tokens)."""
        return {"token_ids": np.asarray(self.cache.contexts[self.cache.caption[indices]])}

    def context(self, batch):
        """What the tower makes of them, with the word as it is now."""
        word = ops.cast(self.network.embedding, self.table.dtype)
        table = ops.scatter_update(self.table.value, [[self.row]], word)
        with keras.StatelessScope(state_mapping=[(self.table, table)]):
            return ops.cast(self.model.text_encoder(batch["token_ids"]).last_hidden_state, "float32")

    def preview(self):
        """As that of `DiffusionStage`, by the word as it is now."""
        self.write_word()
        return super().preview()

    def write_word(self) -> np.ndarray:
        """Puts what was learned into the text tower, and returns it: float32 (width,)."""
        values, learned = np.asarray(self.table.value).copy(), np.asarray(self.network.embedding.value)[0]
        values[self.row] = learned
        self.table.assign(values)
        return learned

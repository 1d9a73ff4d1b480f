"""Textual inversion (Gal et al. 2023): trains the embedding of one new word and freezes everything else."""

import dataclasses

import keras
import numpy as np
from keras import ops

from sd_tf.errors import InputError, argument
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.stages import DiffusionStage
from sd_tf.text.new_words import embedding_of, token_embeddings


def teach_word(model: LatentDiffusion, token: str, like: str):
    """Adds a new word, initialised with the embedding of an existing one.

    A word that an earlier, interrupted training has added is kept.

    Args:
        model: a `LatentDiffusion`.
        token: the new word.
        like: the existing word.

    Raises:
        InputError: the model has LoRAs, or the words do not fit the tokenizer.
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
    """A `DiffusionStage` with captions as token ids: the text encoder runs in every step.

    Args:
        config: a `StageConfig`, whose weight decay is ignored: an embedding need not be small.
        model: a `LatentDiffusion` with the word, from `teach_word`.
        cache: a `LatentCache` of latents and the captions' token ids.
        token: the new word.
        others: arguments of `DiffusionStage`.

    Raises:
        InputError: no caption has the word.
    """

    def __init__(self, config, model, cache, caption_dropout, seed, token, **others):
        config = dataclasses.replace(config, weight_decay=0.0)
        super().__init__(config, model, cache, caption_dropout, seed, **others)
        self.row, self.table = model.tokenizer.token_id(token), token_embeddings(model.text_encoder)
        if not (np.asarray(cache.contexts) == self.row).any():
            raise InputError(
                f"no caption has the new word {token!r} within the tokens that the text encoder reads: use "
                f"{argument('caption')} 'a photo of {token}', or another word"
            )
        self.empty_context = model.encode_prompts([""])
        self.network = Word(np.asarray(self.table.value, "float32")[self.row])

    def captions(self, indices):
        """The captions of a batch: "token_ids", int32 (n, tokens)."""
        return {"token_ids": np.asarray(self.cache.contexts[self.cache.caption[indices]])}

    def context(self, batch):
        """The UNet's context, with the word's current embedding, float32 (n, tokens, width)."""
        word = ops.cast(self.network.embedding, self.table.dtype)
        table = ops.scatter_update(self.table.value, [[self.row]], word)
        with keras.StatelessScope(state_mapping=[(self.table, table)]):
            return ops.cast(self.model.text_encoder(batch["token_ids"]).last_hidden_state, "float32")

    def preview(self):
        """See `DiffusionStage.preview`."""
        self.write_word()
        return super().preview()

    def write_word(self) -> np.ndarray:
        """Writes the trained embedding into the text encoder, and returns it: float32 (width,)."""
        values, learned = np.asarray(self.table.value).copy(), np.asarray(self.network.embedding.value)[0]
        values[self.row] = learned
        self.table.assign(values)
        return learned

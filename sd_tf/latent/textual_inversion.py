"""Textual inversion (Gal et al. 2023): the stage that trains the embedding of one new word."""

import dataclasses

import numpy as np

from sd_tf.latent.stages import DiffusionStage
from sd_tf.training.new_word import LearnedWord


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
        self.word = LearnedWord(model.text_encoder, model.tokenizer, token)
        self.word.check_in(cache.contexts)
        self.row, self.network = self.word.row, self.word.network
        self.empty_context = model.encode_prompts([""])

    def captions(self, indices):
        """The captions of a batch: "token_ids", int32 (n, tokens)."""
        return {"token_ids": np.asarray(self.cache.contexts[self.cache.caption[indices]])}

    def context(self, batch):
        """The UNet's context, with the word's current embedding, float32 (n, tokens, width)."""
        return self.word.states(batch["token_ids"])

    def preview(self):
        """See `DiffusionStage.preview`."""
        self.write_word()
        return super().preview()

    def write_word(self) -> np.ndarray:
        """Writes the trained embedding into the text encoder, and returns it: float32 (width,)."""
        return self.word.write()

"""Textual inversion (Gal et al. 2023): the first stage trains the embedding of one new word."""

import dataclasses

import numpy as np

from sd_tf.cascade.stages import BaseStage
from sd_tf.diffusion.conditions import Condition
from sd_tf.training.new_word import LearnedWord


class TextualInversionStage(BaseStage):
    """A `BaseStage` with captions as token ids: the text encoder, a CLIP, runs in every step.

    Args:
        config: a `StageConfig`, whose weight decay is ignored: an embedding need not be small.
        texts: `TokenIds` of the captions.
        model: a `CascadedDiffusion` with the word, from `sd_tf.training.new_word.teach_word`.
        token: the new word.
        others: as of `BaseStage`.

    Raises:
        InputError: no caption has the word.
    """

    def __init__(self, config, name, stage, dataset, texts, caption_dropout, seed, model, token, **settings):
        config = dataclasses.replace(config, weight_decay=0.0)
        super().__init__(config, name, stage, dataset, texts, caption_dropout, seed, model, **settings)
        self.word = LearnedWord(model.text_encoder.network(), model.text_encoder.tokenizer, token)
        self.word.check_in(texts.states)
        self.network, self.empty = self.word.network, model.encode_prompts([""]).context

    def captions(self, captions):
        """What of n captions goes into a batch: "token_ids", int32 (n, tokens)."""
        return {"token_ids": self.texts.states[self.texts.rows_of(captions)]}

    def condition(self, batch):
        """The text's states with the word's current embedding."""
        return Condition(self.word.states(batch["token_ids"]))

    def preview(self):
        """See `BaseStage.preview`."""
        self.word.write()
        return super().preview()


class TokenIds:
    """The token ids of captions, where a `TextCache` has their states.

    Args:
        encoder: a `TextEncoder`.
        captions: distinct ones.

    Attributes:
        states: int32 (captions, tokens).
        seconds: 0: it takes no time that counts.
    """

    seconds = 0.0

    def __init__(self, encoder, captions):
        self.states = encoder.tokenize(captions)[0]
        self._rows = {caption: row for row, caption in enumerate(captions)}

    def rows_of(self, captions) -> np.ndarray:
        """The rows of some captions, int64 (n,)."""
        return np.array([self._rows[caption] for caption in captions], np.int64)

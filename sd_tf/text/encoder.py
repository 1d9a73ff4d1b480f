"""What every text encoder promises, and CLIP's text tower as one.

A text encoder turns texts into token ids with a mask, and these into states that a network attends to.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sd_tf.hashing import fingerprint, weights_fingerprint


class EncodedText(NamedTuple):
    """What a text encoder makes of a batch of texts.

    Attributes:
        states: float (batch, tokens, width), one for each token.
        mask: bool (batch, tokens), True at tokens of the text and False at padding.
        pooled: float (batch, width), one vector for each text; None where the encoder has none.
    """

    states: Any
    mask: Any
    pooled: Any = None


class TextEncoder(Protocol):
    """A frozen network that reads texts.

    Attributes:
        width: of its states.
        length: tokens of a row, padding included.
        fingerprint: a short hash of its weights and vocabulary: equal where the same text gets the same
            states. What is cached is named by it.
    """

    width: int
    length: int
    fingerprint: str

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts to token ids int32 (n, length), cut or padded to `length`, and their mask, bool."""

    def encode(self, ids, mask) -> EncodedText:
        """Token ids and their mask, both (n, length), to states."""


class CLIPTextEncoder:
    """CLIP's text tower as a `TextEncoder`.

    Stable Diffusion's UNet attends to padding too, as in CompVis' code and in diffusers, and CLIP's own
    attention is causal, so that the mask changes no state. It says which states are those of the text.

    Args:
        tokenizer: a `Tokenizer`.
        config: the tower's `CLIPTextConfig`.
        network: gives the `CLIPTextModel`. It is called only for `fingerprint` and where `run` is None.
        run: int32 (n, length) -> states (n, length, width): what runs the tower instead, such as an engine's
            `encode`. There is no pooled state then.

    Attributes:
        tokenizer, run: as given.
    """

    def __init__(self, tokenizer, config, network: Callable, run: Callable | None = None):
        self.tokenizer, self._network, self.run = tokenizer, network, run
        self.width, self.length = config.hidden_size, tokenizer.max_length

    @property
    def fingerprint(self) -> str:
        """A short hash of the tower's weights and the tokenizer's words."""
        tokenizer = self.tokenizer
        words = (tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens, tokenizer.added_tokens)
        return fingerprint(weights_fingerprint(self._network()), *map(repr, words), self.length)

    def tokenize(self, texts):
        """Texts to token ids int32 (n, length) and their mask, bool: the start, the text and its end.

        A text that does not fit is cut, with a warning.
        """
        ids = self.tokenizer(texts)
        tokens = np.array([len(self.tokenizer.ids(text)) + 2 for text in texts])
        return ids, np.arange(self.length) < tokens[:, np.newaxis]

    def encode(self, ids, mask) -> EncodedText:
        """Token ids and their mask, both (n, length), to states; the mask is returned as it is."""
        if self.run is not None:
            return EncodedText(self.run(ids), mask)
        output = self._network()(ids)
        return EncodedText(output.last_hidden_state, mask, output.pooled)

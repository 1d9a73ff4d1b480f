"""What every text encoder promises, and CLIP's text tower, T5's encoder and BERT as one.

A text encoder turns texts into token ids with a mask, and these into states that a network attends to.

The networks of T5 and BERT take the mask, so that no state attends to padding. diffusers' pipeline of Stable
Diffusion gives a text encoder the mask only if its configuration says `use_attention_mask`; without it,
states attend to padding, too. `states` follows it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sd_tf.errors import unknown
from sd_tf.hashing import fingerprint, weights_fingerprint
from sd_tf.text.config import BertConfig, CLIPTextConfig, T5Config

CLIP_ROWS = 8  # of CLIP's length that a prompt is read in
POOLINGS = ("mean", "cls")


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


class TextTokenizer(Protocol):
    """How a text encoder's rows are made, for prompts whose words have weights.

    Attributes:
        max_length: tokens of a row.
        room: tokens of a text that a row holds; the others begin and end it.
        first: the place in a row of a text's first token.
        continued: id of a word that stands for several tokens -> the ids of all of them.
    """

    max_length: int
    room: int
    first: int
    continued: dict[int, tuple[int, ...]]

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without what begins and ends a row."""

    def row(self, ids: Sequence[int]) -> np.ndarray:
        """Token ids, at most `room`, as int32 (max_length,): begin, ids, end, padding."""


class TextEncoder(Protocol):
    """A frozen network that reads texts.

    Attributes:
        width: of its states.
        length: tokens of a row, padding included.
        fingerprint: a short hash of its weights and vocabulary: equal where the same text gets the same
            states. What is cached is named by it.
        tokenizer: makes its rows.
        most_rows: the most rows that a prompt is read in; what is longer is cut.
    """

    width: int
    length: int
    fingerprint: str
    tokenizer: TextTokenizer
    most_rows: int

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts to token ids int32 (n, length), cut or padded to `length`, and their mask, bool."""

    def encode(self, ids, mask) -> EncodedText:
        """Token ids and their mask, both (n, length), to states."""

    def magnitude(self, states: np.ndarray) -> float:
        """What of the states stays as it was when some of them are multiplied by weights of words."""


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
        tokenizer, config, network, run: as given.

    Raises:
        InputError: the tokenizer has more tokens, or longer rows, than the network.
    """

    most_rows = CLIP_ROWS

    def __init__(self, tokenizer, config, network: Callable, run: Callable | None = None):
        tokenizer.check_fits(config)
        self.tokenizer, self.config, self.network, self.run = tokenizer, config, network, run
        self.width, self.length = config.width, tokenizer.max_length

    @property
    def fingerprint(self) -> str:
        """A short hash of the tower's weights and the tokenizer's words."""
        tokenizer = self.tokenizer
        words = (tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens, tokenizer.added_tokens)
        return fingerprint(weights_fingerprint(self.network()), *map(repr, words), self.length)

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
        output = self.network()(ids)
        return EncodedText(output.last_hidden_state, mask, output.pooled)

    def states(self, ids):
        """Token ids (n, length) to states (n, length, width), in graphs as well."""
        return self.network()(ids).last_hidden_state

    @staticmethod
    def magnitude(states) -> float:
        """The mean, as in AUTOMATIC1111's interface: CLIP's states have one that is not 0."""
        return float(states.mean(dtype="float64"))


class _MaskedTextEncoder:
    """What T5 and BERT have in common: their states attend to the text's tokens alone.

    A text is one row, as positions and meaning go on through all of it: what does not fit is cut.
    """

    most_rows = 1

    def __init__(self, tokenizer, config, network: Callable, run: Callable | None = None):
        tokenizer.check_fits(config)
        self.tokenizer, self.config, self.network, self.run = tokenizer, config, network, run
        self.width, self.length = config.width, tokenizer.max_length

    @property
    def fingerprint(self) -> str:
        """A short hash of the network's weights, the vocabulary and the length."""
        return fingerprint(weights_fingerprint(self.network()), self.tokenizer.fingerprint)

    def tokenize(self, texts):
        """Texts to token ids int32 (n, length) and their mask, bool.

        A text that does not fit is cut, with a warning, and keeps its end token.
        """
        return self.tokenizer(texts)

    def encode(self, ids, mask) -> EncodedText:
        """Token ids and their mask, both (n, length), to states; the mask is returned as it is."""
        if self.run is not None:
            return EncodedText(self.run(ids), mask)
        return self._encode(ids, mask)

    def states(self, ids):
        """Token ids (n, length) to states (n, length, width), in graphs as well; see the module's docstring.

        The text ends with a token that is no padding, or with the first of padding, and the mask with it.
        """
        from keras import ops  # only here: it is slow to import, and texts are tokenised without it

        places = np.arange(self.length, dtype="int32")
        last = ops.max(ops.where(ops.equal(ids, self.tokenizer.pad_token_id), -1, places), axis=1)
        last = last + int(self.tokenizer.ends_with_padding)
        if not self.config.use_attention_mask:
            last = ops.full_like(last, self.length)
        return self._encode(ids, ops.less_equal(places, last[:, None])).states

    @staticmethod
    def magnitude(states) -> float:
        """The root mean square: the mean of these states is about 0, and its sign is chance."""
        return float(np.sqrt(np.square(states, dtype="float64").mean()))


class T5TextEncoder(_MaskedTextEncoder):
    """T5's encoder as a `TextEncoder`. It has no pooled state.

    Args:
        tokenizer: a `SubwordTokenizer` of T5.
        config: the `T5Config`.
        network: gives the `T5EncoderModel`.
        run: int32 (n, length) -> states (n, length, d_model): what runs the network instead, such as an
            engine's `encode`.

    Attributes:
        tokenizer, config, network, run: as given.

    Raises:
        InputError: the tokenizer has more tokens than the network.
    """

    def _encode(self, ids, mask):
        return EncodedText(self.network()(ids, mask), mask)


class BertTextEncoder(_MaskedTextEncoder):
    """BERT as a `TextEncoder`, and so the sentence-transformers that are made of it.

    The pooled state is that of sentence-transformers (Reimers & Gurevych 2019, section 3), and not the
    output of BERT's own pooler, which was trained to tell sentences that follow each other.

    Args:
        tokenizer: a `SubwordTokenizer` of BERT.
        config: the `BertConfig`.
        network: gives the `BertModel`.
        pooling: "mean" for the mean of the states over the text's tokens, begin and end among them; "cls" for
            the first token's state.
        normalize: whether the pooled state is divided by its length.
        run: int32 (n, length) -> states (n, length, width): what runs the network instead, such as an
            engine's `encode`. There is no pooled state then.

    Attributes:
        tokenizer, config, network, pooling, normalize, run: as given.

    Raises:
        InputError: the tokenizer has more tokens, or longer rows, than the network; or there is no such
            pooling.
    """

    def __init__(
        self,
        tokenizer,
        config,
        network: Callable,
        pooling: str = "mean",
        normalize: bool = False,
        run: Callable | None = None,
    ):
        super().__init__(tokenizer, config, network, run)
        if pooling not in POOLINGS:
            raise unknown("pooling", pooling, POOLINGS)
        self.pooling, self.normalize = pooling, normalize

    def _encode(self, ids, mask):
        from keras import ops  # only here, as in `states`

        states = self.network()(ids, mask).last_hidden_state
        pooled = ops.cast(states, "float32")
        if self.pooling == "cls":
            pooled = pooled[:, 0]
        else:
            weights = ops.cast(mask, "float32")[..., None]
            pooled = ops.sum(pooled * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)
        if self.normalize:
            pooled = ops.normalize(pooled, axis=-1, epsilon=1e-12)
        return EncodedText(states, mask, pooled)


ENCODERS = {CLIPTextConfig: CLIPTextEncoder, T5Config: T5TextEncoder, BertConfig: BertTextEncoder}


def kind_of(config) -> str:
    """What a configuration is of, for messages: "CLIP", "T5" or "BERT"."""
    return {CLIPTextConfig: "CLIP", T5Config: "T5", BertConfig: "BERT"}[type(config)]


def text_encoder_of(config, tokenizer, network: Callable, **options) -> TextEncoder:
    """The text encoder of a configuration's kind; see its class for the arguments and errors."""
    return ENCODERS[type(config)](tokenizer, config, network, **options)

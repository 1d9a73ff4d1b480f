"""A BERT with fewer word pieces, which is a smaller file: embeddings of pieces are half of a small BERT.

What is left out is read as shorter pieces, down to single characters, of which those of ASCII stay: BERT's
uncased tokenizers take accents away. A text whose pieces all stay is cut into the same ones: WordPiece takes
the longest piece at each place, and that is still the same.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np

from sd_tf.errors import InputError, argument
from sd_tf.text.config import BertConfig
from sd_tf.text.encoder import BertTextEncoder, kind_of
from sd_tf.text.subword_tokenizer import BERT_ROLES, SubwordTokenizer, bert_tokenizer

CONTINUES = "##"  # begins pieces that go on with a word


def chosen_pieces(tokenizer: SubwordTokenizer, texts: Iterable[str], number: int) -> list[int]:
    """The ids of the pieces to keep, in ascending order.

    These are the special and added tokens, the single characters of ASCII and the same behind `##`, what the
    texts need, the most frequent first, and further words and parts of words in the order of the vocabulary,
    which in BERT's is by frequency. Other scripts come last: all-MiniLM-L6-v2 has 2,000 characters, of which
    136 are of ASCII.

    Args:
        tokenizer: a `SubwordTokenizer` of BERT.
        texts: such as captions.
        number: of pieces; all, if there are fewer.

    Raises:
        InputError: the special and added tokens and the characters are more than that.
    """
    vocab = tokenizer.vocab
    special = set(tokenizer.roles.values())
    kept = {i for piece, i in vocab.items() if piece in special or _is_ascii_character(piece)}
    kept |= set(tokenizer.added_tokens)  # some of which may stand behind the vocabulary
    if len(kept) > number:
        raise InputError(
            f"{number} pieces are to stay, special tokens and characters of ASCII are {len(kept)}: give more"
        )
    used = Counter(i for text in texts for i in tokenizer.ids(text))
    of_texts = sorted(used, key=lambda i: (-used[i], i))
    words = [(piece, i) for piece, i in vocab.items() if piece.removeprefix(CONTINUES).isalpha()]
    words.sort(key=lambda word: (not word[0].isascii(), word[1]))
    for i in (*of_texts, *(i for _, i in words)):
        if len(kept) == number:
            break
        kept.add(i)
    return sorted(kept)


def _is_ascii_character(piece):
    letters = piece.removeprefix(CONTINUES)
    return len(letters) == 1 and letters.isascii()


def with_pieces(tokenizer: SubwordTokenizer, kept: list[int]) -> SubwordTokenizer:
    """BERT's tokenizer with these pieces alone; a piece's new id is its place among them."""
    places = {i: place for place, i in enumerate(kept)}
    vocab = {piece: places[i] for piece, i in tokenizer.vocab.items() if i in places}
    added = {places[i]: token for i, token in tokenizer.added_tokens.items() if i in places}
    roles = {role: tokenizer.roles[role] for role in BERT_ROLES if role in tokenizer.roles}
    return bert_tokenizer(vocab, tokenizer.max_length, roles, added, tokenizer.options)


def pruned(encoder: BertTextEncoder, texts: Iterable[str], pieces: int, positions=None) -> BertTextEncoder:
    """A text encoder with fewer word pieces, and without the pooler, which nothing reads.

    Args:
        encoder: one of `open_text_encoder`; it stays what it is.
        texts: whose pieces stay, see `chosen_pieces`.
        pieces: how many stay.
        positions: how many stay, the first ones: the most tokens of a row; None for all.

    Raises:
        InputError: it is no BERT, there are too few pieces, rows are longer than the positions, or these are
            more than it has.
    """
    config = encoder.config
    if not isinstance(config, BertConfig):
        raise InputError(f"the text encoder is a {kind_of(config)}: only a BERT's pieces can be left out")
    if positions is not None and positions > config.max_position_embeddings:
        raise InputError(
            f"{argument('positions')} is {positions}, the text encoder has {config.max_position_embeddings}: "
            "give no more"
        )
    from sd_tf.text.bert import BertModel  # only here: it imports Keras

    kept = chosen_pieces(encoder.tokenizer, texts, pieces)
    rows = config.max_position_embeddings if positions is None else positions
    padding = kept.index(encoder.tokenizer.pad_token_id)
    smaller = dataclasses.replace(
        config, vocab_size=len(kept), max_position_embeddings=rows, pad_token_id=padding
    )
    tokenizer, whole = with_pieces(encoder.tokenizer, kept), encoder.network()
    tokenizer.check_fits(smaller)
    network = BertModel(smaller, add_pooling_layer=False, dtype=whole.dtype_policy)
    network.build()
    values = {_name_in_model(variable): variable for variable in whole.variables}
    for variable in network.variables:
        value = np.asarray(values[_name_in_model(variable)].value)
        if variable.path.endswith("word_embeddings/embeddings"):
            value = value[kept]
        elif variable.path.endswith("position_embeddings/embeddings"):
            value = value[:rows]
        variable.assign(value)
    return BertTextEncoder(tokenizer, smaller, lambda: network, encoder.pooling, encoder.normalize)


def _name_in_model(variable):
    """A variable's path without the model's name."""
    return variable.path.partition("/")[2]

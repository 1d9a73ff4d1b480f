"""A word that a text tower does not know yet: tokens of its own, with embeddings of their own."""

import dataclasses

import numpy as np

from sd_tf.errors import InputError, shown


def embedding_of(text_encoder, tokenizer, word: str) -> np.ndarray:
    """The mean of the embeddings of a word's tokens, float32 (width,), for a new word to begin with.

    Raises:
        InputError: it has no token.
    """
    ids = tokenizer([word])[0]
    ids = [
        i for i in ids if i not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    ]
    if not ids:
        raise InputError(f"{shown(word)} has no token: begin with a word, such as 'toy'")
    return np.asarray(token_embeddings(text_encoder).value, "float32")[ids].mean(axis=0)


def with_word(text_encoder, tokenizer, token: str, embedding: np.ndarray):
    """A text tower and a tokenizer that know one word more; those given stay what they are.

    Args:
        text_encoder: a built `CLIPTextModel`.
        tokenizer: its `Tokenizer`.
        token: the new word, cut out of prompts as it is, such as "<mine>".
        embedding: float (width,), or (vectors, width) for a word that stands for several tokens.

    Raises:
        InputError: the token is known, empty or has a space in it, or the embedding has another width.
    """
    width = text_encoder.config.hidden_size
    vectors = np.atleast_2d(embedding)
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise InputError(
            f"the embedding of {shown(token)} is {embedding.shape}, the text tower's are ({width},)"
        )
    if len(vectors) > (most := tokenizer.max_length - 2):
        raise InputError(f"{shown(token)} has {len(vectors)} vectors, the text tower reads {most} tokens")
    if not token or token != "".join(token.split()):
        raise InputError(f"the new word is {shown(token)}: give one without spaces, such as <mine>")
    for name in (token, *(f"{token}_{i}" for i in range(1, len(vectors) + 1))):  # the last one would join it
        if tokenizer.token_id(name) is not None:
            raise InputError(
                f"{shown(name)} is a token already: take another word, such as <{token.strip('<>')}-2>"
            )
    extended = tokenizer.with_word(token, len(vectors))
    rows = max(text_encoder.config.vocab_size, extended.vocab_size)
    config = dataclasses.replace(text_encoder.config, vocab_size=rows)
    tower = type(text_encoder)(config, dtype=text_encoder.dtype_policy)
    tower.build()
    table = token_embeddings(tower)
    for new, old in zip(tower.variables, text_encoder.variables, strict=True):
        if new is not table:
            new.assign(old.value)
    values = np.zeros(table.shape, "float32")
    known = np.asarray(token_embeddings(text_encoder).value)
    values[: len(known)] = known
    first = extended.token_id(token)
    values[first : first + len(vectors)] = vectors
    table.assign(values)
    return tower, extended


def token_embeddings(text_encoder):
    """The variable of a tower's token embeddings, (tokens, width)."""
    return next(v for v in text_encoder.variables if v.path.endswith("token_embedding/embeddings"))

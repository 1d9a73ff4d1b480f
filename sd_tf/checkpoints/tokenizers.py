"""Tokenizers in folders."""

import warnings
from pathlib import Path

from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.errors import InputError, naming, shown
from sd_tf.files import read_json
from sd_tf.text.subword_tokenizer import LONGEST
from sd_tf.text.tokenizer import UNLIMITED, Tokenizer

SHORTEST = 4  # tokens of a row


def tokenizer_folder(source) -> Path:
    """That of a folder, of a whole model's, or of a hub id; nothing in it is a link out."""
    folder = resolve(source, kind="tokenizer")
    if (folder / "tokenizer").is_dir():  # of a whole model
        folder = folder / "tokenizer"
    refuse_links_out(folder)
    return folder


def text_length(folder) -> int | None:
    """Tokens of a row, as the tokenizer of a whole model says; None where it sets no limit.

    Raises:
        InputError: what it says is no number of tokens.

    Warns:
        UserWarning: a row would have more than 1024, and gets as many as without a limit.
    """
    file = Path(folder) / "tokenizer" / "tokenizer_config.json"
    if not file.is_file():
        return None
    length = read_json(file, root=folder).get("model_max_length")
    if length is None or type(length) in (int, float) and length >= UNLIMITED:
        return None
    if type(length) is not int or length < SHORTEST:
        raise InputError(f"{file}: model_max_length is {shown(length)}, expected {SHORTEST} to {LONGEST}")
    if length <= LONGEST:
        return length
    warnings.warn(
        f"{file}: model_max_length is {length:,}, and texts are read in rows of at most {LONGEST} tokens: "
        "the usual length of such a text encoder is taken",
        stacklevel=2,
    )
    return None


def load_tokenizer(source, max_length, pad_token=None):
    """CLIP's tokenizer of a folder, of a whole model's, or of a hub id."""
    folder = tokenizer_folder(source)
    tokenizer = Tokenizer.load(folder, max_length=max_length)
    if pad_token is None:
        return tokenizer
    special_tokens = tokenizer.special_tokens | {"pad_token": pad_token}
    with naming(folder):
        return Tokenizer(tokenizer.vocab, tokenizer.merges, max_length, special_tokens)

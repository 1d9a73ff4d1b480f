"""Tokenizers in folders."""

from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.errors import naming
from sd_tf.text.tokenizer import Tokenizer


def load_tokenizer(source, max_length, pad_token=None):
    """The tokenizer of a folder, of a whole model's, or of a hub id."""
    folder = resolve(source, kind="tokenizer")
    if (folder / "tokenizer").is_dir():  # of a whole model
        folder = folder / "tokenizer"
    refuse_links_out(folder)
    tokenizer = Tokenizer.load(folder, max_length=max_length)
    if pad_token is None:
        return tokenizer
    special_tokens = tokenizer.special_tokens | {"pad_token": pad_token}
    with naming(folder):
        return Tokenizer(tokenizer.vocab, tokenizer.merges, max_length, special_tokens)

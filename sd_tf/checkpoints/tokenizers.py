"""Tokenizers in folders."""

from pathlib import Path

from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.errors import naming
from sd_tf.files import read_json
from sd_tf.text.tokenizer import Tokenizer

LONGEST_TEXT = 512  # tokens


def tokenizer_folder(source) -> Path:
    """That of a folder, of a whole model's, or of a hub id; nothing in it is a link out."""
    folder = resolve(source, kind="tokenizer")
    if (folder / "tokenizer").is_dir():  # of a whole model
        folder = folder / "tokenizer"
    refuse_links_out(folder)
    return folder


def text_length(folder) -> int | None:
    """Tokens of a row, as the tokenizer of a whole model says; None where it says none that makes sense."""
    file = Path(folder) / "tokenizer" / "tokenizer_config.json"
    if not file.is_file():
        return None
    length = read_json(file, root=folder).get("model_max_length")
    return length if type(length) is int and 4 <= length <= LONGEST_TEXT else None


def load_tokenizer(source, max_length, pad_token=None):
    """CLIP's tokenizer of a folder, of a whole model's, or of a hub id."""
    folder = tokenizer_folder(source)
    tokenizer = Tokenizer.load(folder, max_length=max_length)
    if pad_token is None:
        return tokenizer
    special_tokens = tokenizer.special_tokens | {"pad_token": pad_token}
    with naming(folder):
        return Tokenizer(tokenizer.vocab, tokenizer.merges, max_length, special_tokens)

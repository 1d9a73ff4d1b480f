"""Writes a BERT with fewer word pieces: `python -m sd_tf.checkpoints.pruning --captions FILE --output DIR`.

Such as all-MiniLM-L6-v2 in half precision, with the pieces that captions use. See `sd_tf.text.pruning`.
"""

from fnmatch import fnmatch
from pathlib import Path

from sd_tf import commandline
from sd_tf.checkpoints.replacing import check_replaceable
from sd_tf.checkpoints.text_encoders import open_text_encoder, save_text_encoder_alone
from sd_tf.errors import InputError, naming
from sd_tf.text.nearest_captions import read_captions
from sd_tf.text.pruning import pruned
from sd_tf.text.subword_tokenizer import BERT_LENGTH

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PIECES = 7_000  # with which MiniLM takes 27 MB
WRITTEN = ("*.json", "*.safetensors", "vocab.txt", "1_Pooling")  # the names in the folder of a text encoder


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, and writes the folder."""
    parser = commandline.Parser("python -m sd_tf.checkpoints.pruning", description=__doc__)
    parser.add_argument("--text-encoder", default=MINILM, help=f"a folder or a hub id (default: {MINILM})")
    parser.add_argument("--captions", nargs="+", required=True, help="text files, a caption in each line")
    parser.add_argument("--pieces", type=int, default=PIECES, help=f"how many stay (default: {PIECES})")
    parser.add_argument("--positions", type=int, help="tokens of the longest text (default: all)")
    parser.add_argument("--output", required=True, help="folder to write")
    flags = parser.parse_args(arguments)
    for name in ("pieces", "positions"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}: give 1 or more")
    output = Path(flags.output)
    commandline.check_writable(output)
    check_replaceable(output)
    if output.exists() and not _is_text_encoder(output):
        raise InputError(f"--output {output} holds something else: name another folder")
    with naming("--captions"):
        texts = [caption for file in flags.captions for caption in read_captions(file)]
    is_short = flags.positions is not None and flags.positions < BERT_LENGTH
    encoder = open_text_encoder(flags.text_encoder, flags.positions if is_short else None)
    commandline.load_tensorflow()
    smaller = pruned(encoder, texts, flags.pieces, flags.positions)
    save_text_encoder_alone(smaller, output, "float16")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {smaller.config.vocab_size:,} pieces, {size / 1e6:.1f} MB")


def _is_text_encoder(folder):
    """Whether nothing else is lost where a folder is replaced."""
    names = [path.name for path in folder.iterdir()]
    is_all_of_one = all(any(fnmatch(name, pattern) for pattern in WRITTEN) for name in names)
    return not names or is_all_of_one and {"config.json", "tokenizer.json"} <= set(names)


if __name__ == "__main__":
    commandline.run(main)

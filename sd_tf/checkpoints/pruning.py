"""Writes a BERT with fewer word pieces: `python -m sd_tf.checkpoints.pruning --captions FILE --output DIR`.

Such as all-MiniLM-L6-v2 in half precision, with the pieces that captions use. See `sd_tf.text.pruning`.
"""

from pathlib import Path

from sd_tf import commandline
from sd_tf.checkpoints.text_encoders import open_text_encoder, save_text_encoder_alone
from sd_tf.errors import InputError
from sd_tf.files import read_text
from sd_tf.text.pruning import pruned
from sd_tf.text.subword_tokenizer import BERT_LENGTH

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PIECES = 7_000  # with which MiniLM takes 27 MB
LARGEST = 100_000_000  # bytes of captions


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
    commandline.check_writable(Path(flags.output))
    texts = [line for file in flags.captions for line in read_text(Path(file), LARGEST).splitlines()]
    is_short = flags.positions is not None and flags.positions < BERT_LENGTH
    encoder = open_text_encoder(flags.text_encoder, flags.positions if is_short else None)
    commandline.load_tensorflow()
    smaller = pruned(encoder, texts, flags.pieces, flags.positions)
    save_text_encoder_alone(smaller, flags.output, "float16")
    size = sum(file.stat().st_size for file in Path(flags.output).rglob("*") if file.is_file())
    print(f"{flags.output}: {smaller.config.vocab_size:,} pieces, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    commandline.run(main)

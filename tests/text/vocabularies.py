"""Small vocabularies of both kinds, learned from captions, and texts that are hard to tokenise."""

import functools
import json

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from sd_tf.data.captions import corpus

HARD = [
    "",
    " ",
    "a  red\tdress\n with   spaces ",
    "naïve café, crème brûlée, Ångström",
    "e\u0301 and \u00e9: decomposed or not",
    "日本語のテキスト 中文 한국어",
    "👩‍🎨 painting a 🐉 😀😀",
    "ﬁne ½ ＡＢＣ ① ™",
    "It's 3.5% of 1,000—or so… (isn't it?)",
    "UPPER lower MiXeD",
    "\u200bzero\u200dwidth\ufeff",
    "control\x07characters\x00here",
    "word" * 60,
    "a very long text " * 200,
    "İstanbul ß ẞ ŒUVRE",
    "[CLS] is [MASK] a token [SEP]?",
    "and </s> or <pad> or <unk>",
]


@functools.cache
def captions():
    """Three hundred captions of garments, and the hard texts."""
    return [*corpus()[:: max(1, len(corpus()) // 300)], *HARD]


@functools.cache
def t5_pieces(size=300):
    """Pieces and scores as T5 has them: padding, end and the unknown token first."""
    learned = tokenizers.Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    learned.train_from_iterator(corpus(), trainer)
    return [(piece, score) for piece, score in json.loads(learned.to_str())["model"]["vocab"]]


@functools.cache
def bert_vocab(size=400):
    """Token -> id, in BERT's order."""
    learned = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=list("éaÅ日中U!"), show_progress=False
    )
    learned.train_from_iterator(corpus(), trainer)
    return learned.get_vocab()


def spiece(pieces, charsmap=b"", unk_id=2):
    """The content of a `spiece.model`, written by its protocol buffer."""
    from transformers.convert_slow_tokenizer import import_protobuf

    layout = import_protobuf()
    model = layout.ModelProto()
    for i, (piece, score) in enumerate(pieces):
        model.pieces.add(piece=piece, score=score, type=(3, 3, 2)[i] if i < 3 else 1)
    model.trainer_spec.unk_id, model.trainer_spec.model_type = unk_id, 1
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = charsmap
    return model.SerializeToString()

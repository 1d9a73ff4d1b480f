"""The tokenizers of T5 and BERT: reading and writing their vocabularies, and texts to token ids.

T5 cuts words where the pieces are likeliest together (Unigram, Kudo 2018), BERT where the longest known piece
ends (WordPiece, Wu et al. 2016). Files are those of transformers: `tokenizer.json`, or `spiece.model` of
SentencePiece for T5 and `vocab.txt` for BERT. They come from strangers: of `tokenizer.json` the vocabulary
and a few options are read, and everything else is made as transformers makes it.
"""

import base64
import binascii
import functools
import math
import warnings
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from sd_tf.errors import InputError, naming, shown
from sd_tf.files import read_bytes, read_json, read_text, write_json, write_text
from sd_tf.hashing import fingerprint
from sd_tf.text.sentencepiece import check_charsmap, read_sentencepiece
from sd_tf.text.tokenizer import MOST_ADDED, encodable, read_added_tokens, read_token

T5_LENGTH = 77  # DeepFloyd IF's
BERT_LENGTH = 64  # enough for nearly all captions; attention's time grows with it
LONGEST = 1024  # tokens of a row: attention takes its square
LARGEST = 20_000_000  # bytes of a file, of which thirty times as many are made; T5's have up to 2.4 MB
LONGEST_PIECE = 1000  # characters of a token; each place of a text is compared with the longest
LONGEST_WORD = 100  # characters, beyond which BERT reads a word as unknown
SPACE = "▁"  # in T5's pieces
T5_ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


class SubwordTokenizer:
    """Texts to rows of token ids: what begins a row, the text, its end, padding.

    Args:
        engine: a `tokenizers.Tokenizer`, with its special tokens but without padding and truncation.
        max_length: tokens of a row.
        roles: role ("pad_token", "eos_token" and so on) -> token.
        begin, end: the tokens before and behind a text.
        options: what `tokenizer_config.json` says besides.

    Attributes:
        max_length, roles: as given.
        room: tokens of a text that a row holds.
        first: the place in a row of a text's first token.
        continued: ids of words that stand for several tokens: there are none.
        ends_with_padding: whether the token that ends a text is that of padding.
        fingerprint: a short hash, equal where the same text gets the same row.

    Raises:
        InputError: the length leaves no room for a text or is above 1024, or the vocabulary lacks a token.

    Example:
        >>> tokenizer = read_t5_tokenizer("t5-small", max_length=8)
        >>> ids, mask = tokenizer(["a red dress", ""])
        >>> ids.shape
        (2, 8)
    """

    def __init__(self, engine, max_length, roles, begin=(), end=(), options=None):
        self._engine, self.roles, self.options = engine, roles, options or {}
        self._begin, self._end = (tuple(map(self._id_of, tokens)) for tokens in (begin, end))
        self.pad_token_id = self._id_of(roles["pad_token"])
        self.ends_with_padding = self._end[-1:] == (self.pad_token_id,)
        least = len(self._begin) + len(self._end) + 1
        is_whole = isinstance(max_length, (int, np.integer)) and not isinstance(max_length, bool)
        if not is_whole or not least <= max_length <= LONGEST:
            raise InputError(f"max_length {shown(max_length)} is not an integer from {least} to {LONGEST}.")
        self.max_length = int(max_length)
        self.room = self.max_length - least + 1
        self.first = len(self._begin)
        self.continued = {}

    def _id_of(self, token):
        found = self._engine.token_to_id(token)
        if found is None:
            raise InputError(f"the vocabulary lacks the token {shown(token)}: another tokenizer's?")
        return found

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: the rows that a token embedding needs."""
        return max(self._engine.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def fingerprint(self) -> str:
        """A short hash of the vocabulary, the options and the length."""
        return fingerprint(self._engine.to_str(), self._begin, self._end, self.pad_token_id, self.max_length)

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without begin and end.

        Raises:
            InputError: it is no text.
        """
        return self._engine.encode(encodable(text), add_special_tokens=False).ids

    def row(self, ids) -> np.ndarray:
        """Token ids, which fit, as int32 (max_length,): begin, ids, end, padding."""
        ids = [*self._begin, *ids, *self._end]
        row = np.full(self.max_length, self.pad_token_id, np.int32)
        row[: len(ids)] = ids
        return row

    def __call__(self, texts):
        """Tokenises texts as transformers does with `padding="max_length", truncation=True`.

        Args:
            texts: list of strings. Surrogates without a partner are read as U+FFFD.

        Returns:
            int32 (texts, max_length), and bool of that shape: False at padding. A text that does not fit is
            cut, and one `UserWarning` names what was cut off.

        Raises:
            InputError: `texts` is no list, or holds something that is not a string.
        """
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
            raise InputError(f"texts is {shown(texts)}: pass a list of texts.")
        texts, cut = [encodable(text) for text in texts], []
        rows = np.empty((len(texts), self.max_length), np.int32)
        tokens = np.empty((len(texts), 1), np.int64)
        encodings = self._engine.encode_batch(texts, add_special_tokens=False)
        for i, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            ids = encoding.ids[: self.room]
            if len(encoding.ids) > self.room:
                cut.append(text[encoding.offsets[self.room][0] :])
            rows[i] = self.row(ids)
            tokens[i] = len(ids) + self.max_length - self.room
        if cut:
            others = f" and the end of {len(cut) - 1} more" if len(cut) > 1 else ""
            warnings.warn(
                f"a prompt holds at most {self.room} tokens: cut off {shown(cut[0], 200)}{others}.",
                stacklevel=2,
            )
        return rows, np.arange(self.max_length) < tokens

    def save(self, folder):
        """Writes `tokenizer.json`, `tokenizer_config.json` and, of BERT, `vocab.txt`.

        `transformers.AutoTokenizer` opens them.

        Args:
            folder: made where missing; an older tokenizer in it is replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "tokenizer.json", self._engine.to_str() + "\n")
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        added = {
            str(i): {flag: getattr(token, flag) for flag in flags} for i, token in self.added_tokens.items()
        }
        config = {**self.options, **self.roles, "added_tokens_decoder": added}
        write_json(folder / "tokenizer_config.json", config | {"model_max_length": self.max_length})
        for stale in ("vocab.txt", "spiece.model", "special_tokens_map.json", "added_tokens.json"):
            (folder / stale).unlink(missing_ok=True)  # other readers might prefer them to the files above
        if self.options.get("tokenizer_class") == "BertTokenizer":
            places = {i: token for token, i in self._engine.get_vocab(with_added_tokens=False).items()}
            if sorted(places) == list(range(len(places))):  # a line's number is its token's id
                lines = [places[i] for i in range(len(places))]
                write_text(folder / "vocab.txt", "".join(f"{token}\n" for token in lines))

    def save_joint(self, file, in_rows=False):
        """Writes `tokenizer.json`, which `tokenizers.Tokenizer.from_file` reads.

        Args:
            file: to write.
            in_rows: whether what it reads gives whole rows with their mask, cut and padded. Otherwise it is
                told only how to read a text.
        """
        engine = tokenizers.Tokenizer.from_str(self._engine.to_str())
        if in_rows:
            engine.enable_truncation(self.max_length)
            pad = {"pad_id": self.pad_token_id, "pad_token": self.roles["pad_token"]}
            engine.enable_padding(length=self.max_length, **pad)
        engine.save(str(file), pretty=False)

    @property
    def vocab(self) -> dict[str, int]:
        """Piece -> id, without tokens that were added to the vocabulary."""
        return self._engine.get_vocab(with_added_tokens=False)

    @property
    def added_tokens(self) -> dict:
        """Id -> `tokenizers.AddedToken` of the tokens that are cut out of a text before it is split."""
        return self._engine.get_added_tokens_decoder()

    def check_fits(self, config):
        """Raises `InputError` where a network of that `T5Config` or `BertConfig` cannot read the rows."""
        vocab_size, positions = config.vocab_size, getattr(config, "max_position_embeddings", LONGEST)
        if self.vocab_size > vocab_size or self.max_length > positions:
            raise InputError(
                f"the tokenizer gives {self.max_length} of {self.vocab_size} tokens, the network reads "
                f"{positions} of {vocab_size}: take the tokenizer that it was trained with"
            )


# -- T5 -----------------------------------------------------------------------------------------------


def t5_tokenizer(pieces, unk_id, charsmap=None, max_length=T5_LENGTH, roles=None, added=None):
    """T5's tokenizer of a Unigram vocabulary.

    Args:
        pieces: list of (piece, logarithm of its probability); a piece's place is its id.
        unk_id: the id of what no piece covers.
        charsmap: bytes of SentencePiece's compiled normalisation; None for none.
        max_length: tokens of a row, the end included.
        roles: role -> token where it is not T5's: "eos_token", "unk_token", "pad_token".
        added: id -> `tokenizers.AddedToken`, cut out of a text before it is split.

    Raises:
        InputError: the parts do not fit together.

    Reference: Raffel et al. 2020, section 2.2.1; Kudo 2018, algorithm 1; `transformers.T5Tokenizer`.
    """
    _check_pieces(pieces, unk_id)
    roles = T5_ROLES | (roles or {})
    engine = _engine(lambda: models.Unigram(vocab=pieces, unk_id=unk_id, byte_fallback=False))
    if charsmap:
        check_charsmap(charsmap)
        engine.normalizer = normalizers.Precompiled(charsmap)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    engine.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    _add(engine, roles, added or {})
    end = roles["eos_token"]
    sentinels = sum(piece.startswith("<extra_id_") for piece in engine.get_vocab(with_added_tokens=True))
    options = {"tokenizer_class": "T5Tokenizer", "extra_ids": sentinels}
    tokenizer = SubwordTokenizer(engine, max_length, roles, end=[end], options=options)
    engine.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, engine.token_to_id(end))]
    )
    return tokenizer


def read_t5_tokenizer(folder, max_length: int = T5_LENGTH) -> SubwordTokenizer:
    """Reads T5's tokenizer from a folder of transformers.

    Args:
        folder: has `tokenizer.json` or else `spiece.model`, and `tokenizer_config.json` beside it where there
            is one. Sentinels ("<extra_id_0>"), which `spiece.model` lacks, have the ids that T5 gave them.
        max_length: tokens of a row, the end included; the default is DeepFloyd IF's.

    Raises:
        InputError: names the file that is missing or damaged, or what does not fit together.
    """
    folder = Path(folder)
    joint, spiece = folder / "tokenizer.json", folder / "spiece.model"
    config, config_file = _config_of(folder)
    roles = _roles(config, config_file, T5_ROLES)
    if joint.is_file() or not spiece.is_file():
        content, model = _read_joint(joint, "Unigram")
        pieces, unk_id = _pieces_of(model, joint), model.get("unk_id")
        charsmap, added = _charsmap_of(content.get("normalizer"), joint), _added_in(content, joint)
        source = joint
    else:
        found = read_sentencepiece(read_bytes(spiece, LARGEST, root=folder), spiece)
        sentinels = config.get("extra_ids", 100)
        if type(sentinels) is not int or not 0 <= sentinels <= MOST_ADDED:
            raise InputError(f"{config_file}: extra_ids is {shown(sentinels)}, expected 0 to {MOST_ADDED}")
        pieces = [*found.pieces, *((f"<extra_id_{i}>", 0.0) for i in reversed(range(sentinels)))]
        added = {i: AddedToken(found.pieces[i][0], normalized=False) for i in found.user_defined}
        added |= {i: AddedToken(found.pieces[i][0], special=True) for i in found.control}
        added |= {i: AddedToken(pieces[i][0], special=True) for i in range(len(found.pieces), len(pieces))}
        unk_id, charsmap, source = found.unk_id, found.charsmap, spiece
    if "added_tokens_decoder" in config:
        added |= read_added_tokens(config["added_tokens_decoder"], config_file)
    with naming(source):
        return t5_tokenizer(pieces, unk_id, charsmap, max_length, roles, added)


def _check_pieces(pieces, unk_id):
    for i, (piece, score) in enumerate(pieces):
        if not 0 < len(piece) <= LONGEST_PIECE or not math.isfinite(score):
            raise InputError(
                f"piece {i} is {shown(piece)} with the score {shown(score)}: expected 1 to {LONGEST_PIECE} "
                "characters and a finite number"
            )
    if type(unk_id) is not int or not 0 <= unk_id < len(pieces):
        raise InputError(f"unk_id is {shown(unk_id)}, expected one of the {len(pieces)} pieces' ids")
    names = [piece for piece, _ in pieces]
    if len(set(names)) < len(names):
        raise InputError("a piece stands in the vocabulary twice: ids are distinct")


def _pieces_of(model, file):
    pieces = model.get("vocab")
    if not isinstance(pieces, list) or not all(map(_is_piece, pieces)):
        raise InputError(f"{file}: its model has no vocab of pieces and their scores")
    return [(piece, float(score)) for piece, score in pieces]


def _is_piece(entry):
    is_pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    return is_pair and type(entry[1]) in (int, float) and abs(entry[1]) < 1e300


def _charsmap_of(normalizer, file):
    """The compiled normalisation among the steps of `tokenizer.json`."""
    if normalizer is None:
        return None
    steps = [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{file}: normalizer is {shown(normalizer)}, expected an object with a type")
    for step in steps:
        if step.get("type") == "Precompiled":
            try:
                return base64.b64decode(step.get("precompiled_charsmap") or b"", validate=True)
            except (TypeError, ValueError, binascii.Error) as error:
                raise InputError(f"{file}: its precompiled_charsmap is no base64: {error}") from None
    return None


# -- BERT ---------------------------------------------------------------------------------------------


def bert_tokenizer(vocab, max_length=BERT_LENGTH, roles=None, added=None, options=None):
    """BERT's tokenizer of a WordPiece vocabulary.

    Args:
        vocab: token -> id; "##" begins pieces that go on with a word.
        max_length: tokens of a row, begin and end included.
        roles: role -> token where it is not BERT's: "cls_token", "sep_token", "pad_token", "unk_token",
            "mask_token".
        added: id -> `tokenizers.AddedToken`, cut out of a text before it is split.
        options: `do_lower_case` (True), `tokenize_chinese_chars` (True) and `strip_accents` (None: as
            `do_lower_case`).

    Raises:
        InputError: the parts do not fit together.

    Reference: Devlin et al. 2019, section 3; Wu et al. 2016, section 4.1; `transformers.BertTokenizer`.
    """
    defaults = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
    options, roles = defaults | (options or {}), BERT_ROLES | (roles or {})
    _check_vocab(vocab)
    engine = _engine(
        lambda: models.WordPiece(
            vocab=vocab, unk_token=roles["unk_token"], max_input_chars_per_word=LONGEST_WORD
        )
    )
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options["tokenize_chinese_chars"],
        strip_accents=options["strip_accents"],
        lowercase=options["do_lower_case"],
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    _add(engine, roles, added or {})
    begin, end = roles["cls_token"], roles["sep_token"]
    options = {"tokenizer_class": "BertTokenizer", **options}
    tokenizer = SubwordTokenizer(engine, max_length, roles, [begin], [end], options)
    engine.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(token, engine.token_to_id(token)) for token in (begin, end)],
    )
    return tokenizer


def read_bert_tokenizer(folder, max_length: int = BERT_LENGTH) -> SubwordTokenizer:
    """Reads BERT's tokenizer from a folder of transformers or sentence-transformers.

    Args:
        folder: has `tokenizer.json` or else `vocab.txt`. `do_lower_case`, `tokenize_chinese_chars` and
            `strip_accents` are those of `tokenizer_config.json`, or else of `tokenizer.json`.
        max_length: tokens of a row, begin and end included.

    Raises:
        InputError: names the file that is missing or damaged, or what does not fit together.
    """
    folder = Path(folder)
    joint, words = folder / "tokenizer.json", folder / "vocab.txt"
    config, config_file = _config_of(folder)
    options, added = {}, {}
    if joint.is_file() or not words.is_file():
        content, model = _read_joint(joint, "WordPiece")
        prefix, longest = model.get("continuing_subword_prefix"), model.get("max_input_chars_per_word")
        if prefix not in ("##", None) or longest not in (LONGEST_WORD, None):
            raise InputError(
                f"{joint}: continuing_subword_prefix is {shown(prefix)}, max_input_chars_per_word "
                f"{shown(longest)}: only '##' and {LONGEST_WORD} are supported"
            )
        vocab, added, source = model.get("vocab"), _added_in(content, joint), joint
        options = _options_in(content.get("normalizer"))
    else:
        lines = read_text(words, LARGEST, root=folder).replace("\r\n", "\n").removesuffix("\n").split("\n")
        vocab, source = {token: i for i, token in enumerate(lines)}, words
    options |= {name: config[name] for name in _OPTIONS.values() if name in config}
    for name, value in options.items():
        if value not in ((True, False, None) if name == "strip_accents" else (True, False)):
            raise InputError(f"{config_file}: {name} is {shown(value)}, expected true or false")
    if "added_tokens_decoder" in config:
        added |= read_added_tokens(config["added_tokens_decoder"], config_file)
    roles = _roles(config, config_file, BERT_ROLES)
    with naming(source):
        return bert_tokenizer(vocab, max_length, roles, added, options)


_OPTIONS = {  # of the normaliser in tokenizer.json -> of tokenizer_config.json
    "lowercase": "do_lower_case",
    "handle_chinese_chars": "tokenize_chinese_chars",
    "strip_accents": "strip_accents",
}


def _options_in(normalizer):
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return {}
    return {own: normalizer[name] for name, own in _OPTIONS.items() if name in normalizer}


def _check_vocab(vocab):
    if not isinstance(vocab, dict) or not vocab:
        raise InputError(f"its vocabulary is {shown(vocab)}, expected tokens and their ids")
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 2**31 or len(token) > LONGEST_PIECE:
            raise InputError(
                f"the vocabulary gives {shown(token)} the id {shown(i)}: expected at most {LONGEST_PIECE} "
                "characters and an integer from 0 on"
            )
    if len(set(vocab.values())) < len(vocab):
        raise InputError("the vocabulary gives two tokens one id: ids are distinct")


# -- both ---------------------------------------------------------------------------------------------


def _engine(make):
    try:
        return tokenizers.Tokenizer(make())
    except Exception as error:  # the bindings raise bare exceptions
        reason = " ".join(str(error).split())
        raise InputError(f"the vocabulary does not make a tokenizer: {reason[:200]}") from None


def _add(engine, roles, added):
    """Adds the tokens that are cut out of a text before it is split into pieces."""
    if len(added) > MOST_ADDED:
        raise InputError(f"{len(added)} tokens are added, {MOST_ADDED} are the most")
    tokens = [token if isinstance(token, AddedToken) else AddedToken(token) for token in added.values()]
    there = {token.content for token in tokens}
    for i, token in sorted(zip(added, tokens, strict=True), key=lambda pair: pair[0]):
        if not token.content or len(token.content) > LONGEST_PIECE:
            raise InputError(
                f"the added token {shown(token.content)} has not 1 to {LONGEST_PIECE} characters"
            )
        if token.special:
            engine.add_special_tokens([token])
        else:
            engine.add_tokens([token])
        found = engine.token_to_id(token.content)
        if found != i:
            raise InputError(
                f"the added token {shown(token.content)} has the id {i}, its place in the vocabulary is "
                f"{found}: correct its id"
            )
    for role, token in roles.items():
        if engine.token_to_id(token) is None and role != "mask_token":  # nothing is masked
            raise InputError(f"the {role} {shown(token)} is not in the vocabulary: another tokenizer's?")
        if token not in there and engine.token_to_id(token) is not None:
            engine.add_special_tokens([AddedToken(token, special=True)])


def _config_of(folder):
    file = folder / "tokenizer_config.json"
    config = read_json(file, root=folder) if file.is_file() else {}
    old = folder / "special_tokens_map.json"
    return (read_json(old, root=folder) if old.is_file() else {}) | config, file


def _roles(config, file, defaults):
    roles = {}
    for role in defaults:
        if config.get(role) is not None:
            token = read_token(config[role], file)
            roles[role] = token.content if isinstance(token, AddedToken) else token
    return roles


def _read_joint(file, kind):
    """`tokenizer.json` -> all of it, and its model."""
    content = read_json(file, root=file.parent, most=LARGEST)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", kind) != kind:
        found = model.get("type") if isinstance(model, dict) else model
        raise InputError(f"{file}: its model is {shown(found)}, expected one of the type {kind}")
    return content, model


def _added_in(content, file):
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file} has the added tokens {shown(entries)}: a list of tokens is expected")
    return read_added_tokens({str(entry.get("id")): entry for entry in entries}, file)

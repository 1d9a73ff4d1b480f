"""CLIP's byte-pair tokenizer: reading, writing and learning its vocabulary, and prompts to token ids.

Text is lower-cased, split into words and written as UTF-8 bytes, each byte a printable character
(Radford et al. 2019); byte pairs are then merged in the order they were learned (Sennrich et al.
2016). The last character of a word carries "</w>". Files are those of `transformers.CLIPTokenizer`.
"""

import functools
import heapq
import itertools
import json
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BytePairTokenizer

from sd_tf.errors import InputError, shown
from sd_tf.files import read_json, read_text

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
CLIP_LENGTH = 77
LARGEST = 10_000_000  # bytes of a file, of which forty times as many are made; CLIP's have 1 MB
MOST_ADDED = 2000  # tokens beside the vocabulary; each one takes time that grows with their number
LONGEST = 65536  # tokens in a row; anything above is a mistake, and would fill the memory
UNLIMITED = 10**20  # transformers writes an integer above this where no length was set

# Contractions, letters, single digits and runs of everything else, as in OpenAI's simple_tokenizer.py.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|" + PIECES

# In the order in which transformers adds them: where two roles share a token, the last one's options hold.
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def _normalizer():
    return normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )


def _pre_tokenizer():
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


class Tokenizer:
    """Prompts to rows of token ids: begin, ids, end, padding.

    Args:
        vocab: token -> id, distinct non-negative integers, the special tokens among them.
        merges: pairs of tokens, first learned first; both tokens and their union are in `vocab`.
        max_length: tokens in a row, begin and end included.
        special_tokens: role ("bos_token", "eos_token", "unk_token", "pad_token") -> token, a string
            or a `tokenizers.AddedToken`. Roles left out take CLIP's token.
        added_tokens: id -> `tokenizers.AddedToken`, cut out of a prompt before it is split into
            words (textual inversion); ids beyond `vocab` extend it without gaps. Where "<mine>_1",
            "<mine>_2" and so on follow "<mine>", that stands for all of them in a prompt, as in diffusers.

    Attributes:
        first: the place in a row of a text's first token.
        added_tokens: likewise, with those of the roles.
        continued: id of a word that stands for several tokens -> the ids of all of them.

    Raises:
        InputError: where the vocabulary and the rest do not fit together.

    Example:
        >>> tokenizer = Tokenizer.learn(["a red dress", "a blue dress"], vocab_size=520, max_length=8)
        >>> tokenizer(["a red dress", ""]).shape
        (2, 8)

    Reference: openai/CLIP, `clip/simple_tokenizer.py`; `transformers.CLIPTokenizer`.
    """

    first = 1

    def __init__(self, vocab, merges, max_length=CLIP_LENGTH, special_tokens=None, added_tokens=None):
        _check_vocab(vocab, merges)
        self.vocab, self.merges, self.max_length = vocab, merges, _checked_length(max_length)
        added_tokens = added_tokens or {}
        if len(added_tokens) > MOST_ADDED:
            raise InputError(f"{len(added_tokens)} tokens are added, {MOST_ADDED} are the most.")
        options = {token.content: token for token in added_tokens.values()}
        roles = dict.fromkeys(ROLES, END) | {"bos_token": START} | (special_tokens or {})
        roles = {role: options.get(str(_content(token)), token) for role, token in roles.items()}
        self.special_tokens = {role: _content(token) for role, token in roles.items()}

        extended = [token for _, token in sorted(added_tokens.items())]
        extended += [
            token if isinstance(token, AddedToken) else AddedToken(token, special=True)
            for token in roles.values()
            if _content(token) not in options
        ]
        for role, token in self.special_tokens.items():
            if token not in vocab and (token not in options or role == "unk_token"):
                raise InputError(f"the {role} {token!r} is not in the vocabulary: pass one that is.")
        try:
            self._tokenizer = BytePairTokenizer(
                models.BPE(
                    vocab, merges, end_of_word_suffix=END_OF_WORD, unk_token=self.special_tokens["unk_token"]
                )
            )
            for token in extended:
                if token.special:
                    self._tokenizer.add_special_tokens([token])
                else:
                    self._tokenizer.add_tokens([token])
        except Exception as error:  # the bindings of `tokenizers` raise bare exceptions
            reason = " ".join(str(error).split())
            raise InputError(f"the vocabulary does not make a tokenizer: {reason}") from error
        self._tokenizer.normalizer = _normalizer()
        self._tokenizer.pre_tokenizer = _pre_tokenizer()
        for token_id, token in added_tokens.items():
            if self._tokenizer.token_to_id(token.content) != token_id:
                raise InputError(
                    f"the added token {token.content!r} has id {token_id}, its place in the vocabulary is "
                    f"{self._tokenizer.token_to_id(token.content)}: correct its id."
                )
        self.added_tokens = self._tokenizer.get_added_tokens_decoder()
        self.continued = _continued({token.content: i for i, token in self.added_tokens.items()})

    @property
    def room(self):
        """Tokens of a text that a row holds: all but begin and end."""
        return self.max_length - 2

    @functools.cached_property
    def vocab_size(self):
        """One more than the highest id: the rows a token embedding needs."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_token_id(self):
        """The id a row begins with."""
        return self._tokenizer.token_to_id(self.special_tokens["bos_token"])

    @property
    def eos_token_id(self):
        """The id that ends a prompt."""
        return self._tokenizer.token_to_id(self.special_tokens["eos_token"])

    @property
    def pad_token_id(self):
        """The id that fills a row behind the end."""
        return self._tokenizer.token_to_id(self.special_tokens["pad_token"])

    def token_id(self, token):
        """The id of a token, or None where there is no such token."""
        return self._tokenizer.token_to_id(token)

    def ids(self, text):
        """The token ids of a text, without begin and end."""
        encoding = self._tokenizer.encode(encodable(text), add_special_tokens=False)
        return [each for i in encoding.ids for each in self.continued.get(i, (i,))]

    def row(self, ids):
        """Token ids, which fit, as an int32 array (max_length,): begin, ids, end, padding."""
        ids = [self.bos_token_id, *ids, self.eos_token_id]
        row = np.full(self.max_length, self.pad_token_id, np.int32)
        row[: len(ids)] = ids
        return row

    def check_fits(self, config):
        """Raises `InputError` where a text tower of that `CLIPTextConfig` cannot read the rows."""
        positions, rows = config.max_position_embeddings, config.vocab_size
        if self.max_length > positions or self.vocab_size > rows:
            raise InputError(
                f"the tokenizer gives {self.max_length} of {self.vocab_size} tokens, the text tower reads "
                f"{positions} of {rows}: take the tokenizer that the tower was trained with"
            )

    def with_word(self, word, vectors=1):
        """A tokenizer with one word more, which is cut out of a prompt before it is split into others.

        Args:
            word: a text without spaces.
            vectors: tokens that it stands for, called word, word_1, word_2 and so on, as in diffusers.
        """
        names = [word, *(f"{word}_{i}" for i in range(1, vectors))]
        added = {self.vocab_size + i: AddedToken(name, normalized=False) for i, name in enumerate(names)}
        return Tokenizer(
            self.vocab, self.merges, self.max_length, self.special_tokens, self.added_tokens | added
        )

    def __call__(self, prompts):
        """Tokenise prompts.

        Args:
            prompts: list of strings; the empty string is the unconditional prompt. Surrogates
                without a partner, which UTF-8 cannot hold, are read as U+FFFD.

        Returns:
            int32 array (prompts, max_length): begin, ids, end, padding. A prompt that does not fit
            keeps its beginning and the end token, and one `UserWarning` names what was cut off.

        Raises:
            InputError: `prompts` is no list, or holds something that is not a string.
        """
        if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__iter__"):
            raise InputError(f"prompts is {shown(prompts)}: pass a list of texts.")
        prompts = [encodable(prompt) for prompt in prompts]
        rows = np.empty((len(prompts), self.max_length), np.int32)
        room, cut = self.room, []
        encodings = self._tokenizer.encode_batch(prompts, add_special_tokens=False)
        for i, (prompt, encoding) in enumerate(zip(prompts, encodings, strict=True)):
            ids = [
                (each, start)
                for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
                for each in self.continued.get(token, (token,))
            ]
            rows[i] = self.row([each for each, _ in ids[:room]])
            if len(ids) > room:
                cut.append(prompt[ids[room][1] :])
        if cut:
            others = f" and the end of {len(cut) - 1} more" if len(cut) > 1 else ""
            warnings.warn(
                f"a prompt holds at most {room} tokens: cut off {shown(cut[0], 200)}{others}.", stacklevel=2
            )
        return rows

    @classmethod
    def load(cls, folder, max_length=None):
        """Read a tokenizer folder as transformers and diffusers write it.

        Args:
            folder: has `vocab.json` and `merges.txt`, or else `tokenizer.json`; beside them
                `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` are read
                where present.
            max_length: tokens in a row; None for the folder's own, or CLIP's 77.

        Raises:
            InputError: names the file that is missing, unreadable or does not fit the others.
        """
        folder = Path(folder)
        vocab_file, merges_file, joint_file = (
            folder / f for f in ("vocab.json", "merges.txt", "tokenizer.json")
        )
        file_options = {}
        if vocab_file.is_file() and merges_file.is_file():
            source, vocab, merges = merges_file, _read_json(vocab_file), _read_merges(merges_file)
        elif joint_file.is_file():
            source, (vocab, merges, file_options) = joint_file, _read_joint(joint_file)
        else:
            missing = merges_file if vocab_file.is_file() else vocab_file
            raise InputError(f"{missing} is missing: a tokenizer folder has vocab.json and merges.txt.")

        config_file = folder / "tokenizer_config.json"
        config = _read_json(config_file) if config_file.is_file() else {}
        if max_length is None:
            max_length = _read_length(config, config_file)
        # Newer files hold every option in `added_tokens_decoder`; older ones in files of their own.
        if "added_tokens_decoder" in config:
            added = read_added_tokens(config["added_tokens_decoder"], config_file)
            special = _special_tokens(config, config_file)
        else:
            map_file, added_file = folder / "special_tokens_map.json", folder / "added_tokens.json"
            special = _special_tokens(config, config_file)
            special |= _special_tokens(_read_json(map_file), map_file) if map_file.is_file() else {}
            added = _legacy_added_tokens(added_file, special) if added_file.is_file() else file_options
        try:
            return cls(vocab, merges, max_length, special, added)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    def save(self, folder):
        """Write `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`.

        Args:
            folder: made where missing; an older tokenizer in it is replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "merges.txt").write_text(
            "".join(["#version: 0.2\n", *(f"{first} {second}\n" for first, second in self.merges)]), "utf-8"
        )
        options = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {option: getattr(token, option) for option in options}
                for i, token in sorted(self.added_tokens.items())
            },
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.max_length,
            "tokenizer_class": "CLIPTokenizer",
            **self.special_tokens,
        }
        for name, content in (
            ("vocab.json", self.vocab),
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", self.special_tokens),
        ):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
        # Other readers would prefer these, left by an older tokenizer, to the files above.
        for stale in ("tokenizer.json", "added_tokens.json"):
            (folder / stale).unlink(missing_ok=True)

    def save_joint(self, file):
        """Write `tokenizer.json`, which `tokenizers.Tokenizer.from_file` reads; without begin and end."""
        self._tokenizer.save(str(file), pretty=False)

    @classmethod
    def learn(cls, captions, vocab_size, max_length):
        """Learn a byte-pair vocabulary.

        The 256 bytes and their "</w>" forms come first, so that any text has tokens, then the
        merges, most frequent pair first and ties in alphabetical order, then the two special tokens.

        Args:
            captions: iterable of strings.
            vocab_size: tokens, at least 514. Fewer are learned where no pair is left that occurs twice.
            max_length: tokens in a row, begin and end included.

        Raises:
            InputError: `vocab_size` or `max_length` is out of range, a caption is not a string, or
                there are none.

        Reference: Sennrich et al. 2016, algorithm 1.
        """
        alphabet = list(byte_characters().values())
        alphabet += [character + END_OF_WORD for character in alphabet]
        smallest = len(alphabet) + 2
        if not isinstance(vocab_size, int) or vocab_size < smallest:
            raise InputError(
                f"vocab_size {vocab_size!r} cannot hold all bytes: pass an integer from {smallest} on."
            )
        counts = _count_words(captions)
        vocab, merges = _merge_pairs(counts, alphabet, vocab_size - 2)
        return cls({token: i for i, token in enumerate([*vocab, START, END])}, merges, max_length)


def _continued(ids):
    """The id of each word that stands for several tokens -> the ids of all.

    Args:
        ids: added token -> id.

    Reference: diffusers' `TextualInversionLoaderMixin.maybe_convert_prompt`.
    """
    found = {}
    for token in ids:
        names = itertools.takewhile(ids.__contains__, (f"{token}_{i}" for i in itertools.count(1)))
        if rest := [ids[name] for name in names]:
            found[ids[token]] = (ids[token], *rest)
    return found


def byte_characters():
    """Byte -> character: printable Latin-1 stands for itself, the rest moves to U+0100 and on (GPT-2)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    moved = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


def _count_words(captions):
    normalizer, pre_tokenizer = _normalizer(), _pre_tokenizer()
    counts, empty = Counter(), True
    for caption in captions:
        empty = False
        text = normalizer.normalize_str(encodable(caption))
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    if empty:
        raise InputError("captions is empty: pass at least one text to learn a vocabulary from.")
    for special in (START, END):
        counts.pop(special, None)
    return counts


def _merge_pairs(word_counts, alphabet, vocab_size):
    """The vocabulary and merges of words that occur so often, the most frequent pair merged each time."""
    vocab, merges = dict.fromkeys(alphabet), []
    words = [([*word[:-1], word[-1] + END_OF_WORD], count) for word, count in word_counts.items()]
    pair_counts, words_with = Counter(), defaultdict(set)
    for i, (symbols, count) in enumerate(words):
        for pair in itertools.pairwise(symbols):
            pair_counts[pair] += count
            words_with[pair].add(i)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    while queue and len(vocab) < vocab_size:
        negative_count, best = heapq.heappop(queue)
        if pair_counts[best] != -negative_count:
            continue  # the count has changed since, and was queued again
        if -negative_count < 2:
            break
        merges.append(best)
        vocab["".join(best)] = None
        changed = set()
        for i in words_with.pop(best):
            symbols, count = words[i]
            merged = _merged(symbols, best)
            for pair in itertools.pairwise(symbols):
                pair_counts[pair] -= count
            for pair in itertools.pairwise(merged):
                pair_counts[pair] += count
                words_with[pair].add(i)
            changed.update(itertools.pairwise(symbols), itertools.pairwise(merged))
            words[i] = merged, count
        for pair in changed:
            heapq.heappush(queue, (-pair_counts[pair], pair))
    return vocab, merges


def _merged(symbols, pair):
    merged, i = [], 0
    while i < len(symbols):
        found = tuple(symbols[i : i + 2]) == pair
        merged.append("".join(pair) if found else symbols[i])
        i += 2 if found else 1
    return merged


def encodable(text):
    """A text without half characters, which UTF-8 cannot hold: they become U+FFFD.

    Raises:
        InputError: it is no text.
    """
    if not isinstance(text, str):
        raise InputError(f"{shown(text)} is not a text but {type(text).__name__}: pass strings.")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _content(token):
    return token.content if isinstance(token, AddedToken) else token


def _checked_length(length):
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or not 3 <= length <= LONGEST:
        raise InputError(
            f"max_length {length!r} is not an integer from 3 to {LONGEST}: pass CLIP's {CLIP_LENGTH}."
        )
    return int(length)


def _check_vocab(vocab, merges):
    ids = list(vocab.values())
    bad = next((t for t, i in vocab.items() if type(i) is not int or not 0 <= i < 2**31), None)
    if bad is not None:
        raise InputError(
            f"the vocabulary gives {shown(bad)} the id {shown(vocab[bad])}: ids are integers from 0 on."
        )
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise InputError(f"the vocabulary gives {ids.count(twice)} tokens the id {twice}: ids are distinct.")
    for number, (first, second) in enumerate(merges, start=1):
        unknown = [token for token in (first, second, first + second) if token not in vocab]
        if unknown:
            raise InputError(
                f"merge {number} ({first!r}, {second!r}) needs the token {unknown[0]!r}, which the "
                f"vocabulary of {len(vocab)} tokens lacks: use the vocabulary and merges of one tokenizer."
            )


def _read_length(config, file):
    length = config.get("model_max_length", CLIP_LENGTH)
    if isinstance(length, (int, float)) and length >= UNLIMITED:
        return CLIP_LENGTH
    try:
        return _checked_length(length)
    except InputError as error:
        raise InputError(f"{file}: model_max_length is wrong, {error}") from error


def _read_text(file):
    try:
        return read_text(file, LARGEST, root=file.parent)
    except InputError as error:
        raise InputError(f"{error}: fetch the tokenizer again.") from None


def _read_json(file):
    try:
        return read_json(file, root=file.parent, most=LARGEST)
    except InputError as error:
        raise InputError(f"{error}: fetch the tokenizer again.") from None


def _read_merges(file):
    merges = []
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        merge = tuple(line.split(" "))
        if len(merge) != 2 or not all(merge):
            raise InputError(
                f"{file} line {number} is {shown(line)}: a merge is two tokens and a space between."
            )
        merges.append(merge)
    return merges


def _read_joint(file):
    """`tokenizer.json` -> vocab, merges, added tokens."""
    content = _read_json(file)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("end_of_word_suffix") != END_OF_WORD:
        raise InputError(
            f"{file} does not hold a byte-pair model with {END_OF_WORD!r}: CLIP's tokenizer does."
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise InputError(f"{file} has no vocab and merges in its model: fetch the tokenizer again.")
    pairs = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge if isinstance(merge, list) else [merge])
        for merge in merges
    ]
    bad = next((p for p in pairs if len(p) != 2 or not all(isinstance(token, str) for token in p)), None)
    if bad is not None:
        raise InputError(f"{file} has the merge {shown(bad)}: a merge is two tokens.")
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise InputError(f"{file} has the added tokens {shown(added)}: a list of tokens is expected.")
    return vocab, pairs, read_added_tokens({str(token.get("id")): token for token in added}, file)


def _special_tokens(options, file):
    """The roles among `options`, each a string or a dictionary of `AddedToken`'s options."""
    return {role: read_token(options[role], file) for role in ROLES if options.get(role) is not None}


def read_token(entry, file):
    """A token as files have it: a string, or an object of `AddedToken`'s options, which becomes one."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise InputError(
            f"{file} has the token {shown(entry)}: a token is a string, or has one as its content."
        )
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    flags = {flag: bool(entry[flag]) for flag in flags if flag in entry}
    return AddedToken(entry["content"], special=bool(entry.get("special", True)), **flags)


def read_added_tokens(entries, file):
    """id -> dictionary of `AddedToken`'s options, as a file has them, as ids and tokens."""
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise InputError(f"{file} has the added tokens {shown(entries)}: each is an id and its options.")
    try:
        ids = [int(token_id) for token_id in entries]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{file} has added tokens with the ids {shown(list(entries))}: use integers."
        ) from error
    return {token_id: read_token(entry, file) for token_id, entry in zip(ids, entries.values(), strict=True)}


def _legacy_added_tokens(file, special_tokens):
    """`added_tokens.json`: token -> id; those without a role are ordinary words, found in normalised text."""
    special = {_content(token) for token in special_tokens.values()}
    added = {}
    for token, token_id in _read_json(file).items():
        if type(token_id) is not int:
            raise InputError(f"{file} gives {token!r} the id {shown(token_id)}: ids are integers.")
        added[token_id] = AddedToken(token, special=token in special, normalized=token not in special)
    return added

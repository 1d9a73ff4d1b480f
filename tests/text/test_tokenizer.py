"""The tokenizer against transformers' CLIPTokenizer: the same files, the same ids."""

import gzip
import json
import os
import random
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest

from sd_tf.checkpoints.sources import resolve
from sd_tf.data.captions import corpus
from sd_tf.errors import InputError
from sd_tf.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CAPTIONS = [
    f"{opening} {colour} {garment}{end}"
    for opening in ("a", "the", "a photo of a", "Someone's")
    for colour in ("red", "blue", "crimson", "naïve ÉCRU")
    for garment in ("dress", "ankle boot", "t-shirt", "鞋 (1999)")
    for end in ("", ".", " on black!", " 👗")
]
WHITESPACE = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\x0b", "\x1c", "\u2028", "\u200b"]
PIECES = [
    *"abcdefghijklmnopqrstuvwxyzABCXYZ0123456789.,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`",
    *WHITESPACE,
    *[
        "'s",
        "'LL",
        "'re ",
        "'d'd",
        "don't",
        "I'VE",
        "</w>",
        "a</w>",
        "…",
        "--",
        "...",
        "!!!?",
        "1,000",
        "½",
        "٣",
        "Ⅷ",
    ],
    *["é", "e\u0301", "\u0301", "ﬁ", "ß", "ẞ", "İ", "ı", "Σας", "ΟΔΟΣ", "Å", "\u212b", "ǅ", "K"],
    *["鞋", "こんにちは", "שלום", "नमस्ते", "ไทย", "한글", "\u1100\u1161\u11a8", "Ω≈ç√", "𝔘𝔫𝔦", "𐐀"],
    *["👗", "👩🏽‍🚀", "🇫🇷", "❤️", "\ufe0f", "\u200d", "\ufffd", "\ufeff", "\uffff", "\U0010ffff", "\ue000"],
    *["\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x85", "\xad", "\x9f", "\u202e", "\u0000a"],
    *["<|startoftext|>", "<|endoftext|>", "<|endoftext|", "<|ENDOFTEXT|>", "<|endoftext|>x"],
    *["a red dress", "Stable Diffusion", "pneumonoultramicroscopicsilicovolcanoconiosis", "x" * 90],
]


SCRIPTS = {  # first and last code point
    "ASCII": (0, 0x7F),
    "control": (0, 0x1F),
    "Latin": (0x20, 0x24F),
    "combining marks": (0x300, 0x36F),
    "Cyrillic": (0x400, 0x52F),
    "Hebrew": (0x590, 0x5FF),
    "Arabic": (0x600, 0x6FF),
    "Devanagari": (0x900, 0x97F),
    "Thai": (0xE00, 0xE7F),
    "capitals with dots": (0x1E00, 0x1EFF),
    "punctuation and directions": (0x2000, 0x206F),
    "kana": (0x3040, 0x30FF),
    "Chinese": (0x4E00, 0x9FFF),
    "Korean": (0xAC00, 0xD7A3),
    "Arabic ligatures": (0xFB50, 0xFDFF),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "tags": (0xE0000, 0xE01EF),
    "the first plane": (0, 0xFFFF),
    "everything": (0, 0x10FFFF),
}


def written(rng, script, length):
    """Random code points of a script; surrogates, which are no characters, are left out."""
    points = (rng.randint(*SCRIPTS[script]) for _ in range(length))
    return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def real_captions():
    """All captions of the garments and, where the real data is, those of its pictures."""
    folder = Path(os.environ.get("SD_TF_DATA_DIR") or "no folder named")
    lines = (line for file in sorted(folder.glob("*/metadata.jsonl")) for line in file.open(encoding="utf-8"))
    return [*corpus(patterns=True), *(json.loads(line)["text"] for line in lines)]


def nasty_prompts(count, seed=0):
    """Joins of the pieces, words of several scripts, and captions with either in their midst."""
    rng, real, scripts = random.Random(seed), real_captions(), list(SCRIPTS)
    prompts = list(PIECES)
    while len(prompts) < count:
        pieces = "".join(rng.choices(PIECES, k=rng.randint(1, 25)))
        words = (written(rng, rng.choice(scripts), rng.randint(1, 12)) for _ in range(rng.randint(1, 6)))
        foreign = rng.choice(["", *WHITESPACE]).join(words)
        caption = rng.choice([str.title, str.upper, str])(rng.choice(real))
        place = rng.randint(0, len(caption))
        within = caption[:place] + rng.choice([pieces, foreign, "", " "]) + caption[place:]
        prompts.append(rng.choice([pieces, foreign, caption, within]))
    return prompts


def long_prompts(length=10_000, seed=0):
    """Of every script one without a gap, of all together one; captions, and a word without an end."""
    rng, scripts = random.Random(seed), list(SCRIPTS)
    prompts = [written(rng, script, length) for script in scripts]
    prompts += ["".join(written(rng, rng.choice(scripts), 1) for _ in range(length))]
    sentence = " ".join(rng.choices(real_captions(), k=length // 10))
    return [*prompts, sentence[:length], "dress" * (length // 5)]


def transformers_ids(folder, prompts, max_length):
    reference = transformers.CLIPTokenizer.from_pretrained(folder)
    rows = reference(prompts, padding="max_length", truncation=True, max_length=max_length).input_ids
    return np.array(rows)


def ids_without_warnings(tokenizer, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer(prompts)


def assert_same_ids(folder, prompts, max_length=None):
    tokenizer = Tokenizer.load(folder, max_length)
    ours = ids_without_warnings(tokenizer, prompts)
    theirs = transformers_ids(folder, prompts, tokenizer.max_length)
    assert ours.dtype == np.int32
    different = [
        prompt for prompt, a, b in zip(prompts, ours, theirs, strict=True) if not np.array_equal(a, b)
    ]
    assert not different


@pytest.fixture(scope="session")
def openai_folder(tmp_path_factory):
    """vocab.json and merges.txt of CLIP, from OpenAI's list of merges."""
    file = Path(os.environ.get("SD_TF_DATA_DIR", "")) / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    if not file.is_file():
        pytest.skip("SD_TF_DATA_DIR has no clip_bpe/bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(file.read_bytes()).decode().split("\n")[1:48895]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    vocab = [*characters, *(c + "</w>" for c in characters), *(merge.replace(" ", "") for merge in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    assert len(vocab) == 49408
    folder = tmp_path_factory.mktemp("openai")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    return folder


@pytest.fixture(scope="session")
def learned_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    Tokenizer.learn(CAPTIONS, vocab_size=600, max_length=32).save(folder)
    return folder


def copy_of(folder, target, **files):
    for name in ("vocab.json", "merges.txt"):
        (target / name).write_bytes((folder / name).read_bytes())
    for name, content in files.items():
        (target / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return target


def test_known_ids_of_openai(openai_folder):
    tokenizer = Tokenizer.load(openai_folder)
    rows = tokenizer(["a photo of a cat", ""])
    assert rows.shape == (2, 77)
    # As OpenAI's own tokenizer gives them.
    assert rows[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (rows[0, 7:] == 49407).all()
    assert rows[1].tolist() == [49406] + [49407] * 76
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (49408, 49406, 49407)


@pytest.fixture(params=["OpenAI's", "clip-mini"])
def vocabulary(request):
    """The folder of a tokenizer that models use."""
    return resolve("clip-mini") if request.param == "clip-mini" else request.getfixturevalue("openai_folder")


def test_ids_equal_transformers_on_ten_thousand_nasty_prompts(vocabulary):
    assert_same_ids(vocabulary, nasty_prompts(10_000), max_length=256)  # few are longer


def test_ids_equal_transformers_on_prompts_of_ten_thousand_characters(vocabulary):
    assert_same_ids(vocabulary, long_prompts())
    assert_same_ids(vocabulary, long_prompts(1_000), max_length=4_096)  # bytes and more: none is cut off


def test_learned_ids_equal_transformers_on_nasty_prompts(learned_folder):
    assert_same_ids(learned_folder, nasty_prompts(2000, seed=1) + CAPTIONS)


def test_every_code_point_has_the_ids_of_transformers(learned_folder):
    points = [p for p in range(0, 0x30000, 7) if not 0xD800 <= p < 0xE000]
    assert_same_ids(learned_folder, ["".join(map(chr, points[i : i + 6])) for i in range(0, len(points), 6)])


def test_padding_token_of_stable_diffusion_2_is_read_from_its_file(openai_folder, tmp_path):
    token = {
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    start = token | {"content": "<|startoftext|>"}
    folder = copy_of(
        openai_folder,
        tmp_path,
        tokenizer_config={"model_max_length": 77, "pad_token": "<|endoftext|>", "eos_token": token},
        special_tokens_map={"bos_token": start, "eos_token": token, "pad_token": "!", "unk_token": token},
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.pad_token_id == 0
    assert tokenizer(["a cat!"])[0, 1:7].tolist() == [320, 2368, 0, 49407, 0, 0]
    assert_same_ids(folder, nasty_prompts(500, seed=2))


@pytest.mark.parametrize("newer", [False, True], ids=["added_tokens.json", "added_tokens_decoder"])
def test_added_tokens_keep_their_ids(openai_folder, tmp_path, newer):
    if newer:
        options = {
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
            "special": False,
        }
        tokens = {
            "49408": options | {"content": "<cat-toy>"},
            "49407": options | {"content": "<|endoftext|>"},
        }
        folder = copy_of(openai_folder, tmp_path, tokenizer_config={"added_tokens_decoder": tokens})
    else:
        folder = copy_of(openai_folder, tmp_path, added_tokens={"<cat-toy>": 49408})
    tokenizer = Tokenizer.load(folder)
    assert 49408 in tokenizer(["a red <cat-toy> here"])
    assert tokenizer.vocab_size == 49409
    assert_same_ids(folder, ["a <cat-toy>", "<CAT-TOY>!", "x<cat-toy>x"])
    tokenizer.save(tmp_path / "again")
    assert_same_ids(tmp_path / "again", ["a <cat-toy>", "<CAT-TOY>!", "x<cat-toy>x"])


def test_tokenizer_json_serves_where_the_pair_is_missing(openai_folder, tmp_path):
    transformers.CLIPTokenizer.from_pretrained(openai_folder).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").is_file()
    assert_same_ids(tmp_path, nasty_prompts(500, seed=3))


def test_saved_folder_opens_in_transformers_and_here(openai_folder, tmp_path):
    tokenizer = Tokenizer.load(openai_folder, max_length=20)
    (tmp_path / "tokenizer.json").write_text("{}")  # would be preferred by transformers
    tokenizer.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    prompts = nasty_prompts(300, seed=4)
    expected = ids_without_warnings(tokenizer, prompts)
    np.testing.assert_array_equal(ids_without_warnings(Tokenizer.load(tmp_path), prompts), expected)
    for kind in (transformers.CLIPTokenizer, transformers.CLIPTokenizerFast, transformers.AutoTokenizer):
        reference = kind.from_pretrained(tmp_path)
        assert reference.model_max_length == 20
        ids = reference(prompts, padding="max_length", truncation=True).input_ids
        np.testing.assert_array_equal(ids, expected)
        assert (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id) == (
            49406,
            49407,
            49407,
        )


def test_saving_and_loading_changes_no_file(learned_folder, tmp_path):
    Tokenizer.load(learned_folder).save(tmp_path)
    for file in learned_folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_no_text_crashes_it(learned_folder):
    tokenizer = Tokenizer.load(learned_folder)
    surrogates = ["\ud800", "a\udfffb", "\udc00\ud800", "\ud83d", "x\ud83d\udc57y", "\udcff" * 50]
    rows = ids_without_warnings(tokenizer, surrogates + [chr(c) for c in range(0x300)] + ["a" * 200_000])
    assert rows.shape[1] == 32
    # Alone they are the replacement character, two that belong together the character they stand for.
    np.testing.assert_array_equal(rows[1], tokenizer(["a\ufffdb"])[0])
    np.testing.assert_array_equal(rows[4], tokenizer(["x👗y"])[0])


def test_an_overlong_prompt_keeps_its_end_token_and_names_what_was_cut(openai_folder):
    tokenizer = Tokenizer.load(openai_folder, max_length=6)
    with pytest.warns(UserWarning) as record:
        rows = tokenizer(["a red dress", "A Red DRESS and Blue shoe", "one two three four five six"])
    assert rows[:, -1].tolist() == [49407] * 3
    assert rows[1].tolist() == [49406, 320, 736, 2595, 537, 49407]
    assert len(record) == 1
    assert "'Blue shoe'" in str(record[0].message)
    assert "4 tokens" in str(record[0].message) and "1 more" in str(record[0].message)
    assert Path(record[0].filename).name == Path(__file__).name


def test_a_prompt_that_just_fits_does_not_warn(openai_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = Tokenizer.load(openai_folder, max_length=5)(["a red dress"])
    assert row.tolist() == [[49406, 320, 736, 2595, 49407]]


def test_learning_is_deterministic_and_merges_the_most_frequent_pair_first():
    captions = ["hug"] * 10 + ["pug"] * 5 + ["pun"] * 12 + ["bun"] * 4 + ["hugs"] * 5
    tokenizer = Tokenizer.learn(captions, vocab_size=514 + 4, max_length=8)
    # Counted by hand: 17 times, 15, 12 and 10.
    assert tokenizer.merges == [("p", "u"), ("h", "u"), ("pu", "n</w>"), ("hu", "g</w>")]
    shuffled = random.Random(0).sample(captions, len(captions))
    again = Tokenizer.learn(shuffled, vocab_size=518, max_length=8)
    assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)


def naive_merges(words, count):
    """Sennrich et al. 2016, algorithm 1, every pair counted anew for every merge."""
    words, merges = {tuple([*w[:-1], w[-1] + "</w>"]): n for w, n in words.items()}, []
    for _ in range(count):
        pairs = {}
        for word, n in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = {}
        for word, n in words.items():
            out = []
            for symbol in word:
                if out and (out[-1], symbol) == best:
                    out[-1] = None
                    out.append(out.pop() or "".join(best))
                else:
                    out.append(symbol)
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    return merges


def test_learned_merges_equal_a_recount_of_every_pair():
    rng = random.Random(0)
    words = {"".join(rng.choices("abc", k=rng.randint(1, 9))): rng.randint(2, 9) for _ in range(60)}
    captions = [" ".join([word] * n) for word, n in words.items()]
    assert Tokenizer.learn(captions, 514 + 60, 8).merges == naive_merges(words, 60)


def test_a_learned_vocabulary_is_laid_out_as_clip_does():
    tokenizer = Tokenizer.learn(CAPTIONS, vocab_size=560, max_length=16)
    tokens = sorted(tokenizer.vocab, key=tokenizer.vocab.get)
    assert list(tokenizer.vocab.values()) == list(range(560))
    assert len({unicodedata.normalize("NFC", token) for token in tokens[:256]}) == 256
    assert tokens[256:512] == [token + "</w>" for token in tokens[:256]]
    assert tokens[512:558] == ["".join(merge) for merge in tokenizer.merges]
    assert tokens[558:] == ["<|startoftext|>", "<|endoftext|>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 559
    words = tokenizer(["a red dress"])[0]
    assert list(words).index(559) == 4  # each word of the captions is one token


def test_learning_stops_where_no_pair_occurs_twice():
    tokenizer = Tokenizer.learn(["abcd"], vocab_size=1000, max_length=8)
    assert (tokenizer.merges, tokenizer.vocab_size) == ([], 514)


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        (["a", None], "None"),
        ([b"a dress"], "a dress"),
        ([3.5], "3.5"),
        ("a dress", "'a dress'"),
        (None, "None"),
        ([["a"]], r"\['a'\]"),
    ],
)
def test_prompts_that_are_no_texts_are_named(learned_folder, prompts, named):
    with pytest.raises(InputError, match=named):
        Tokenizer.load(learned_folder)(prompts)


@pytest.mark.parametrize(
    ("captions", "vocab_size", "max_length", "named"),
    [
        (["a"], 513, 8, "513"),
        (["a"], 600.0, 8, "600.0"),
        (["a"], 600, 2, "2"),
        ([], 600, 8, "captions"),
        (["a", 7], 600, 8, "7"),
    ],
)
def test_impossible_vocabularies_are_named(captions, vocab_size, max_length, named):
    with pytest.raises(InputError, match=named):
        Tokenizer.learn(captions, vocab_size, max_length)


def break_vocab(change):
    def apply(folder):
        vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
        change(vocab)
        (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")

    return apply


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


BROKEN = {
    "vocab missing": (lambda folder: (folder / "vocab.json").unlink(), "vocab.json"),
    "merges missing": (lambda folder: (folder / "merges.txt").unlink(), "merges.txt"),
    "vocab is not JSON": (write("vocab.json", b"{'a': 1"), "vocab.json"),
    "vocab is empty": (write("vocab.json", b""), "vocab.json"),
    "vocab is a list": (write("vocab.json", b'["a"]'), "vocab.json"),
    "vocab is nested without end": (write("vocab.json", b"[" * 200_000), "vocab.json"),
    "vocab is a Git LFS pointer": (write("vocab.json", b"version https://git-lfs"), "vocab.json"),
    "merges are not text": (write("merges.txt", b"\xff\xfe\x00"), "merges.txt"),
    "a merge of three": (write("merges.txt", b"#version: 0.2\na b c\n"), "merges.txt line 2"),
    "a merge outside the vocabulary": (write("merges.txt", "#version: 0.2\nq ☃\n".encode()), "merges.txt.*☃"),
    "an id that is text": (break_vocab(lambda v: v.update(a="7")), "'7'"),
    "an id below zero": (break_vocab(lambda v: v.update(a=-1)), "-1"),
    "an absurd id": (break_vocab(lambda v: v.update(a=10**12)), "1000000000000"),
    "two tokens of one id": (break_vocab(lambda v: v.update(a=v["b"])), "distinct"),
    "a lone surrogate": (break_vocab(lambda v: v.update({"\ud800": 700})), "merges.txt"),
    "no end token": (break_vocab(lambda v: v.pop("<|endoftext|>")), "endoftext"),
    "config is not JSON": (write("tokenizer_config.json", b"77"), "tokenizer_config.json"),
    "an absurd length": (
        write("tokenizer_config.json", b'{"model_max_length": 1000000000}'),
        "config.json: .*1000000000",
    ),
    "a length that is text": (write("tokenizer_config.json", b'{"model_max_length": "77"}'), "'77'"),
    "an unknown padding token": (write("tokenizer_config.json", b'{"pad_token": "<pad>"}'), "<pad>"),
    "a padding token without text": (
        write("tokenizer_config.json", b'{"pad_token": {"x": 1}}'),
        "tokenizer_config",
    ),
    "an added token elsewhere": (
        write("tokenizer_config.json", b'{"added_tokens_decoder": {"900": {"content": "<x>"}}}'),
        "<x>.*900",
    ),
    "added tokens without ids": (
        write("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "<x>"}}}'),
        "tokenizer_config",
    ),
}


@pytest.mark.parametrize(("damage", "named"), BROKEN.values(), ids=BROKEN)
def test_bad_files_are_named(learned_folder, tmp_path, damage, named):
    folder = copy_of(learned_folder, tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=named) as error:
        Tokenizer.load(folder)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


JOINT = {
    "not JSON": b"<html>",
    "no model": b"{}",
    "another model": b'{"model": {"type": "Unigram", "vocab": []}}',
    "no merges": b'{"model": {"end_of_word_suffix": "</w>", "vocab": {}}}',
    "bad merges": b'{"model": {"end_of_word_suffix": "</w>", "vocab": {}, "merges": [3]}}',
    "no special tokens": b'{"model": {"end_of_word_suffix": "</w>", "vocab": {}, "merges": []}}',
}


@pytest.mark.parametrize("content", JOINT.values(), ids=JOINT)
def test_a_bad_tokenizer_json_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)

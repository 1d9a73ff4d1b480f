"""T5's and BERT's tokenizers: the ids and masks of transformers, its files, and files that are damaged."""

import base64
import io
import json
import random
import warnings

import numpy as np
import pytest

from sd_tf.data.captions import corpus
from sd_tf.errors import InputError
from sd_tf.text import subword_tokenizer as ours
from sd_tf.text.sentencepiece import check_charsmap, read_sentencepiece
from tests.fuzzing import limited
from tests.text.vocabularies import bert_vocab, captions, spiece, t5_pieces

transformers = pytest.importorskip("transformers", reason="transformers is the reference of these tests")
pytestmark = pytest.mark.filterwarnings("ignore:a prompt holds at most")
LENGTH = 20


def assert_same_rows(tokenizer, theirs, texts=None):
    texts = texts or captions()
    ids, mask = tokenizer(texts)
    expected = theirs(texts, padding="max_length", truncation=True, max_length=tokenizer.max_length)
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(mask, expected.attention_mask)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == (len(texts), tokenizer.max_length)


# -- T5 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece():
    return pytest.importorskip("sentencepiece", reason="SentencePiece is the reference of this test")


@pytest.fixture(scope="module")
def trained(sentencepiece):
    """A `spiece.model` with the normalisation that T5's has."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()[:3000]),
        model_writer=model,
        vocab_size=150,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return model.getvalue()


def test_rows_of_t5_are_those_of_transformers():
    theirs = transformers.T5Tokenizer(vocab=t5_pieces(), extra_ids=0)
    for length in (2, LENGTH, 77):
        assert_same_rows(ours.t5_tokenizer(t5_pieces(), 2, max_length=length), theirs)


def test_rows_of_a_sentencepiece_model_are_those_of_transformers_and_of_its_library(
    trained, sentencepiece, tmp_path
):
    (tmp_path / "spiece.model").write_bytes(trained)
    tokenizer = ours.read_t5_tokenizer(tmp_path, LENGTH)
    assert_same_rows(tokenizer, transformers.T5Tokenizer.from_pretrained(tmp_path))
    library = sentencepiece.SentencePieceProcessor(model_proto=trained)
    assert tokenizer.vocab_size == library.get_piece_size() + 100
    for text in captions():
        if "</s>" not in text and "\x00" not in text:  # special tokens to transformers and us
            assert tokenizer.ids(text) == library.encode(text), text


def test_a_sentencepiece_model_is_read_without_its_library(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece(t5_pieces()))
    tokenizer = ours.read_t5_tokenizer(tmp_path, LENGTH)
    assert_same_rows(tokenizer, transformers.T5Tokenizer(vocab=t5_pieces(), extra_ids=0))
    size = len(t5_pieces())
    assert tokenizer.vocab_size == size + 100
    assert tokenizer.ids("<extra_id_0>") == [size + 99] and tokenizer.ids("<extra_id_99>") == [size]


@pytest.mark.parametrize("kind", ["T5", "BERT"])
def test_files_of_transformers_open_here_and_ours_open_there(kind, tmp_path):
    if kind == "T5":
        theirs, read = transformers.T5Tokenizer(vocab=t5_pieces()), ours.read_t5_tokenizer
    else:
        theirs, read = transformers.BertTokenizer(vocab=bert_vocab()), ours.read_bert_tokenizer
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer = read(tmp_path / "theirs", LENGTH)
    assert_same_rows(tokenizer, theirs)
    tokenizer.save(tmp_path / "ours")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert type(opened) is type(theirs) and opened.model_max_length == LENGTH
    assert len(opened) == tokenizer.vocab_size == len(theirs)
    assert_same_rows(tokenizer, opened)
    again = read(tmp_path / "ours", LENGTH)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint != read(tmp_path / "ours", LENGTH - 1).fingerprint


def test_a_normalisation_of_sentencepiece_survives_both_ways(trained, tmp_path):
    (tmp_path / "spiece.model").write_bytes(trained)
    tokenizer = ours.read_t5_tokenizer(tmp_path, LENGTH)
    tokenizer.save(tmp_path / "ours")
    assert_same_rows(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))
    assert ours.read_t5_tokenizer(tmp_path / "ours", LENGTH).fingerprint == tokenizer.fingerprint
    assert tokenizer.ids("ＲＥＤ ﬁne") == tokenizer.ids("RED fine")


# -- BERT ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_rows_of_bert_are_those_of_transformers(options, file, tmp_path):
    theirs = transformers.BertTokenizer(vocab=bert_vocab(), **options)
    if file == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
    else:
        words = sorted(bert_vocab(), key=bert_vocab().get)
        (tmp_path / file).write_text("".join(f"{word}\n" for word in words), "utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    for length in (3, LENGTH, 64):
        assert_same_rows(ours.read_bert_tokenizer(tmp_path, length), theirs)


def test_a_cased_vocabulary_without_a_configuration_stays_cased(tmp_path):
    transformers.BertTokenizer(vocab=bert_vocab(), do_lower_case=False).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = ours.read_bert_tokenizer(tmp_path, LENGTH)
    assert_same_rows(tokenizer, transformers.BertTokenizer(vocab=bert_vocab(), do_lower_case=False))


def test_special_tokens_may_have_other_names(tmp_path):
    renamed = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[UNK]": "<unk>", "[MASK]": "<mask>"}
    vocab = {renamed.get(token, token): i for token, i in bert_vocab().items()}
    roles = {f"{old[1:-1].lower()}_token": new for old, new in renamed.items()}
    theirs = transformers.BertTokenizer(vocab=vocab, **roles)
    assert_same_rows(ours.bert_tokenizer(vocab, LENGTH, roles), theirs)
    theirs.save_pretrained(tmp_path)
    assert_same_rows(ours.read_bert_tokenizer(tmp_path, LENGTH), theirs)


# -- both ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["T5", "BERT"])
def tokenizer(request):
    if request.param == "T5":
        return ours.t5_tokenizer(t5_pieces(), 2, max_length=8)
    return ours.bert_tokenizer(bert_vocab(), 8)


@pytest.mark.filterwarnings("error")
def test_what_does_not_fit_is_cut_with_one_warning_that_names_it(tokenizer):
    first = "a red dress and a very long text"
    with pytest.warns(UserWarning, match="a prompt holds at most [67] tokens: cut off .* of 1 more") as said:
        ids, mask = tokenizer([first, first + first, "a dress"])
    assert len(said) == 1 and mask[:2].all() and not mask[2].all()
    np.testing.assert_array_equal(ids[0], tokenizer.row(tokenizer.ids(first)[: tokenizer.room]))


def test_what_is_no_text_is_refused(tokenizer):
    for texts in ("a dress", [3], [None], 5):
        with pytest.raises(InputError):
            tokenizer(texts)


def test_half_characters_are_read_as_replacements(tokenizer):
    np.testing.assert_array_equal(tokenizer(["\ud800 a"])[0], tokenizer(["\ufffd a"])[0])


@pytest.mark.parametrize("length", [0, -3, 1025, True, "7", 7.0, None])
def test_a_length_that_is_none_is_refused(length):
    with pytest.raises(InputError, match="max_length"):
        ours.t5_tokenizer(t5_pieces(), 2, max_length=length)
    with pytest.raises(InputError, match="max_length"):
        ours.bert_tokenizer(bert_vocab(), length)


# -- damaged files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("model"), "its model is None"),
        (lambda v: v["model"].update(type="BPE"), "its model is 'BPE'"),
        (lambda v: v["model"].update(vocab={"a": 1}), "no vocab of pieces"),
        (lambda v: v["model"].update(vocab=[["a", 1.0], 5]), "no vocab of pieces"),
        (lambda v: v["model"].update(vocab=[["a", "b"]]), "no vocab of pieces"),
        (lambda v: v["model"].update(vocab=[]), "unk_id"),
        (lambda v: v["model"]["vocab"].append(["", 0.0]), r"piece \d+ is ''"),
        (lambda v: v["model"]["vocab"].append(["x" * 1001, 0.0]), r"piece \d+ is 'xxx"),
        (lambda v: v["model"]["vocab"].append(["</s>", 0.0]), "twice"),
        (lambda v: v["model"].update(unk_id=10**9), "unk_id is 1000000000"),
        (lambda v: v["model"].update(unk_id=None), "unk_id is None"),
        (lambda v: v.update(normalizer=[1]), "normalizer is"),
        (lambda v: v.update(normalizer={"type": "Sequence", "normalizers": 3}), "normalizer is"),
        (lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "&"}), "base64"),
        (lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": 3}), "base64"),
        (lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "damaged"),
        (lambda v: v.update(added_tokens=3), "added tokens 3"),
        (lambda v: v.update(added_tokens=[{"id": 10**9, "content": "x"}]), "correct its id"),
        (lambda v: v.update(added_tokens=[{"id": 300, "content": ""}]), "has not 1 to"),
    ],
)
def test_a_damaged_tokenizer_file_of_t5_is_named(change, message, tmp_path):
    ours.t5_tokenizer(t5_pieces(), 2).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    change(values)
    file.write_text(json.dumps(values), "utf-8")
    with pytest.raises(InputError, match=message) as refused:
        ours.read_t5_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, c: v["model"].update(vocab=[]), r"its vocabulary is \[\]"),
        (lambda v, c: v["model"].update(vocab={"a": "b"}), "gives 'a' the id 'b'"),
        (lambda v, c: v["model"]["vocab"].update(a=2**40), "the id 1099511627776"),
        (lambda v, c: v["model"]["vocab"].update(new=0), "two tokens one id"),
        (lambda v, c: v["model"]["vocab"].pop("[SEP]"), "sep_token|correct its id"),
        (lambda v, c: v["model"].update(continuing_subword_prefix="@"), "prefix is '@'"),
        (lambda v, c: v["model"].update(max_input_chars_per_word=10**12), "100 are supported"),
        (lambda v, c: c.update(do_lower_case="yes"), "do_lower_case is 'yes'"),
        (lambda v, c: c.update(strip_accents=[]), "strip_accents is"),
        (lambda v, c: c.update(cls_token="nowhere"), "cls_token 'nowhere'"),
        (lambda v, c: c.update(cls_token=[5]), "has the token"),
        (lambda v, c: c.update(added_tokens_decoder={"x": {"content": "y"}}), "integers"),
    ],
)
def test_a_damaged_tokenizer_file_of_bert_is_named(change, message, tmp_path):
    ours.bert_tokenizer(bert_vocab()).save(tmp_path)
    files = [tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"]
    values = [json.loads(file.read_text("utf-8")) for file in files]
    values[1].pop("added_tokens_decoder")
    change(*values)
    for file, value in zip(files, values, strict=True):
        file.write_text(json.dumps(value), "utf-8")
    with pytest.raises(InputError, match=message) as refused:
        ours.read_bert_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    for read in (ours.read_t5_tokenizer, ours.read_bert_tokenizer):
        with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
            read(tmp_path)


def test_a_truncated_or_garbled_sentencepiece_model_is_read_or_refused(tmp_path):
    """Every beginning of a file, and files with some bytes changed: one line, and never a crash."""
    whole = spiece(t5_pieces(60), b"")
    random_bytes, read = random.Random(0), 0
    cases = [whole[:end] for end in range(0, len(whole), 7)]
    for _ in range(400):
        case = bytearray(whole)
        for _ in range(random_bytes.randint(1, 8)):
            case[random_bytes.randrange(len(case))] = random_bytes.randrange(256)
        cases.append(bytes(case))
    cases += [
        b"",
        b"\0",
        b"\xff" * 100,
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        random_bytes.randbytes(999),
    ]
    for case in cases:
        (tmp_path / "spiece.model").write_bytes(case)
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ours.read_t5_tokenizer(tmp_path)(captions()[:5])
                read += 1
            except InputError as error:
                assert "\n" not in str(error)
    assert read < len(cases) - 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no pieces"),
        (b"\x0a\x05abc", "ends within a field"),
        (b"\x0a", "ends within a number"),
        (b"\xff" * 20, "more than ten bytes"),
        (b"\x0b", "of the type 3"),
        (b"\x08\x05", "a field is int, expected bytes"),
        (b"\x0a\x03\x0a\x01\xff", "utf-8"),
        (b"\x0a\x02\x15\x00", "requires a buffer"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x02", "model_type is 2"),
    ],
)
def test_what_is_wrong_with_a_sentencepiece_model_is_said(content, message):
    with pytest.raises(InputError, match=f"spiece.model is no readable SentencePiece model: .*{message}"):
        read_sentencepiece(content, "spiece.model")


def test_a_damaged_normalisation_never_reaches_the_library_that_would_crash(trained):
    charsmap = read_sentencepiece(trained, "").charsmap
    check_charsmap(charsmap)
    random_bytes, refused = random.Random(1), 0
    length = int.from_bytes(charsmap[:4], "little")
    for case in range(150):
        damaged = bytearray(charsmap)
        for _ in range(random_bytes.choice([1, 100, 10_000])):
            damaged[random_bytes.randrange(4, 4 + length)] = random_bytes.randrange(256)
        if case % 3 == 0:
            damaged = damaged[: random_bytes.randrange(len(damaged))]
        try:
            tokenizer = ours.t5_tokenizer(t5_pieces(), 2, bytes(damaged), LENGTH)
        except InputError:
            refused += 1
            continue
        with limited():
            tokenizer(captions())
    assert refused > 50


def test_a_normalisation_that_leads_out_of_its_array_is_refused():
    for content in (b"", b"\0" * 3, b"\0" * 2000, (1024).to_bytes(4, "little") + b"\xff\xff\xff\x7f" * 256):
        with pytest.raises(InputError, match="damaged"):
            check_charsmap(content)
    with pytest.raises(InputError, match="damaged"):
        ours.t5_tokenizer(t5_pieces(), 2, base64.b64decode("AAAAAAAA"))

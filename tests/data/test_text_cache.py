"""The states of captions are computed once, found again by caption, and made again where they are damaged."""

import numpy as np
import pytest

from sd_tf.data.text_cache import text_cache
from sd_tf.errors import InputError

CAPTIONS = ("a bag", "a dress", "a red dress")


def encode(texts):
    """Each text's length in every state; a mask of as many tokens as it has words."""
    lengths = np.array([len(text) for text in texts], np.float32)
    words = np.array([len(text.split()) for text in texts])
    return np.broadcast_to(lengths[:, None, None], (len(texts), 5, 2)), np.arange(5) < words[:, None]


def test_states_are_those_of_each_caption_and_the_last_of_none(tmp_path):
    done = []
    cache = text_cache(tmp_path, "key", CAPTIONS, encode, 2, lambda *numbers: done.append(numbers))
    assert cache.states.shape == (4, 5, 2) and cache.states.dtype == np.float16
    rows = cache.rows_of(["a red dress", "a bag", "a red dress"])
    np.testing.assert_array_equal(cache.states[rows, 0, 0], [11, 5, 11])
    np.testing.assert_array_equal(cache.mask[rows].sum(axis=1), [3, 2, 3])
    assert cache.states[-1, 0, 0] == 0 and not cache.mask[-1].any()
    assert done == [(2, 4), (4, 4)] and cache.seconds >= 0


def test_a_finished_cache_is_not_computed_again(tmp_path):
    text_cache(tmp_path, "key", CAPTIONS, encode)
    again = text_cache(tmp_path, "key", CAPTIONS, None)
    assert again.states[again.rows_of(["a dress"])][0, 0, 0] == 7


@pytest.mark.parametrize("name, damage", [
    ("states.npy", lambda file: file.write_bytes(file.read_bytes()[:-8])),
    ("mask.npy", lambda file: np.save(file, np.ones((4, 3), bool))),
    ("cache.json", lambda file: file.write_text('{"seconds": "long"}')),
    ("states.npy", lambda file: np.save(file, np.ones((9, 5, 2), np.float16))),
])  # fmt: skip
def test_a_damaged_cache_is_made_again(tmp_path, name, damage):
    text_cache(tmp_path, "key", CAPTIONS, encode)
    damage(tmp_path / "key" / name)
    with pytest.warns(UserWarning, match=f"{name}.*the cache is made again"):
        cache = text_cache(tmp_path, "key", CAPTIONS, encode)
    assert cache.states.shape == (4, 5, 2)


def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    from sd_tf.data import text_cache as module

    def full(file, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "append_rows", full)
    with pytest.raises(InputError, match="cannot write the cache .*No space left.*make room"):
        text_cache(tmp_path, "key", CAPTIONS, encode)
    assert not list(tmp_path.glob("*key*"))

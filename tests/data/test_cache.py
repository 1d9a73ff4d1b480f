import json
import random
import resource
import shutil
import tracemalloc

import numpy as np
import pytest

from sd_tf.data import cache
from sd_tf.data.cache import latent_cache
from sd_tf.data.pipeline import Examples
from sd_tf.errors import InputError
from sd_tf.hashing import fingerprint, weights_fingerprint
from sd_tf.latent.config import AutoencoderConfig
from tests.data import hostile_stores
from tests.data.hostile import Case


class Dataset:
    """Ten pictures whose brightness is their index, with a caption for each pair of epoch and parity."""

    def __len__(self):
        return 10

    def examples(self, indices, epoch):
        images = np.broadcast_to(indices[:, None, None, None], (len(indices), 4, 4, 3)).astype(np.uint8)
        captions = [f"picture {i % 2} of epoch {epoch}" for i in indices]
        return Examples(images, captions, np.zeros(len(indices), np.int32))


class Many:
    """Tiny pictures, each with a caption of its own."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def examples(self, indices, epoch):
        images = np.zeros((len(indices), 4, 4, 3), np.uint8)
        return Examples(images, [f"picture {i}" for i in indices], np.zeros(len(indices), np.int32))


class Encoders:
    """Encoders that count what they are asked for."""

    def __init__(self):
        self.images, self.captions = 0, []

    def encode_images(self, images):
        self.images += len(images)
        mean = images[:, ::2, ::2, :].astype(np.float32)  # (n, 2, 2, 3)
        return mean, mean / 16 + 1

    def encode_captions(self, captions):
        self.captions += captions
        return np.array([[[len(caption), sum(map(ord, caption))]] for caption in captions], np.float32) / 64


def build(folder, encoders=None, key="key", num_examples=20, **options):
    encoders = encoders or Encoders()
    return latent_cache(
        folder,
        key,
        Dataset(),
        encoders.encode_images,
        encoders.encode_captions,
        num_examples,
        **{"batch_size": 4, **options},
    )


def test_a_cache_holds_each_picture_of_each_epoch_with_its_own_caption(tmp_path):
    built = build(tmp_path)
    assert len(built) == 20 and built.mean.dtype == built.std.dtype == np.float16
    for epoch, rows in enumerate((slice(0, 10), slice(10, 20))):
        pictures = built.mean[rows, 0, 0, 0].astype(int)
        assert sorted(pictures) == list(range(10))
        for picture, mean, std, caption in zip(
            pictures, built.mean[rows], built.std[rows], built.caption[rows], strict=True
        ):
            assert (mean == picture).all() and (std == picture / 16 + 1).all()
            expected = Encoders().encode_captions([f"picture {picture % 2} of epoch {epoch}"])
            np.testing.assert_array_equal(built.contexts[caption], expected[0].astype(np.float16))


def test_each_caption_is_encoded_once_and_the_empty_one_comes_last(tmp_path):
    encoders = Encoders()
    built = build(tmp_path, encoders)
    assert len(encoders.captions) == len(set(encoders.captions)) == len(built.contexts) == 5
    np.testing.assert_array_equal(built.contexts[-1], [[0, 0]])
    assert built.caption.max() == 3


def test_epochs_are_shuffled_so_that_a_part_is_a_fair_sample(tmp_path):
    built = build(tmp_path)
    first, second = (list(built.mean[rows, 0, 0, 0]) for rows in (slice(0, 10), slice(10, 20)))
    assert first != sorted(first) and first != second


def test_no_more_pictures_are_cached_than_asked_for(tmp_path):
    encoders = Encoders()
    assert len(build(tmp_path, encoders, num_examples=7)) == encoders.images == 7


def test_opening_again_computes_nothing_and_gives_the_same(tmp_path):
    first, encoders = build(tmp_path), Encoders()
    again = build(tmp_path, encoders)
    assert encoders.images == 0 and encoders.captions == []
    for name in ("mean", "std", "caption", "contexts", "seconds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_another_key_computes_anew_beside_it(tmp_path):
    build(tmp_path)
    encoders = Encoders()
    build(tmp_path, encoders, key="other")
    assert encoders.images == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other"]


def test_a_time_limit_stops_with_what_is_done(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    encoders = Encoders()

    def slow(images):
        now[0] += 1.0
        return encoders.encode_images(images)

    built = latent_cache(tmp_path, "key", Dataset(), slow, encoders.encode_captions, 20, 2.5, batch_size=4)
    assert len(built) == 10  # 4, 4 and the last 2 of the epoch
    assert len(built.contexts) == len(encoders.captions) == 3  # of no picture that was not cached
    assert built.seconds == 3.0
    assert len(latent_cache(tmp_path, "none", Dataset(), slow, encoders.encode_captions, 20, 0, 4)) == 4


def test_a_time_limit_counts_the_captions_too(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])
    encoders = Encoders()

    def slow(captions):
        now[0] += 1.0
        return encoders.encode_captions(captions)

    built = latent_cache(tmp_path, "key", Many(40), encoders.encode_images, slow, 40, 2.5, batch_size=4)
    assert len(built) == 12 and len(built.contexts) == 13
    assert encoders.captions[-1] == "" and built.seconds == 4.0


def test_so_many_pictures_as_must_be_are_cached_however_long_they_take(tmp_path):
    assert len(build(tmp_path, max_seconds=0, at_least=10)) == 10


def most_memory(folder, number):
    """Bytes that caching so many pictures takes at once, 320 kB for each in float32, and the cache."""
    tracemalloc.start()
    try:
        built = latent_cache(
            folder,
            "key",
            Many(number),
            lambda images: (np.ones((len(images), 64, 64, 4), np.float32),) * 2,
            lambda captions: np.ones((len(captions), 60, 800), np.float32),
            number,
            batch_size=16,
        )
        built.contexts[built.caption[:16]]
        return tracemalloc.get_traced_memory()[1], built
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    few, _ = most_memory(tmp_path / "few", 100)
    many, built = most_memory(tmp_path / "many", 400)
    assert many < 1.1 * few < 30e6
    assert list(built.caption) == list(range(400)) and built.contexts.shape == (401, 60, 800)
    assert all((array[-1] == 1).all() for array in (built.mean, built.std, built.contexts))
    shutil.rmtree(tmp_path / "many")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("moment", ["encode", "write"])
def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch, moment, error):
    encoders = Encoders()

    def fail(*_):
        raise error

    if moment == "encode":
        encoders.encode_captions = fail
    else:
        monkeypatch.setattr(cache.json, "dumps", fail)
    with pytest.raises(error):
        build(tmp_path, encoders)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(build(tmp_path)) == 20


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the cache .*file/key"):
        build(tmp_path / "file")


def test_a_disk_that_is_full_is_named_and_nothing_is_left(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))  # bytes of a file: a header and some rows
    try:
        with pytest.raises(
            InputError, match=r"cannot write the cache .*key \(.*\): make room, or name another"
        ):
            build(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_another_run_finished_first_is_taken(tmp_path):
    first = build(tmp_path / "theirs", num_examples=3)
    encoders = Encoders()

    def overtaken(captions):
        shutil.copytree(tmp_path / "theirs" / "key", tmp_path / "key", dirs_exist_ok=True)
        return Encoders().encode_captions(captions)

    encoders.encode_captions = overtaken
    assert len(build(tmp_path, encoders)) == len(first) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "theirs"]


def test_progress_is_told_up_to_the_whole(tmp_path):
    told = []
    build(tmp_path, num_examples=10, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_the_seconds_of_a_build_are_kept(tmp_path):
    built = build(tmp_path)
    assert json.loads((tmp_path / "key" / "cache.json").read_text()) == {"seconds": built.seconds}
    assert built.seconds > 0


def test_a_key_changes_with_anything_it_is_made_of():
    array = np.arange(6, dtype=np.float32)
    other = array.copy()
    other[3] += 1e-6
    parts = [
        ("a", 1, 23, array),
        ("b", 1, 23, array),
        ("a", 12, 3, array),
        ("a", 1, 23.0, array),
        ("a", 1, 23, other),
        ("a", 1, 23, array.reshape(2, 3)),
        ("a", 1, 23, array.view(np.int32)),
        ("a", 1, 23),
        ("a", 1, 23, None),
        ("a", 1, AutoencoderConfig(), array),
        ("a", 1, AutoencoderConfig(scaling_factor=1.0), array),
    ]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint("a", 1, 23, array.copy()) == fingerprint(*parts[0])


def test_a_model_changes_its_key_with_any_weight(tiny_model):
    unet = tiny_model.unet
    before = weights_fingerprint(unet)
    assert weights_fingerprint(unet) == before
    for variable in (unet.variables[0], unet.variables[-1]):
        value = variable.numpy()
        changed = value.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
        variable.assign(changed)
        assert weights_fingerprint(unet) != before
        variable.assign(value)
    assert weights_fingerprint(unet) == before


@pytest.mark.parametrize(
    "name", ["cut short", "special files", "missing", "numbers out of range", "what is said of it"]
)
def test_a_damaged_cache_is_made_again(tmp_path, name):
    built = build(tmp_path)
    mean, caption = np.array(built.mean), np.array(built.caption)
    (tmp_path / "private").mkdir()
    for seed in range(4):
        case = Case(tmp_path, tmp_path / "private", tmp_path, "jsonl", random.Random(seed))
        hostile_stores.DAMAGES[name](case, tmp_path / "key")
        with pytest.warns(UserWarning, match="the cache is made again"):
            found = build(tmp_path)
        np.testing.assert_array_equal(found.mean, mean)
        np.testing.assert_array_equal(found.caption, caption)

import os
from pathlib import Path

import numpy as np
import pytest

from sd_tf.data import captions, fashion_mnist
from sd_tf.data.garments import Garments
from sd_tf.errors import InputError

DATA = Path(os.environ.get("SD_TF_DATA_DIR", ""), "fashion-mnist")
needs_data = pytest.mark.skipif(
    not all((DATA / name).is_file() for name in fashion_mnist.FILES),
    reason="needs the Fashion-MNIST files in $SD_TF_DATA_DIR/fashion-mnist",
)


def silhouettes(grey):
    """float32 (n, pixels): 1 where the picture is not black."""
    return (grey > 40).astype(np.float32).reshape(len(grey), -1)


def nearest(rows, centres):
    return ((rows[:, None] - centres[None]) ** 2).sum(axis=-1).argmin(axis=1)


def means(rows, labels):
    return np.stack([rows[labels == c].mean(axis=0) for c in range(10)])


@pytest.fixture(scope="module")
def drawn():
    return Garments().examples(range(1000), 0)


@pytest.mark.parametrize("size", [32, 64])
def test_pictures_are_bright_on_black_and_within_the_frame(size):
    images, _, _ = Garments(size).examples(range(200), 0)
    assert images.shape == (200, size, size, 3) and images.dtype == np.uint8
    brightest = images.max(axis=-1)
    covered = (brightest > 0).mean(axis=(1, 2))
    assert (covered > 0.05).all() and (covered < 0.7).all()
    assert (brightest[:, 0] == 0).mean() > 0.95 and (brightest[:, :, 0] == 0).mean() > 0.9
    assert (brightest.max(axis=(1, 2)) > 80).all()


def test_captions_and_groups_tell_what_is_drawn(drawn):
    for index, (text, group) in enumerate(zip(drawn.captions, drawn.groups.tolist(), strict=True)):
        label, colour = captions.parse(text)
        named = [i for i, words in enumerate(captions.PATTERNS.values()) if any(w in text for w in words)]
        assert label == index % 10
        assert group == (label * 9 + (0 if colour is None else 1 + colour)) * 3 + sum(i + 1 for i in named)
        assert text in captions.corpus(patterns=True)


def test_tints_are_the_named_colours(drawn):
    for image, text in zip(drawn.images.astype(float), drawn.captions, strict=True):
        _, colour = captions.parse(text)
        tint = np.array((255, 255, 255) if colour is None else captions.PALETTE[colour]) / 255
        grey = image.max(axis=-1, keepdims=True) / tint.max()
        assert np.abs(image - grey * tint).max() <= 1.5  # two roundings


def test_colours_and_patterns_are_drawn_for_half_of_the_pictures(drawn):
    error = 4 * np.sqrt(0.25 / 1000)
    colours, patterns = drawn.groups // 3 % 9, drawn.groups % 3
    for share in ((colours > 0).mean(), (patterns > 0).mean()):
        assert abs(share - 0.5) < error
    assert set(colours) == set(range(9)) and set(patterns) == {0, 1, 2}


def test_patterns_show_on_the_fabric(drawn):
    grey = drawn.images.max(axis=-1).astype(float)
    contrast = []
    for pattern in range(3):
        broad = grey[(drawn.groups % 3 == pattern) & np.isin(np.arange(1000) % 10, [0, 2, 8])]
        middle = broad[:, 16:24, 10:22].reshape(len(broad), -1)
        contrast.append(np.median(middle.std(axis=1) / middle.mean(axis=1)))
    assert contrast[1] > 2 * contrast[0] and contrast[2] > 2 * contrast[0]


def test_classes_are_told_apart_by_their_outlines(drawn):
    labels = np.arange(1000) % 10
    centres = means(silhouettes(drawn.images.max(axis=-1)), labels)
    unseen = Garments(split="test").examples(range(500), 0)
    found = nearest(silhouettes(unseen.images.max(axis=-1)), centres)
    assert (found == np.arange(500) % 10).mean() > 0.85


@needs_data
def test_outlines_resemble_the_real_garments(drawn):
    real = fashion_mnist.FashionMNIST("test", DATA)
    found = nearest(silhouettes(drawn.images.max(axis=-1)), means(silhouettes(real.grey), real.labels))
    right = found == np.arange(1000) % 10
    assert right.mean() > 0.65  # 0.1 by chance; coats, shirts and pullovers share an outline
    distinct = np.isin(np.arange(1000) % 10, [0, 1, 3, 5, 7, 8, 9])
    assert right[distinct].mean() > 0.85


def test_examples_depend_on_seed_split_epoch_and_index_alone(drawn):
    some = Garments().examples([321, 5], 0)
    np.testing.assert_array_equal(some.images, drawn.images[[321, 5]])
    np.testing.assert_array_equal(some.groups, drawn.groups[[321, 5]])
    assert some.captions == [drawn.captions[321], drawn.captions[5]]


def test_every_epoch_seed_and_split_draws_new_pictures(drawn):
    others = [
        Garments().examples(range(50), 1),
        Garments(seed=1).examples(range(50), 0),
        Garments(split="test").examples(range(50), 0),
    ]
    pictures = [drawn.images[:50], *(other.images for other in others)]
    assert len({picture.tobytes() for batch in pictures for picture in batch}) == 200


def test_fingerprint_tells_sizes_seeds_and_splits_apart():
    variants = [Garments(), Garments(64), Garments(seed=1), Garments(split="test")]
    assert len({variant.fingerprint for variant in variants}) == 4
    assert Garments().fingerprint == variants[0].fingerprint


def test_an_epoch_is_sixty_thousand_balanced_pictures(drawn):
    assert len(Garments()) == 60_000
    assert np.bincount(drawn.groups // 27).tolist() == [100] * 10


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match="48 pixels.*32 or 64"):
        Garments(image_size=48)
    with pytest.raises(InputError, match="unknown split 'validation'.*train, test"):
        Garments(split="validation")

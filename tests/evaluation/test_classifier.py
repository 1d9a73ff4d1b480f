import json

import numpy as np
import pytest

from sd_tf.checkpoints.sources import BUNDLED
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.errors import InputError
from sd_tf.evaluation import classifier as module


@pytest.fixture(scope="module")
def trained():
    """Not by much, but whole."""
    model = module.Classifier()
    model.build()
    return model


def test_brightness_is_the_brightest_channel_without_the_padding():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 2, 2] = (10, 51, 30)
    images[0, 1, 1] = 255  # padding
    pictures = module.brightness(images)
    assert pictures.shape == (1, 28, 28, 1) and pictures.dtype == np.float32
    assert pictures[0, 0, 0, 0] == pytest.approx(0.2) and pictures.sum() == pytest.approx(0.2)


def test_a_tint_that_allows_little_light_makes_no_dark_picture():
    images = np.full((2, 32, 32, 3), 80, np.uint8)
    pictures = module.brightness(images, full_scale=np.array([160, 255]))
    np.testing.assert_allclose(pictures[:, 0, 0, 0], [0.5, 80 / 255], rtol=1e-6)


def test_the_bundled_judge_recognises_93_percent_of_the_test_pictures_and_says_so(data_dir):
    test = FashionMNIST("test", data_dir)
    model = module.load_classifier()
    accuracy = np.mean(module.classify(model, test.grey[..., None]) == test.labels)
    assert accuracy >= 0.93
    assert model.accuracy == pytest.approx(accuracy, abs=0.002)
    assert (
        model.accuracy
        == json.loads((BUNDLED / "fashion-mnist-classifier/config.json").read_text())["test_accuracy"]
    )


def test_what_is_saved_is_read_and_named_by_its_hash(trained, tmp_path):
    module.save_classifier(trained, tmp_path / "judge", 0.5, "a command")
    again = module.load_classifier(tmp_path / "judge")
    assert again.accuracy == 0.5 and len(again.sha256) == 64
    pictures = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    expected, found = trained.features(pictures), again.features(pictures)
    assert found.shape == (3, module.FEATURES)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # in half precision


@pytest.mark.parametrize("damage", ["cut", "other", "missing"])
def test_a_damaged_judge_is_named(trained, tmp_path, damage):
    folder = tmp_path / "judge"
    module.save_classifier(trained, folder, 0.5, "a command")
    if damage == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif damage == "other":
        (folder / "config.json").write_text(json.dumps({"widths": [1, 2, 3], "features": 4}))
    else:
        (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="judge"):
        module.load_classifier(folder)


def test_training_learns_from_moved_pictures(data_dir):
    train, test = (FashionMNIST(split, data_dir) for split in ("train", "test"))
    train.grey, train.labels = train.grey[:1280], train.labels[:1280]
    model = module.train_classifier(train, epochs=4)
    # By the statistics of these pictures: 40 steps are too few for the norms' own averages.
    logits = model(module.brightness(test.grey[:1000, ..., None]), training=True)
    assert np.mean(np.argmax(logits, axis=1) == test.labels[:1000]) > 0.6


def test_pictures_are_moved_by_two_pixels_at_most_and_some_are_flipped():
    picture = np.zeros((400, 28, 28, 1), np.float32)
    picture[:, 14, 10] = 1.0
    moved = module._moved(picture, np.random.default_rng(0))
    rows, columns = np.argwhere(moved)[:, 1], np.argwhere(moved)[:, 2]
    assert set(rows) == set(range(12, 17))
    assert set(columns) == {8, 9, 10, 11, 12, 15, 16, 17, 18, 19}

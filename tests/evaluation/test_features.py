import numpy as np
import pytest

from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.errors import InputError
from sd_tf.evaluation import features


def test_brightness_is_the_brightest_channel_without_the_padding():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 2, 2] = (10, 51, 30)
    images[0, 1, 1] = 255  # padding
    pictures = features.brightness(images)
    assert pictures.shape == (1, 28, 28, 1) and pictures.dtype == np.float32
    assert pictures[0, 0, 0, 0] == pytest.approx(0.2) and pictures.sum() == pytest.approx(0.2)


def test_a_damaged_classifier_is_named(tmp_path, data_dir):
    (tmp_path / "classifier.weights.h5").write_bytes(b"not a file of weights")
    train, test = (FashionMNIST(split, data_dir) for split in ("train", "test"))
    with pytest.raises(InputError, match="classifier.weights.h5"):
        features.load_or_train_classifier(tmp_path, train, test)


@pytest.mark.slow
def test_the_judge_recognises_about_92_percent_of_the_test_pictures(tmp_path, data_dir):
    train, test = (FashionMNIST(split, data_dir) for split in ("train", "test"))
    _, accuracy = features.load_or_train_classifier(tmp_path, train, test)
    assert accuracy > 0.915
    _, again = features.load_or_train_classifier(tmp_path, train, test)  # from its file
    assert again == accuracy

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sd_tf.checkpoints.perceptual import load_perceptual, save_perceptual
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.garments import Garments
from sd_tf.errors import InputError
from sd_tf.images import to_unit
from sd_tf.latent.perceptual import train_perceptual


def test_softer_pictures_are_further_away_and_the_bundled_network_is_frozen(data_dir):
    images = FashionMNIST("test", data_dir).examples(np.arange(100), 0).images
    network = load_perceptual()
    distances = []
    for radius in (0.5, 1.0, 2.0):
        soft = [
            np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for image in images
        ]
        distances.append(np.asarray(network.distance(to_unit(images), to_unit(np.stack(soft)))))
    assert ((distances[0] < distances[1]) & (distances[1] < distances[2])).mean() > 0.9
    assert not network.trainable_variables


def test_a_network_learns_groups_and_is_read_as_it_was_written(tmp_path):
    data = Garments(32, seed=0)
    network = train_perceptual(data, steps=12, num_classes=400)
    save_perceptual(network, tmp_path / "mine", 0.1, "a command")
    again = load_perceptual(tmp_path / "mine")
    images = to_unit(data.examples(np.arange(4), 0).images)
    for one, other in zip(network.maps(images), again.maps(images), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)  # in half precision


@pytest.mark.parametrize("values", [{}, {"widths": [24, 48, 96]}, {"widths": [1], "num_classes": 3}])
def test_another_folder_is_refused_by_name(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="no perceptual network"):
        load_perceptual(tmp_path)

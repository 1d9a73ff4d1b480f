"""Pictures are made smaller by means, and larger as torch enlarges them."""

import numpy as np
import pytest

from sd_tf.data.resizing import enlarged, shrunk


@pytest.mark.parametrize("small, large", [((8, 8), (16, 16)), ((5, 7), (20, 21)), ((1, 4), (3, 4))])
def test_enlarged_is_torchs_bilinear_interpolation(small, large):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(2, *small, 3)).astype("float32")
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = torch.nn.functional.interpolate(tensor, large, mode="bilinear", align_corners=True)
    found = enlarged(images, large)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_shrunk_pixels_are_the_means_of_those_that_they_stand_for():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    found = shrunk(images, (2, 3))
    assert found.dtype == np.float32 and found.shape == (2, 2, 3, 3)
    assert found[1, 1, 2, 0] == images[1, 2:4, 4:6, 0].mean()
    np.testing.assert_array_equal(shrunk(images, (4, 6)), images)

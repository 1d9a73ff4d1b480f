"""Timestep embeddings against diffusers'."""

import numpy as np
import pytest

from sd_tf.graphs import compiled
from sd_tf.nn.embeddings import TimestepEmbedding, sinusoidal_embedding

torch = pytest.importorskip("torch")
embeddings = pytest.importorskip("diffusers.models.embeddings")

TIMESTEPS = np.array([0, 1, 17, 500, 999])


@pytest.mark.parametrize("flip_sin_to_cos", [True, False])
@pytest.mark.parametrize("freq_shift", [0, 1])
@pytest.mark.parametrize("width", [4, 32, 320])
def test_sinusoids_agree_with_diffusers(flip_sin_to_cos, freq_shift, width):
    reference = embeddings.get_timestep_embedding(
        torch.from_numpy(TIMESTEPS), width, flip_sin_to_cos=flip_sin_to_cos, downscale_freq_shift=freq_shift
    )
    ours = np.asarray(sinusoidal_embedding(TIMESTEPS, width, flip_sin_to_cos, freq_shift))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference.numpy(), atol=2e-4)  # float32 holds 999 to 6e-5


def test_stable_diffusion_puts_cosines_first():
    row = np.asarray(sinusoidal_embedding(np.array([3]), 6))[0]
    angles = 3 * np.array([1, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3)])
    np.testing.assert_allclose(row, [*np.cos(angles), *np.sin(angles)], atol=1e-6)


def test_the_embedding_layer_agrees_with_diffusers(copied, torch_call, distance):
    reference = embeddings.TimestepEmbedding(8, 24)
    layer = TimestepEmbedding(24)
    layer.build((None, 8))
    copied(reference, layer)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype("float32")
    expected = torch_call(reference, x)
    assert distance(layer(x), expected) < 1e-5
    assert distance(compiled(layer)(x), expected) < 1e-5


def test_the_embedding_layer_is_made_again_from_its_config():
    layer = TimestepEmbedding(24, name="time", dtype="mixed_bfloat16")
    twin = TimestepEmbedding.from_config(layer.get_config())
    twin.build((None, 8))
    assert (twin.name, twin.width, twin.compute_dtype) == ("time", 24, "bfloat16")
    assert twin(np.ones((2, 8), "float32")).dtype == "bfloat16"

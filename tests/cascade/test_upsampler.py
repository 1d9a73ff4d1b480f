"""A cascade whose last stage is a GAN that enlarges in one pass."""

import dataclasses
import json

import numpy as np
import pytest

import sd_tf
from sd_tf.cascade.drawing import DRAWS_OF_A_STAGE
from sd_tf.cascade.loading import load_lazily
from sd_tf.gan.generator import Generator
from sd_tf.generation.request import Request
from sd_tf.seeding import seeded
from tests.cascade.conftest import tiny_cascade
from tests.conftest import shake_variables
from tests.gan.small import DRAWS

FAST = {"steps": 2, "engine": "tensorflow", "progress": False}
PROMPTS = ["a red dress", "a blue bag"]


def upsampler(encoder, **changes):
    with seeded(0):
        network = Generator(dataclasses.replace(DRAWS, text_dim=encoder.width, low_res_size=8, **changes))
        network.build()
    return sd_tf.GigaGAN(shake_variables(network, scale=0.1), None, encoder)


@pytest.fixture(scope="module")
def parts():
    """A cascade of 8 and 16 pixels, and a GAN that enlarges 8 to 32."""
    cascade = tiny_cascade()
    return cascade, upsampler(cascade.text_encoder)


@pytest.fixture(scope="module")
def joined(parts):
    cascade, last = parts
    return sd_tf.CascadedDiffusion(cascade.stages[:1], cascade.text_encoder, last)


def apart(ours, theirs):
    return np.abs(np.asarray(ours).astype(int) - theirs).max()


def test_what_the_first_stage_draws_is_enlarged_in_one_pass(parts, joined):
    drawn = joined.generate(PROMPTS, seed=3, **FAST)
    assert joined.image_size == (32, 32) and drawn.shape == (2, 32, 32, 3)
    small = parts[0].generate(PROMPTS, seed=3, stages=1, **FAST)
    expected = parts[1].enlarge(small, Request(PROMPTS, seed=3), DRAWS_OF_A_STAGE, engine="tensorflow")
    assert apart(drawn, expected) <= 1
    assert apart(joined.generate(PROMPTS, seed=3, stages=1, **FAST), small) <= 1
    frames = joined.interpolate(PROMPTS, frames=3, seeds=3, **FAST)
    ends = [joined.generate(each, seed=3, **FAST)[0] for each in PROMPTS]
    assert frames.shape == (3, 32, 32, 3) and apart(frames[[0, -1]], np.stack(ends)) <= 2
    enlarged = joined.upscale(small[:1], engine="tensorflow")
    assert enlarged.shape == (1, 32, 32, 3)


def test_a_saved_one_is_one_folder_that_draws_the_same(joined, parts, tmp_path, capsys):
    joined.save(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "model_index.json").read_text())["stages"] == ["base", "sr2"]
    again = sd_tf.load(tmp_path / "whole")
    np.testing.assert_array_equal(again.generate(PROMPTS, **FAST), joined.generate(PROMPTS, **FAST))
    assert again.weights_sha256() == joined.weights_sha256()
    again.summary()
    said = capsys.readouterr().out
    assert "32 x 32 pixels of 8 x 8 in one pass, a GigaGAN" in said
    assert "32 x 32" in again.drawing_facts()["sizes"]
    parts[1].save(tmp_path / "last")
    put_together = sd_tf.load(tmp_path / "whole" / "base", followed_by=[tmp_path / "last"])
    np.testing.assert_array_equal(put_together.generate(PROMPTS, **FAST), joined.generate(PROMPTS, **FAST))
    with pytest.raises(
        sd_tf.InputError, match="is a 'GigaGANPipeline', .* is trained by itself: name a stage"
    ):
        load_lazily(tmp_path / "whole")


def test_what_does_not_fit_is_refused(joined, parts, tmp_path):
    cascade, last = parts
    with pytest.raises(sd_tf.InputError, match="stage sr2 draws 16 x 16, and the upsampler enlarges 8 x 8"):
        sd_tf.CascadedDiffusion(cascade.stages, cascade.text_encoder, last)
    with pytest.raises(sd_tf.InputError, match="upsampler is a CascadedDiffusion that enlarges no pictures"):
        sd_tf.CascadedDiffusion(cascade.stages, cascade.text_encoder, cascade)
    with pytest.raises(sd_tf.InputError, match="height is 64: sr2 draws pictures of 32 alone, leave it out"):
        joined.generate("a dress", height=64, **FAST)
    picture, mask = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool)
    with pytest.raises(sd_tf.InputError, match="mask is given, and sr2 enlarges all .* set stages to 1"):
        joined.generate("a dress", image=picture, mask=mask, **FAST)
    assert joined.generate("a dress", image=picture, **FAST).shape == (1, 32, 32, 3)
    with pytest.raises(sd_tf.InputError, match="image is 16 x 16, this model enlarges 8 x 8"):
        joined.upscale(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(
        sd_tf.InputError, match="stage sr2 of the model is a GigaGAN, which is trained by itself"
    ):
        joined.fit("fashion_mnist", steps=1, folder=tmp_path / "run")

"""Folders of a cascade's UNets: opened by diffusers, written by it and opened here, and damaged."""

import json
import time

import numpy as np
import pytest

from sd_tf.cascade.folder import load_unet, save_unet
from sd_tf.cascade.unet import PixelUNet
from sd_tf.errors import InputError
from tests.cascade.small import (
    SUPER_RESOLUTION,
    efficient_config,
    inputs,
    reference,
    small_config,
    theirs_on,
)
from tests.conftest import shake_variables

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

STAGES = {
    "base": small_config(".x"),
    "super-resolution": small_config(".x", layers_per_block=(1, 2), **SUPER_RESOLUTION),
}


def made(config, seed=0):
    unet = PixelUNet(config)
    unet.build()
    return shake_variables(unet, seed)


@pytest.mark.parametrize("stage", STAGES)
def test_what_we_write_diffusers_opens(stage, tmp_path, distance):
    config = STAGES[stage]
    unet = made(config)
    save_unet(unet, tmp_path / "unet")
    theirs, loading = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "unet", output_loading_info=True
    )
    assert not any(loading.values())
    arrays = inputs(config, 8, 8)
    images, timesteps, context, _, labels = arrays
    expected = theirs_on(theirs, images, timesteps, context, class_labels=labels)
    assert distance(unet(images, timesteps, context, class_labels=labels), expected) < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_what_diffusers_writes_we_open_and_write_back(stage, tmp_path, distance, recwarn):
    config = STAGES[stage]
    theirs = reference(config)
    theirs.save_pretrained(tmp_path / "theirs")
    unet = load_unet(tmp_path / "theirs")
    assert unet.config == config
    images, timesteps, context, _, labels = inputs(config, 8, 8)
    expected = theirs_on(theirs, images, timesteps, context, class_labels=labels)
    assert distance(unet(images, timesteps, context, class_labels=labels), expected) < 1e-4

    save_unet(unet, tmp_path / "ours")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    for values in (before, after):
        del values["_diffusers_version"]
    assert before == after
    assert not [w for w in recwarn if "not read" in str(w.message)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_we_write_we_open(dtype, tmp_path):
    config = efficient_config(".x", **SUPER_RESOLUTION)
    unet = made(config)
    save_unet(unet, tmp_path / "unet", dtype, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    again = load_unet(tmp_path / "unet")
    assert again.config == config
    for variable, value in zip(again.variables, unet.variables, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0 if dtype == "float32" else 1e-2, atol=1e-6)


def test_a_network_that_diffusers_does_not_have_it_refuses(tmp_path):
    save_unet(made(efficient_config(".x")), tmp_path / "unet")
    with pytest.raises(ValueError, match="EfficientDownBlock2D"):
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet") / "unet"
    save_unet(made(STAGES["base"]), folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [8, 24]}, "has shape .*, the configuration wants"),
        ({"block_out_channels": [8, 2**30]}, "heads of 1073741824 channels: 1024 are the most"),
        ({"block_out_channels": []}, "block_out_channels is empty: give one number"),
        ({"block_out_channels": [8] * 90}, "down_block_types has 2 entries for 90 block_out_channels"),
        ({"layers_per_block": 2}, "missing .* tensors"),
        ({"layers_per_block": [1, 10**9]}, "layers_per_block is .*, but .* tensors make at most"),
        ({"layers_per_block": 2**31 - 1}, "layers_per_block is 2147483647, but .* tensors make at most"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, "unknown down_block_types"),
        ({"attention_head_dim": 5}, "16 channels do not divide into heads of 5"),
        ({"cross_attention_dim": 2**31 - 1}, "do not divide into 32 groups"),
        ({"encoder_hid_dim": 2**31 - 4}, "has shape|makes no network"),
        ({"addition_embed_type_num_heads": 7}, "a text 24 wide does not divide into 7 heads"),
        ({"class_embed_type": "timestep"}, "missing 4 tensors: class_embedding"),
        ({"class_embed_type": "\x1b[2J"}, r"unknown class_embed_type"),
        ({"only_cross_attention": [True]}, "only_cross_attention has 1 entries"),
        ({"resnet_time_scale_shift": "default"}, "time_emb_proj.* has shape"),
        ({"mid_block_scale_factor": 0.0}, "mid_block_scale_factor is 0.0, expected 0.001 to 1000"),
        ({"mid_block_scale_factor": "1"}, "mid_block_scale_factor is '1', expected something like 1.0"),
        ({"sample_size": 10**6}, "sample_size is 1000000, expected 1 to 4096"),
        ({"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel', only"),
    ],
)
def test_hostile_configurations_are_refused_in_one_line_before_anything_is_allocated(
    saved, tmp_path, changes, message
):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    start = time.perf_counter()
    with pytest.raises(InputError, match=message) as refused:
        load_unet(tmp_path)
    assert str(refused.value).isprintable() and str(tmp_path) in str(refused.value)
    assert time.perf_counter() - start < 5

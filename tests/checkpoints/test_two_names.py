"""Two keys of a file that mean one variable: which of them is read is not a thing to guess."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd_tf.checkpoints import clip as clip_folders
from sd_tf.checkpoints.sources import weights_sha256
from sd_tf.errors import InputError
from sd_tf.latent import folder as folders
from sd_tf.latent.lora import read_lora
from sd_tf.lora.files import FILE
from tests.checkpoints.undamaged import CHECKPOINTS, SINGLE, text_tower

TO_OUT = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
NAMES = {  # all that a module is called in files
    TO_OUT: [
        TO_OUT,
        TO_OUT.removesuffix(".0"),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
    ],
    FC1: [
        FC1,
        FC1.replace(".text_model.", "."),
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ],
}
DOWN, UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")


@pytest.mark.parametrize("module", NAMES)
@pytest.mark.parametrize("part", ["down", "up", "alpha"])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 2), (2, 0)])
def test_a_layer_of_a_lora_under_two_names_is_refused(tmp_path, module, part, first, second):
    first, second = NAMES[module][first], NAMES[module][second]
    down, up = np.ones((2, 4), "f4"), np.ones((4, 2), "f4")
    arrays = {
        f"{first}.lora_A.weight": down,
        f"{first}.lora_B.weight": up,
        f"{first}.alpha": np.ones(1, "f4"),
    }
    save_file(arrays, tmp_path / FILE)
    assert list(read_lora(tmp_path, {module: (4, 4)})) == [module]
    key, other = {
        "down": (f"{first}.lora_A.weight", f"{second}.lora_down.weight"),
        "up": (f"{first}.lora_B.weight", f"{second}.lora.up.weight"),
        "alpha": (f"{first}.alpha", f"{second}.alpha"),
    }[part]
    save_file(arrays | {other: 2 * arrays[key]}, tmp_path / FILE)
    with pytest.raises(
        InputError, match=f"are both the {part} of {module}: two LoRAs in one file"
    ) as refused:
        read_lora(tmp_path, {module: (4, 4)})
    assert repr(key) in str(refused.value) and repr(other) in str(refused.value)


@pytest.mark.parametrize("alpha", [1e6, -1e6, 1e30])
def test_an_alpha_that_makes_pictures_nan_is_refused(tmp_path, alpha):
    arrays = {
        f"{TO_OUT}.lora_A.weight": np.ones((2, 4), "f4"),
        f"{TO_OUT}.lora_B.weight": np.ones((4, 2), "f4"),
    }
    save_file(arrays | {f"{TO_OUT}.alpha": np.full(1, alpha, "f4")}, tmp_path / FILE)
    with pytest.raises(InputError, match="is multiplied by .*, 10000 is the most: its alpha is wrong"):
        read_lora(tmp_path, {TO_OUT: (4, 4)})


def test_metadata_of_more_patterns_than_layers_takes_no_minutes(tmp_path):
    arrays = {
        f"{TO_OUT}.lora_A.weight": np.ones((2, 4), "f4"),
        f"{TO_OUT}.lora_B.weight": np.ones((4, 2), "f4"),
    }
    patterns = {f"layer.{i}": 1 for i in range(6000)}
    metadata = json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": patterns})
    save_file(arrays, tmp_path / FILE, metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(InputError, match="has 6000 entries, 5000 are the most"):
        read_lora(tmp_path, {TO_OUT: (4, 4)})


ORIGINAL = {  # of single files: a name of CompVis' -> the one of diffusers, both in the file
    "UNet": ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.conv_in.weight"),
    "UNet inside": (
        "model.diffusion_model.middle_block.0.in_layers.0.bias",
        "model.diffusion_model.mid_block.resnets.0.norm1.bias",
    ),
    "autoencoder": (
        "first_stage_model.encoder.mid.block_1.conv1.weight",
        "first_stage_model.encoder.mid_block.resnets.0.conv1.weight",
    ),
    "attention": (
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.mid_block.attentions.0.to_q.weight",
    ),
    "OpenCLIP": (
        "cond_stage_model.model.ln_final.bias",
        "cond_stage_model.model.text_model.final_layer_norm.bias",
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), ORIGINAL.values(), ids=ORIGINAL)
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_tensor_of_a_single_file_under_two_names_is_refused(tmp_path, theirs, ours, order):
    name = "file of 2.x" if "model.ln_final" in theirs else "file of 1.x"
    CHECKPOINTS[name].write(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    more = {ours: tensors[theirs] + 1}
    save_file(more | tensors if order == "first" else tensors | more, tmp_path / SINGLE)
    with pytest.raises(InputError, match="are both .*: another writer's file") as refused:
        CHECKPOINTS[name].load(tmp_path)
    assert all(key.partition("model.")[2][-20:] in str(refused.value) for key in (theirs, ours))


@pytest.mark.parametrize("last", ["weight", "bias"])
def test_attention_under_an_old_and_a_new_name_is_refused(tmp_path, last):
    CHECKPOINTS["halves"].write(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    key = f"decoder.mid_block.attentions.0.to_q.{last}"
    save_file(tensors | {key.replace("to_q", "query"): tensors[key]}, file)
    with pytest.raises(InputError, match=f"query.{last} and .*to_q.{last} are both|to_q.{last} and .*query"):
        folders.load_autoencoder(tmp_path)


def test_a_tower_with_and_without_its_name_before_a_key_is_refused(tmp_path):
    clip_folders.save_text_encoder(text_tower(), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"final_layer_norm.bias": tensors["text_model.final_layer_norm.bias"]}, file)
    with pytest.raises(InputError, match="final_layer_norm.bias are both text_model.final_layer_norm.bias"):
        clip_folders.load_text_encoder(tmp_path)


# -- hashes of weights ------------------------------------------------------------------------------------


def test_a_hash_is_of_the_files_that_a_load_reads_and_of_no_others(tmp_path):
    folder = tmp_path / "model"
    CHECKPOINTS["model"].write(folder)
    before = weights_sha256(folder)
    (folder / "deep" / "er").mkdir(parents=True)
    os.mkfifo(folder / "deep" / "er" / "a.safetensors")
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "unet" / "other.safetensors").symlink_to("/dev/zero")
    (folder / "above").symlink_to("..")
    assert weights_sha256(folder) == before
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x01")
    assert weights_sha256(folder) != before
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="model.safetensors is a named pipe: a regular file is expected"):
        weights_sha256(folder)
    file.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="model.safetensors is a link out of its folder"):
        weights_sha256(folder)


def test_what_is_larger_than_any_model_is_not_hashed(tmp_path):
    CHECKPOINTS["model"].write(tmp_path)
    with (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as opened:
        opened.truncate(2**41)
    with pytest.raises(InputError, match="more than 30,000,000,000 bytes of weights: is it a model"):
        weights_sha256(tmp_path)

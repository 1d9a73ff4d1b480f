"""Floats of 8 bits, with and without scales, against torch's; integers and other quantised weights."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import sd_tf
from sd_tf.checkpoints.tensors import find, read_file
from sd_tf.errors import InputError
from sd_tf.latent import folder as folders
from tests.checkpoints.undamaged import CHECKPOINTS, SINGLE

torch = pytest.importorskip("torch", reason="the reference rounds to 8 bits and back")
save_torch = pytest.importorskip("safetensors.torch").save_file

STEM = "diffusion_pytorch_model"
KEY = "mid_block.attentions.0.proj_in.weight"
DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@pytest.fixture
def unet(tiny_model, tmp_path):
    """The folder of the tiny model's UNet, and its tensors in torch."""
    folders.save_unet(tiny_model.unet, tmp_path / "unet")
    tensors = load_file(tmp_path / "unet" / f"{STEM}.safetensors")
    return tmp_path / "unet", {key: torch.from_numpy(value) for key, value in tensors.items()}


def written(folder, tensors):
    save_torch(tensors, folder / f"{STEM}.safetensors")
    return folder


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_number_of_8_bits_is_the_one_that_it_is_to_torch(dtype, tmp_path):
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype)
    written(tmp_path, {"a": numbers.reshape(4, 8, 8)})
    ours = read_file(tmp_path / f"{STEM}.safetensors")["a"].read()
    assert ours.dtype == np.float32 and ours.shape == (4, 8, 8)
    ours, theirs = ours.ravel(), numbers.float().numpy()
    is_number = ~np.isnan(theirs)  # of those that are none, the sign and the other bits mean nothing
    np.testing.assert_array_equal(np.isnan(ours), ~is_number)
    np.testing.assert_array_equal(ours[is_number].view("uint32"), theirs[is_number].view("uint32"))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_network_in_8_bits_is_what_torch_makes_of_it(dtype, policy, unet):
    folder, tensors = unet
    eight = {key: value.to(dtype) for key, value in tensors.items()}
    ours = folders.load_unet(written(folder, eight), dtype=policy)
    expected = folders.load_unet(written(folder, {k: v.float() for k, v in eight.items()}), dtype=policy)
    for value, other in zip(ours.variables, expected.variables, strict=True):
        assert value.dtype == other.dtype == "float32"
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), "rows", "rows, 1"], ids=str)
def test_scales_are_multiplied_in(name, shape, unet):
    folder, tensors = unet
    rows = len(tensors[KEY])
    shape = {"rows": (rows,), "rows, 1": (rows, 1)}.get(shape, shape)
    scale = torch.rand(shape) + 0.5
    eight = tensors[KEY].to(torch.float8_e4m3fn)
    stem = KEY.removesuffix(".weight")
    companions = {f"{stem}.{name}": scale, f"{stem}.scale_input": torch.ones(())}
    companions["scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    written(folder, tensors | {KEY: eight} | companions)
    per_row = scale.reshape(-1, *[1] * (eight.ndim - 1))
    np.testing.assert_array_equal(find(folder, STEM)[KEY].read(), (eight.float() * per_row).numpy())
    ours = folders.load_unet(folder)  # without a warning of tensors that are left over
    expected = folders.load_unet(written(folder, tensors | {KEY: eight.float() * per_row}))
    for value, other in zip(ours.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(value, other)


def test_a_scale_in_another_shard_is_found(unet):
    folder, tensors = unet
    eight, scale = tensors[KEY].to(torch.float8_e4m3fn), torch.tensor(0.25)
    scale_key = KEY.replace(".weight", ".scale_weight")
    (folder / f"{STEM}.safetensors").unlink()
    names = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_torch(tensors | {KEY: eight}, folder / names[0])
    save_torch({scale_key: scale}, folder / names[1])
    weight_map = dict.fromkeys(tensors, names[0]) | {scale_key: names[1]}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(find(folder, STEM)[KEY].read(), eight.float().numpy() * 0.25)


def test_a_single_file_in_8_bits_with_scales(tmp_path):
    CHECKPOINTS["file of 2.x"].write(tmp_path)
    file = tmp_path / SINGLE
    tensors = {key: torch.from_numpy(value) for key, value in load_file(file).items()}
    keys = [key for key in tensors if key.endswith(".weight") and tensors[key].ndim > 1]
    eight = {key: tensors[key].to(torch.float8_e4m3fn) for key in keys}
    scales = {key.replace(".weight", ".scale_weight"): torch.tensor(0.5) for key in keys}
    save_torch(tensors | {key: value.float() * 0.5 for key, value in eight.items()}, file)
    expected = CHECKPOINTS["file of 2.x"].load(tmp_path)
    mark = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    save_torch(tensors | eight | scales | mark, file)
    ours = CHECKPOINTS["file of 2.x"].load(tmp_path)
    for part in ("unet", "autoencoder", "text_encoder"):
        pairs = zip(getattr(ours, part).get_weights(), getattr(expected, part).get_weights(), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs), part


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_weight": torch.ones(3)}, "is F32 [3], expected a float for all of"),
        ({"scale_weight": torch.ones(1, dtype=torch.int32)}, "is I32 [1], expected a float for all of"),
        ({"scale_weight": torch.ones(()), "weight_scale": torch.ones(())}, "both scale"),
        ({"scale_weight": torch.ones(()), "weight": None}, "which is F32: only 8-bit floats are scaled"),
    ],
    ids=["shape", "dtype", "two", "of 32 bits"],
)
def test_a_scale_that_does_not_fit_is_refused_in_one_line(changes, message, unet):
    folder, tensors = unet
    stem = KEY.removesuffix("weight")
    found = tensors | {KEY: tensors[KEY].to(torch.float8_e4m3fn)}
    found |= {f"{stem}{name}": value for name, value in changes.items() if value is not None}
    if "weight" in changes:
        found[KEY] = tensors[KEY]
    with pytest.raises(InputError) as refused:
        folders.load_unet(written(folder, found))
    text = str(refused.value)
    assert message in text and f"{STEM}.safetensors: {stem}" in text and "\n" not in text


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.float8_e8m0fnu], ids=str)
def test_quantised_weights_are_refused_by_name_with_the_way_out(dtype, unet):
    folder, tensors = unet
    quantised = {KEY: torch.zeros(8, 1, dtype=torch.uint8).view(torch.uint8).to(dtype)}
    quantised |= {f"{KEY}.absmax": torch.ones(2), f"{KEY}.quant_map": torch.ones(16)}  # of bitsandbytes
    with pytest.raises(InputError) as refused:
        folders.load_unet(written(folder, tensors | quantised))
    text = str(refused.value)
    assert f"{STEM}.safetensors: {KEY} is " in text and "take the model's float16 or bfloat16 files" in text


def test_a_quantised_tensor_that_is_not_read_is_no_error(unet):
    folder, tensors = unet
    written(folder, tensors | {"optimizer.step": torch.tensor(3)})
    with pytest.warns(UserWarning, match="not read, .*: 1 tensor: optimizer.step"):
        folders.load_unet(folder)


def test_a_gguf_file_is_refused_by_name(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InputError, match="model.gguf is quantised by GGUF, which is not supported: take the"):
        sd_tf.load(tmp_path / "model.gguf")

"""Weights in files: shards, variants, half precisions, and files that strangers damaged on purpose."""

import json
import os
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sd_tf
from sd_tf.checkpoints.tensors import find, read_file
from sd_tf.errors import InputError
from sd_tf.latent import folder as folders

STEM = "diffusion_pytorch_model"


@pytest.fixture
def unet(tiny_model, tmp_path):
    """The folder of the tiny model's UNet."""
    folders.save_unet(tiny_model.unet, tmp_path / "unet")
    return tmp_path / "unet"


def assert_same_weights(model, reference):
    for value, expected in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("size", [40_000, "40KB", "0.1MB", "64 KiB"])
def test_shards_are_those_of_diffusers_and_open_in_both(size, tiny_model, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    if size == "0.1MB":
        with pytest.raises(InputError, match="max_shard_size is '0.1MB': give bytes"):
            folders.save_unet(tiny_model.unet, tmp_path, max_shard_size=size)
        return
    folders.save_unet(tiny_model.unet, tmp_path / "ours", max_shard_size=size)
    shards = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"{STEM}-00001-of-{len(shards):05d}.safetensors"
    limit = 65536 if size == "64 KiB" else 40_000
    assert all(
        sum(tensor.nbytes for tensor in tensors.values()) <= limit or len(tensors) == 1
        for tensors in map(load_file, shards)
    )
    assert_same_weights(folders.load_unet(tmp_path / "ours"), tiny_model.unet)

    theirs, report = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert_same_weights(folders.load_unet(tmp_path / "theirs"), tiny_model.unet)


def test_a_variant_is_read_where_it_is_and_plain_files_elsewhere(tiny_model, tmp_path):
    tiny_model.save(tmp_path)
    vae = tmp_path / "vae" / f"{STEM}.safetensors"
    halves = {key: value.astype("float16") for key, value in load_file(vae).items()}
    save_file(halves, vae.with_name(f"{STEM}.fp16.safetensors"))
    loaded = sd_tf.load(tmp_path, variant="fp16")
    assert_same_weights(loaded.unet, tiny_model.unet)
    for value, exact in zip(
        loaded.autoencoder.get_weights(), tiny_model.autoencoder.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, exact.astype("float16"))
    with pytest.raises(InputError, match="no part has files of the variant 'ema'"):
        sd_tf.load(tmp_path, variant="ema")
    vae.unlink()
    with pytest.raises(InputError, match=f"{STEM}.safetensors is missing: there is .*variant='fp16' reads"):
        sd_tf.load(tmp_path)


def test_a_sharded_variant_opens_as_diffusers_writes_it(tiny_model, unet, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(unet).half()
    theirs.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="40KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 2
    loaded = folders.load_unet(tmp_path / "half", variant="fp16")
    for value, exact in zip(loaded.get_weights(), tiny_model.unet.get_weights(), strict=True):
        np.testing.assert_array_equal(value, exact.astype("float16"))


def test_files_may_be_read_by_those_who_may_read_any_new_file(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    (tmp_path / "new").touch()
    modes = {file.stat().st_mode for file in (tmp_path / "model").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_brain_floats_are_written_and_read(tiny_model, tmp_path):
    folders.save_unet(tiny_model.unet, tmp_path, dtype="bfloat16")
    loaded = folders.load_unet(tmp_path)
    for value, exact in zip(loaded.get_weights(), tiny_model.unet.get_weights(), strict=True):
        np.testing.assert_array_equal(value, exact.astype(ml_dtypes.bfloat16).astype("float32"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16", "float32"])
def test_variables_follow_the_policy_not_the_file(dtype, unet):
    loaded = folders.load_unet(unet, dtype=dtype)
    expected = "float32" if dtype.startswith("mixed") else dtype
    assert {variable.dtype for variable in loaded.variables} == {expected}


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", f"{STEM}.safetensors"])
def test_a_pickle_is_refused_and_never_opened(name, unet, tmp_path):
    (unet / f"{STEM}.safetensors").unlink()
    (unet / name).write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(InputError) as error:
        folders.load_unet(unet)
    assert name in str(error.value)
    assert ("convert it to safetensors" in str(error.value)) == (not name.endswith(".safetensors"))
    assert not (tmp_path / "executed").exists()


def test_a_single_file_that_is_a_pickle_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(InputError, match="model.ckpt is a pickle, which can execute code"):
        sd_tf.load(tmp_path / "model.ckpt")
    assert not (tmp_path / "executed").exists()


def raw(header: bytes, data=b"", length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(name="a", dtype="F32", shape=(1,), offsets=(0, 4)):
    return f'"{name}":{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":{list(offsets)}}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw(b"{}", length=2**62), "its header claims 4611686018427387904 bytes, the file has 10"),
        (raw(b"{}", length=99_000_000), "its header claims 99000000 bytes"),
        (raw(f"{{{entry()},{entry()}}}".encode(), b"\0" * 4), "a stands in it twice"),
        (raw(f"{{{entry()},{entry('b')}}}".encode(), b"\0" * 4), "no readable safetensors"),
        (raw(f"{{{entry(shape=(10**18,), offsets=(0, 4))}}}".encode(), b"\0" * 4), "no readable safetensors"),
        (raw(f"{{{entry(offsets=(0, 10**15))}}}".encode(), b"\0" * 4), "no readable safetensors"),
        (raw(b"[" * 100_000), "no readable safetensors"),
        (raw(b'{"a":' * 50_000), "no readable safetensors"),
        (b"", "no readable safetensors"),
    ],
    ids=[
        "length",
        "long",
        "twice",
        "overlap",
        "huge",
        "beyond",
        "deep list",
        "deep dict",
        "empty",
    ],
)
def test_a_header_that_lies_is_refused_in_one_line(content, message, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_file(file)
    assert message in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def sharded(tiny_model, tmp_path):
    folders.save_unet(tiny_model.unet, tmp_path / "unet", max_shard_size="100KB")
    return tmp_path / "unet"


def change_index(folder, change):
    file = folder / f"{STEM}.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update({"conv_in.bias": "../outside.safetensors"}),
            "names '../outside.safetensors', which is no",
        ),
        (lambda m: m.update({"conv_in.bias": "/etc/passwd"}), "names '/etc/passwd', which is no"),
        (lambda m: m.update({"conv_in.bias": 7}), "has no weight_map from keys to file names"),
        (lambda m: m.update({"conv_in.bias": "none.safetensors"}), "says is in none.safetensors"),
        (lambda m: m.update({"nothing": m["conv_in.bias"]}), "nothing is not in"),
        (
            lambda m: m.pop("conv_in.bias"),
            "holds conv_in.bias, which diffusion_pytorch_model.safetensors.index.json",
        ),
    ],
    ids=["outside", "absolute", "number", "no shard", "no tensor", "not named"],
)
def test_an_index_that_lies_is_refused_in_one_line(change, message, sharded):
    change_index(sharded, change)
    with pytest.raises(InputError) as error:
        find(sharded, STEM)
    assert message in str(error.value) and str(sharded) in str(error.value) and "\n" not in str(error.value)


def test_a_tensor_in_two_shards_is_refused(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    key = next(iter(load_file(first)))
    save_file(load_file(second) | {key: load_file(first)[key]}, second)
    with pytest.raises(InputError, match=f"{second.name} holds {key}, which .* says is in {first.name}"):
        find(sharded, STEM)


def test_links_out_of_the_folder_are_not_followed(tiny_model, unet, tmp_path):
    weights = unet / f"{STEM}.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match=f"{STEM}.safetensors is a link out of its folder"):
        folders.load_unet(unet)
    tiny_model.save(tmp_path / "model")
    (tmp_path / "model" / "tokenizer").rename(tmp_path / "tokenizer")
    (tmp_path / "model" / "tokenizer").symlink_to(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="tokenizer is a link out of its folder"):
        sd_tf.load(tmp_path / "model")


def test_a_link_within_the_folder_is_followed(tiny_model, unet):
    weights = unet / f"{STEM}.safetensors"
    weights.rename(unet / "weights.safetensors")
    weights.symlink_to("weights.safetensors")
    assert_same_weights(folders.load_unet(unet), tiny_model.unet)


def test_values_that_are_no_numbers_are_warned_of_with_file_and_key(unet):
    file = unet / f"{STEM}.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = np.inf
    save_file(tensors, file)
    with pytest.warns(
        UserWarning, match=f"{STEM}.safetensors: NaN or infinite values in 1 tensor: conv_in.bias"
    ):
        folders.load_unet(unet)


def test_a_configuration_of_absurd_sizes_takes_no_memory(unet):
    import resource

    file = unet / "config.json"
    config = json.loads(file.read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for changes in (
        {"block_out_channels": [80_000, 160_000]},
        {"block_out_channels": [3_200_000_000] * 2},
        {"layers_per_block": 10**9},
        {"cross_attention_dim": 10**10},
    ):
        file.write_text(json.dumps(config | changes))
        with pytest.raises(InputError):
            folders.load_unet(unet)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-100])


def rewritten(file):
    content = bytearray(file.read_bytes())
    content[-4:] = b"\0\0\x80\x3f"
    file.write_bytes(bytes(content))


def replaced_by(kind):
    def change(file):
        content = file.read_bytes()
        file.unlink()
        if kind == "a pipe":
            os.mkfifo(file)
        elif kind == "a link":
            file.with_name("private").write_bytes(content)
            file.symlink_to("private")
        elif kind == "another":
            file.write_bytes(content)

    return change


@pytest.mark.parametrize(
    "change",
    [cut_short, rewritten, *map(replaced_by, ["nothing", "a pipe", "a link", "another"])],
    ids=["cut short", "rewritten", "lost", "a pipe", "a link", "another"],
)
def test_a_file_that_changes_after_its_header_was_read_is_refused(change, unet):
    file = unet / f"{STEM}.safetensors"
    tensors = find(unet, STEM)
    assert tensors["conv_in.bias"].read().size
    os.utime(file, ns=(0, 0))
    tensors = find(unet, STEM)
    change(file)
    with pytest.raises(
        InputError, match=f"{STEM}.safetensors (was changed while it was read|is missing|is a)"
    ):
        for tensor in tensors.values():
            tensor.read()


def test_headers_are_refused_as_the_library_refuses_them(tmp_path):
    """Every header that one of the two reads and the other does not, but for keys that stand twice."""
    from safetensors import safe_open

    from sd_tf.checkpoints.header import read_header

    rng, file = np.random.default_rng(0), tmp_path / "x.safetensors"
    save_file({"a": np.ones((2, 3), "f4"), "b.c": np.ones(5, "f2"), "d": np.zeros((0, 4), "f8")}, file)
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    read, bytes_of_json = 0, b'0123456789[]{}",:- .eEtrufalsn\\\xff\x00FIBU'
    for _ in range(4000):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 3)):
            place = rng.integers(0, length)
            damaged[place] = bytes_of_json[rng.integers(len(bytes_of_json))]
        file.write_bytes(damaged)
        outcomes = []
        for reader in (read_header, lambda file: safe_open(file, framework="numpy").__enter__()):
            try:
                reader(file)
                outcomes.append(True)
            except Exception as error:
                outcomes.append(isinstance(error, InputError) and "stands in it twice" in str(error))
        read += all(outcomes)
        assert outcomes[0] == outcomes[1] or outcomes == [True, False], bytes(damaged)
        if outcomes[0] and not outcomes[1]:
            with pytest.raises(InputError, match="stands in it twice"):
                read_header(file)
    assert read > 50

"""Model folders: opened by diffusers and transformers, written by them and opened here, and damaged."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sd_tf
from sd_tf.checkpoints import clip as clip_folders
from sd_tf.checkpoints import config_files, sources, tensors
from sd_tf.checkpoints.replacing import MARKER
from sd_tf.errors import InputError
from sd_tf.latent import folder as folders
from sd_tf.text.clip import CLIPModel
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

PARTS = ("autoencoder", "unet", "text_encoder")
FOLDERS = {"autoencoder": "vae", "unet": "unet", "text_encoder": "text_encoder"}
FILES = {
    "autoencoder": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
LOAD = {
    "autoencoder": folders.load_autoencoder,
    "unet": folders.load_unet,
    "text_encoder": clip_folders.load_text_encoder,
}
REFERENCES = {
    "autoencoder": diffusers.AutoencoderKL,
    "unet": diffusers.UNet2DConditionModel,
    "text_encoder": transformers.CLIPTextModel,
}
RNG = np.random.default_rng(0)
WORD_IDS = np.array([[0, 7, 300, 512, 4, 513, 513, 513, 513, 513]], "int32")


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """The folder of the tiny model; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model.save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def opened(part, folder):
    """The part as its reference library opens it, which must neither miss a key nor have one left."""
    model, report = REFERENCES[part].from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], (kind, report[kind])
    return model.eval()


def channels_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def outputs(part, ours, theirs, size=8):
    """What both say to the same random input."""
    channels = ours.config.in_channels if part != "text_encoder" else None
    with torch.no_grad():
        if part == "autoencoder":
            images = RNG.uniform(-1, 1, (2, 2 * size, 2 * size, channels)).astype("float32")
            expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).sample
            return ours(images), channels_last(expected)
        if part == "unet":
            latents = RNG.standard_normal((2, size, size, channels)).astype("float32")
            context = RNG.standard_normal((2, 5, ours.config.cross_attention_dim)).astype("float32")
            timesteps = np.array([20, 900])
            expected = theirs(
                torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()),
                torch.from_numpy(timesteps),
                torch.from_numpy(context),
            ).sample
            return ours(latents, timesteps, context), channels_last(expected)
        ids = np.minimum(WORD_IDS, ours.config.vocab_size - 1)
        expected = theirs(torch.from_numpy(ids).long()).last_hidden_state
        return ours(ids).last_hidden_state, expected.numpy()


@pytest.mark.parametrize("part", PARTS)
def test_diffusers_and_transformers_open_what_we_write(part, tiny_model, saved, distance):
    theirs = opened(part, saved / FOLDERS[part])
    assert distance(*outputs(part, getattr(tiny_model, part), theirs)) < 2e-5


@pytest.mark.parametrize("part", PARTS)
def test_we_open_what_diffusers_and_transformers_write(part, saved, tmp_path, distance):
    theirs = opened(part, saved / FOLDERS[part])
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1)
    theirs.save_pretrained(tmp_path)
    assert distance(*outputs(part, LOAD[part](tmp_path), theirs)) < 2e-5


@pytest.mark.parametrize("prefix", ["", "text_model."], ids=["as transformers 5", "as transformers 4"])
def test_a_text_tower_opens_with_and_without_its_name_before_the_keys(prefix, tiny_model, copy):
    file = copy / "text_encoder" / "model.safetensors"
    tensors = {prefix + key.removeprefix("text_model."): value for key, value in load_file(file).items()}
    tensors[prefix + "embeddings.position_ids"] = np.arange(10)[None]  # in files older than transformers 4.31
    save_file(tensors, file)
    text_encoder = clip_folders.load_text_encoder(copy / "text_encoder")
    for ours, expected in zip(text_encoder.get_weights(), tiny_model.text_encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    tensors.pop(prefix + "final_layer_norm.bias")
    save_file(tensors, file)
    with pytest.raises(InputError, match="missing 1 tensor: text_model.final_layer_norm.bias"):
        clip_folders.load_text_encoder(copy / "text_encoder")


def test_transformers_reads_the_tokenizer(tiny_model, saved):
    reference = transformers.CLIPTokenizer.from_pretrained(saved / "tokenizer")
    prompts = ["a red dress", "", "A blue-ish BAG, 42!"]
    expected = reference(prompts, padding="max_length", truncation=True)["input_ids"]
    assert reference.model_max_length == 10
    np.testing.assert_array_equal(tiny_model.tokenizer(["a red dress", ""]), expected[:2])
    with pytest.warns(UserWarning, match="cut off"):
        np.testing.assert_array_equal(tiny_model.tokenizer(prompts), expected)


def test_a_round_trip_keeps_every_bit_and_the_configurations(tiny_model, saved):
    loaded = sd_tf.load(saved)
    for part in PARTS:
        ours, expected = getattr(loaded, part), getattr(tiny_model, part)
        assert ours.config == expected.config
        for value, old in zip(ours.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(value, old)
    assert loaded.schedule.config == tiny_model.schedule.config
    np.testing.assert_array_equal(loaded.tokenizer(["a red bag"]), tiny_model.tokenizer(["a red bag"]))


@pytest.mark.parametrize("release", ["1.x", "2.x"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_of_diffusers_goes_through_without_a_bit_or_a_word_changed(release, dtype, tmp_path):
    second = release == "2.x"
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=1024,
            hidden_size=24,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            hidden_act="gelu" if second else "quick_gelu",
            attention_dropout=0.1,
            projection_dim=10,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(12, 24),
        layers_per_block=1,
        norm_num_groups=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4) if second else 2,
        cross_attention_dim=24,
        use_linear_projection=second,
        upcast_attention=second,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        force_upcast=False,
    )
    scheduler = (diffusers.PNDMScheduler if not second else diffusers.EulerDiscreteScheduler)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if second else "epsilon",
        steps_offset=1,
        **({} if second else {"skip_prk_steps": True}),
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(sources.resolve("clip-mini"))
    pipeline = diffusers.StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).to(getattr(torch, dtype))
    pipeline.save_pretrained(tmp_path / "theirs")
    sd_tf.load(tmp_path / "theirs").save(tmp_path / "ours", dtype=dtype)

    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "ours", torch_dtype=getattr(torch, dtype)
    )
    for part in ("vae", "unet", "text_encoder"):
        expected, state = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert value.dtype == state[key].dtype and torch.equal(value, state[key]), key
    for part in ("vae", "unet", "scheduler"):
        assert type(getattr(again, part)) is type(getattr(pipeline, part))
        theirs, ours = (json.loads(getattr(each, part).to_json_string()) for each in (pipeline, again))
        assert {k: v for k, v in ours.items() if k[0] != "_"} == {
            k: v for k, v in theirs.items() if k[0] != "_"
        }
    theirs, ours = pipeline.text_encoder.config.to_dict(), again.text_encoder.config.to_dict()
    said_of_the_file = {"_name_or_path", "dtype", "transformers_version"}
    assert {k: v for k, v in ours.items() if k not in said_of_the_file} == {
        k: v for k, v in theirs.items() if k not in said_of_the_file
    }
    assert again.tokenizer("a red dress").input_ids == tokenizer("a red dress").input_ids


def test_half_precision_files_hold_the_nearest_halves_and_are_half_the_size(tiny_model, saved, tmp_path):
    tiny_model.save(tmp_path / "half", dtype="float16")
    loaded = sd_tf.load(tmp_path / "half")
    for part in PARTS:
        file = f"{FOLDERS[part]}/{FILES[part]}"
        assert {str(value.dtype) for value in load_file(tmp_path / "half" / file).values()} == {"float16"}
        for value, old in zip(
            getattr(loaded, part).get_weights(), getattr(tiny_model, part).get_weights(), strict=True
        ):
            assert value.dtype == "float32"
            np.testing.assert_array_equal(value, old.astype("float16"))
    opened("unet", tmp_path / "half" / "unet")


def test_a_precision_policy_reaches_every_network(saved):
    loaded = sd_tf.load(saved, dtype="mixed_bfloat16")
    assert {getattr(loaded, part).dtype_policy.name for part in PARTS} == {"mixed_bfloat16"}


def test_an_unknown_dtype_is_refused(tiny_model, tmp_path):
    with pytest.raises(InputError, match="unknown dtype 'float61': did you mean 'float16'"):
        tiny_model.save(tmp_path / "model", dtype="float61")
    assert not list(tmp_path.glob("**/*.safetensors"))


def change_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-100])


KEYS = {
    "autoencoder": "decoder.conv_in.weight",
    "unet": "mid_block.attentions.0.proj_in.weight",
    "text_encoder": "text_model.encoder.layers.1.mlp.fc1.weight",
}
DAMAGES = {
    "missing tensor": (lambda file, key: change_tensors(file, lambda t: t.pop(key)), True),
    "wrong shape": (lambda file, key: change_tensors(file, lambda t: t.update({key: t[key][:-1]})), True),
    "truncated": (lambda file, key: cut_short(file), False),
    "empty": (lambda file, key: file.write_bytes(b""), False),
    "no safetensors": (lambda file, key: file.write_text("hello, this is text"), False),
    "absent": (lambda file, key: file.unlink(), False),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(part, damage, copy):
    file = copy / FOLDERS[part] / FILES[part]
    change, names_the_key = DAMAGES[damage]
    change(file, KEYS[part])
    with pytest.raises(InputError) as error:
        LOAD[part](file.parent)
    message = str(error.value)
    assert str(file) in message and "\n" not in message
    assert (KEYS[part] in message) == names_the_key


@pytest.mark.parametrize("part", PARTS)
def test_tensors_that_a_network_has_not_are_warned_of_as_in_diffusers(part, tiny_model, copy):
    file = copy / FOLDERS[part] / FILES[part]
    more = {f"{KEYS[part]}{i}": np.arange(i) for i in range(1, 6)}  # integers, too
    change_tensors(file, lambda tensors: tensors.update(more))
    _, report = REFERENCES[part].from_pretrained(file.parent, output_loading_info=True)
    names = {key.removeprefix("text_model.") for key in report["unexpected_keys"]}
    assert names == {key.removeprefix("text_model.") for key in more}
    with pytest.warns(
        UserWarning, match="not read, as the network has no such weights: 5 tensors: "
    ) as found:
        network = LOAD[part](file.parent)
    assert len(found) == 1 and str(file) in str(found[0].message) and "and 2 more" in str(found[0].message)
    for ours, expected in zip(network.get_weights(), getattr(tiny_model, part).get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vae/config.json", lambda f: f.write_text("{"), "cannot be read as JSON"),
        ("vae/config.json", lambda f: f.write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        ("vae/config.json", lambda f: f.write_text("[]"), "holds a list, expected a JSON object"),
        ("vae/config.json", lambda f: f.unlink(), "is missing"),
        ("vae/config.json", lambda f: change_json(f, _class_name="VQModel"), "_class_name is 'VQModel'"),
        ("vae/config.json", lambda f: change_json(f, block_out_channels=8), "block_out_channels is 8"),
        ("vae/config.json", lambda f: change_json(f, block_out_channels=[8, "16"]), "block_out_channels is"),
        ("vae/config.json", lambda f: change_json(f, layers_per_block=1.5), "layers_per_block is 1.5"),
        ("vae/config.json", lambda f: change_json(f, shift_factor="x"), "shift_factor is 'x', expected"),
        ("vae/config.json", lambda f: change_json(f, shift_factor=1e9), "shift_factor is 1000000000.0, exp"),
        ("unet/config.json", lambda f: change_json(f, _class_name="UNet1DModel"), "is 'UNet1DModel', only"),
        ("unet/config.json", lambda f: change_json(f, attention_head_dim=None), "attention_head_dim is None"),
        ("unet/config.json", lambda f: change_json(f, use_linear_projection=1), "use_linear_projection is 1"),
        ("unet/config.json", lambda f: change_json(f, class_embed_type="timestep"), "class_embed_type is"),
        ("text_encoder/config.json", lambda f: change_json(f, model_type="t5"), "model_type is 't5', only"),
        ("text_encoder/config.json", lambda f: change_json(f, hidden_size="16"), "hidden_size is '16'"),
        ("scheduler/scheduler_config.json", lambda f: change_json(f, beta_end="x"), "beta_end is 'x'"),
        (
            "scheduler/scheduler_config.json",
            lambda f: change_json(f, rescale_betas_zero_snr=True, prediction_type="epsilon"),
            "scheduler_config.json: prediction_type is 'epsilon', but rescale_betas_zero_snr leaves",
        ),
        (
            "scheduler/scheduler_config.json",
            lambda f: change_json(f, rescale_betas_zero_snr=1),
            "rescale_betas_zero_snr is 1, expected something like False",
        ),
        (
            "scheduler/scheduler_config.json",
            lambda f: change_json(f, _class_name="FlowMatchEulerDiscreteScheduler"),
            "_class_name is 'FlowMatchEulerDiscreteScheduler'",
        ),
        ("model_index.json", lambda f: f.write_text("nonsense"), "cannot be read as JSON"),
        (
            "model_index.json",
            lambda f: change_json(f, _class_name="FluxPipeline"),
            "a FluxPipeline is not supported",
        ),
        ("model_index.json", lambda f: f.unlink(), "has no model_index.json"),
        ("tokenizer/vocab.json", lambda f: f.unlink(), "vocab.json is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_configuration_is_refused_in_one_line_that_names_it(file, change, message, copy):
    change(copy / file)
    with pytest.raises(InputError) as error:
        sd_tf.load(copy)
    text = str(error.value)
    assert message in text and "\n" not in text
    assert str(copy / file) in text or file == "model_index.json"


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_schedulers_of_the_same_noise_schedule_open(name, tiny_model, copy):
    file = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["_class_name"]
    file.unlink()
    getattr(diffusers, name).from_config(config).save_pretrained(file.parent)
    loaded = sd_tf.load(copy)
    np.testing.assert_array_equal(loaded.schedule.alphas_cumprod, tiny_model.schedule.alphas_cumprod)
    assert loaded.schedule.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_zero_terminal_snr_is_read_and_written_as_diffusers_does(name, tiny_model, copy):
    file = copy / "scheduler" / "scheduler_config.json"
    change_json(file, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    ours = sd_tf.load(copy)
    reference = getattr(diffusers, name).from_pretrained(copy, subfolder="scheduler")
    # Its Euler keeps 2^-24 of the signal, for sigmas that are finite.
    np.testing.assert_allclose(ours.schedule.alphas_cumprod, reference.alphas_cumprod.numpy(), atol=1e-6)
    file.unlink()
    reference.save_pretrained(file.parent)
    theirs = sd_tf.load(copy)
    np.testing.assert_array_equal(theirs.schedule.alphas_cumprod, ours.schedule.alphas_cumprod)
    theirs.save(copy)
    assert json.loads(file.read_text())["rescale_betas_zero_snr"] is True
    assert sd_tf.load(copy).schedule.config == theirs.schedule.config


def test_a_prediction_type_that_is_given_mends_a_schedule_that_cannot_be(copy):
    change_json(
        copy / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="epsilon"
    )
    model = sd_tf.load(copy, prediction_type="v_prediction")
    assert model.schedule.config.prediction_type == "v_prediction"


def test_a_name_that_is_no_model_gets_the_names_that_are(tmp_path):
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'") as error:
        sd_tf.load("fashion-mnst")
    assert "Valid: emoji, fashion-mnist, fashion-mnist-small, a folder that holds one" in str(error.value)
    with pytest.raises(InputError, match="no file or folder '.*nowhere'"):
        sd_tf.load(tmp_path / "nowhere")


def fail_to_write(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("moment", ["tensors", "rename"])
def test_a_save_that_fails_half_way_leaves_the_old_part_whole(moment, tiny_model, copy, monkeypatch):
    before = {file: file.read_bytes() for file in copy.glob("**/*") if file.is_file()}
    if moment == "tensors":
        monkeypatch.setattr(tensors, "save_file", fail_to_write)
    else:
        rename = type(copy).rename

        def fail_for_the_new(path, target):
            return fail_to_write() if path.name.endswith(".new") else rename(path, target)

        monkeypatch.setattr(type(copy), "rename", fail_for_the_new)
    with pytest.raises(InputError, match="cannot write .*vae: No space left on device"):
        tiny_model.save(copy)
    assert {file: file.read_bytes() for file in copy.glob("**/*") if file.is_file()} == before
    assert not [path for path in copy.iterdir() if path.name.startswith(".")]


def test_a_save_that_is_killed_leaves_a_whole_model_old_or_new(tiny_model, tmp_path):
    """Processes that save over and over, killed at moments spread over a save."""
    tiny_model.save(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    program = (
        "import sys, time, sd_tf\n"
        "model = sd_tf.load(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for part in (model.unet, model.autoencoder):\n"
        "        for variable in part.variables: variable.assign(variable + 1)\n"
        "    model.save(sys.argv[1])\n"
    )
    first = [float(part.get_weights()[0].flat[0]) for part in (tiny_model.unet, tiny_model.autoencoder)]
    for delay in (0.05, 0.21, 0.37):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        loaded = sd_tf.load(tmp_path / "model")
        saves = [
            float(part.get_weights()[0].flat[0]) - value
            for part, value in zip((loaded.unet, loaded.autoencoder), first, strict=True)
        ]
        assert saves[0] == pytest.approx(saves[1], abs=1e-3)  # both parts of one save
        loaded.save(tmp_path / "model")
        assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing is left of the killed one


@pytest.mark.parametrize("state", ["between the renames", "before the others moved over"])
def test_a_save_killed_between_two_steps_is_finished_or_undone(state, tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    if state == "between the renames":
        (tmp_path / "model").rename(tmp_path / ".model.old")
    else:
        (tmp_path / ".model.old").mkdir()
        (tmp_path / "model" / MARKER).touch()
    (tmp_path / ".model.old" / MARKER).touch()
    if state != "between the renames":
        (tmp_path / ".model.old" / "notes.txt").write_text("mine")
    sd_tf.load(tmp_path / "model").save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / MARKER).exists()
    assert (tmp_path / "model" / "notes.txt").exists() == (state != "between the renames")


def test_a_save_replaces_a_part_and_leaves_other_things_alone(tiny_model, copy):
    (copy / "vae" / "stale.safetensors").write_text("of an older layout")
    (copy / "notes.txt").write_text("mine")
    tiny_model.save(copy)
    assert not (copy / "vae" / "stale.safetensors").exists()
    assert (copy / "notes.txt").read_text() == "mine"
    assert sd_tf.load(copy).unet.config == tiny_model.unet.config


def test_a_folder_that_cannot_be_made_is_refused(tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write .*file/model/vae"):
        tiny_model.save(tmp_path / "file" / "model")


TEXT = CLIPTextConfig(
    vocab_size=530,
    hidden_size=16,
    intermediate_size=24,
    projection_dim=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=10,
    bos_token_id=528,
    eos_token_id=529,
    pad_token_id=529,
)
VISION = CLIPVisionConfig(
    hidden_size=12,
    intermediate_size=20,
    projection_dim=6,
    num_hidden_layers=1,
    num_attention_heads=3,
    image_size=16,
    patch_size=8,
)


def assert_same_features(ours, theirs, distance, tolerance):
    ids = np.full((2, ours.text_config.max_position_embeddings), ours.text_config.eos_token_id, "int32")
    ids[:, :4] = [[ours.text_config.bos_token_id, 5, 6, 7], [ours.text_config.bos_token_id, 9, 300, 1]]
    size = ours.vision_config.image_size
    images = np.random.default_rng(2).standard_normal((2, size, size, 3)).astype("float32")
    with torch.no_grad():
        theirs = theirs(
            input_ids=torch.from_numpy(ids).long(),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        )
    assert distance(ours.text_features(ids), theirs.text_embeds.numpy()) < tolerance
    assert distance(ours.image_features(images), theirs.image_embeds.numpy()) < tolerance
    assert distance(ours(ids, images), theirs.logits_per_text.numpy()) < tolerance


def test_transformers_opens_the_clip_we_write_and_we_the_one_it_writes(tiny_model, tmp_path, distance):
    clip = CLIPModel(TEXT, VISION)
    clip.build()
    clip_folders.save_clip(clip, tiny_model.tokenizer, tmp_path / "ours")
    reference, report = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_features(clip, reference.eval(), distance, 1e-4)

    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05)
    reference.save_pretrained(tmp_path / "theirs")
    loaded = clip_folders.load_clip(tmp_path / "theirs")
    assert (loaded.text_config, loaded.vision_config) == (TEXT, VISION)
    assert_same_features(loaded, reference, distance, 1e-4)

    text_encoder = clip_folders.load_text_encoder(tmp_path / "theirs")
    for ours, expected in zip(text_encoder.variables, loaded.text_model.variables, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_fields_that_a_clip_file_leaves_out_mean_what_they_mean_to_transformers(tiny_model, tmp_path):
    clip = CLIPModel(
        dataclasses.replace(TEXT, hidden_size=512, num_attention_heads=8, num_hidden_layers=1),
        dataclasses.replace(VISION, hidden_size=768, num_attention_heads=12, patch_size=8),
    )
    clip.build()
    clip_folders.save_clip(clip, tiny_model.tokenizer, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("hidden_size", "num_attention_heads"):
        del values["text_config"][name], values["vision_config"][name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    loaded, reference = clip_folders.load_clip(tmp_path), transformers.CLIPConfig.from_pretrained(tmp_path)
    for ours, theirs in (
        (loaded.text_config, reference.text_config),
        (loaded.vision_config, reference.vision_config),
    ):
        fields = {field.name for field in dataclasses.fields(ours)} - {"projection_dim", "kept"}
        assert {name: getattr(ours, name) for name in fields} == {
            name: getattr(theirs, name) for name in fields
        }


@pytest.mark.parametrize("config", [CLIPTextConfig, CLIPVisionConfig])
def test_an_empty_configuration_means_the_defaults_of_transformers(config):
    kind = {CLIPTextConfig: config_files.CLIP_TEXT, CLIPVisionConfig: config_files.CLIP_VISION}[config]
    reference = getattr(transformers, config.__name__)()
    ours = dataclasses.asdict(kind.from_json({}, "config.json"))
    assert not ours.pop("kept")
    assert ours == {name: getattr(reference, name) for name in ours}


def test_the_bundled_clip_opens_in_transformers_with_the_same_features(distance):
    folder = sources.resolve("clip-mini")
    reference, report = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_features(clip_folders.load_clip(folder), reference.float().eval(), distance, 1e-3)


@pytest.mark.skipif(
    "fashion-mnist" not in sources.bundled_names(), reason="weights/fashion-mnist is not there"
)
@pytest.mark.parametrize("part", PARTS)
def test_the_bundled_model_agrees_with_diffusers_and_transformers(part, distance):
    folder = sources.resolve("fashion-mnist") / FOLDERS[part]
    theirs = opened(part, folder).float()
    assert distance(*outputs(part, LOAD[part](folder), theirs)) < 1e-3

"""Single files in CompVis' layout: as diffusers' `from_single_file` reads them, and damaged."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sd_tf
from sd_tf.checkpoints.sources import resolve
from sd_tf.errors import InputError
from sd_tf.latent import original
from sd_tf.text.tokenizer import Tokenizer
from tests.checkpoints.undamaged import RESNET, open_clip

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LAYERS = 2
WIDTHS = {"1.x": (32, 64), "2.x": (64, 128)}


def unet_key(key):
    """A key of diffusers' UNet as CompVis' code has it: its blocks stand in one list."""
    for ours, theirs in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ):
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    if found:
        way, level, kind, i, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        per_level = LAYERS + 1
        at = 1 + level * per_level + i if way == "down" else level * per_level + i
        if kind == "downsamplers":
            key = f"input_blocks.{(level + 1) * per_level}.0.{rest.replace('conv', 'op')}"
        elif kind == "upsamplers":  # behind residual block and transformer, where there is one
            key = f"output_blocks.{level * per_level + LAYERS}.{1 if level == 0 else 2}.{rest}"
        else:
            blocks = "input_blocks" if way == "down" else "output_blocks"
            key = f"{blocks}.{at}.{0 if kind == 'resnets' else 1}.{rest}"
    if re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", key):
        for ours, theirs in RESNET.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return "model.diffusion_model." + key


def vae_key(key):
    found = re.match(r"(\w+)\.(down|up)_blocks\.(\d)\.(resnets|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    if found:
        half, way, level, kind, i, rest = *found.groups()[:2], int(found[3]), *found.groups()[3:]
        level = level if way == "down" else 1 - level
        middle = {"resnets": f"block.{i}", "downsamplers": "downsample", "upsamplers": "upsample"}[kind]
        key = f"{half}.{way}.{level}.{middle}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
        ("conv_norm_out", "norm_out"),
    ):
        key = key.replace(ours, theirs)
    return "first_stage_model." + key


def open_clip_tower(state, layers):
    """transformers' text tower in a single file of 2.x, with what else OpenCLIP writes."""
    unread = {"text_projection": np.zeros((1024, 1024), "float32"), "logit_scale": np.float32(1).reshape(())}
    tensors = open_clip(state, layers) | unread
    return {"cond_stage_model.model." + key: value for key, value in tensors.items()}


def random_state(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return {key: value.numpy() for key, value in module.state_dict().items() if "position_ids" not in key}


@pytest.fixture(scope="module", params=["1.x", "2.x"])
def checkpoint(request, tmp_path_factory):
    """(release, single file, diffusers folder of the same model)"""
    release, widths = request.param, WIDTHS[request.param]
    second, folder = release == "2.x", tmp_path_factory.mktemp("single")
    transformers.set_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        layers_per_block=LAYERS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=tuple(width // 64 for width in widths) if second else 8,
        cross_attention_dim=1024 if second else 64,
        use_linear_projection=second,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=LAYERS,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    clip = Tokenizer.load(resolve("clip-mini"))
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=clip.vocab_size,
            hidden_size=1024 if second else 64,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=16 if second else 1,
            max_position_embeddings=16,
            hidden_act="gelu" if second else "quick_gelu",
            eos_token_id=clip.eos_token_id,
            bos_token_id=clip.bos_token_id,
        )
    )
    states = [random_state(module, seed) for seed, module in enumerate((unet, vae, text))]
    tensors = {unet_key(key): value for key, value in states[0].items()}
    for key, value in states[1].items():
        is_conv = ".attentions.0.to_" in key and key.endswith("weight")
        tensors[vae_key(key)] = value[:, :, None, None] if is_conv else value
    prefix = "text_model."
    states[2] = {prefix + key.removeprefix(prefix): value for key, value in states[2].items()}
    if second:
        tensors |= open_clip_tower(states[2], 2)
    else:
        tensors |= {"cond_stage_model.transformer." + key: value for key, value in states[2].items()}
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(16)[None]
    tensors["alphas_cumprod"], tensors["model_ema.decay"] = np.ones(1000, "float32"), np.ones(1, "float32")
    save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors"
    )
    tokenizer = resolve("clip-mini")
    diffusers.StableDiffusionPipeline(
        vae,
        text,
        transformers.CLIPTokenizer.from_pretrained(tokenizer),
        unet,
        diffusers.DDIMScheduler(),
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "folder")
    return release, folder / "model.safetensors", folder / "folder"


def test_diffusers_reads_the_file_as_the_model_it_was_made_from(checkpoint):
    """Holds the file of these tests against its judge: it is in CompVis' layout."""
    _, file, folder = checkpoint
    for kind, part in ((diffusers.UNet2DConditionModel, "unet"), (diffusers.AutoencoderKL, "vae")):
        single = kind.from_single_file(file, config=str(folder), subfolder=part, local_files_only=True)
        for key, value in kind.from_pretrained(folder / part).state_dict().items():
            torch.testing.assert_close(single.state_dict()[key], value, rtol=0, atol=0)


def test_a_single_file_opens_as_the_folder_of_the_same_model_does(checkpoint):
    release, file, folder = checkpoint
    single, reference = sd_tf.load(file, tokenizer="clip-mini"), sd_tf.load(folder)
    for part in ("unet", "autoencoder", "text_encoder"):
        ours, expected = getattr(single, part), getattr(reference, part)
        for value, other in zip(ours.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(value, other)
    context = np.random.default_rng(0).standard_normal((1, 5, single.unet.config.cross_attention_dim))
    latents = np.random.default_rng(1).standard_normal((1, 8, 8, 4)).astype("float32")
    inputs = latents, np.array([7]), context.astype("float32")
    np.testing.assert_allclose(single.unet(*inputs), reference.unet(*inputs), atol=1e-6)
    ids = np.array([[5, 6, 7]], "int32")
    states = [model.text_encoder(ids).last_hidden_state for model in (single, reference)]
    np.testing.assert_allclose(*states, atol=1e-6)
    assert single.schedule.config.prediction_type == {"1.x": "epsilon", "2.x": "v_prediction"}[release]
    assert single.tokenizer.pad_token_id == (
        single.tokenizer.vocab["!"] if release == "2.x" else single.tokenizer.eos_token_id
    )


def test_what_a_single_file_does_not_say_can_be_said(checkpoint):
    release, file, folder = checkpoint
    other = {"1.x": "v_prediction", "2.x": "epsilon"}[release]
    model = sd_tf.load(file, tokenizer=folder, prediction_type=other)
    assert model.schedule.config.prediction_type == other
    with pytest.raises(InputError, match="unknown prediction_type 'v': Valid: epsilon"):
        sd_tf.load(file, tokenizer=folder, prediction_type="v")


ones = np.ones(2, "float32")
OTHERS = {  # what else files of this layout hold
    "averages": {"model_ema.diffusion_modelout2bias": ones, "model_ema.diffusion_modelout2weight": ones},
    "optimizer": {"optimizer.state.0.step": np.array(7), "optimizer.state.0.exp_avg": ones},
    "LoRA": {"lora_unet_mid.lora_up.weight": ones, "lora_te_mid.lora_up.weight": ones},
    "ControlNet": {"control_model.input_blocks.0.0.weight": ones},
    "counters": {"global_step": np.array(3), "epoch": np.array(1, "uint8")},
}


@pytest.mark.filterwarnings("error")
def test_buffers_that_every_file_has_are_not_warned_of(checkpoint, tmp_path):
    _, file, folder = checkpoint
    buffers = {
        "model_ema.num_updates": np.array(5, "int32"),
        "betas": ones,
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(16)[None],
    }
    save_file(load_file(file) | buffers, tmp_path / "more.safetensors")
    sd_tf.load(tmp_path / "more.safetensors", tokenizer=folder)


@pytest.mark.parametrize("names", [*([name] for name in OTHERS), [*OTHERS]], ids="+".join)
def test_tensors_of_no_network_are_counted_in_one_warning(checkpoint, names, tmp_path):
    _, file, folder = checkpoint
    more = {key: value for name in names for key, value in OTHERS[name].items()}
    save_file(load_file(file) | more, tmp_path / "more.safetensors")
    with pytest.warns(UserWarning) as found:
        model = sd_tf.load(tmp_path / "more.safetensors", tokenizer=folder)
    (message,) = [str(each.message) for each in found]
    assert message.startswith(f"{tmp_path / 'more.safetensors'}: {len(more)} tensor")
    first = sorted(more)[0] if len(more) == 1 else max(more, key=lambda key: key.startswith("model_ema"))
    assert f"{first.partition('.')[0]} (" in message and ("more" in message.partition(":")[2]) == (
        len({key.partition(".")[0] for key in more}) > 5
    )
    expected = sd_tf.load(file, tokenizer=folder)
    for part in ("unet", "autoencoder", "text_encoder"):
        pairs = zip(getattr(model, part).get_weights(), getattr(expected, part).get_weights(), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "key", ["first_stage_model.x.y", "model.diffusion_model.input_blocks.99999999.0.op.weight"]
)
def test_a_tensor_inside_a_network_that_it_has_not_is_warned_of(key, checkpoint, tmp_path):
    _, file, folder = checkpoint
    save_file(load_file(file) | {key: ones}, tmp_path / "more.safetensors")
    with pytest.warns(
        UserWarning, match=f"more.safetensors: not read, .*: 1 tensor: {key.split('model.')[-1]}"
    ):
        sd_tf.load(tmp_path / "more.safetensors", tokenizer=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.diffusion_model.middle_block.0.in_layers.0.bias"),
            "missing 1 tensor: mid_block",
        ),
        (lambda t: t.pop("model.diffusion_model.out.2.weight"), "missing the tensor out.2.weight"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("first_stage")], "no first_stage_model"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith("cond_")], "its text tower is missing"),
        (lambda t: t.update({"conditioner.embedders.0.x": np.ones(1, "float32")}), "holds SDXL or SD 3"),
    ],
    ids=["missing", "no size", "no autoencoder", "no tower", "SDXL"],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused_in_one_line(checkpoint, change, message, tmp_path):
    tensors = load_file(checkpoint[1])
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(InputError) as error:
        sd_tf.load(tmp_path / "changed.safetensors", tokenizer="clip-mini")
    assert message in str(error.value) and "changed.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_of_stable_diffusion_are_read_off_the_shapes(checkpoint):
    release, file, _ = checkpoint
    found = original.read(file)
    widths = WIDTHS[release]
    assert found.unet.block_out_channels == widths
    assert found.unet.layers_per_block == found.autoencoder.layers_per_block == LAYERS
    assert found.unet.down_block_types == ("CrossAttnDownBlock2D", "DownBlock2D")
    assert found.unet.attention_head_dim == (
        tuple(width // 64 for width in widths) if release == "2.x" else 8
    )
    assert found.text.hidden_act == {"1.x": "quick_gelu", "2.x": "gelu"}[release]
    assert found.text.num_hidden_layers == 2

"""Layers' names in files of adaptations: every writer's, and those of models that are not supported."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd_tf.errors import InputError
from sd_tf.latent.lora import original_names, read_lora
from sd_tf.lora.files import FILE
from tests.conftest import drawn_by_diffusers

PROMPTS = ["a red dress", "a blue bag"]
TARGETS = {"unet": ["to_q", "to_out.0", "conv1"], "text_encoder": ["q_proj", "fc1"]}


@pytest.fixture
def pipeline(model, tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    model.save(tmp_path / "model")
    return diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)


def add_adapter(network, name, **settings):
    """A random LoRA in a network of diffusers, large enough to be seen."""
    import peft
    import torch

    settings = {"r": 4, "target_modules": TARGETS[name], "init_lora_weights": False} | settings
    torch.manual_seed(0)
    network.add_adapter(peft.LoraConfig(**settings))
    for key, values in network.named_parameters():
        if "magnitude" in key:
            values.data *= 1 + 0.3 * torch.rand_like(values)
    return peft.get_peft_model_state_dict(network)


def check_pictures(model, pipeline, file):
    """Ours with a file are diffusers' with the adapters that are in the pipeline."""
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    settings = {"steps": 4, "guidance_scale": 2.0, "engine": "tensorflow", "progress": False}
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 4, 2.0)
    plain = model.generate(PROMPTS, latents=latents, **settings)
    model.load_lora(file)
    adapted = model.generate(PROMPTS, latents=latents, **settings)
    assert np.abs(adapted.astype(int) - plain).max() > 20
    assert np.abs(reference - adapted).max() <= 2


def test_a_dora_that_diffusers_saves_draws_the_same(model, adaptations, pipeline, tmp_path):
    saved = {}
    for name in TARGETS:
        network = getattr(pipeline, name)
        saved[f"{name}_lora_layers"] = add_adapter(network, name, use_dora=True, lora_alpha=6)
        saved[f"{name}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    pipeline.save_lora_weights(tmp_path / "lora", **saved)
    assert any("lora_magnitude_vector" in key for key in load_file(tmp_path / "lora" / FILE))
    check_pictures(model, pipeline, tmp_path / "lora")


def test_a_lora_that_a_unet_of_diffusers_saves_alone_draws_the_same(model, adaptations, pipeline, tmp_path):
    add_adapter(pipeline.unet, "unet", lora_alpha=10)
    pipeline.unet.save_lora_adapter(tmp_path / "lora")
    assert all(key.startswith(("down", "mid", "up")) for key in load_file(tmp_path / "lora" / FILE))
    check_pictures(model, pipeline, tmp_path / "lora")


def test_names_of_attention_processors_of_old_diffusers_draw_the_same(model, adaptations, pipeline, tmp_path):
    generator, tensors = np.random.default_rng(0), {}
    for module, shape in adaptations.modules.items():
        if module.startswith("unet.") and module.endswith((".to_q", ".to_v", ".to_out.0")):
            attention, _, layer = module.removesuffix(".0").rpartition(".")
            for half, size in (("down", (4, shape[1])), ("up", (shape[0], 4))):
                values = 0.4 * generator.normal(size=size).astype("f4")
                tensors[f"{attention}.processor.{layer}_lora.{half}.weight"] = values
    save_file(tensors, tmp_path / FILE)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE)
    check_pictures(model, pipeline, tmp_path / FILE)


# -- CompVis' names ---------------------------------------------------------------------------------------


def test_all_layers_of_stable_diffusion_have_the_names_that_diffusers_converts_from():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    layers = [key.removesuffix(".weight") for key in unet.state_dict() if key.endswith(".weight")]
    names = original_names([f"unet.{layer}" for layer in layers])
    assert len(names) == len(layers) == 391
    checkpoint = {
        f"model.diffusion_model.{names[f'unet.{layer}']}.{last}": torch.tensor(i)
        for i, layer in enumerate(layers)
        for last in ("weight", "bias")
    }
    converted = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    assert {key: int(i) for key, i in converted.items() if key.endswith(".weight")} == {
        f"{layer}.weight": i for i, layer in enumerate(layers)
    }


def test_a_lora_in_compvis_names_is_the_one_in_diffusers_names(adaptations, tmp_path):
    modules = {
        "unet.conv_in": "lora_unet_input_blocks_0_0",
        "unet.down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
        "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_2_0_op",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_out_0"
        ),
        "unet.mid_block.attentions.0.proj_in": "lora_unet_middle_block_1_proj_in",
        "unet.up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2": (
            "lora_unet_output_blocks_1_1_transformer_blocks_0_ff_net_2"
        ),
        "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_1_2_conv",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te_text_model_encoder_layers_0_mlp_fc1",
    }
    tensors, products = {}, {}
    for i, (module, name) in enumerate(modules.items()):
        outputs, inputs, *window = adaptations.shape(module)
        down = np.random.default_rng(i).normal(size=(2, inputs, *window)).astype("f4")
        up = np.random.default_rng([i, 1]).normal(size=(outputs, 2, *[1] * len(window))).astype("f4")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        products[module] = np.einsum("or,r...->o...", up.reshape(outputs, 2), down)
    save_file(tensors, tmp_path / "mine.safetensors")
    changes = read_lora(tmp_path / "mine.safetensors", adaptations.modules)
    assert changes.keys() == modules.keys()
    for module, change in changes.items():
        np.testing.assert_allclose(change.product(), products[module], rtol=1e-4, atol=1e-6)


# -- other models -----------------------------------------------------------------------------------------

BLOCK = "transformer_blocks"
OTHERS = {
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight": "SDXL",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "SDXL",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": "SDXL",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": "SDXL",
    f"unet.down_blocks.1.attentions.0.{BLOCK}.1.attn1.to_q.lora_A.weight": "SDXL",
    f"base_model.model.unet.mid_block.attentions.0.{BLOCK}.9.attn1.to_q.lora_A.weight": "SDXL",
    "lora_unet_label_emb_0_0.lora_down.weight": "SDXL",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "SD 3 or another transformer",
    "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight": "SD 3 or another transformer",
    "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": "SD 3 or another transformer",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight": "SD 3 or another transformer",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "Flux",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "Flux",
    "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": "Flux",
}


@pytest.mark.parametrize("key, other", OTHERS.items())
def test_loras_of_other_models_are_refused_by_the_models_name(adaptations, tmp_path, key, other):
    own = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    save_file({own: np.ones((2, 32), "f4"), key: np.ones((2, 4), "f4")}, tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=f"mine.safetensors is a LoRA of {other}: only those of Stable"):
        read_lora(tmp_path / "mine.safetensors", adaptations.modules)


@pytest.mark.parametrize("width, own", [(1024, 768), (768, 1024), (2048, 768)])
@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "diff"])
def test_a_lora_of_another_version_says_so(tmp_path, width, own, kind):
    proj_in = "unet.down_blocks.0.attentions.0.proj_in"
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    parts = {
        "LoRA": {"lora_A.weight": (2, width), "lora_B.weight": (320, 2)},
        "LoKr": {"lokr_w1": (10, 2), "lokr_w2": (32, width // 2)},
        "diff": {"diff": (320, width)},
    }[kind]
    tensors = {f"{module}.{part}": np.ones(shape, "f4") for part, shape in parts.items()}
    tensors |= {
        f"{proj_in}.lora_A.weight": np.ones((2, 9), "f4"),
        f"{proj_in}.lora_B.weight": np.ones((320, 2), "f4"),
    }
    save_file(tensors, tmp_path / "mine.safetensors")
    version = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}[width]
    message = f"is a LoRA of {version}, whose text encoder is {width} wide, and this model's is {own} wide"
    with pytest.raises(InputError, match=message):
        read_lora(tmp_path / "mine.safetensors", {proj_in: (320, 320), module: (320, own)})

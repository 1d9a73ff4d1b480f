"""LoHa, LoKr, DoRA, Tucker cores and full differences: what peft merges, and what LyCORIS' formulas say."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd_tf.errors import InputError
from sd_tf.latent.lora import read_lora
from sd_tf.lora.adaptations import LowRank
from sd_tf.lora.files import PEFT_FILE
from sd_tf.lora.lycoris import DoRA
from sd_tf.lora.names import kohya_name
from tests.conftest import drawn_by_diffusers

PROMPTS = ["a red dress", "a blue bag"]
TARGETS = {
    "unet": ["to_q", "to_v", "to_out.0", "proj_in", "conv1", "conv_in"],
    "text_encoder": ["q_proj", "out_proj", "fc1"],
}
SETTINGS = {
    "LoHa": ("LoHaConfig", {"alpha": 6, "alpha_pattern": {"to_v": 2}}),
    "LoHa with cores": ("LoHaConfig", {"alpha": 6, "use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {"alpha": 6}),
    "LoKr with cores": ("LoKrConfig", {"alpha": 6, "r": 2, "use_effective_conv2d": True}),
    "LoKr of four matrices": ("LoKrConfig", {"alpha": 6, "r": 1, "decompose_both": True}),
    "LoKr of whole matrices": ("LoKrConfig", {"alpha": 24, "r": 16, "rank_pattern": {"to_v": 48}}),
    "DoRA": ("LoraConfig", {"lora_alpha": 6, "use_dora": True}),
    "stabilised DoRA": ("LoraConfig", {"lora_alpha": 6, "use_dora": True, "use_rslora": True}),
}


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    return folder


def drawn(model):
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    return model.generate(
        PROMPTS, steps=4, guidance_scale=2.0, latents=latents, engine="tensorflow", progress=False
    )


def adapted_by_peft(network, name, kind):
    """A network of torch with a random adapter in it, as large as ours are in `test_lora_files`."""
    import peft
    import torch

    config, settings = SETTINGS[kind]
    network = peft.get_peft_model(
        network, getattr(peft, config)(**{"r": 3, "target_modules": TARGETS[name]} | settings)
    )
    torch.manual_seed(0)
    for parameter, values in network.named_parameters():
        if "magnitude" in parameter:
            values.data *= 1 + 0.3 * torch.rand_like(values)
        elif values.requires_grad:
            values.data = 0.4 * torch.randn_like(values)
    return network


def originals(adaptations):
    """The model's weights with PyTorch's order of axes."""
    from sd_tf.checkpoints.names import to_torch

    return {module: to_torch(variable) for module, variable in adaptations._variables.items()}


@pytest.mark.parametrize("kind", SETTINGS)
def test_peft_merges_the_same_weights_and_draws_the_same_pictures(model, adaptations, saved, tmp_path, kind):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(saved, torch_dtype=torch.float32)
    plain, own = drawn(model), originals(adaptations)
    networks, merged = {}, 0
    for name in TARGETS:
        networks[name] = adapted_by_peft(getattr(pipeline, name), name, kind)
        networks[name].save_pretrained(tmp_path / name, save_embedding_layers=False)
        model.load_lora(tmp_path / name)
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 4, 2.0)
    adapted = drawn(model)
    assert np.abs(adapted.astype(int) - plain).max() > 20
    assert np.abs(reference - adapted).max() <= 2

    now = originals(adaptations)
    for name, network in networks.items():
        weights = dict(network.merge_and_unload().named_parameters())
        for module, weight in now.items():
            key = module.removeprefix(f"{name}.") + ("" if module.endswith(".bias") else ".weight")
            key = key if key in weights else key.removeprefix("text_model.")
            if module.startswith(f"{name}."):
                expected = weights[key].detach().numpy()
                np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-5, err_msg=module)
                merged += not np.array_equal(weight, own[module])
    assert merged > 20


@pytest.mark.parametrize("kind", ["DoRA", "LoKr with cores"])
def test_at_weight_0_and_after_removal_the_weights_are_what_they_were_to_the_bit(
    model, adaptations, saved, tmp_path, kind
):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    unet = diffusers.UNet2DConditionModel.from_pretrained(saved / "unet")
    adapted_by_peft(unet, "unet", kind).save_pretrained(tmp_path)
    before = originals(adaptations)
    before = {module: value.copy() for module, value in before.items()}
    model.load_lora(tmp_path, 0.7, name="mine")
    assert any((value != before[module]).any() for module, value in originals(adaptations).items())
    adaptations.weigh({"mine": 0.0})
    for module, value in originals(adaptations).items():
        np.testing.assert_array_equal(value, before[module])
    adaptations.weigh({"mine": 1.0})
    adaptations.remove("mine")
    for module, value in originals(adaptations).items():
        np.testing.assert_array_equal(value, before[module])


def test_a_weight_of_a_dora_goes_in_a_straight_line_and_adds_up_with_others(adaptations):
    module = next(module for module in adaptations.modules if module.endswith("attn1.to_q"))
    own, generator = originals(adaptations)[module].copy(), np.random.default_rng(0)
    outputs, inputs = own.shape
    down, up = (generator.normal(size=size).astype("f4") for size in ((2, inputs), (outputs, 2)))
    magnitude = np.linspace(1, 2, outputs, dtype="f4")
    adaptations.add("decomposed", {module: DoRA(LowRank(down, up, 0.5), magnitude)}, weight=0.6)
    adaptations.add("plain", {module: LowRank(down, up)}, weight=-0.3)
    direction = own + 0.5 * up @ down
    whole = magnitude[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    expected = own + 0.6 * (whole - own) - 0.3 * up @ down
    np.testing.assert_allclose(originals(adaptations)[module], expected, atol=1e-5)


def test_a_dora_of_a_row_of_zeros_stays_finite():
    original = np.zeros((3, 4), "f4")
    change = DoRA(LowRank(np.zeros((1, 4), "f4"), np.ones((3, 1), "f4")), np.ones(3, "f4"))
    np.testing.assert_array_equal(change.delta(original), original)


# -- LyCORIS' layout, by its formulas ---------------------------------------------------------------------

CONV = "unet.down_blocks.0.resnets.0.conv1"
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def core_between(core, up, down):
    """LyCORIS' `rebuild_tucker`, by torch: up is (rank, outputs) in it, down (rank, inputs)."""
    import torch

    return torch.einsum("ijhw,ip,jr->prhw", *map(torch.from_numpy, (core, up, down))).numpy()


def locon_with_core(outputs, inputs):
    core, up, down = random(3, 3, 3, 3), random(outputs, 3, 1, 1), random(3, inputs, 1, 1)
    parts = {"lora_mid.weight": core, "lora_up.weight": up, "lora_down.weight": down, "alpha": 6}
    return parts, 2 * core_between(core, up[..., 0, 0].T.copy(), down[..., 0, 0])


def loha_with_cores(outputs, inputs):
    halves = [
        (random(3, 3, 3, 3, seed=i), random(3, outputs, seed=i), random(3, inputs, seed=i)) for i in (1, 2)
    ]
    parts = {"alpha": 1.5}
    for i, (core, up, down) in enumerate(halves, 1):
        parts |= {f"hada_t{i}": core, f"hada_w{i}_a": up, f"hada_w{i}_b": down}
    return parts, 0.5 * core_between(*halves[0]) * core_between(*halves[1])


def lokr_with_core(outputs, inputs):
    first, core = random(2, 4), random(3, 3, 3, 3)
    up, down = random(3, outputs // 2), random(3, inputs // 4)
    parts = {"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": 6}
    return parts, 2 * kron(first[:, :, None, None], core_between(core, up, down))


def lokr_of_whole_convolution(outputs, inputs):
    first, second = random(2, 4), random(outputs // 2, inputs // 4, 3, 3)
    # Without matrices of low rank there is no rank: LyCORIS leaves the alpha out of account.
    return {"lokr_w1": first, "lokr_w2": second, "alpha": 7}, kron(first[:, :, None, None], second)


def lokr_of_flat_matrices(outputs, inputs):
    first, up, down = random(2, 4), random(outputs // 2, 3), random(3, inputs // 4 * 9)
    parts = {"lokr_w1": first, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": 6}
    return parts, 2 * kron(first, up @ down).reshape(outputs, inputs, 3, 3)


def kron(first, second):
    import torch

    return torch.kron(torch.from_numpy(first.copy()), torch.from_numpy(second.copy())).numpy()


def full_difference(outputs, inputs):
    values = random(outputs, inputs, 3, 3)
    return {"diff": values}, values


@pytest.mark.parametrize(
    "make",
    [
        *(locon_with_core, loha_with_cores, lokr_with_core, lokr_of_whole_convolution),
        *(lokr_of_flat_matrices, full_difference),
    ],
)
def test_convolutions_of_lycoris_are_what_its_formulas_say(adaptations, tmp_path, make):
    pytest.importorskip("torch")
    outputs, inputs, *_ = adaptations.shape(CONV)
    parts, expected = make(outputs, inputs)
    write(tmp_path / "mine.safetensors", CONV, parts)
    change = read_lora(tmp_path / "mine.safetensors", adaptations.modules)[CONV]
    delta = change.delta(np.zeros(adaptations.shape(CONV), "f4"))
    np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-5)


def write(file, module, parts):
    name = kohya_name(module)
    save_file({f"{name}.{part}": np.asarray(value, "f4") for part, value in parts.items()}, file)


@pytest.mark.parametrize("module", [CONV, LINEAR])
@pytest.mark.parametrize("of", ["outputs", "inputs"])
@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_norms_of_lycoris_doras_run_over_outputs_or_inputs(adaptations, tmp_path, module, of, kind):
    torch = pytest.importorskip("torch")
    outputs, inputs, *window = adaptations.shape(module)
    ones = [1] * len(window)
    if kind == "LoRA":
        up, down = random(outputs, 2, *ones), random(2, inputs, *window)
        parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": 2}
        product = up.reshape(outputs, 2) @ down.reshape(2, -1)
    else:
        up, down = random(outputs, 2), random(2, int(np.prod([inputs, *window])))
        parts = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up + 1, "hada_w2_b": down - 1, "alpha": 2}
        product = (up @ down) * ((up + 1) @ (down - 1))
    shape = (outputs, 1, *ones) if of == "outputs" else (1, inputs, *ones)
    parts["dora_scale"] = magnitude = 1 + np.abs(random(*shape))
    write(tmp_path / "mine.safetensors", module, parts)
    change = read_lora(tmp_path / "mine.safetensors", adaptations.modules)[module]
    original = originals(adaptations)[module]
    direction = torch.from_numpy(original + product.reshape(original.shape))
    others = tuple(axis for axis in range(direction.ndim) if axis != (of == "inputs"))
    expected = direction / torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    expected = magnitude * expected.numpy()
    np.testing.assert_allclose(original + change.delta(original), expected, rtol=1e-4, atol=1e-5)


def test_full_differences_change_biases_and_norms_too(model, adaptations, tmp_path):
    norm = "unet.down_blocks.0.resnets.0.norm1"
    expected = {}
    tensors = {}
    for module, part in (
        (CONV, "diff"),
        (f"{CONV}.bias", "diff_b"),
        (norm, "w_norm"),
        (f"{norm}.bias", "b_norm"),
    ):
        expected[module] = random(*adaptations.shape(module))
        tensors[f"{kohya_name(module.removesuffix('.bias'))}.{part}"] = expected[module]
    save_file(tensors, tmp_path / "full.safetensors")
    before = {module: originals(adaptations)[module].copy() for module in expected}
    plain = drawn(model)
    model.load_lora(tmp_path / "full.safetensors", 0.5)
    for module, difference in expected.items():
        now = originals(adaptations)[module]
        np.testing.assert_allclose(now, before[module] + 0.5 * difference, atol=1e-6, err_msg=module)
    assert np.abs(drawn(model).astype(int) - plain).max() > 20
    adaptations.remove("full")
    for module, value in before.items():
        np.testing.assert_array_equal(originals(adaptations)[module], value)


# -- what cannot be read ----------------------------------------------------------------------------------

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def whole_loha(rank=2):
    shapes = ((16, rank), (rank, 16), (16, rank), (rank, 16))
    return {part: random(*shape, seed=i) for i, (part, shape) in enumerate(zip(LOHA, shapes, strict=True))}


def without(parts, *names):
    return {part: value for part, value in parts.items() if part not in names}


LOKR = {"lokr_w1": random(2, 4), "lokr_w2_a": random(16, 2), "lokr_w2_b": random(2, 4)}
LORA = {"lora_up.weight": random(32, 2), "lora_down.weight": random(2, 16)}
BAD = {
    "half a LoHa": (without(whole_loha(), "hada_w2_b"), "but no hada_w2_b: it is damaged"),
    "a half with a core": (whole_loha() | {"hada_t1": random(2, 2, 3, 3)}, "but no hada_t2: it is damaged"),
    "halves of two ranks": (
        whole_loha() | {"hada_w2_a": random(16, 3), "hada_w2_b": random(3, 16)},
        r"\(16, 16\) of rank 2 times \(16, 16\) of rank 3, which are no halves of a LoHa",
    ),
    "halves of two shapes": (
        whole_loha() | {"hada_w2_a": random(32, 2)},
        r"\(16, 16\) of rank 2 times \(32, 16\) of rank 2, which are no halves",
    ),
    "ranks that differ": (whole_loha() | {"hada_w1_b": random(3, 16)}, "which is no product of low rank"),
    "half a LoKr": (without(LOKR, "lokr_w2_b"), "but no lokr_w2_b: it is damaged"),
    "a LoKr without its first": (without(LOKR, "lokr_w1"), "but no lokr_w1_a and lokr_w1_b: it is damaged"),
    "a factor twice": (LOKR | {"lokr_w1_a": random(2, 2)}, "has both lokr_w1 and lokr_w1_a"),
    "factors of two ranks": (
        without(LOKR, "lokr_w1") | {"lokr_w1_a": random(2, 3), "lokr_w1_b": random(3, 4)},
        "has factors of rank 3 and 2: it is damaged",
    ),
    "a factor of three axes": (
        {"lokr_w1": random(2, 4), "lokr_w2": random(16, 4, 3)},
        "which are no factors of a LoKr",
    ),
    "a factor of one axis": ({"lokr_w1": random(2), "lokr_w2": random(16, 4)}, "no factors of a LoKr"),
    "a core that is not square": (
        LORA | {"lora_mid.weight": random(2, 3, 3, 3)},
        "which is no product of low rank",
    ),
    "a flat core": (LORA | {"lora_mid.weight": random(2, 2)}, "which is no product of low rank"),
    "a core for a matrix": (
        LORA | {"lora_mid.weight": random(2, 2, 3, 3)},
        r"is \(32, 16, 3, 3\), this model's is \(32, 16\)",
    ),
    "two kinds": (LORA | whole_loha(), "mixes LoRA and LoHa: it is damaged"),
    "no kind": ({"alpha": 1}, "has alpha only: it is damaged"),
    "an alpha of a difference": ({"diff": random(32, 16), "alpha": 1}, "of which only diff can be read"),
    "another shape": ({"diff": random(16, 16)}, r"is \(16, 16\), this model's is \(32, 16\)"),
    "a bias that the layer has not": ({"diff_b": random(32)}, "bias' is no layer of this model"),
    "a norm of another length": (LORA | {"dora_scale": random(5, 1)}, r"dora_scale of shape \(5, 1\)"),
    "two norms": (
        LORA | {"dora_scale": random(32, 1), "lora_magnitude_vector": random(32)},
        "has lora_magnitude_vector and dora_scale",
    ),
    "peft's norm of inputs": (
        LORA | {"lora_magnitude_vector": random(16)},
        r"lora_magnitude_vector of shape \(16,\): one number for each output",
    ),
    "infinite norms": (LORA | {"dora_scale": np.full((32, 1), np.inf)}, "values that are not finite"),
    "an infinite alpha": (LORA | {"alpha": np.inf}, "values that are not finite"),
    "a scalar": (
        LORA | {"scalar": 1},
        "scalar' is no part of a LoRA that can be read: these are LoRA, LoHa, LoKr",
    ),
    "a bias of peft": (
        LORA | {"lora_B.bias": random(32)},
        "lora_B.bias' is no part of a LoRA that can be read",
    ),
    "OFT": ({"oft_blocks": random(4, 4, 4)}, "oft_blocks' is no part of a LoRA that can be read"),
    "IA3": ({"on_input": random(1)}, "on_input' is no part of a LoRA that can be read"),
    "GLoRA": ({"a1.weight": random(2, 2)}, "a1.weight' is no part of a LoRA that can be read"),
}


@pytest.mark.parametrize("parts, message", BAD.values(), ids=BAD)
def test_what_is_damaged_or_unknown_is_refused_and_changes_nothing(
    model, adaptations, tmp_path, parts, message
):
    assert adaptations.shape(LINEAR) == (32, 16)
    write(tmp_path / "mine.safetensors", LINEAR, parts)
    with pytest.raises(InputError, match=message) as refused:
        model.load_lora(tmp_path / "mine.safetensors")
    assert str(refused.value).startswith(str(tmp_path / "mine.safetensors"))
    assert adaptations.weights == {}


HOSTILE = {
    "LoKr": {"lokr_w1": (400_000, 1), "lokr_w2": (1, 400_000)},
    "LoKr of thin matrices": {"lokr_w1_a": (60_000, 1), "lokr_w1_b": (1, 60_000), "lokr_w2": (1, 1)},
    "LoHa": {
        "hada_w1_a": (90_000, 1),
        "hada_w1_b": (1, 90_000),
        "hada_w2_a": (90_000, 1),
        "hada_w2_b": (1, 90_000),
    },
    "LoRA": {"lora_up.weight": (200_000, 1), "lora_down.weight": (1, 200_000)},
    "core": {
        "lora_mid.weight": (1, 1, 300, 300),
        "lora_up.weight": (30_000, 1, 1, 1),
        "lora_down.weight": (1, 30_000, 1, 1),
    },
}


@pytest.mark.parametrize("shapes", HOSTILE.values(), ids=HOSTILE)
def test_a_small_file_that_unfolds_to_gigabytes_is_refused_unread(adaptations, tmp_path, monkeypatch, shapes):
    from sd_tf.checkpoints.tensors import Tensor

    write(tmp_path / "mine.safetensors", LINEAR, {part: np.zeros(shape) for part, shape in shapes.items()})
    monkeypatch.setattr(Tensor, "read", lambda tensor: pytest.fail(f"{tensor.key} was read"))
    with pytest.raises(InputError, match=r"this model's is \(32, 16\)"):
        read_lora(tmp_path / "mine.safetensors", adaptations.modules)


# -- peft's configuration ---------------------------------------------------------------------------------


def write_peft(folder, config, layer="mid_block.attentions.0.transformer_blocks.0.attn2.to_k"):
    key = f"base_model.model.{layer}"
    save_file(
        {f"{key}.lora_A.weight": random(2, 16), f"{key}.lora_B.weight": random(32, 2)}, folder / PEFT_FILE
    )
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))


def test_alpha_and_rank_are_read_from_the_file_beside_it(adaptations, tmp_path):
    write_peft(tmp_path, {"peft_type": "LORA", "r": 2, "lora_alpha": 5})
    tensors = load_file(tmp_path / PEFT_FILE)
    product = next(value for key, value in tensors.items() if "lora_B" in key) @ next(
        value for key, value in tensors.items() if "lora_A" in key
    )
    for path in (tmp_path, tmp_path / PEFT_FILE):
        change = read_lora(path, adaptations.modules)[LINEAR]
        np.testing.assert_allclose(change.product(), 2.5 * product, rtol=1e-5)


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "adapter_config.json, which says its alpha and rank, is missing beside it: copy both"),
        ("[", "adapter_config.json"),
        ("[]", "adapter_config.json"),
        ({"lora_alpha": "much"}, "which is not what peft writes"),
        ({"lora_alpha": None}, "which is not what peft writes"),
        ({"rank_pattern": ["to_k"]}, "which is not what peft writes"),
        ({"r": 0}, "its rank is 0, which is no number of rows"),
        ({"rank_pattern": {"to_k": -2}}, "its rank is -2, which is no number of rows"),
        ({"lora_alpha": 1e9}, "is multiplied by 5e.08, 10000 is the most"),
        ({"rank_pattern": {"(a+)+": 2}}, "rank_pattern has '.*': only ends of layers' names are read"),
        ({"peft_type": "OFT"}, "peft_type is 'OFT': only LORA, LOHA, LOKR can be read"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is 'pissa_niter_4', which changes the model's",
        ),
    ],
)
def test_a_configuration_of_peft_that_cannot_be_followed_is_refused(adaptations, tmp_path, config, message):
    write_peft(tmp_path, config)
    with pytest.raises(InputError, match=message) as refused:
        read_lora(tmp_path, adaptations.modules)
    assert str(tmp_path) in str(refused.value)


def test_a_configuration_that_is_a_link_out_of_its_folder_is_refused(adaptations, tmp_path):
    (tmp_path / "lora").mkdir()
    write_peft(tmp_path / "lora", None)
    (tmp_path / "private.json").write_text("{}")
    (tmp_path / "lora" / "adapter_config.json").symlink_to(tmp_path / "private.json")
    for path in (tmp_path / "lora", tmp_path / "lora" / PEFT_FILE):
        with pytest.raises(InputError, match="adapter_config.json is a link out of its folder"):
            read_lora(path, adaptations.modules)

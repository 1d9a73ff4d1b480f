"""Adaptations: what diffusers reads and writes, several at once, and nothing left of them at weight 0."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sd_tf
from sd_tf.errors import InputError
from sd_tf.latent.lora import read_lora
from sd_tf.lora.adaptations import LowRank
from sd_tf.lora.files import FILE, write_lora
from tests.conftest import drawn_by_diffusers

PROMPTS = ["a red dress", "a blue bag"]


def random_changes(
    adaptations, seed, targets=("to_q", "to_v", "proj_in", "q_proj", "out_proj"), rank=3, scale=0.3
):
    """Of every attention's layers, a convolution of 1x1 and the text tower's, large enough to be seen."""
    generator = np.random.default_rng(seed)
    changes = {}
    for module in adaptations.modules:
        if module.endswith(targets):
            outputs, inputs, *window = adaptations.shape(module)
            down = generator.normal(size=(rank, inputs, *window)).astype("float32")
            up = generator.normal(size=(outputs, rank, *[1] * len(window))).astype("float32")
            changes[module] = LowRank(down, up, scale)
    assert len(changes) > 6
    return changes


def drawn(model):
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    return model.generate(
        PROMPTS, steps=4, guidance_scale=2.0, latents=latents, engine="tensorflow", progress=False
    )


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_draws_the_same_with_an_adaptation(model, adaptations, tmp_path, layout):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    model.save(tmp_path / "model")
    changes = random_changes(adaptations, 0)
    write_lora(tmp_path / FILE, changes, layout)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", torch_dtype=torch.float32
    )
    pipeline.load_lora_weights(tmp_path, weight_name=FILE)
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 4, 2.0)
    plain = drawn(model)
    model.load_lora(tmp_path, name="mine")
    adapted = drawn(model)
    assert np.abs(adapted.astype(int) - plain).max() > 20
    assert np.abs(reference - adapted).max() <= 2


TARGETS = {
    "unet": ["to_q", "to_v", "to_out.0", "proj_in", "conv_in"],
    "text_encoder": ["q_proj", "out_proj", "fc1"],
}
CONFIGS = {
    "alpha": {"lora_alpha": 10},
    "stabilised": {"lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "lora_alpha": 8,
        "rank_pattern": {"attn1.to_q": 2, "out_proj": 7},
        "alpha_pattern": {"attn1.to_q": 9, "to_q": 3, "^conv_in": 6, "encoder.layers.0.mlp.fc1": 20},
    },
}


@pytest.mark.parametrize("names", ["peft", "diffusers"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_diffusers_writes_is_read_with_the_strength_that_it_was_trained_with(
    model, adaptations, tmp_path, config, names
):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers

    model.save(tmp_path / "model")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", torch_dtype=torch.float32
    )
    torch.manual_seed(0)
    saved, expected = {}, {}
    for name in TARGETS:
        network = getattr(pipeline, name)
        settings = config | {"r": 4, "target_modules": TARGETS[name], "init_lora_weights": False}
        network.add_adapter(peft.LoraConfig(**settings))
        found = peft.get_peft_model_state_dict(network)
        saved[f"{name}_lora_layers"] = found if names == "peft" else convert_state_dict_to_diffusers(found)
        saved[f"{name}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
        prefix = "unet" if name == "unet" else "text_encoder.text_model"
        for module, layer in network.named_modules():
            if hasattr(layer, "get_delta_weight"):
                expected[f"{prefix}.{module}"] = layer.get_delta_weight("default").detach().numpy()
    pipeline.save_lora_weights(tmp_path / "lora", **saved)

    changes = read_lora(tmp_path / "lora", adaptations.modules)
    assert changes.keys() == expected.keys()
    for module, change in changes.items():
        product = change.product().reshape(expected[module].shape)
        np.testing.assert_allclose(product, expected[module], rtol=1e-4, atol=1e-6, err_msg=module)
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 4, 2.0)
    plain = drawn(model)
    model.load_lora(tmp_path / "lora")
    adapted = drawn(model)
    assert np.abs(adapted.astype(int) - plain).max() > 20
    assert np.abs(reference - adapted).max() <= 2


@pytest.mark.parametrize(
    "said, message",
    [
        ("[", "is not what diffusers writes"),
        (json.dumps({"unet.lora_alpha": "much"}), "is not what diffusers writes"),
        (json.dumps({"unet.lora_alpha": 10**400}), "is not what diffusers writes"),
        (json.dumps({"unet.alpha_pattern": ["to_q"]}), "is not what diffusers writes"),
        (json.dumps({"unet.lora_alpha": float("nan")}), "not finite"),
        (json.dumps({"unet.alpha_pattern": {"(a+)+": 2}}), "only ends of layers' names are read"),
    ],
)
def test_a_strength_that_cannot_be_read_is_refused(adaptations, tmp_path, said, message):
    write_lora(tmp_path / "whole.safetensors", random_changes(adaptations, 5))
    tensors = load_file(tmp_path / "whole.safetensors")
    save_file(tensors, tmp_path / "mine.safetensors", metadata={"lora_adapter_metadata": said})
    with pytest.raises(InputError, match=message):
        read_lora(tmp_path / "mine.safetensors", adaptations.modules)


def test_loras_are_called_as_their_files_or_where_all_files_are_called_so_as_their_folders(
    model, adaptations, tmp_path
):
    files = [tmp_path / "a" / FILE, tmp_path / "v1.5" / FILE, tmp_path / "b.v2.safetensors"]
    for seed, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        write_lora(file, random_changes(adaptations, seed))
    for file in (files[0], files[1].parent, files[2]):
        model.load_lora(file)
    assert list(adaptations.weights) == ["a", "v1.5", "b.v2"]


def test_a_second_lora_of_one_name_is_refused_and_the_first_stays(model, adaptations, tmp_path):
    for seed, folder in enumerate(("one", "other")):
        (tmp_path / folder).mkdir()
        write_lora(tmp_path / folder / "mine.safetensors", random_changes(adaptations, seed))
    model.load_lora(tmp_path / "one" / "mine.safetensors", 0.5)
    before = drawn(model)
    with pytest.raises(InputError, match="other.*called 'mine' is loaded already: give another name"):
        model.load_lora(tmp_path / "other" / "mine.safetensors")
    assert adaptations.weights == {"mine": 0.5}
    np.testing.assert_array_equal(drawn(model), before)


def test_a_folder_stands_for_diffusers_file_or_for_its_only_one(adaptations, tmp_path):
    first, second, third = (random_changes(adaptations, seed, rank=seed) for seed in (1, 2, 3))

    def rank():
        return next(iter(read_lora(tmp_path, adaptations.modules).values())).rank

    with pytest.raises(InputError, match=f"{FILE} is missing"):
        rank()
    write_lora(tmp_path / "mine.safetensors", first, "kohya")
    assert rank() == 1
    write_lora(tmp_path / "others.safetensors", second, "kohya")
    with pytest.raises(InputError, match="holds mine.safetensors and others.safetensors: name the file"):
        rank()
    write_lora(tmp_path / FILE, third)
    assert rank() == 3


def test_a_model_is_saved_as_its_loras_make_it_draw(model, adaptations, tmp_path):
    plain = drawn(model).astype(int)
    adaptations.add("mine", random_changes(adaptations, 8), weight=0.6)
    model.save(tmp_path / "model")
    saved = drawn(sd_tf.load(tmp_path / "model")).astype(int)
    assert np.abs(saved - drawn(model)).max() <= 1 < np.abs(saved - plain).max()


def test_at_weight_0_the_model_is_what_it_was_to_the_bit(model, adaptations):
    before = [
        np.asarray(variable.value).copy()
        for variable in (*model.unet.variables, *model.text_encoder.variables)
    ]
    adaptations.add("mine", random_changes(adaptations, 1), weight=0.7)
    adaptations.weigh({"mine": 0.0})
    after = [
        np.asarray(variable.value).copy()
        for variable in (*model.unet.variables, *model.text_encoder.variables)
    ]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_several_at_once_add_up_and_can_be_taken_out(model, adaptations):
    first, second = (random_changes(adaptations, seed) for seed in (1, 2))
    module = next(iter(first))
    kernel = adaptations._variables[module]
    before = np.asarray(kernel.value).copy()

    def change():
        return np.moveaxis(np.asarray(kernel.value).copy() - before, (-1, -2), (0, 1))

    adaptations.add("first", first, 0.5)
    adaptations.add("second", second, -1.5)
    assert adaptations.weights == {"first": 0.5, "second": -1.5}
    expected = 0.5 * first[module].product() - 1.5 * second[module].product()
    np.testing.assert_allclose(change(), expected, atol=1e-5)
    adaptations.remove("second")
    np.testing.assert_allclose(change(), 0.5 * first[module].product(), atol=1e-5)


def test_fused_the_change_is_the_models_own(model, adaptations):
    changes = random_changes(adaptations, 3)
    kernel = adaptations._variables[next(iter(changes))]
    before = np.asarray(kernel.value).copy()
    adaptations.add("mine", changes)
    after = np.asarray(kernel.value).copy()
    adaptations.fuse()
    assert adaptations.weights == {} and np.abs(after - before).max() > 0
    np.testing.assert_array_equal(np.asarray(kernel.value).copy(), after)
    adaptations.add(
        "back", {module: LowRank(each.down, -each.up, each.scale) for module, each in changes.items()}
    )
    np.testing.assert_allclose(np.asarray(kernel.value).copy(), before, atol=1e-5)
    adaptations.fuse()


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_what_is_written_is_read_again(adaptations, tmp_path, layout):
    changes = random_changes(adaptations, 4)
    write_lora(tmp_path / "mine.safetensors", changes, layout)
    found = read_lora(tmp_path / "mine.safetensors", adaptations.modules)
    assert found.keys() == changes.keys()
    for module, change in changes.items():
        np.testing.assert_allclose(found[module].product(), change.product(), rtol=1e-5, atol=1e-6)


def test_alpha_of_kohyas_files_scales(adaptations, tmp_path):
    changes = random_changes(adaptations, 5)
    write_lora(tmp_path / "mine.safetensors", changes, "kohya")
    tensors = load_file(tmp_path / "mine.safetensors")
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(halved, tmp_path / "halved.safetensors")
    found = read_lora(tmp_path / "halved.safetensors", adaptations.modules)
    for module, change in changes.items():
        np.testing.assert_allclose(found[module].product(), change.product() / 2, rtol=1e-5, atol=1e-6)


def damaged(tensors, kind):
    key = next(key for key in tensors if "lora_A" in key)
    other = key.replace("lora_A", "lora_B")
    whole = {each: tensors[each] for each in (key, other)}
    return {
        "another layer": {key.replace("to_q", "to_z").replace("proj_in", "proj_z"): tensors[key]},
        "half": {key: tensors[key]},
        "rank": {key: tensors[key][:2], other: tensors[other]},
        "rank 0": {key: tensors[key][:0], other: tensors[other][:, :0]},
        "no alpha": whole | {key.replace("lora_A.weight", "alpha"): np.zeros(0, "float32")},
        "two alphas": whole | {key.replace("lora_A.weight", "alpha"): np.ones(2, "float32")},
        "another width": {key: tensors[key][:, :3], other: tensors[other]},
        "not finite": {key: np.full_like(tensors[key], np.nan), other: tensors[other]},
        "another kind": {key.replace("lora_A", "hada_w1_a"): tensors[key]},
        "nothing": {},
    }[kind]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("another layer", "is no layer of this model: a LoRA for another architecture"),
        ("half", "has down, but no up: it is damaged"),
        ("rank", "which is no product of low rank"),
        ("rank 0", "which is no product of low rank"),
        ("no alpha", r"its alpha is \(0,\), not one number"),
        ("two alphas", r"its alpha is \(2,\), not one number"),
        ("another width", "a LoRA for another architecture"),
        ("not finite", "not finite"),
        ("another kind", "is no part of a LoRA"),
        ("nothing", "holds no LoRA"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused_and_changes_nothing(
    model, adaptations, tmp_path, kind, message
):
    changes = random_changes(adaptations, 6, targets=("attn1.to_q", "attn2.to_q", "proj_in", "to_v", "to_k"))
    write_lora(tmp_path / "whole.safetensors", changes)
    save_file(damaged(load_file(tmp_path / "whole.safetensors"), kind), tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match=message):
        model.load_lora(tmp_path / "mine.safetensors")
    assert adaptations.weights == {}

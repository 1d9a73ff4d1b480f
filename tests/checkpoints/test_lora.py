"""Adaptations: what diffusers reads and writes, several at once, and nothing left of them at weight 0."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd_tf.checkpoints.lora import FILE, read_lora, write_lora
from sd_tf.errors import InputError
from sd_tf.latent.lora import LowRank
from tests.conftest import drawn_by_diffusers, make_tiny_model

PROMPTS = ["a red dress", "a blue bag"]


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


@pytest.fixture
def adaptations(model):
    yield model.adaptations
    for name in model.adaptations.weights:
        model.adaptations.remove(name)


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
    kernel = adaptations._kernels[module]
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
    kernel = adaptations._kernels[next(iter(changes))]
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
    return {
        "another layer": {key.replace("to_q", "to_z").replace("proj_in", "proj_z"): tensors[key]},
        "half": {key: tensors[key]},
        "rank": {key: tensors[key][:2], other: tensors[other]},
        "another width": {key: tensors[key][:, :3], other: tensors[other]},
        "not finite": {key: np.full_like(tensors[key], np.nan), other: tensors[other]},
        "another kind": {key.replace("lora_A", "hada_w1_a"): tensors[key]},
        "nothing": {},
    }[kind]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("another layer", "is no layer of this model: a LoRA for another architecture"),
        ("half", "has down only: it is damaged"),
        ("rank", "which is no product of low rank"),
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

"""LoRAs of cascades: diffusers reads ours and we read diffusers', each stage by itself or all of them."""

import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sd_tf
from sd_tf.cascade.recipe import LORA_TARGETS
from sd_tf.checkpoints.names import keyed_variables
from sd_tf.errors import InputError
from sd_tf.latent.lora import read_lora
from sd_tf.lora.adaptations import LowRank
from sd_tf.lora.files import FILE, write_lora
from tests.cascade import small
from tests.cascade.conftest import tiny_cascade

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]  # of diffusers' example for IF
DRAWING = {"steps": 2, "seed": 0, "progress": False}
WAY = {"steps": 2, "seeds": 0, "progress": False}


def random_changes(modules, rank=2, seed=0, scale=0.5):
    """A random LoRA of the attention's layers: module in a stage -> `LowRank`."""
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        return rng.standard_normal(shape).astype("float32")

    return {
        module: LowRank(matrix(rank, shape[1]), matrix(shape[0], rank), scale / rank)
        for module, shape in modules.items()
        if module.removesuffix(".0").rpartition(".")[2] in LORA_TARGETS
    }


def modules_of(model, stage):
    return {
        module.removeprefix(f"{stage}."): shape
        for module, shape in model.adaptations.modules.items()
        if module.startswith(f"{stage}.") and not module.endswith(".bias")
    }


def kernels(model, number):
    return {
        key: np.asarray(variable.value).copy()
        for key, variable in keyed_variables(model.stages[number].unet).items()
    }


@pytest.fixture
def model():
    return tiny_cascade()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cascade):
    """A random LoRA of both stages of the tiny cascade."""
    place = tmp_path_factory.mktemp("loras") / "mine"
    for seed, stage in enumerate(("base", "sr2")):
        (place / stage).mkdir(parents=True)
        write_lora(place / stage / FILE, random_changes(modules_of(cascade, stage), seed=seed))
    return place


@pytest.fixture
def reference(model, tmp_path):
    """A stage's number -> its UNet in diffusers."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    model.save(tmp_path / "model")
    kind = diffusers.UNet2DConditionModel
    return lambda number: kind.from_pretrained(tmp_path / "model" / ("base", "sr2")[number] / "unet").eval()


def outputs(model, number, theirs):
    """What both networks make of the same inputs."""
    images, timesteps, context, _, labels = small.inputs(model.stages[number].config)
    ours = np.asarray(model.stages[number].denoiser("tensorflow")(images, timesteps, context, labels))
    return ours, small.theirs_on(theirs, images, timesteps, context, None, labels)


def check_same(ours, theirs, plain):
    deviation = np.std(theirs)
    assert np.abs(theirs - plain).max() > 0.05 * deviation  # the LoRA is seen
    assert np.abs(ours - theirs).max() <= 1e-4 * deviation


@pytest.mark.parametrize("number", [0, 1])
def test_a_stages_file_is_the_same_lora_in_the_unet_of_diffusers(model, reference, folder, number):
    stage = ("base", "sr2")[number]
    plain, _ = outputs(model, number, reference(number))
    theirs = reference(number)
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as loader

    state, alphas = loader.lora_state_dict(folder / stage)
    loader.load_lora_into_unet(state, alphas, theirs)
    model.load_lora(folder)
    check_same(*outputs(model, number, theirs), plain)


def test_diffusers_if_pipeline_loads_the_base_stages_file(model, folder, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    model.save(tmp_path / "model")
    parts = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    pipeline = diffusers.IFPipeline.from_pretrained(tmp_path / "model" / "base", **parts)
    pipeline.load_lora_weights(folder / "base")
    assert list(pipeline.get_list_adapters()["unet"]) == ["default_0"]
    plain, _ = outputs(model, 0, pipeline.unet)
    model.load_lora(folder / "base")
    check_same(*outputs(model, 0, pipeline.unet), plain)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_lora_that_diffusers_if_pipeline_saves_is_loaded(model, reference, tmp_path, use_dora):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    import diffusers

    unet = reference(0)
    plain, _ = outputs(model, 0, unet)
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": False}
    unet.add_adapter(peft.LoraConfig(**settings, use_dora=use_dora))
    diffusers.IFPipeline.save_lora_weights(
        tmp_path / "base",
        peft.get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    model.load_lora(tmp_path / "base", name="theirs")
    check_same(*outputs(model, 0, unet), plain)


def test_files_of_older_versions_of_diffusers_are_read(model, folder, tmp_path):
    """As `LoRAAttnAddedKVProcessor` named them."""
    tensors = {}
    for key, values in load_file(folder / "base" / FILE).items():
        layer, _, which = key.removesuffix(".weight").rpartition(".")
        block, _, projection = layer.removesuffix(".0").rpartition(".")
        which = {"lora_A": "down", "lora_B": "up"}[which]
        tensors[f"{block}.processor.{projection}_lora.{which}.weight"] = values
    (tmp_path / "base").mkdir()
    save_file(tensors, tmp_path / "base" / "old.safetensors")
    model.load_lora(tmp_path / "base" / "old.safetensors")
    old = kernels(model, 0)
    model.adaptations.remove("old")
    model.load_lora(folder / "base")
    new = kernels(model, 0)
    assert all(np.array_equal(old[key], new[key]) for key in new)


def test_a_lora_is_weighed_removed_fused_and_saved(model, folder, tmp_path):
    before = [kernels(model, number) for number in (0, 1)]
    plain = model.generate("a red dress", **DRAWING)
    model.load_lora(folder)
    assert model.adaptations.weights == {"mine": 1.0}
    drawn = model.generate("a red dress", **DRAWING)
    assert np.abs(drawn.astype(int) - plain).max() > 20
    prompt = "a red dress <lora:mine:0>"
    again = model.generate(prompt, prompt_syntax="a1111", **DRAWING)
    np.testing.assert_array_equal(again, plain)
    assert model.adaptations.weights == {"mine": 1.0}
    way = model.interpolate([prompt, prompt], frames=2, prompt_syntax="a1111", **WAY)
    assert np.abs(way.astype(int) - plain).max() <= 1
    with pytest.raises(InputError, match="the prompt names the LoRA 'other', which is not loaded"):
        model.generate("a dress <lora:other:1>", prompt_syntax="a1111", **DRAWING)
    model.save(tmp_path / "merged")
    read = sd_tf.load(tmp_path / "merged")
    np.testing.assert_array_equal(read.generate("a red dress", engine="tensorflow", **DRAWING), drawn)
    model.adaptations.remove("mine")
    for number in (0, 1):
        after = kernels(model, number)
        assert all(np.array_equal(after[key], before[number][key]) for key in after)
    model.load_lora(folder, 0.5, name="half")
    model.adaptations.fuse()
    assert not model.has_adaptations
    assert any(not np.array_equal(before[1][key], value) for key, value in kernels(model, 1).items())


def test_a_lora_may_know_words_that_no_caption_had(model, folder):
    model.known_words = frozenset({"a", "dress"})
    with pytest.warns(UserWarning, match="words that were in no caption .*: red"):
        model.generate("a red dress", stages=1, **DRAWING)
    model.load_lora(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generate("a red dress", stages=1, **DRAWING)
    assert not [each for each in caught if "in no caption" in str(each.message)]


def test_the_hash_of_a_model_is_that_without_its_loras(model, folder):
    before = model.weights_sha256()
    model.load_lora(folder)
    assert model.weights_sha256() == before
    model.adaptations.fuse()
    assert model.weights_sha256() != before


def test_the_file_of_one_stage_is_for_that_stage(model, folder, tmp_path):
    before = [kernels(model, number) for number in (0, 1)]

    def changed():
        return [
            any(not np.array_equal(old[key], new) for key, new in kernels(model, number).items())
            for number, old in enumerate(before)
        ]

    for place, wanted in (
        (folder / "sr2", [False, True]),
        (folder / "sr2" / FILE, [False, True]),
        (folder / "base", [True, False]),
    ):
        model.load_lora(place, name="one")
        assert changed() == wanted
        model.adaptations.remove("one")
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes((folder / "sr2" / FILE).read_bytes())
    with pytest.raises(InputError, match="fits base and sr2: say which one .* stage='base', or put it into"):
        model.load_lora(elsewhere)
    assert not model.has_adaptations
    model.load_lora(elsewhere, stage="sr2")
    assert changed() == [False, True] and model.adaptations.weights == {"elsewhere": 1.0}
    with pytest.raises(InputError, match="unknown stage 'sr3'"):
        model.load_lora(elsewhere, stage="sr3")


def test_a_file_that_fits_one_stage_alone_needs_no_name(cascade, folder, tmp_path):
    """The input of super-resolution is a picture beside another one: six channels."""
    model = tiny_cascade()
    shape = cascade.adaptations.modules["sr2.unet.conv_in"]
    change = LowRank(np.ones((1, *shape[1:]), "float32"), np.ones((shape[0], 1, 1, 1), "float32"))
    write_lora(tmp_path / "mine.safetensors", {"unet.conv_in": change})
    model.load_lora(tmp_path / "mine.safetensors")
    assert list(model.adaptations._original) == ["sr2.unet.conv_in"]


def test_what_is_no_lora_of_the_model_is_named(model, folder, tmp_path):
    one = sd_tf.CascadedDiffusion(model.stages[:1], model.text_encoder)
    with pytest.raises(InputError, match="has a LoRA for sr2, which this model has not, only base: name"):
        one.load_lora(folder)
    with pytest.raises(InputError, match="sr2 is for sr2, as its folder is called, which this model has not"):
        one.load_lora(folder / "sr2")
    assert not one.has_adaptations
    one.load_lora(folder / "base")
    assert one.has_adaptations
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    tensors = {f"{key}.lora_{name}.weight": np.ones((4, 4), "float32") for name in "AB"}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is a LoRA of Stable Diffusion: only those of cascades such as"):
        model.load_lora(tmp_path / "other.safetensors")
    tensors = load_file(folder / "base" / FILE)
    save_file({key: values[..., :1] for key, values in tensors.items()}, tmp_path / "narrow.safetensors")
    with pytest.raises(InputError, match="no product of low rank|another architecture"):
        model.load_lora(tmp_path / "narrow.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{FILE}"):
        model.load_lora(tmp_path / "empty")
    assert not model.has_adaptations


def test_a_stage_that_is_a_link_out_of_the_folder_is_not_read(model, folder, tmp_path):
    (tmp_path / "base").symlink_to(folder / "base")
    with pytest.raises(InputError, match="base is a link out of its folder: copy what it points to"):
        model.load_lora(tmp_path)
    assert not model.has_adaptations


def test_a_folder_of_loras_is_no_model(folder):
    with pytest.raises(InputError, match="holds a LoRA, not a model: load its base model, then"):
        sd_tf.load(folder)
    with pytest.raises(InputError, match=f"holds the LoRA of a cascade's stages, such as .*base/{FILE}"):
        read_lora(folder, {"unet.conv_in": (8, 4, 3, 3)})  # of latent diffusion


def test_a_word_is_for_a_clip(model):
    with pytest.raises(
        InputError, match="'<mine>' is a word for a CLIP, and this model's text encoder is a T5"
    ):
        model.add_word("<mine>", np.zeros(24, "float32"))

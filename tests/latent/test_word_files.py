"""Learned words as files: what diffusers reads and writes, and what is none."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd_tf.checkpoints.word_files import FILE, read_word, write_word
from sd_tf.errors import InputError
from tests.conftest import drawn_by_diffusers, make_tiny_model

WORD = "<mine>"
PROMPTS = ["a <mine> dress", "a blue <mine>"]


def embedding(*shape):
    return np.random.default_rng(0).normal(0, 2, shape or 16).astype("float32")


def drawn(model, latents):
    settings = {"steps": 3, "guidance_scale": 2.0, "engine": "tensorflow", "progress": False}
    return model.generate(PROMPTS, latents=latents, **settings).astype(int)


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_draws_the_same_with_a_word(tmp_path, vectors):
    """From the file, and from what diffusers saves after it has loaded the file."""
    import sd_tf

    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    model = make_tiny_model()
    model.save(tmp_path / "model")
    write_word(tmp_path / FILE, WORD, embedding(vectors, 16))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", torch_dtype=torch.float32
    )
    pipeline.load_textual_inversion(tmp_path / FILE)
    latents = np.random.default_rng(1).standard_normal((2, 8, 8, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 3, 2.0)
    before = drawn(model, latents)
    model.load_textual_inversion(tmp_path)
    after = drawn(model, latents)
    assert np.abs(after - before).max() > 10
    assert np.abs(reference - after).max() <= 2
    pipeline.save_pretrained(tmp_path / "with-word")
    assert np.abs(drawn(sd_tf.load(tmp_path / "with-word"), latents) - after).max() <= 2


def test_a_model_with_a_word_is_saved_with_it_and_diffusers_opens_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    import sd_tf

    model = make_tiny_model()
    write_word(tmp_path / FILE, WORD, embedding())
    model.load_textual_inversion(tmp_path / FILE)
    model.save(tmp_path / "model")
    again = sd_tf.load(tmp_path / "model")
    np.testing.assert_array_equal(again.tokenizer(PROMPTS), model.tokenizer(PROMPTS))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "model" / "tokenizer")
    ids = theirs(PROMPTS, padding="max_length", max_length=model.tokenizer.max_length).input_ids
    np.testing.assert_array_equal(ids, model.tokenizer(PROMPTS))
    tower = transformers.CLIPTextModel.from_pretrained(tmp_path / "model" / "text_encoder")
    assert tower.get_input_embeddings().weight.shape[0] == again.text_encoder.config.vocab_size


def test_what_web_interfaces_write_is_named_by_its_file(tiny_model, tmp_path):
    """The name stands for as many tokens as the file has vectors, also between other words."""
    save_file({"emb_params": embedding(5, 16)}, tmp_path / "easynegative.safetensors")
    token, values = read_word(tmp_path / "easynegative.safetensors")
    assert token == "easynegative"
    np.testing.assert_array_equal(values, embedding(5, 16))
    assert read_word(tmp_path / "easynegative.safetensors", "<other>")[0] == "<other>"
    model = make_tiny_model()
    model.load_textual_inversion(tmp_path / "easynegative.safetensors")
    first, known = model.tokenizer.token_id("easynegative"), tiny_model.tokenizer.ids
    assert model.tokenizer.ids("a easynegative") == [*known("a"), *range(first, first + 5)]
    assert "easynegative" not in tiny_model.tokenizer.vocab


def test_a_word_of_stable_diffusion_xl_is_refused_by_that_name(tiny_model, tmp_path):
    save_file({"clip_l": embedding(8, 16), "clip_g": embedding(8, 32)}, tmp_path / FILE)
    with pytest.raises(InputError, match="clip_g and clip_l: it is a word for .* of Stable Diffusion XL"):
        tiny_model.load_textual_inversion(tmp_path)


def test_a_written_word_is_read_back(tmp_path):
    write_word(tmp_path / FILE, WORD, embedding())
    assert set(load_file(tmp_path / FILE)) == {WORD}
    token, values = read_word(tmp_path)
    assert token == WORD
    np.testing.assert_array_equal(values, embedding(1, 16))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": embedding(), "b": embedding()}, "holds 2 tensors"),
        ({WORD: np.zeros((3, 1, 16), "float32")}, r"has the shape \(3, 1, 16\): give \(vectors, width\)"),
        ({WORD: np.zeros((0, 16), "float32")}, r"has the shape \(0, 16\): give \(vectors, width\)"),
        ({WORD: np.zeros((9, 16), "float32")}, "has 9 vectors, the text tower reads 8 tokens"),
        ({WORD: np.full(16, np.nan, "float32")}, "not finite"),
        ({WORD: np.zeros(17, "float32")}, r"is \(1, 17\), the text tower's are \(16,\)"),
        ({"dress</w>": embedding()}, "is a token already"),
    ],
)
def test_a_file_that_is_no_word_for_the_model_is_refused_and_changes_nothing(
    tiny_model, tmp_path, tensors, message
):
    save_file(tensors, tmp_path / FILE)
    tower, tokenizer = tiny_model.text_encoder, tiny_model.tokenizer
    with pytest.raises(InputError, match=message):
        tiny_model.load_textual_inversion(tmp_path)
    assert tiny_model.text_encoder is tower and tiny_model.tokenizer is tokenizer


def test_words_come_before_loras(tmp_path):
    from sd_tf.lora.adaptations import LowRank

    model = make_tiny_model()
    module = next(name for name in model.adaptations.modules if name.endswith("to_q"))
    outputs, inputs = model.adaptations.shape(module)
    change = LowRank(np.ones((1, inputs), "float32"), np.ones((outputs, 1), "float32"))
    model.adaptations.add("a", {module: change})
    write_word(tmp_path / FILE, WORD, embedding())
    with pytest.raises(InputError, match="load words before LoRAs"):
        model.load_textual_inversion(tmp_path)

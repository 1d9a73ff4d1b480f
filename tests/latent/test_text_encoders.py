"""Latent diffusion that reads with a T5 or a BERT: diffusers draws the same, and all of `generate` goes."""

import json
import shutil

import numpy as np
import pytest

import sd_tf
from sd_tf import commandline, export
from sd_tf.checkpoints.text_encoders import save_text_encoder_folders
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.generation.request import PICTURE_NOISE
from sd_tf.latent.initial_noise import InitialNoise
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.text_encoders import given_text_encoder
from sd_tf.seeding import normals, seeded
from sd_tf.text.bert import BertModel
from sd_tf.text.config import BertConfig, T5Config
from sd_tf.text.encoder import text_encoder_of
from sd_tf.text.subword_tokenizer import bert_tokenizer, t5_tokenizer
from sd_tf.text.t5 import T5EncoderModel
from tests.conftest import drawn_by_diffusers, shake_variables
from tests.parity import deviation
from tests.text.vocabularies import bert_vocab, t5_pieces
from tests.training.tiny import contents, interrupt, lines, made, train_tiny, with_tiny_preset

LENGTH, WIDTH = 14, 16
QUIET = {"steps": 4, "engine": "tensorflow", "progress": False}
CLASSES = {
    "T5": ("T5EncoderModel", "T5TokenizerFast"),
    "BERT": ("BertModel", "BertTokenizerFast"),
}


def encoder_of(kind, masked=True):
    """A random text encoder, 16 wide."""
    if kind == "T5":
        sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        config = T5Config(vocab_size=len(t5_pieces()), **sizes, use_attention_mask=masked)
        tokenizer, network = t5_tokenizer(t5_pieces(), 2, max_length=LENGTH), T5EncoderModel
    else:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 20}
        config = BertConfig(vocab_size=len(bert_vocab()), **sizes, use_attention_mask=masked)
        tokenizer, network = bert_tokenizer(bert_vocab(), LENGTH), BertModel
    with seeded(0):
        network = network(config)
        network.build()
    shake_variables(network)
    return text_encoder_of(config, tokenizer, lambda: network)


def model_of(tiny_model, kind, masked=True):
    """The tiny model with that text encoder in the place of its CLIP."""
    encoder = encoder_of(kind, masked)
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="v_prediction"))
    parts = tiny_model.autoencoder, tiny_model.unet, encoder.network(), encoder.tokenizer
    return LatentDiffusion(*parts, schedule)


@pytest.fixture(scope="module", params=CLASSES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(tiny_model, kind):
    return model_of(tiny_model, kind)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder


def apart(ours, theirs):
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


# -- diffusers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False], ids=["padding masked", "padding read"])
def test_diffusers_pipeline_opens_the_folder_and_draws_the_same(tiny_model, kind, masked, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = model_of(tiny_model, kind, masked)
    model.save(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert tuple(index[part] for part in ("text_encoder", "tokenizer")) == tuple(
        ["transformers", name] for name in CLASSES[kind]
    )
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(pipeline.text_encoder).__name__ == CLASSES[kind][0]
    latents = normals((PICTURE_NOISE, 0), [3, 4], (8, 8, 4))
    words = {"negative_prompt": "a blue bag"}
    theirs = drawn_by_diffusers(pipeline, "a red dress", latents, 5, 3.0, num_images_per_prompt=2, **words)
    ours = model.generate("a red dress", num_images=2, steps=5, guidance_scale=3.0, seed=3, **words)
    assert theirs.std() > 20
    assert apart(ours, theirs) <= 2
    other = model_of(tiny_model, kind, not masked)
    assert apart(other.generate("a red dress", num_images=2, steps=5, seed=3, **words), theirs) > 2


def test_a_folder_that_diffusers_wrote_opens_here_and_draws_the_same(tiny_model, kind, saved, tmp_path):
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(saved)
    torch.manual_seed(0)
    if kind == "T5":
        network = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=300, d_model=WIDTH, d_kv=6, d_ff=24, num_layers=2, num_heads=3)
        )
    else:
        network = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=400,
                hidden_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=LENGTH,
            )
        )
    pipeline.text_encoder = network.eval()
    pipeline.save_pretrained(tmp_path / "theirs")
    model = sd_tf.load(tmp_path / "theirs")
    assert model.tokenizer.max_length == LENGTH
    assert not model.text_config.use_attention_mask  # which diffusers did not say: padding is read
    latents = normals((PICTURE_NOISE, 0), [0], (8, 8, 4))
    theirs = drawn_by_diffusers(pipeline, "a red dress", latents, 5, 3.0)
    assert apart(model.generate("a red dress", steps=5, guidance_scale=3.0), theirs) <= 2


def test_states_are_those_of_transformers_with_the_mask(model, saved):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    texts = ["a red dress", "", "two ankle boots"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved / "tokenizer")
    given = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    network = getattr(transformers, CLASSES["T5" if "T5" in type(model.text_encoder).__name__ else "BERT"][0])
    network = network.from_pretrained(saved / "text_encoder").eval()
    with torch.no_grad():
        expected = network(given.input_ids, attention_mask=given.attention_mask).last_hidden_state.numpy()
    assert deviation(model.encode_prompts(texts), expected) < 1e-4

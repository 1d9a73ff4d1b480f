"""Latent diffusion that reads with a T5 or a BERT: diffusers draws the same, and all of `generate` goes."""

import json
import shutil

import numpy as np
import pytest

import sd_tf
from sd_tf import export
from sd_tf.checkpoints.text_encoders import save_text_encoder_folders
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.evaluation.judging import Judges
from sd_tf.generation.engines import kept_conversion
from sd_tf.generation.request import PICTURE_NOISE
from sd_tf.latent.card import traits_of
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
from tests.training.tiny import interrupt, lines, made, train_tiny, with_tiny_preset

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


# -- drawing ------------------------------------------------------------------------------------------


def test_a_saved_model_draws_the_same_to_the_bit(model, saved):
    again = sd_tf.load(saved)
    assert again.text_config == model.text_config and again.text_config.use_attention_mask
    words = {"negative_prompt": "a (blue:1.2) bag", "num_images": 2, **QUIET}
    np.testing.assert_array_equal(
        again.generate("a (red:1.4) dress", **words), model.generate("a (red:1.4) dress", **words)
    )


def test_embeddings_of_a_prompt_draw_what_the_prompt_draws(model):
    both = model.encode_prompts(["", "a red dress"])  # one batch, as `generate`'s, so that it rounds alike
    embeds = {"prompt_embeds": both[1:], "negative_prompt_embeds": both[:1]}
    np.testing.assert_array_equal(model.generate(**embeds, **QUIET), model.generate("a red dress", **QUIET))


def test_a_prompt_longer_than_a_row_is_cut_with_a_warning(model):
    long = "a red dress and a blue bag " * 5
    with pytest.warns(UserWarning, match="tokens: the last .* are cut off"):
        drawn = model.generate([long, "a bag"], **QUIET)
    np.testing.assert_array_equal(drawn[1:], model.generate("a bag", **QUIET))


def test_weights_of_words_change_pictures_and_noise_is_chosen_for_words(model):
    plain = model.generate("a red dress", **QUIET)
    assert (model.generate("a (red:1.8) dress", **QUIET) != plain).any()
    chosen = model.generate("a red dress", initial_noise=InitialNoise(steps=1, rounds=1), **QUIET)
    assert chosen.shape == plain.shape


@pytest.mark.slow
def test_openvino_draws_the_same(model):
    pytest.importorskip("openvino")
    settings = {"steps": 4, "num_images": 2, "progress": False, "negative_prompt": "a bag"}
    drawn = [model.generate("a red dress", engine=each, **settings) for each in ("openvino", "tensorflow")]
    assert apart(*drawn) <= 2


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """An empty cache of conversions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_kept_conversion_is_not_that_of_another_tokenizer(model, saved, cached, tmp_path):
    pytest.importorskip("openvino")
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    settings = {"steps": 2, "progress": False}
    first = sd_tf.load(folder)
    assert first.engines.keeps_conversions
    first.generate("a red dress", engine="openvino", **settings)
    assert kept_conversion(first.origin) is not None
    file = folder / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": LENGTH - 2}))
    shorter = sd_tf.load(folder)
    assert shorter.tokenizer.max_length == LENGTH - 2
    assert kept_conversion(shorter.origin) is None
    drawn = [shorter.generate("a red dress", engine=each, **settings) for each in ("openvino", "tensorflow")]
    assert apart(*drawn) <= 2
    given = sd_tf.load(folder, tokenizer=saved / "tokenizer")
    assert not given.engines.keeps_conversions


def test_what_only_a_clip_has_is_refused_in_a_line(model, kind, saved, tmp_path):
    with pytest.raises(
        InputError, match=f"clip_skip is 1, but this model reads with a {kind}, .*leave it out"
    ):
        model.generate("a dress", clip_skip=1)
    with pytest.raises(
        InputError, match=f"the model reads with a {kind}, and a word can be taught to a CLIP"
    ):
        model.add_word("<mine>", np.zeros(WIDTH))
    with pytest.raises(InputError, match="only models that read with a CLIP are exported"):
        export.main(["--model", str(saved), "--output", str(tmp_path / "exported")])
    assert not (tmp_path / "exported").exists()


def test_the_summary_the_card_and_the_judges_know_it(model, kind, saved, tiny_model, capsys):
    model.summary()
    assert f"{kind}, {LENGTH} tokens -> states {WIDTH} wide" in capsys.readouterr().out
    assert not Judges._taught(None, model.text_encoder)
    assert traits_of(model, saved).long_prompts == f"Prompts of more than {LENGTH} tokens are cut."
    assert traits_of(tiny_model, saved).long_prompts.endswith("tokens are encoded in parts.")


# -- training -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with with_tiny_preset():
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The folder of a BERT, as `--text-encoder` names it."""
    folder = tmp_path_factory.mktemp("encoder")
    save_text_encoder_folders(encoder_of("BERT", masked=False), folder)
    return folder


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """A run that was stopped in its last stage, and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    changes = {"text_encoder": given, "text_length": 12}
    with pytest.MonkeyPatch.context() as patch:
        interrupt(made(folder, **changes), patch, "diffusion", 2)
    train_tiny(folder, **changes)
    return folder


def test_a_model_learns_with_it_and_resumes(trained):
    stages = list(dict.fromkeys(line["stage"] for line in lines(trained)))
    assert stages == ["autoencoder", "diffusion"]
    assert json.loads((trained / "model_index.json").read_text())["text_encoder"][1] == "BertModel"
    model = sd_tf.load(trained)
    assert model.tokenizer.max_length == 12 and model.text_config.use_attention_mask
    assert model.config_of("unet").cross_attention_dim == WIDTH
    expected = encoder_of("BERT").network().get_weights()
    for ours, theirs in zip(model.text_encoder.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)  # frozen
    assert list((trained / "samples").rglob("*diffusion*"))
    assert model.generate("a red dress", **QUIET).shape == (1, 32, 32, 3)


def test_states_of_a_trained_model_do_not_attend_to_padding(trained):
    model, reader = sd_tf.load(trained), encoder_of("BERT")
    ids, mask = reader.tokenize(["a red dress", ""])
    with_mask = np.asarray(reader.encode(ids, mask).states)[:, :12]
    found = model.encode_prompts(["a red dress", ""])
    assert deviation(found[mask[:, :12]], with_mask[mask[:, :12]]) < 1e-5


def test_a_lora_of_it_is_trained_and_loaded(trained, tmp_path):
    tuned = {"preset": None, "init_from": trained, "finetune": "lora", "max_steps": 2, "previews": 0}
    train_tiny(tmp_path / "lora", **tuned, learning_rate=1.0)
    model = sd_tf.load(trained)
    before = model.generate("a red dress", **QUIET)
    model.load_lora(tmp_path / "lora")
    assert (model.generate("a red dress", **QUIET) != before).any()
    with pytest.raises(InputError, match="a word can be taught to a CLIP alone: take lora"):
        train_tiny(
            tmp_path / "word",
            **tuned | {"finetune": "textual_inversion"},
            new_word="<mine>",
            like_word="dress",
        )
    assert not (tmp_path / "word").exists()


def test_a_dry_run_counts_it_and_writes_nothing(given, tmp_path, capsys):
    train_tiny(tmp_path / "dry", text_encoder=given, dry_run=True, max_steps=None, max_minutes=1)
    assert "diffusion" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_a_new_model_from_python_has_its_width(given):
    model = sd_tf.LatentDiffusion.from_preset("tiny", "garments", text_encoder=str(given), text_length=9)
    assert model.tokenizer.max_length == 9 and model.config_of("unet").cross_attention_dim == WIDTH
    assert model.known_words is None


def test_a_length_is_for_what_can_have_one(tmp_path):
    with pytest.raises(InputError, match="text_length is 9, but clip-mini is a CLIP, which reads 16 tokens"):
        given_text_encoder("clip-mini", 9)
    with pytest.raises(InputError, match="--text-length is 9, but clip-mini is a CLIP"):
        train_tiny(tmp_path / "run", text_encoder="clip-mini", text_length=9)
    assert not (tmp_path / "run").exists()
    model = sd_tf.LatentDiffusion.from_preset("tiny", "garments", text_encoder="none", text_length=9)
    assert model.tokenizer.max_length == model.text_config.max_position_embeddings == 9

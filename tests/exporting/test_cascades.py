"""Exports of cascades draw the same without sd_tf, from the text of T5, BERT and CLIP."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import sd_tf
from sd_tf import export
from sd_tf.cascade.model import CascadedDiffusion
from sd_tf.cascade.presets import NOISING, schedule_of_pixels
from sd_tf.cascade.stage import PixelStage
from sd_tf.cascade.unet import PixelUNet
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.exporting import draw
from sd_tf.exporting.networks import write_litert, write_what_draws
from sd_tf.exporting.saved_model import GraphModel
from sd_tf.seeding import seeded
from sd_tf.text.bert import BertModel
from sd_tf.text.clip import CLIPTextModel
from sd_tf.text.config import BertConfig, CLIPTextConfig
from sd_tf.text.encoder import BertTextEncoder, CLIPTextEncoder
from sd_tf.text.subword_tokenizer import bert_tokenizer
from sd_tf.text.tokenizer import Tokenizer
from tests.cascade.conftest import tiny_t5
from tests.cascade.small import SUPER_RESOLUTION, small_config
from tests.conftest import shake_variables
from tests.text.vocabularies import bert_vocab

PROMPTS = ["a red dress", "a blue bag"]
NEGATIVES = ["a shirt", ""]
SETTINGS = {"steps": 3, "guidance_scale": 6.0, "sr_steps": 2, "sr_guidance_scale": 1.5}
SAVED_MODEL = """
import sys
sys.modules["sd_tf"] = sys.modules["keras"] = None  # neither can be imported
import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer

folder, output = sys.argv[1:3]
prompts, negatives = sys.argv[3:5], sys.argv[5:]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")

def rows(texts, prefix=""):
    found = tokenizer.encode_batch(texts)
    ids, mask = [each.ids for each in found], [each.attention_mask for each in found]
    return {prefix + "ids": tf.constant(ids), prefix + "mask": tf.constant(mask)}

draw = tf.saved_model.load(folder).signatures["with_negative_prompt"]
options = {"seed": tf.constant(3), "steps": tf.constant(3), "guidance_scale": tf.constant(6.0)}
options |= {"sr_steps": tf.constant(2), "sr_guidance_scale": tf.constant(1.5)}
files = draw(**rows(prompts), **rows(negatives, "negative_"), **options)["png"]
np.save(output, np.stack([tf.io.decode_png(file) for file in files]))
"""
WITHOUT = """
import runpy, sys
sys.modules["sd_tf"] = sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def cascade_with(encoder, **schedule):
    """A random cascade of one level in each stage, 8 pixels, then 16."""
    base = small_config("x", sample_size=8, in_channels=3, out_channels=6, encoder_hid_dim=encoder.width)
    enlarge = dataclasses.replace(base, **SUPER_RESOLUTION, sample_size=16)
    stages = []
    for seed, config in enumerate((base, enlarge)):
        with seeded(seed):
            unet = PixelUNet(config)
            unet.build()
        shake_variables(unet, seed, 0.05)
        noising = NoiseSchedule(NOISING) if seed else None
        own = NoiseSchedule(schedule_of_pixels(**schedule))
        stages.append(PixelStage(unet, own, noising, augment_level=150 * seed))
    return CascadedDiffusion(stages, encoder)


def bert():
    tokenizer = bert_tokenizer(bert_vocab(), 12)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=3,
        max_position_embeddings=20,
    )
    network = BertModel(config)
    network.build()
    shake_variables(network)
    return BertTextEncoder(tokenizer, config, lambda: network)


def clip():
    tokenizer = Tokenizer.learn(["a red dress", "a blue bag"] * 2, 530, 8)
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = CLIPTextModel(config)
    network.build()
    shake_variables(network)
    return CLIPTextEncoder(tokenizer, config, lambda: network)


@pytest.fixture(scope="module")
def cascade():
    """With T5, dynamic thresholding, and a learned variance."""
    return cascade_with(tiny_t5(12))


@pytest.fixture(scope="module")
def folder(cascade, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "model"
    cascade.save(folder)
    return folder


def drawn(model, prompts, steps, guidance_scale, sr_steps, sr_guidance_scale, **settings):
    later = {"steps": sr_steps, "sampler": "ddim", "guidance_scale": sr_guidance_scale}
    settings = {"seed": 3, "sampler": "ddim", "engine": "tensorflow", "progress": False} | settings
    settings |= {"steps": steps, "guidance_scale": guidance_scale, "super_resolution": later}
    return model.generate(prompts, **settings).astype(int)


def python(*arguments):
    subprocess.run([sys.executable, *map(str, arguments)], check=True, timeout=300)


def test_a_saved_model_draws_from_token_ids_without_sd_tf_and_keras(cascade, folder, tmp_path):
    output = tmp_path / "served"
    export.main(["--model", str(folder), "--output", str(output), "--no-table"])
    python("-c", SAVED_MODEL, output, tmp_path / "drawn.npy", *PROMPTS, *NEGATIVES)
    expected = drawn(cascade, PROMPTS, negative_prompt=NEGATIVES, **SETTINGS)
    found = np.load(tmp_path / "drawn.npy")
    assert found.shape == (2, 16, 16, 3) and np.abs(found - expected).max() <= 1
    unclipped = drawn(cascade, PROMPTS, negative_prompt=NEGATIVES, thresholding="none", **SETTINGS)
    assert np.abs(unclipped - expected).max() > 2  # thresholding mattered


def test_onnx_files_and_their_script_draw_without_sd_tf(cascade, folder, tmp_path):
    pytest.importorskip("tf2onnx", reason="needs tf2onnx, which writes ONNX files")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs them")
    output = tmp_path / "onnx"
    export.main(["--model", str(folder), "--output", str(output), "--format", "onnx", "--no-table"])
    assert {file.name for file in (output / "onnx").iterdir()} == {
        "text_encoder.onnx",
        "base.onnx",
        "sr2.onnx",
    }
    flags = ["--seed", 3, "--negative-prompt", "a shirt", "--output", tmp_path / "drawn.png"]
    for name, value in SETTINGS.items():
        flags += [f"--{name.replace('_', '-')}", value]
    python("-c", WITHOUT, output / "draw.py", "a red dress", *flags)
    expected = drawn(cascade, "a red dress", negative_prompt="a shirt", **SETTINGS)[0]
    assert np.abs(np.asarray(Image.open(tmp_path / "drawn.png")) - expected).max() <= 1


@pytest.mark.slow
def test_litert_files_draw_with_bert_and_a_bound_of_dynamic_thresholding(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which runs LiteRT files")
    kept = schedule_of_pixels().kept | {"sample_max_value": 1.2, "dynamic_thresholding_ratio": 0.9}
    model = cascade_with(bert(), prediction_type="epsilon", timestep_spacing="leading", kept=kept)
    write_what_draws(model, tmp_path)
    write_litert(model, tmp_path / "float16", "float16")
    exported = draw.Model(tmp_path, "float16")
    for sr_scale in (1.0, 2.0):  # a picture alone, and with what it leans away from
        settings = SETTINGS | {"guidance_scale": 2.0, "sr_guidance_scale": sr_scale}
        found = exported.generate("a red dress", seed=3, **settings)
        difference = np.abs(found - drawn(model, "a red dress", **settings)[0])
        assert difference.max() <= 4 and difference.mean() <= 1
    with pytest.raises(SystemExit, match="error: sr_steps is 1001: give 1 to 1000"):
        exported.generate("a red dress", steps=1, sr_steps=1001)
    long = "a red dress and a blue bag and a coat"
    with pytest.warns(UserWarning, match=r"has \d+ tokens: the last \d+ are cut off"):
        found = exported.generate(long, seed=3, **settings)
    with pytest.warns(UserWarning, match="are cut off"):
        expected = drawn(model, long, **settings)[0]
    assert np.abs(found - expected).max() <= 4


@pytest.mark.slow
def test_a_saved_model_with_clip_reads_prompts_also_in_parts_and_clips(tmp_path):
    kept = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    model = cascade_with(clip(), clip_sample=True, kept=kept)
    assert model.stages[0].thresholding.kind == "static"
    GraphModel(model).save(tmp_path)
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]

    def files(prompts, **changed):
        given = {"prompt": prompts, "seed": 3, **SETTINGS, "sr_guidance_scale": 1.0} | changed
        return serve(**{name: tf.constant(value) for name, value in given.items()})["png"]

    prompts = ["a red dress", "a bag, a bag, a bag and another bag"]
    found = np.stack([tf.io.decode_png(file) for file in files(prompts)])
    expected = drawn(model, prompts, **SETTINGS | {"sr_guidance_scale": 1.0})
    assert np.abs(found - expected).max() <= 1
    for changed, message in (
        ({"sr_steps": 0}, "sr_steps is below 1"),
        ({"sr_steps": 1001}, "sr_steps is above 1000"),
        ({"sr_guidance_scale": -1.0}, "sr_guidance_scale is below 0"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            files(prompts, **changed)


def test_bad_input_is_named_before_tensorflow_is_imported(cascade, folder, tmp_path, monkeypatch):
    with pytest.raises(sd_tf.InputError, match="--sr-steps is 0: give 1 or more"):
        export.main(["--sr-steps", "0", "--output", str(tmp_path / "out")])
    monkeypatch.setattr("sd_tf.commandline.load_tensorflow", lambda: pytest.fail("was imported"))
    for name in ("--steps", "--sr-steps"):
        with pytest.raises(sd_tf.InputError, match=f"{name}: .*1001"):
            export.main(["--model", str(folder), name, "1001", "--output", str(tmp_path / "out")])
    CascadedDiffusion(cascade.stages[1:], cascade.text_encoder).save(tmp_path / "model")
    with pytest.raises(sd_tf.InputError, match="only enlarges pictures: name a model that draws from text"):
        export.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()

"""`push_to_hub` of cascades: what is uploaded draws the same, and its card says what it is."""

import json
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard

import sd_tf
from sd_tf import push as command
from sd_tf.cascade.card import traits_of
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.sources import weights_sha256
from tests.sharing.hub import known_to_this_process, serving

NAME = "team/icons"
FAST = {"steps": 2, "super_resolution": {"steps": 2}, "engine": "tensorflow", "progress": False}
RUN = {"family": "cascade", "dataset": "emoji", "image_size": 16, "batch_size": 4}


@pytest.fixture
def hub(tmp_path):
    with serving() as hub, known_to_this_process(hub, tmp_path / "cache"):
        yield hub


@pytest.fixture
def run(cascade, tmp_path):
    """A run's folder, with its model."""
    cascade.save(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(RUN))
    lines = [{"stage": name, "step": 3, "elapsed": 120.0, "loss": 0.5} for name in ("base", "sr2")]
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "run"


def card_on(hub):
    return ModelCard(dict(hub.repositories[NAME].files("main"))["README.md"].decode())


def test_the_command_uploads_a_cascade_that_draws_the_same(hub, run, cascade, capsys):
    command.main(["--model", str(run), "--to", NAME, "--license", "mit"])
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.address}/{NAME}"
    loaded = sd_tf.load(NAME)
    np.testing.assert_array_equal(loaded.generate("a dress", **FAST), cascade.generate("a dress", **FAST))
    card = card_on(hub)
    assert card.data.to_dict() == {
        "license": "mit",
        "library_name": "sd_tf",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "imagen", "keras", "sd_tf"],
    }
    for said in (
        "A text-to-image cascade of two diffusion models on pixels (Imagen: 8 x 8, then 16 x 16) that draws",
        "diffusers' IFPipeline opens its folder `base`, IFSuperResolutionPipeline `sr2`.",
        "Prompts of more than 77 tokens are cut.",
        "- data set: emoji",
        "- stage base: 3 steps in 2.0 minutes",
        "- stage sr2: 3 steps in 2.0 minutes",
    ):
        assert said in card.text
    assert "With diffusers" not in card.text and "latent" not in card.text


def test_scores_of_sd_tf_evaluate_are_in_the_card_unless_a_network_has_changed(hub, run):
    """Whose report has a hash of the files."""
    score = {"value": 3.25, "low": 3.0, "high": 3.5, "real": 0.4, "better": "lower"}
    scores = {"frechet_distance": score | {"protocol": {"samples": 500, "sizes": "8 x 8, then 16 x 16"}}}
    report = {"model": "x", "weights": weights_sha256(run), "scores": scores}
    (run / "report.json").write_text(json.dumps(report))
    model = sd_tf.load(run)
    model.push_to_hub(NAME)
    assert "| 3.25 | 3 to 3.5 | 0.4 | samples 500, sizes 8 x 8, then 16 x 16 |" in card_on(hub).text
    kernel = model.stages[1].unet.conv_out.kernel
    kernel.assign(np.asarray(kernel) + 0.1)
    model.save(run)
    with pytest.warns(UserWarning, match="scores other weights than the model's"):
        sd_tf.load(run).push_to_hub(NAME, card="new")
    assert "## Scores" not in card_on(hub).text


def test_a_model_with_another_network_is_no_longer_that_of_its_files(run):
    model = sd_tf.load(run)
    assert model.origin.is_unchanged and model.origin.parts == ("base/text_encoder", "base/unet", "sr2/unet")
    model.put(0, model.stages[0].unet)
    assert model.origin is not None
    model.put(0, PixelUNet(model.stages[0].config))
    assert model.origin is None


def test_diffusers_opens_the_stages_as_the_card_says(hub, cascade, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from huggingface_hub import snapshot_download

    cascade.push_to_hub(NAME)
    folder = snapshot_download(NAME, cache_dir=tmp_path / "snapshot")
    nothing = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    base = diffusers.IFPipeline.from_pretrained(f"{folder}/base", requires_safety_checker=False, **nothing)
    assert base.unet.config.sample_size == 8
    shared = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
    later = diffusers.IFSuperResolutionPipeline.from_pretrained(
        f"{folder}/sr2", requires_safety_checker=False, **nothing, **shared
    )
    assert later.unet.config.sample_size == 16


def test_the_snippet_and_the_pictures_of_the_card(hub, cascade, tmp_path, monkeypatch):
    monkeypatch.setattr("sd_tf.generation.engines.Engines._openvino_fits", lambda _: "it takes longer here")
    cascade.push_to_hub(NAME, prompts=["a dress"], dtype="float16")
    [snippet] = re.findall(r"```python\n(.+?)```", card_on(hub).text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(snippet, made)
    assert made["images"].shape == (4, 16, 16, 3) and (tmp_path / "pictures.png").is_file()
    [widget] = card_on(hub).data.widget
    assert widget["text"] == "a dress" and widget["output"]["url"] in dict(
        hub.repositories[NAME].files("main")
    )


def test_the_card_of_a_stage_that_enlarges_names_the_pipeline_that_opens_it(cascade, tmp_path):
    larger = sd_tf.CascadedDiffusion(cascade.stages[1:], cascade.text_encoder)
    expected = "diffusers' IFSuperResolutionPipeline opens its folder `base`"
    assert traits_of(larger, tmp_path).read_by == expected
    larger.save(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "base" / "model_index.json").read_text())
    assert index["_class_name"] == "IFSuperResolutionPipeline"


def test_stages_that_are_there_no_more_are_removed(hub, cascade):
    cascade.push_to_hub(NAME)
    hub.repositories[NAME].branches["main"]["sr2/old.txt"] = b"of before"
    hub.repositories[NAME].branches["main"]["notes.txt"] = b"the owner's"
    cascade.push_to_hub(NAME)
    files = dict(hub.repositories[NAME].files("main"))
    assert "sr2/old.txt" not in files and files["notes.txt"] == b"the owner's"


def test_bad_names_are_refused(hub, cascade):
    with pytest.raises(sd_tf.InputError, match="repo_id is 'icons': give organisation/name"):
        cascade.push_to_hub("icons")
    assert not hub.asked

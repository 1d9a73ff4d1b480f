"""The cards of the bundled models: metadata that the hub takes, and snippets that run."""

import json
import re

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from sd_tf.checkpoints.sources import BUNDLED, bundled_names

SLOW = ("emoji", "fashion-mnist", "fashion-mnist-classifier")  # whose snippets draw for more than ten seconds
DRAWING = [name for name in bundled_names() if (BUNDLED / name / "model_index.json").is_file()]
OF_DIFFUSERS = [name for name in DRAWING if name != "emoji"]  # whose blocks diffusers has not
PYTHON = re.compile(r"```python\n(.+?)```", re.DOTALL)


def card_of(name):
    return huggingface_hub.ModelCard.load(BUNDLED / name / "README.md")


def slow_ones_marked(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


def snippets(name, of_others):
    """The Python of a card, of sd_tf or of other libraries."""
    found = PYTHON.findall(card_of(name).text)
    return [code for code in found if ("import diffusers" in code or "sd_tf" not in code) == of_others]


def run(code, folder, monkeypatch):
    """What a snippet has made, run in a folder like a checkout, without a network."""
    (folder / "weights").symlink_to(BUNDLED)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    made = {}
    exec(compile(code, "README.md", "exec"), made)  # of this repository
    return made


@pytest.mark.parametrize("name", bundled_names())
def test_metadata_are_those_that_the_hub_knows(name):
    data = card_of(name).data
    assert data.license == "apache-2.0"
    assert data.library_name in ("diffusers", "transformers", "keras", "sd_tf")
    assert "sd_tf" in data.tags and len(set(data.tags)) == len(data.tags)
    for dataset in data.datasets or ():
        validate_repo_id(dataset)
        assert dataset.count("/") == 1
    assert (data.datasets == ["zalando-datasets/fashion_mnist"]) == ("Fashion-MNIST" in card_of(name).text)
    round_trip = huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    assert round_trip.to_dict() == data.to_dict()


@pytest.mark.parametrize("name", DRAWING)
def test_models_that_draw_name_their_pipeline_and_who_opens_it(name):
    data = card_of(name).data
    library, kind = ("diffusers", "stable-diffusion") if name in OF_DIFFUSERS else ("sd_tf", "imagen")
    assert (data.pipeline_tag, data.library_name) == ("text-to-image", library)
    assert {"text-to-image", kind, "keras"} <= set(data.tags)
    assert json.loads((BUNDLED / name / "model_index.json").read_text())["_class_name"] in card_of(name).text


@pytest.mark.parametrize("name", bundled_names())
def test_pictures_of_cards_are_there(name):
    folder, widget = BUNDLED / name, card_of(name).data.to_dict().get("widget", [])
    shown = {each["output"]["url"] for each in widget}
    assert shown == {path.name for path in folder.glob("*.png")}
    for each in widget:
        assert each["text"]
        Image.open(folder / each["output"]["url"]).verify()


@pytest.mark.parametrize("name", slow_ones_marked(bundled_names()))
def test_the_snippet_for_sd_tf_runs(name, tmp_path, monkeypatch):
    codes = snippets(name, of_others=False)
    assert len(codes) == 1
    made = run(codes[0], tmp_path, monkeypatch)
    if name in DRAWING:
        side = int(re.search(r"uint8 \(4, (\d+), ", codes[0])[1])
        assert made["images"].shape == (4, side, side, 3) and np.ptp(made["images"]) > 100
    if name == "fashion-mnist-classifier":
        assert made["garments"] == ["dress"] * 4


@pytest.mark.parametrize("name", slow_ones_marked([*OF_DIFFUSERS, "clip-mini"]))
def test_the_snippet_for_another_library_runs(name, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers" if name in OF_DIFFUSERS else "transformers")
    codes = snippets(name, of_others=True)
    assert len(codes) == 1
    made = run(codes[0], tmp_path, monkeypatch)
    if name in DRAWING:
        assert np.ptp(np.asarray(made["image"])) > 100

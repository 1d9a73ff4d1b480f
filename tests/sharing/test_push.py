"""`push_to_hub`: what is uploaded to a hub, which another process stands for, is what is read from it."""

import contextlib
import json
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard

import sd_tf
from sd_tf import push as command
from sd_tf.errors import InputError
from sd_tf.latent.loading import load
from tests.conftest import drawn_by_diffusers
from tests.sharing.hub import TOKEN, known_to_this_process, serving

NAME = "team/dresses"
PROMPTS = ["a red dress", "a bag"]
RUN = {"family": "latent", "dataset": "fashion_mnist", "image_size": 16, "batch_size": 4, "finetune": "unet"}


@pytest.fixture
def hub(tmp_path):
    with serving() as hub, known_to_this_process(hub, tmp_path / "cache"):
        yield hub


@pytest.fixture
def run(tiny_model, tmp_path):
    """A run's folder, with its model."""
    folder = tmp_path / "run"
    tiny_model.save(folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    lines = [{"stage": "diffusion", "step": step, "elapsed": 60.0 * step, "loss": 0.5} for step in (1, 3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def drawn(model):
    return model.generate(PROMPTS, steps=3, engine="tensorflow", progress=False).astype(int)


def card_on(hub, name=NAME, revision="main"):
    text = dict(hub.repositories[name].files(revision))["README.md"].decode()
    return ModelCard(text)


# -- what arrives ---------------------------------------------------------------------------------------


def test_a_model_that_was_uploaded_draws_the_same_pictures_when_it_is_loaded(hub, tiny_model, tmp_path):
    assert tiny_model.push_to_hub(NAME) == f"{hub.address}/{NAME}"
    assert [branch for branch, _ in hub.repositories[NAME].commits] == ["main"]
    assert hub.objects  # the weights took the way of large files
    np.testing.assert_array_equal(drawn(sd_tf.load(NAME)), drawn(tiny_model))


def test_diffusers_downloads_and_draws_it(hub, tiny_model, tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    tiny_model.push_to_hub(NAME)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        NAME, torch_dtype=torch.float32, cache_dir=tmp_path / "cache"
    )
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 5, 3.0)
    ours = tiny_model.generate(PROMPTS, steps=5, guidance_scale=3.0, latents=latents, progress=False)
    assert np.abs(reference - ours).max() <= 2


def test_the_snippets_of_the_card_run(hub, tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    tiny_model.push_to_hub(NAME, dtype="float16", prompts=["a bag"])
    ours, of_diffusers = re.findall(r"```python\n(.+?)```", card_on(hub).text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(ours, made)
    assert made["images"].shape == (4, 16, 16, 3) and (tmp_path / "pictures.png").is_file()
    exec(of_diffusers, made)
    assert made["image"].size == (16, 16)


def test_the_dtype_is_that_of_save(hub, tiny_model):
    from safetensors.numpy import load as read

    tiny_model.push_to_hub(NAME, dtype="float16")
    weights = dict(hub.repositories[NAME].files("main"))["unet/diffusion_pytorch_model.safetensors"]
    assert {value.dtype for value in read(weights).values()} == {np.dtype("float16")}


def test_weights_of_an_earlier_model_are_removed(hub, tiny_model):
    tiny_model.push_to_hub(NAME, max_shard_size=20_000)
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in dict(hub.repositories[NAME].files("main"))
    hub.repositories[NAME].branches["main"]["notes.txt"] = b"the owner's"
    tiny_model.push_to_hub(NAME)
    files = dict(hub.repositories[NAME].files("main"))
    assert [path for path in files if path.startswith("unet/")] == [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert files["notes.txt"] == b"the owner's"


def test_a_branch_and_a_pull_request(hub, tiny_model):
    url = tiny_model.push_to_hub(NAME, revision="smaller", commit_message="A smaller one")
    assert url == f"{hub.address}/{NAME}/tree/smaller"
    assert hub.repositories[NAME].commits == [("smaller", "A smaller one")]
    assert not hub.repositories[NAME].files("main")
    assert tiny_model.push_to_hub(NAME, create_pr=True) == f"{hub.address}/{NAME}/discussions/1"
    assert hub.repositories[NAME].commits[-1][0].startswith("refs/pr/")


def test_a_private_repository(hub, tiny_model):
    tiny_model.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private


def test_private_is_no_promise_for_a_repository_that_is_public(hub, tiny_model):
    tiny_model.push_to_hub(NAME)
    with pytest.raises(InputError, match=f"{NAME} is on the hub already, and public: make it private"):
        tiny_model.push_to_hub(NAME, private=True)
    assert len(hub.repositories[NAME].commits) == 1


def test_the_command_uploads_a_run(hub, run, capsys):
    command.main(["--model", str(run), "--to", NAME, "--license", "mit", "--prompt", "a dress"])
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.address}/{NAME}"
    assert card_on(hub).data.license == "mit"
    assert [each["text"] for each in card_on(hub).data.widget] == ["a dress"]


# -- the card -------------------------------------------------------------------------------------------


def test_the_card_says_how_the_model_was_trained(hub, run):
    load(run).push_to_hub(NAME, license="apache-2.0", base_model="team/first")
    card = card_on(hub)
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "stable-diffusion", "keras", "sd_tf"],
        "datasets": ["zalando-datasets/fashion_mnist"],
        "base_model": "team/first",
        "widget": card.data.widget,
    }
    assert "- batch size: 4" in card.text and "- stage diffusion: 3 steps in 3.0 minutes" in card.text
    assert f'sd_tf.load("{NAME}")' in card.text
    assert f'StableDiffusionPipeline.from_pretrained("{NAME}", ' in card.text


def test_the_pictures_of_the_card_are_uploaded(hub, tiny_model):
    import io

    from PIL import Image

    tiny_model.push_to_hub(NAME, prompts=PROMPTS)
    files = dict(hub.repositories[NAME].files("main"))
    widget = card_on(hub).data.widget
    assert [each["text"] for each in widget] == PROMPTS
    expected = tiny_model.generate(PROMPTS, progress=False)
    for each, image in zip(widget, expected, strict=True):
        picture = Image.open(io.BytesIO(files[each["output"]["url"]]))
        np.testing.assert_array_equal(np.asarray(picture), image)
        assert picture.info["prompt"] == each["text"]


def test_no_licence_is_claimed_unless_one_is_given(hub, tiny_model):
    tiny_model.push_to_hub(NAME)
    assert "license" not in card_on(hub).data.to_dict()


def report(model, weights=None):
    score = {"value": 3.25, "low": 3.0, "high": 3.5, "real": 0.4, "better": "lower"}
    protocol = {"samples": 500, "file": "/home/somebody/secret", "sampler": "ddim"}
    scores = {"frechet_distance": score | {"protocol": protocol}}
    return {"model": "x", "weights": weights or model.weights_sha256(), "scores": scores}


def test_scores_beside_the_model_are_in_the_card_without_paths(hub, run):
    model = load(run)
    (run / "report.json").write_text(json.dumps(report(model)))
    model.push_to_hub(NAME)
    text = card_on(hub).text
    assert "| frechet\\_distance | 3.25 | 3 to 3.5 | 0.4 | samples 500, sampler ddim |" in text
    assert "somebody" not in text


def test_scores_of_other_weights_are_left_out(hub, run):
    model = load(run)
    (run / "report.json").write_text(json.dumps(report(model, "0" * 64)))
    with pytest.warns(UserWarning, match="scores other weights than the model's"):
        model.push_to_hub(NAME)
    assert "## Scores" not in card_on(hub).text


@pytest.mark.parametrize("scores", [[], {"x": 1}, {"x": {"value": "3", "protocol": {}}}])
def test_a_report_that_is_none_is_refused(hub, run, scores):
    model = load(run)
    (run / "report.json").write_text(json.dumps(report(model) | {"scores": scores}))
    with pytest.raises(InputError, match="report.json is no report of sd_tf.evaluate"):
        model.push_to_hub(NAME)


def test_what_a_stranger_wrote_into_a_run_is_shown_as_text(hub, run):
    settings = {"dataset": "hub:team/pictures", "new_word": "<script>[x](http://x)", "caption": "a\n# b"}
    (run / "run.json").write_text(json.dumps(settings))
    load(run).push_to_hub(NAME)
    card = card_on(hub)
    assert card.data.datasets == ["team/pictures"]
    assert "- new word: &lt;script&gt;\\[x\\](http://x)" in card.text
    assert "\n# b" not in card.text


def test_a_card_on_the_hub_is_kept(hub, tiny_model, tmp_path):
    tiny_model.push_to_hub(NAME)
    files = hub.repositories[NAME].branches["main"]
    files["README.md"] = b"mine"
    tiny_model.push_to_hub(NAME, prompts=PROMPTS)
    assert files["README.md"] == b"mine" and not [path for path in files if "examples" in path]
    other = tmp_path / "card.md"
    other.write_text("another\n")
    tiny_model.push_to_hub(NAME, card=other)
    assert dict(hub.repositories[NAME].files("main"))["README.md"] == b"another\n"
    tiny_model.push_to_hub(NAME, card="new")
    assert "# dresses" in card_on(hub).text


def test_a_card_in_the_models_folder_is_taken_with_its_pictures(hub, run, tmp_path):
    (tmp_path / "private.png").write_bytes(b"private")
    (run / "README.md").write_text("# mine\n\n![](grid.png) ![](../private.png) ![](gone.png)\n")
    (run / "grid.png").write_bytes(b"a picture")
    load(run).push_to_hub(NAME)
    files = dict(hub.repositories[NAME].files("main"))
    assert files["README.md"].startswith(b"# mine") and files["grid.png"] == b"a picture"
    assert not [path for path in files if "private" in path or "gone" in path]
    load(run).push_to_hub(NAME, card="new")
    assert card_on(hub).text.startswith("\n# dresses") or "# dresses" in card_on(hub).text


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dresses", "", "team/a/b", "team/", "../x", "team/a--b", "team/x.git", 3, None]
)
def test_a_name_that_the_hub_does_not_take_is_named(tiny_model, name):
    with pytest.raises(InputError, match="^repo_id is .*: give organisation/name"):
        tiny_model.push_to_hub(name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"license": "All rights reserved"}, "license is 'All rights reserved': give the hub's identifier"),
        ({"base_model": "runs"}, "base_model is 'runs': give organisation/name"),
        ({"card": "nothing.md"}, "card is 'nothing.md': give a Markdown file, or 'new'"),
        ({"prompts": [1]}, r"prompts is \[1\]: give up to 12 strings"),
        ({"create_pr": True, "revision": "x"}, "create_pr and revision are both given: leave one out"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_an_argument_is_checked_before_the_hub_is_asked(hub, tiny_model, settings, said):
    with pytest.raises(InputError, match=said):
        tiny_model.push_to_hub(NAME, **settings)
    assert not hub.asked


def test_loras_are_not_merged_unasked(hub, tiny_model, tmp_path):
    from sd_tf.lora.adaptations import LowRank

    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = tiny_model.adaptations.shape(module)[0]
    change = LowRank(np.ones((1, width), "float32"), np.ones((width, 1), "float32"))
    tiny_model.adaptations.add("style", {module: change})
    try:
        with pytest.raises(InputError, match=r"the model has LoRAs \('style'\): merge them with"):
            tiny_model.push_to_hub(NAME)
    finally:
        tiny_model.adaptations.remove("style")
    assert not hub.asked


def test_without_a_token_it_says_how_to_log_in(hub, tiny_model, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(InputError, match="there is no token for the hub: log in with hf auth login, or set"):
        tiny_model.push_to_hub(NAME)
    assert not hub.asked
    assert tiny_model.push_to_hub(NAME, token=TOKEN)


REFUSALS = [  # path, answer, what the message says
    ("create", (401, {}, {"error": "no"}), "answers 401: the token is not valid: log in"),
    (
        "create",
        (403, {"X-Error-Message": "not your team"}, {}),
        r"answers 403 \('not your team'\): the token",
    ),
    ("create", (500, {}, {}), "answers 500: try again later"),
    ("preupload", (404, {"X-Error-Code": "RepoNotFound"}, {}), "answers 404: there is no such repository"),
    (
        "preupload",
        (404, {"X-Error-Code": "RevisionNotFound"}, {}),
        "answers 404: there is no such repository",
    ),
    ("batch", (403, {"X-Error-Message": "over quota"}, {}), r"answers 403 \('over quota'\)"),
    ("objects", (400, {}, {"error": "checksum"}), "answers 400"),
    (
        "commit",
        (409, {}, {"error": "A commit has happened since"}),
        "answers 409: somebody else has changed it",
    ),
    ("commit", (413, {}, {}), "answers 413: a file is too large: give a smaller max_shard_size"),
    ("validate-yaml", (400, {}, {"errors": [{"message": "license"}]}), "answers 400: correct what it names"),
]


@pytest.mark.parametrize(("path", "answer", "said"), REFUSALS, ids=lambda value: str(value)[:30])
def test_a_refusal_is_one_line_with_a_way_out(hub, tiny_model, path, answer, said):
    hub.answers[path] = answer
    with pytest.raises(InputError, match=f"^{NAME} could not be uploaded, the hub {said}") as raised:
        tiny_model.push_to_hub(NAME)
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)
    assert not hub.repositories or not hub.repositories[NAME].commits


def test_a_repository_that_exists_needs_no_right_to_make_one(hub, tiny_model):
    tiny_model.push_to_hub(NAME)
    hub.answers["repos/create"] = (403, {}, {})
    tiny_model.push_to_hub(NAME, commit_message="again")
    assert hub.repositories[NAME].commits[-1] == ("main", "again")


def test_a_token_of_somebody_else_is_refused(hub, tiny_model):
    with pytest.raises(InputError, match="answers 401: the token is not valid") as raised:
        tiny_model.push_to_hub(NAME, token="hf_wrong")
    assert "hf_wrong" not in str(raised.value)


def test_a_network_that_is_gone_is_named(tiny_model, tmp_path):
    with contextlib.ExitStack() as stack:
        with serving() as hub:
            pass  # nobody listens there now
        stack.enter_context(known_to_this_process(hub, tmp_path))
        with pytest.raises(
            InputError, match=r"could not be uploaded \(.*\): check the network, and HF_ENDPOINT"
        ):
            tiny_model.push_to_hub(NAME)


def test_working_offline_is_named(hub, tiny_model, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"could not be uploaded \(.*offline.*\): check the network"):
        tiny_model.push_to_hub(NAME)

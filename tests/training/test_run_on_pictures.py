"""`--dataset folder`: captioned pictures become a model, through a preset that trains in seconds."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf.errors import InputError
from tests.training.tiny import config, contents, interrupt, run_of, train, with_tiny_preset

WORDS = ("scarlet", "azure", "emerald", "ochre")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with with_tiny_preset():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures of many sizes with four words for captions, and one that is damaged."""
    folder, generator, rows = tmp_path_factory.mktemp("mine"), np.random.default_rng(0), []
    for number in range(40):
        size = (*generator.integers(20, 60, 2), 3)
        name = f"a picture {number}.png"
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(folder / name)
        rows.append({"file_name": name, "text": f"a {WORDS[number % 4]} thing"})
    (folder / rows[7]["file_name"]).write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(of(pictures, folder))
    return folder


def of(pictures, folder, **changes):
    flags = {"dataset": "folder", "data_dir": str(pictures), "flip": True, "fit": "random"}
    return config(folder, **flags | changes)


def test_a_folder_becomes_a_model_that_knows_its_words_and_draws_its_captions_on_the_way(finished):
    model = sd_tf.load(finished)
    assert model.generate("an azure thing", steps=2).shape == (1, 32, 32, 3)
    for word in WORDS:
        assert len(set(model.tokenizer([word])[0])) == 3, "begin, the word as one token, end"
    assert {file.name.partition("-")[0] for file in (finished / "samples").iterdir()} == {
        "autoencoder",
        "diffusion",
    }


def test_what_cannot_be_read_is_listed_and_left_out(finished):
    (store,) = (finished / "cache").glob("pictures-*")
    assert "a picture 7.png" in (store / "skipped.txt").read_text()
    assert len(np.load(store / "kept.npy")) == 39


def test_a_resumed_run_reads_the_pictures_that_it_decoded_before(pictures, finished, capsys):
    before = contents(finished)
    train(of(pictures, finished))
    assert "decoding" not in capsys.readouterr().err
    assert contents(finished) == before


def test_a_run_resumes_with_its_captions_wherever_they_lie_and_with_no_others(
    pictures, tmp_path, monkeypatch
):
    mine, run = shutil.copytree(pictures, tmp_path / "mine"), tmp_path / "run"
    captions = mine / "metadata.jsonl"
    before = captions.read_text()
    interrupt(run_of(of(mine, run)), monkeypatch, "clip", 2)
    another = json.dumps({"file_name": "one more.png", "text": "a scarlet thing"})
    shutil.copy(mine / "a picture 0.png", mine / "one more.png")
    for after in (before.replace("scarlet", "crimson", 1), before + another):
        captions.write_text(after)
        kept = contents(run)
        refused = re.escape(f"{run} began with other captions than {mine} has now: restore those")
        with pytest.raises(InputError, match=refused):
            run_of(of(mine, run))
        assert contents(run) == kept
    captions.write_text(before)
    moved = shutil.copytree(mine, tmp_path / "moved", copy_function=shutil.copyfile)  # as written just now
    shutil.rmtree(mine)
    train(of(moved, run, stage="clip"))
    assert (run / "clip").is_dir()


def test_captions_may_change_until_something_is_learned_and_where_a_run_kept_none(pictures, tmp_path):
    mine, run = shutil.copytree(pictures, tmp_path / "mine"), tmp_path / "run"
    run_of(of(mine, run))
    (mine / "a picture 0.png").unlink()
    run_of(of(mine, run))
    (run / "checkpoints").mkdir()
    (mine / "a picture 1.png").unlink()
    with pytest.raises(InputError, match="began with other captions"):
        run_of(of(mine, run))
    kept = json.loads((run / "run.json").read_text())
    del kept["captions_fingerprint"]  # as an earlier version
    (run / "run.json").write_text(json.dumps(kept))
    run_of(of(mine, run))


def test_one_caption_for_all_takes_the_place_of_their_own(pictures, tmp_path):
    run = run_of(of(pictures, tmp_path / "run", caption="a photo of <mine>", dry_run=True))
    assert set(run.dataset.corpus()) == {"a photo of <mine>"} and len(run.dataset) == 40


def test_a_dry_run_of_a_folder_writes_nothing(pictures, tmp_path):
    from sd_tf.training.dry_run import describe

    lines = describe(run_of(of(pictures, tmp_path / "run", dry_run=True)))
    assert "stage clip" in lines and "stage diffusion" in lines
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "folder", "data_dir": None}, "--dataset folder needs --data-dir"),
        ({"dataset": "foldr"}, "--dataset.*'foldr': did you mean 'folder'"),
        ({"dataset": "hub:"}, "--dataset.*'hub:'"),
        ({"dataset": "garments", "data_dir": None}, "--fit is for your own pictures"),
        ({"background": "white"}, "--background is 'white': give six hexadecimals"),
        ({"jitter": -0.1}, "--jitter is -0.1"),
        ({"fit": "stretch"}, "--fit.*'stretch'"),
        ({"caption_template": "a photo"}, "caption-template is 'a photo'"),
        ({"caption_column": "words"}, "'words'"),
        ({"caption": " "}, "--caption is empty"),
        ({"caption": "a thing", "caption_column": "text"}, "--caption replaces the captions"),
        ({"image_size": 36}, "--image-size is 36: .* a multiple of 8"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_named_and_nothing_is_written(pictures, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run_of(of(pictures, tmp_path / "run", **changes))
    assert not list(tmp_path.iterdir())


def test_the_run_folder_of_a_hub_name_is_one_folder(monkeypatch, pictures, tmp_path):
    from sd_tf.data.sources import folder_source

    monkeypatch.setattr("sd_tf.data.open.find_source", lambda *_: folder_source(pictures))
    run = run_of(of(pictures, tmp_path / "{dataset}", dataset="hub:owner/name", dry_run=True))
    assert run.folder == tmp_path / "hub-owner-name"

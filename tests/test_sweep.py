"""`python -m sd_tf.sweep`: one prompt over training time and guidance, on one sheet."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf import images, sweep
from sd_tf.errors import InputError
from sd_tf.generation.settings import Settings, write_settings
from sd_tf.latent.folder import load_unet
from sd_tf.training.loop import Budget
from sd_tf.training.observers import Snapshots
from tests.training.tiny import config, run_of, train, with_tiny_preset


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of eight steps, kept at four times."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    with with_tiny_preset():
        train(config(folder, max_steps=8, snapshots=4))
    return folder


def test_a_run_keeps_its_unet_at_so_many_times_of_which_the_last_is_the_end(run):
    assert [path.name for path in sorted((run / "snapshots").iterdir())] == [
        f"step-{step:07d}" for step in (2, 4, 6, 8)
    ]
    last, finished = load_unet(run / "snapshots" / "step-0000008"), sd_tf.load(run).unet
    for ours, theirs in zip(last.variables, finished.variables, strict=True):
        np.testing.assert_array_equal(ours.value, theirs.value)
    first = load_unet(run / "snapshots" / "step-0000002")
    assert any(
        np.abs(a.value - b.value).max() > 0 for a, b in zip(first.variables, last.variables, strict=True)
    )


def test_a_killed_run_makes_snapshots_after_its_checkpoint_again(tmp_path):
    made = []
    budget = Budget(8.0, None)
    trainer = SimpleNamespace(step=SimpleNamespace(averages_in_place=contextlib.nullcontext))

    def write(folder):
        folder.mkdir(parents=True)
        made.append(folder.name)

    first = Snapshots(write, tmp_path, 4, budget, 0.0)
    for step in range(1, 6):
        first(trainer, step, float(step), {})
    assert made == ["step-0000002", "step-0000004"]
    resumed = Snapshots(write, tmp_path, 4, budget, budget.progress(3, 3.0), first_step=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]
    for step, elapsed in ((4, 3.9), (5, 4.2), (6, 6.0), (7, 8.0)):
        resumed(trainer, step, elapsed, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{i:07d}" for i in (2, 5, 6, 7)]


@pytest.fixture
def seen(monkeypatch):
    """What the contact sheet is made of."""
    found, make = {}, images.contact_sheet

    def spy(images, rows, columns, title):
        found.update(images=images, rows=rows, columns=columns)
        return make(images, rows, columns, title)

    monkeypatch.setattr(images, "contact_sheet", spy)
    return found


def test_rows_are_times_and_columns_are_scales(run, tmp_path, seen):
    file = tmp_path / "new" / "sheet.png"
    flags = ["--guidance-scale", "0.1", "3", "--steps", "2", "--seed", "5", "--output", str(file)]
    sweep.main(["a red dress", "--run", str(run), *flags])
    assert seen["rows"] == ["step 2", "step 4", "step 6", "step 8"]
    assert seen["columns"] == ["guidance 0.1", "guidance 3"]
    expected = sd_tf.load(run).generate("a red dress", steps=2, guidance_scale=3.0, seed=5)
    np.testing.assert_array_equal(seen["images"][-1, 1], expected[0])
    with Image.open(file) as image:
        assert image.text["prompt"] == "a red dress" and image.text["seed"] == "5"
        assert min(image.size) > 200


def test_snapshots_are_drawn_as_the_model_recommends(run, tmp_path, seen):
    theirs = shutil.copytree(run, tmp_path / "run")
    write_settings(theirs, Settings(sampler="unipc"))
    flags = ["--guidance-scale", "1", "--steps", "3", "--output", str(tmp_path / "sheet.png")]
    sweep.main(["a dress", "--run", str(theirs), *flags])
    settings = {"steps": 3, "guidance_scale": 1.0, "engine": "tensorflow"}
    expected, usual = (sd_tf.load(each).generate("a dress", **settings)[0] for each in (theirs, run))
    np.testing.assert_array_equal(seen["images"][-1, 0], expected)
    assert (expected != usual).any()


def test_a_run_without_snapshots_and_a_file_that_is_no_picture_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="has no snapshots: train with --snapshots"):
        sweep.main(["a dress", "--run", str(tmp_path)])
    with pytest.raises(InputError, match="--output is .*: name a .png file"):
        sweep.main(["a dress", "--run", str(run), "--output", str(tmp_path / "sheet.gif")])
    with pytest.raises(InputError, match="--snapshots saves whole UNets"):
        run_of(config(tmp_path, preset=None, init_from="fashion-mnist", finetune="lora", snapshots=2))


def test_a_snapshot_of_another_network_is_refused(run, tmp_path):
    theirs = tmp_path / "run"
    shutil.copytree(run, theirs)
    file = theirs / "snapshots" / "step-0000004" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": 2048}))  # of terabytes
    flags = ["a dress", "--run", str(theirs), "--steps", "1", "--guidance-scale", "1"]
    with pytest.raises(InputError, match="step-0000004/config.json is not that of .*no snapshot"):
        sweep.main([*flags, "--output", str(tmp_path / "sheet.png")])
    assert not (tmp_path / "sheet.png").exists()

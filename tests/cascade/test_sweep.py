"""`python -m sd_tf.sweep` of cascades: snapshots of the first stage, and settings as rows."""

import json

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf import images, sweep
from sd_tf.cascade.folder import load_unet
from sd_tf.errors import InputError
from tests.cascade.conftest import tiny_cascade
from tests.cascade.test_fit import SETTINGS, data, new, pictures, tiny_preset  # noqa: F401  fixtures


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "cascade"
    tiny_cascade(length=20).save(folder)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """What the contact sheet is made of."""
    found, make = {}, images.contact_sheet

    def spy(images, rows, columns, title):
        found.update(images=images, rows=rows, columns=columns)
        return make(images, rows, columns, title)

    monkeypatch.setattr(images, "contact_sheet", spy)
    return found


@pytest.mark.slow
def test_rows_are_the_first_stage_at_several_times_enlarged_by_the_finished_one(
    data,  # noqa: F811
    seen,
    tmp_path,
):
    run, file = tmp_path / "run", tmp_path / "sheet.png"
    new().fit(data, folder=run, **SETTINGS | {"options": {"snapshots": 2, "previews": 0}})
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == ["step-0000002", "step-0000004"]
    finished = sd_tf.load(run)
    last = load_unet(run / "snapshots" / "step-0000004")
    for ours, theirs in zip(last.variables, finished.stages[0].unet.variables, strict=True):
        np.testing.assert_array_equal(ours.value, theirs.value)
    sweep.main(
        [
            "a red dress",
            "--run",
            str(run),
            "--guidance-scale",
            "1",
            "5",
            "--steps",
            "2",
            "--output",
            str(file),
        ]
    )
    assert seen["rows"] == ["step 2", "step 4"] and seen["columns"] == ["guidance 1", "guidance 5"]
    expected = finished.generate("a red dress", steps=2, guidance_scale=5.0)
    np.testing.assert_array_equal(seen["images"][1, 1], expected[0])
    assert (seen["images"][0] != seen["images"][1]).any()


def test_guidance_with_and_without_dynamic_thresholding(saved, seen, tmp_path):
    file = tmp_path / "sheet.png"
    flags = ["--guidance-scale", "0.1", "3", "7.5", "--thresholding", "dynamic", "static", "none"]
    sweep.main(["a red dress", "--run", str(saved), *flags, "--steps", "2", "--output", str(file)])
    assert seen["rows"] == ["thresholding dynamic", "thresholding static", "thresholding none"]
    assert seen["columns"] == ["guidance 0.1", "guidance 3", "guidance 7.5"]
    model = sd_tf.load(saved)
    for row, kind in enumerate(("dynamic", "static", "none")):
        expected = model.generate("a red dress", steps=2, guidance_scale=7.5, thresholding=kind)
        np.testing.assert_array_equal(seen["images"][row, 2], expected[0])
    with Image.open(file) as image:
        assert json.loads(image.text["thresholding"]) == ["dynamic", "static", "none"]
        assert image.text["steps"] == "2"


def test_samplers_are_rows_too(saved, seen, tmp_path):
    flags = ["--sampler", "ddim", "unipc", "--guidance-scale", "1", "--steps", "2"]
    sweep.main(["a dress", "--run", str(saved), *flags, "--output", str(tmp_path / "sheet.png")])
    assert seen["rows"] == ["sampler ddim", "sampler unipc"]
    expected = sd_tf.load(saved).generate("a dress", steps=2, guidance_scale=1.0, sampler="unipc")
    np.testing.assert_array_equal(seen["images"][1, 0], expected[0])


@pytest.mark.parametrize(("flags", "message"), [
    (["--thresholding", "dynamical", "none"], "unknown --thresholding 'dynamical': did you mean 'dynamic'"),
    (["--thresholding", "none"], "has no snapshots: train with --snapshots 8, or give several --steps, "),
    (["--steps", "2", "3", "--thresholding", "none", "static"], "--steps and --thresholding have several"),
    (["--steps", "0", "3"], "--steps is 0: give a whole number"),
    (["--sampler", "ddmi", "ddim"], "unknown sampler 'ddmi': did you mean 'ddpm' or 'ddim'"),
    (["--guidance-scale", "-1", "--steps", "2", "3"], "--guidance-scale is -1.0: give a number from 0"),
    (["--seed", "-1"], "--seed is -1: give a whole number from 0"),
])  # fmt: skip
def test_bad_flags_are_named(saved, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        sweep.main(["a dress", "--run", str(saved), *flags, "--output", str(tmp_path / "sheet.png")])
    assert not (tmp_path / "sheet.png").exists()


def test_latents_have_no_thresholding(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "latent")
    flags = ["--thresholding", "none", "static", "--output", str(tmp_path / "sheet.png")]
    with pytest.raises(InputError, match="--thresholding is not for this kind of model, LatentDiffusion"):
        sweep.main(["a dress", "--run", str(tmp_path / "latent"), *flags])

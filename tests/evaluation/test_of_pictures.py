"""The judges of captioned pictures notice what they are for: copies, wrong colours, blurred pictures."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sd_tf import evaluate
from sd_tf.data.open import open_data
from sd_tf.errors import InputError
from sd_tf.evaluation.dominant_colour import COLOURS
from sd_tf.evaluation.of_pictures import Drawn, PictureJudges
from sd_tf.gan.generator import Generator
from sd_tf.gan.model import GigaGAN
from sd_tf.seeding import seeded
from sd_tf.text.prompt_syntax import parts_of
from tests.conftest import shake_variables
from tests.evaluation.test_dominant_colour import SRGB, drawing
from tests.gan.small import DRAWS

PROMPT = "a drawing of a {} thing"


def things(seed, per_colour=6):
    """Drawings of every colour with blots, and their captions."""
    generator, images, captions = np.random.default_rng(seed), [], []
    for name in COLOURS:
        for number in range(per_colour):
            image = drawing(SRGB[name])
            top, left = generator.integers(8, 20, 2)
            image[top : top + 3, left : left + 3] = generator.integers(0, 256, 3)
            images.append(image)
            captions.append(f"{PROMPT.replace('{}', name)} of kind {number}")
    return np.stack(images), captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things")
    images, captions = things(0)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        Image.fromarray(image).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def judges(folder, tmp_path_factory):
    dataset = open_data(folder).at(32, tmp_path_factory.mktemp("store"))
    dataset.decode(progress=False)
    return PictureJudges(dataset, PROMPT)


def score(judges, captioned=None, coloured=None, rebuilt=None):
    others, _ = things(1)
    drawn = Drawn(
        others if captioned is None else captioned,
        others if coloured is None else coloured,
        judges.images if rebuilt is None else rebuilt,
    )
    return judges.scores(drawn, {"steps": 1})


def test_other_pictures_of_the_same_kind_are_no_copies_and_have_their_colours(judges):
    found = score(judges)
    assert found["copies"].value < 0.1
    assert found["colour_accuracy"].value > 0.95 and found["colour_accuracy"].real > 0.95
    distance = found["nearest_training_distance"]
    assert distance.value == pytest.approx(distance.real, rel=0.3) and distance.reservation


@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_found_mirrored_or_not(judges, mirrored):
    copies = judges.images[:, :, ::-1] if mirrored else judges.images
    found = score(judges, captioned=copies[:20])
    assert found["copies"].value > 0.9
    assert found["nearest_training_distance"].details["training pictures"] == list(range(20))


def test_pictures_of_other_colours_score_by_chance(judges):
    others, _ = things(1)
    shifted = np.roll(others, len(others) // 10, axis=0)
    assert score(judges, coloured=shifted)["colour_accuracy"].value < 0.1


def test_a_blurring_autoencoder_loses_decibels(judges):
    blurred = (judges.images // 2 + np.roll(judges.images, 1, axis=1) // 2).astype(np.uint8)
    exact, lost = (score(judges, rebuilt=each)["reconstruction_psnr"] for each in (None, blurred))
    assert exact.value > 60 and lost.value < 30
    assert exact.protocol["size"] == judges.images.shape[1]  # decibels of other sizes are others


def test_captions_are_drawn_as_the_plain_text_that_a_model_has_learned(judges, monkeypatch):
    asked = []

    class Model:
        def generate(self, prompts, number, **settings):
            asked.append(prompts)

    monkeypatch.setattr("sd_tf.evaluation.of_pictures.rebuilt_by", lambda model, images: None)
    monkeypatch.setattr(judges, "prompts", ["a bag", "a clock (12:30)", r"saber \(fate\)"])
    judges.draw(Model(), 12, 20, {})
    captions, coloured = asked
    assert [parts_of(caption) for caption in captions] == [[(text, 1.0)] for text in judges.prompts]
    assert coloured == judges.colour_prompts


def test_other_pictures_of_the_same_kind_are_nearer_than_blurred_ones_and_than_copies_of_one(judges):
    others, _ = things(1)
    blurred = (others // 2 + np.roll(others, 3, axis=1) // 2).astype(np.uint8)
    one = np.repeat(others[:1], len(others), axis=0)
    for name in ("frechet_distance", "kernel_distance"):
        same, *worse = (score(judges, captioned=each)[name] for each in (others, blurred, one))
        assert all(same.value < each.value for each in worse) and same.reservation


def test_a_model_without_a_text_is_scored_by_what_needs_none(folder, tmp_path):
    plain = dataclasses.replace(DRAWS, text_dim=None, cross_attention=(False,) * 4)
    with seeded(0):
        generator = Generator(plain)
        generator.build()
    GigaGAN(generator).save(tmp_path / "model")
    flags = ["--dataset", "folder", "--data-dir", str(folder), "--colour-prompt", PROMPT]
    sizes = ["--samples", "8", "--tinted-samples", "20", "--output", str(tmp_path / "report")]
    evaluate.main(["--model", str(tmp_path / "model"), *flags, *sizes])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "colour_accuracy" not in report["scores"] and "agreement with prompts" in report["skipped"]
    assert {"frechet_distance", "diversity", "copies"} <= report["scores"].keys()
    assert all(score["reservation"] for score in report["scores"].values())
    assert report["scores"]["diversity"]["value"] > 0


def test_pictures_without_a_text_have_seeds_of_their_own(judges):
    plain = dataclasses.replace(DRAWS, text_dim=None, cross_attention=(False,) * 4)
    with seeded(0):
        generator = Generator(plain)
        generator.build()
    drawn = judges.draw(GigaGAN(shake_variables(generator)), 8, 20, {"seed": 0})
    assert drawn.coloured is None and len(np.unique(drawn.captioned.reshape(8, -1), axis=0)) == 8


def test_the_command_writes_report_and_page(folder, tiny_model, tmp_path, capsys):
    tiny_model.save(tmp_path / "model")
    flags = ["--dataset", "folder", "--data-dir", str(folder), "--colour-prompt", PROMPT, "--steps", "1"]
    sizes = ["--samples", "8", "--tinted-samples", "20", "--output", str(tmp_path / "report")]
    evaluate.main(["--model", str(tmp_path / "model"), *flags, *sizes])
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<img") == 4 and "its extractor has learned garments alone" in page
    assert "colour_accuracy" in capsys.readouterr().out
    evaluate.main(["--model", str(tmp_path / "model"), *flags, *sizes, "--guidance-scale", "1", "2"])
    reports = json.loads((tmp_path / "report" / "report.json").read_text())["reports"]
    assert [report["label"][-3:] for report in reports] == ["1.0", "2.0"]


def test_pictures_that_are_there_twice_hide_no_copies(folder, tmp_path):
    for number in (1, 2):
        name = f"{number:03}"
        for copy in (name, f"{name}-again"):
            (tmp_path / "mine").mkdir(exist_ok=True)
            shutil.copy(folder / f"{name}.png", tmp_path / "mine" / f"{copy}.png")
            shutil.copy(folder / f"{name}.txt", tmp_path / "mine" / f"{copy}.txt")
    for number in range(10, 30):
        for suffix in ("png", "txt"):
            shutil.copy(folder / f"{number:03}.{suffix}", tmp_path / "mine")
    dataset = open_data(tmp_path / "mine").at(32, tmp_path / "store")
    dataset.decode(progress=False)
    judges = PictureJudges(dataset)
    drawn = Drawn(judges.images[10:], None, judges.images)
    copies = judges.scores(drawn, {})["copies"]
    assert copies.value == 1.0 and copies.real >= 4 / 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "garments"], "'garments'"),
        (
            ["--dataset", "folder", "--colour-prompt", "a red thing"],
            "--colour-prompt is 'a red thing': put one",
        ),
        (["--dataset", "folder", "--samples", "10"], "--samples is 10: give a multiple of 4"),
        (["--dataset", "folder"], "--dataset folder needs --data-dir"),
        (["--fit", "pad"], "--fit is for captioned pictures"),
        (["--samples", "0"], "--samples is 0: give a multiple of 10"),
    ],
)
def test_bad_flags_are_named(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        evaluate.main([*flags, "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()

"""Cascades are judged as latent models are, alone and beside them, and `sd_tf.recommend` chooses for them."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf import evaluate, families, recommend
from sd_tf.cascade import presets
from sd_tf.cascade.stage import PixelStage
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.sources import weights_sha256
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.errors import InputError
from tests.cascade.conftest import BASE, ENLARGE, tiny_cascade
from tests.evaluation.test_of_pictures import PROMPT, things
from tests.test_recommend import report, write

FACTS = {
    "sizes": "8 x 8, then 16 x 16",
    "thresholding": "dynamic 0.995 to 100",
    "super_resolution": "sampler dpmpp_2m, steps 10, guidance scale 1.0, augment level 100",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "cascade"
    tiny_cascade().save(folder)
    return folder


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of 60 drawings of ten colours."""
    folder = tmp_path_factory.mktemp("things")
    for number, (image, caption) in enumerate(zip(*things(0), strict=True)):
        Image.fromarray(image).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(caption)
    flags = ["--dataset", "folder", "--data-dir", str(folder), "--colour-prompt", PROMPT, "--steps", "1"]
    return [*flags, "--samples", "8", "--tinted-samples", "20"]


def test_a_report_says_how_every_stage_drew_and_what_there_is_no_score_of(
    saved, flags, tmp_path, capsys, monkeypatch
):
    drawn, generate = [], sd_tf.CascadedDiffusion.generate

    def spy(self, prompts, *arguments, **settings):
        images = generate(self, prompts, *arguments, **settings)
        drawn.append((self, prompts, images))
        return images

    monkeypatch.setattr(sd_tf.CascadedDiffusion, "generate", spy)
    evaluate.main(["--model", str(saved), *flags, "--output", str(tmp_path)])
    [(model, captions, captioned), (_, _, coloured)] = drawn
    assert captioned.shape == (8, 16, 16, 3) and coloured.shape == (20, 16, 16, 3)
    np.testing.assert_array_equal(generate(model, captions, 4, steps=1), captioned)  # by its own settings
    found = json.loads((tmp_path / "report.json").read_text())
    known = {"nearest_training_distance", "copies", "diversity", "colour_accuracy"}
    known |= {"frechet_distance", "kernel_distance"}
    assert set(found["scores"]) == known
    for score in found["scores"].values():
        assert {name: score["protocol"][name] for name in FACTS} == FACTS
        assert (score["protocol"]["sampler"], score["protocol"]["steps"]) == ("dpmpp_2m", 1)
    assert found["drawing"] == FACTS
    assert found["pictures"] == "60 training pictures, scaled to 16 x 16 as drawn"
    left_out = "the autoencoder's scores, since the model draws pixels, without one"
    page = (tmp_path / "report.html").read_text().replace("&#x27;", "'")
    assert f"Left out: {left_out}." in page and "Judged beside 60 training pictures" in page
    assert page.count("<img") == 3
    assert f"left out: {left_out}" in capsys.readouterr().out


def test_models_of_two_families_and_sizes_stand_beside_each_other(saved, flags, tiny_model, tmp_path, capsys):
    small = tiny_cascade()
    sd_tf.CascadedDiffusion(small.stages[:1], small.text_encoder).save(tmp_path / "small")
    tiny_model.save(tmp_path / "latent")
    models = [str(saved), str(tmp_path / "latent"), str(tmp_path / "small")]
    evaluate.main(["--compare", *models, *flags, "--output", str(tmp_path / "report")])
    reports = json.loads((tmp_path / "report" / "report.json").read_text())["reports"]
    assert [each["model"] for each in reports] == models
    assert [each["pictures"].split("scaled to ")[1] for each in reports] == [
        *("16 x 16 as drawn", "16 x 16 as drawn", "8 x 8 as drawn")
    ]
    assert ["drawing" in each for each in reports] == [True, False, True]
    assert ["reconstruction_psnr" in each["scores"] for each in reports] == [False, True, False]
    psnr = reports[1]["scores"]["reconstruction_psnr"]
    assert (
        psnr["reservation"] == "the models draw pictures of several sizes" and psnr["protocol"]["size"] == 16
    )
    printed = capsys.readouterr().out
    assert f"left out of {models[0]}, {models[2]}: the autoencoder's scores" in printed
    page = (tmp_path / "report" / "report.html").read_text()
    assert "autoencoder&#x27;s PSNR" in page  # which the first model does not have


@pytest.mark.slow
def test_garments_of_a_cascade_are_judged_beside_a_latent_models(data_dir, tmp_path):
    text = open_text_encoder("clip-mini")
    stages = []
    for number, config in enumerate((BASE, ENLARGE)):
        side = config.sample_size * 2
        config = presets.replace(config, sample_size=side, encoder_hid_dim=text.width)
        unet = PixelUNet(config)
        unet.build()
        schedule, noising = NoiseSchedule(presets.ON_BLACK), NoiseSchedule(presets.NOISING)
        settings = presets.Settings(steps=1)
        stages.append(PixelStage(unet, schedule, noising if number else None, settings, 100 * number))
    sd_tf.CascadedDiffusion(stages, text).save(tmp_path / "cascade")
    few = ["--samples", "40", "--tinted-samples", "160", "--steps", "1", "--inception", "none"]
    models = [str(tmp_path / "cascade"), "fashion-mnist"]
    evaluate.main(["--compare", *models, *few, "--output", str(tmp_path / "report")])
    cascade, latent = json.loads((tmp_path / "report" / "report.json").read_text())["reports"]
    assert set(latent["scores"]) - set(cascade["scores"]) == {
        *("reconstruction_distance", "reconstruction_psnr")
    }
    assert cascade["scores"]["frechet_distance"]["protocol"]["sizes"] == "16 x 16, then 32 x 32"
    assert cascade["scores"]["frechet_distance"]["protocol"]["thresholding"] == "static"
    assert cascade["scores"]["clip_score"]["reservation"]  # it reads prompts with that CLIP
    assert cascade["skipped"].keys() - latent["skipped"].keys() == {"the autoencoder's scores"}


def test_a_hash_of_the_weights_is_that_of_all_stages(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 3
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    assert weights_sha256(folder) == hashlib.sha256(digests).hexdigest()
    for file in files:
        content = bytearray(file.read_bytes())
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert weights_sha256(folder) != weights_sha256(saved), file
        file.write_bytes(content)


def test_names_of_stages_lead_to_no_other_folder(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    shutil.copytree(folder / "sr2", tmp_path / "elsewhere")
    (folder / "model_index.json").write_text(json.dumps(index | {"stages": ["base", "../elsewhere", 3]}))
    expected = weights_sha256(folder / "base")
    assert weights_sha256(folder) == expected


def test_what_does_not_draw_from_text_is_refused(tmp_path):
    model = tiny_cascade()
    sd_tf.CascadedDiffusion(model.stages[1:], model.text_encoder).save(tmp_path / "larger")
    with pytest.raises(InputError, match="larger only enlarges pictures: name a model that draws from text"):
        evaluate.main(["--model", str(tmp_path / "larger"), "--output", str(tmp_path / "report")])
    families.check(tmp_path / "larger")


def test_other_sizes_are_refused_before_a_network_is_read(saved, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sd_tf.cascade.folder.load_unet", lambda *_: pytest.fail("was read"))
    with pytest.raises(InputError, match="draws pictures of 16 x 16: Fashion-MNIST's .* at 32 x 32"):
        evaluate.main(["--model", str(saved), "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_recommended_settings_are_those_of_the_first_stage(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "mine")
    given = {
        "sampler": "unipc",
        "steps": 8,
        "guidance_scale": 2.0,
        "guidance_interval": [0.0, 1.0],
        "seed": 0,
    }
    reports = [
        report(folder, given, {"frechet_distance": 1.0}),
        report(folder, given | {"guidance_scale": 4.0}, {"frechet_distance": 2.0}),
    ]
    for each in reports:
        each["drawing"] = FACTS
        each["scores"]["frechet_distance"]["protocol"] |= FACTS
    recommend.main(["--model", str(folder), "--report", write(tmp_path / "report.json", reports)])
    model = sd_tf.load(folder)
    assert (model.recommended.sampler, model.recommended.steps) == ("unipc", 8)
    assert model.recommended.guidance_scale == 2.0
    assert model.stages[1].recommended == presets.ENLARGING
    with pytest.raises(InputError, match="cannot be compared: thresholding is"):
        reports[1]["scores"]["frechet_distance"]["protocol"]["thresholding"] = "static"
        recommend.main(["--model", str(folder), "--report", write(tmp_path / "report.json", reports)])

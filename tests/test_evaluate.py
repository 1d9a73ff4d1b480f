import json
import shlex

import pytest

from sd_tf import evaluate
from sd_tf.errors import InputError

FEW = ["--samples", "40", "--tinted-samples", "160", "--steps", "2", "--inception", "none"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "fashion"], "fashion_mnist"),
        (["--samples", "45"], "--samples is 45: give a multiple of 10"),
        (["--tinted-samples", "80"], "--tinted-samples is 80: .* from 160"),
        (["--model", "a", "--compare", "b"], "--compare"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        evaluate.main([*flags, "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--output"):
        evaluate.main(["--output", str(tmp_path / "file" / "report")])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"scores": {"a": {}}}', '{"reports": 3}'])
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(InputError, match="old.json"):
        evaluate.main(["--compare", str(tmp_path / "old.json"), "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


@pytest.fixture(scope="module")
def report(data_dir, tmp_path_factory):
    """The bundled model's, of few pictures and steps."""
    folder = tmp_path_factory.mktemp("reports") / "first"
    evaluate.main([*FEW, "--output", str(folder)])
    return folder


@pytest.mark.slow
def test_a_report_is_reproduced_by_the_command_that_it_prints(report, tmp_path, monkeypatch):
    first = json.loads((report / "report.json").read_text())
    words = shlex.split(first["command"])
    assert words[:3] == ["python", "-m", "sd_tf.evaluate"]
    assert first["command"] in (report / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    evaluate.main([*words[3:-1], "again"])  # the last word is the output
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["weights"] == first["weights"]
    for name, score in first["scores"].items():
        assert again["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name
        assert again["scores"][name]["protocol"] == score["protocol"]


def test_a_report_has_every_score_and_says_what_it_left_out(report, capsys):
    scores = json.loads((report / "report.json").read_text())["scores"]
    assert {
        *("frechet_distance", "kernel_distance", "precision", "recall", "diversity", "clip_score"),
        *("reconstruction_distance", "reconstruction_psnr", "nearest_training_distance", "copies"),
        *("class_accuracy", "tinted_class_accuracy", "colour_accuracy"),
    } == set(scores)
    assert scores["class_accuracy"]["protocol"]["steps"] == 2
    assert not scores["clip_score"]["headline"]  # the bundled model reads prompts with that CLIP


def test_reports_of_other_settings_are_not_compared_but_settings_of_one_command_are(
    report, data_dir, tmp_path
):
    other = tmp_path / "other"
    evaluate.main([*FEW, "--guidance-scale", "1", "4", "--output", str(other)])
    found = json.loads((other / "report.json").read_text())["reports"]
    assert [each["label"][-18:] for each in found] == ["guidance scale 1.0", "guidance scale 4.0"]
    values = [each["scores"]["class_accuracy"]["value"] for each in found]
    assert values[0] < values[1]  # what guidance is for
    assert (other / "report.html").read_text().count("<img") == 5  # a plot and four sheets
    with pytest.raises(InputError, match="guidance_scale is 3.0 and 1.0"):
        files = [str(folder / "report.json") for folder in (report, other)]
        evaluate.main(["--compare", *files, "--output", str(tmp_path / "both")])
    assert not (tmp_path / "both").exists()


def test_reports_of_one_protocol_are_compared(report, tmp_path, capsys):
    file = str(report / "report.json")
    evaluate.main(["--compare", file, file, "--output", str(tmp_path / "both")])
    assert len(json.loads((tmp_path / "both" / "report.json").read_text())["reports"]) == 2
    assert "frechet_distance" in capsys.readouterr().out

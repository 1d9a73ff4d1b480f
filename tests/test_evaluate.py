import json
import shlex

import pytest

from sd_tf import evaluate
from sd_tf.errors import InputError
from sd_tf.evaluation.classifier import load_classifier
from sd_tf.evaluation.inception import Inception
from sd_tf.evaluation.protocol import Score, check_report, read_reports
from sd_tf.evaluation.scores import TINTED_PROMPTS
from tests.checkpoints.hostile import SPECIAL
from tests.fuzzing import limited

FEW = ["--samples", "40", "--tinted-samples", "160", "--steps", "2", "--inception", "none"]
FEW += ["--guidance-interval", "0", "1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "fashion"], "fashion_mnist"),
        (["--samples", "45"], "--samples is 45: give a multiple of 10"),
        (["--tinted-samples", "80"], "--tinted-samples is 80: .* from 160"),
        (["--model", "a", "--compare", "b"], "--compare"),
        (["--sampler", "ddmi"], "'ddmi'.*'ddim'"),
        (["--steps", "20", "0"], "--steps is 0: give a whole number from 1"),
        (["--guidance-scale", "-1"], "--guidance-scale is -1.0: give a number from 0 to 1000"),
        (
            ["--guidance-interval", "0.8", "0.2"],
            r"--guidance-interval is \(0.8, 0.2\): give the lower",
        ),
        (["--seed", "-1"], "--seed is -1"),
        (["--compare", "fashion-mnist", "fashion-mnits"], "'fashion-mnits': did you mean 'fashion-mnist'"),
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


NAMED = '"model": "a", "label": "a", "command": "c", "skipped": {}'
WRONG = ['"low": "x"', '"low": 1', '"real": [1]', '"reservation": 3', '"details": []', '"value": "1"']
WRONG += ['"value": true', '"value": ' + "9" * 400, '"strange": 1', '"high": {}', '"low": 1, "high": null']
SCORE = '{"value": 1, "better": "lower", "protocol": {}}'


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"scores": {"a": {}}}',
        '{"reports": 3}',
        '{"reports": []}',
        f'{{{NAMED}, "scores": {{}}}}',
        f'{{{NAMED}, "scores": {{"a": {{"value": 1, "protocol": {{}}}}}}}}',
        f'{{{NAMED}, "scores": {{"a": {SCORE.replace("lower", "worse")}}}}}',
        f'{{{NAMED}, "scores": {{"a": {SCORE.replace("{}", "1")}}}}}',
        *(f'{{{NAMED}, "scores": {{"a": {SCORE[:-1]}, {more}}}}}}}' for more in WRONG),
        f'{{{NAMED.replace("{}", "[]")}, "scores": {{"a": {SCORE}}}}}',
        f'{{{NAMED[:-1]}"a": 1}}, "scores": {{"a": {SCORE}}}}}',
        f'{{{NAMED}, "command": 3, "scores": {{"a": {SCORE}}}}}',
        f'{{{NAMED}, "label": null, "scores": {{"a": {SCORE}}}}}',
        '{"reports": {"a": 1}}',
        '{"reports": [[]]}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_report_is_named(tmp_path, content):
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(InputError, match="old.json is no report"):
        evaluate.main(
            ["--compare", "fashion-mnist", str(tmp_path / "old.json"), "--output", str(tmp_path / "report")]
        )
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


def test_models_of_another_picture_size_are_refused_before_they_draw(tiny_model, data_dir, tmp_path):
    tiny_model.save(tmp_path / "other")
    size = tiny_model.autoencoder.config.downsampling * tiny_model.unet.config.latent_size[0]
    with pytest.raises(InputError, match=f"other draws pictures of {size} x {size}: .* 32 x 32"):
        evaluate.main([*FEW, "--model", str(tmp_path / "other"), "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_a_report_has_every_score_and_says_what_it_left_out(report):
    whole = json.loads((report / "report.json").read_text())
    scores = whole["scores"]
    assert whole["skipped"] == {"scores by Inception": "it was asked to be"}
    assert "Left out: scores by Inception, since it was asked to be." in (report / "report.html").read_text()
    assert {
        *(
            "frechet_distance",
            "tinted_frechet_distance",
            "kernel_distance",
            "precision",
            "recall",
            "diversity",
            "clip_score",
        ),
        *("reconstruction_distance", "reconstruction_psnr", "nearest_training_distance", "copies"),
        *("class_accuracy", "tinted_class_accuracy", "colour_accuracy"),
    } == set(scores)
    assert scores["class_accuracy"]["protocol"]["steps"] == 2
    assert scores["clip_score"]["reservation"]  # the bundled model reads prompts with that CLIP
    assert set(scores["tinted_class_accuracy"]["details"]) == set(TINTED_PROMPTS)
    nearest = scores["nearest_training_distance"]
    assert len(nearest["details"]["training pictures"]) == len(nearest["details"]["distances"]) == 40
    assert sum(nearest["details"]["distances"]) / 40 == pytest.approx(nearest["value"], abs=1e-3)


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


@pytest.mark.parametrize("how", ["a pipe", "zeros without end", "a socket", "a folder", "nothing"])
@pytest.mark.parametrize("read", ["report", "inception", "classifier"])
def test_what_is_no_file_is_refused_at_once(tmp_path, how, read):
    names = {"report": "old.json", "inception": "graph.pb", "classifier": "config.json"}
    file = tmp_path / "read" / names[read]
    file.parent.mkdir()
    SPECIAL[how](file, tmp_path)
    uses = {
        "report": lambda: read_reports(file),
        "inception": lambda: Inception(file),
        "classifier": lambda: load_classifier(file.parent),
    }
    with limited(), pytest.raises(InputError, match=str(file)):
        uses[read]()


def test_details_of_a_report_are_numbers():
    whole = {"model": "a", "label": "a", "command": "c", "skipped": {}, "scores": {}}
    score = Score(1.0, "lower", {}).to_json()
    for name, details in [
        ("class_accuracy", {"a red dress": "x"}),
        ("nearest_training_distance", {"real": {"0.5": 1}}),
        ("nearest_training_distance", {"real": {"0.5": 1}, "drawn": {"0.5": "x"}}),
        ("nearest_training_distance", {"real": {"0.5": 1}, "drawn": {}}),
    ]:
        with pytest.raises((ValueError, KeyError)):
            check_report(whole | {"scores": {name: score | {"details": details}}})
    check_report(whole | {"scores": {"class_accuracy": score | {"details": {"a red dress": 0.5}}}})


def test_a_score_of_a_report_is_whole():
    whole = {"model": "a", "label": "a", "command": "c", "skipped": {}}
    score = {"value": 1.0, "better": "lower", "protocol": {}, "low": None, "high": None}
    with pytest.raises(ValueError, match="clip_score' has no real, reservation, details"):
        check_report(whole | {"scores": {"clip_score": score}})


def test_a_report_of_strange_names_is_shown(tmp_path, capsys):
    score, files = Score(1.0, "lower", {}).to_json(), []
    for i, name in enumerate(["\ud800", r"$\frac{$ $\foo$", "\x1b[2J", "_", ""]):
        whole = {"model": name, "label": name, "command": name, "skipped": {name: name}}
        names = ["frechet_distance", "class_accuracy"] if i != 2 else [f"a{name}"]
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(whole | {"scores": dict.fromkeys(names, score)}))
    for some in (files, files[:2], files[:1], files[2:3]):
        evaluate.main(["--compare", *map(str, some), "--output", str(tmp_path / "page")])
        assert "Made by" in (tmp_path / "page" / "report.html").read_text()
        printed = capsys.readouterr().out
        assert all(character == "\n" or character.isprintable() for character in printed)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (5000, 1600)),
        (["--samples", "60"], (60, 160)),
        (["--samples", "2500"], (2500, 800)),
        (["--samples", "60", "--tinted-samples", "800"], (60, 800)),
        (["--samples", "9000"], (9000, 1600)),
        (["--dataset", "emoji", "--samples", "40"], (40, 20)),
    ],
    ids=str,
)
def test_few_pictures_are_few_of_each_kind(flags, expected):
    parsed = evaluate._parser().parse_args(flags)
    evaluate._complete(parsed)
    assert (parsed.samples, parsed.tinted_samples) == expected

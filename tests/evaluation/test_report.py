import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from sd_tf.evaluation import report as module
from sd_tf.evaluation.protocol import Score

COMMAND = "python -m sd_tf.evaluate --model a"


def report(model, distance, accuracy, label=None, clip=None, taught=False):
    protocol = {"samples": 5, "steps": 2}
    of_prompts = {"a dress": 0.75, "a red dress": 0.25}
    quantiles = {name: {"0.01": 1.5, "0.5": value} for name, value in (("drawn", 3.25), ("real", 3.75))}
    scores = {
        "frechet_distance": Score(distance, "lower", protocol, distance - 0.1, distance + 0.1, 0.02),
        "class_accuracy": Score(accuracy, "higher", protocol, details=of_prompts),
        "nearest_training_distance": Score(3.5, "higher", protocol, reservation="no race", details=quantiles),
    }
    if clip is not None:
        scores["clip_score"] = Score(
            clip, "higher", protocol, reservation="it is its pupil" if taught else ""
        )
    return {
        "model": model,
        "label": label or model,
        "command": COMMAND,
        "skipped": {"scores by Inception": "no <network>"},
        "scores": {name: score.to_json() for name, score in scores.items()},
    }


def test_a_page_needs_no_other_file_and_shows_the_pictures_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    page = module.page([report("a", 1.0, 0.5)], {"a": {"Garments": (image, "Distances: 1.5")}}, COMMAND)
    assert "Distances: 1.5" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    data = re.search(r"data:image/png;base64,([^\"]+)", page)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)


def test_a_page_has_every_number_with_its_interval_what_is_real_and_the_command():
    page = module.page([report("a", 1.234, 0.5)], {}, COMMAND)
    for text in (
        "1.234",
        "1.13 to 1.33",
        "0.02",
        "no headline: no race",
        COMMAND,
        "samples: 5",
        "<td>0.75</td><td>0.25</td>",  # of the prompts "a dress" and "a red dress"
        "<td>drawn</td><td>1.50</td><td>3.25</td>",
    ):
        assert text in page, text


def test_names_cannot_write_html():
    page = module.page([report("<script>alert(1)</script>", 1.0, 0.5)], {}, "a <script>")
    assert "<script>" not in page and "no <network>" not in page


def test_the_better_of_two_is_marked_by_what_is_better():
    page = module.page([report("a", 1.0, 0.5), report("b", 2.0, 0.75)], {}, COMMAND)
    assert re.findall(r"class=best>([\d.]+)", page) == ["1", "0.75"]


@pytest.mark.parametrize("taught", [0, 1])
def test_no_model_is_the_best_by_a_judge_that_has_taught_one_of_them(taught):
    """Whichever of the columns it stands in, there and in the terminal."""
    reports = [report(name, 1.0, 0.5, clip=80.0 + i, taught=i == taught) for i, name in enumerate("ab")]
    page, text = module.page(reports, {}, COMMAND), module.as_text(reports)
    assert "class=best>8" not in page
    row = next(row for row in page.split("<tr>") if "CLIP score" in row)
    assert ["pupil" in cell for cell in re.findall(r"<td>(.*?)</td>", row)[1:3]] == [taught == 0, taught == 1]
    assert f"{80 + taught}*" in text and f"{81 - taught}*" not in text
    assert "* clip_score is no headline: it is its pupil" in text
    assert "left out: scores by Inception, since no <network>" in text


def test_a_page_says_which_command_made_it_and_which_ones_its_reports():
    page = module.page([report("a", 1.0, 0.5)], {}, "python -m sd_tf.evaluate --compare a.json")
    assert "Made by <code>python -m sd_tf.evaluate --compare a.json</code>" in page
    assert f"Scored by <code>{COMMAND}</code>" in page


def test_a_plot_of_settings_is_a_picture():
    reports = [report("a", d, c, f"a, guidance {d}") for d, c in ((1.0, 0.5), (2.0, 0.9), (2.5, 0.8))]
    image = module.pareto_plot(reports)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 10


def test_a_name_in_a_plot_is_no_formula():
    strange = [report(r"$\frac{$", 1.0, 0.5, r"$\frac{$, $\foo$"), report("\ud800", 2.0, 0.9)]
    assert module.pareto_plot(strange).std() > 10


def test_what_lacks_a_score_is_not_plotted():
    lacking = report("b", 1.0, 0.5)
    del lacking["scores"]["class_accuracy"]
    assert module.pareto_plot([report("a", 1.0, 0.5), lacking]) is None

import base64
import io
import re

import numpy as np
from PIL import Image

from sd_tf.evaluation import report as module
from sd_tf.evaluation.protocol import Score


def report(model, distance, accuracy, label=None):
    scores = {
        "frechet_distance": Score(
            distance, "lower", {"samples": 5, "steps": 2}, distance - 0.1, distance + 0.1, 0.02
        ),
        "class_accuracy": Score(accuracy, "higher", {"samples": 5, "steps": 2}, headline=False),
    }
    return {
        "model": model,
        "label": label or model,
        "command": "python -m sd_tf.evaluate --model a",
        "skipped": {"scores by Inception": "no <network>"},
        "scores": {name: score.to_json() for name, score in scores.items()},
    }


def test_a_page_needs_no_other_file_and_shows_the_pictures_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    page = module.page([report("a", 1.0, 0.5)], {"a": {"Garments": image}})
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    data = re.search(r"data:image/png;base64,([^\"]+)", page)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)


def test_a_page_has_every_number_with_its_interval_what_is_real_and_the_command():
    page = module.page([report("a", 1.234, 0.5)], {})
    for text in (
        "1.234",
        "1.13 to 1.33",
        "0.02",
        "no headline",
        "python -m sd_tf.evaluate --model a",
        "samples: 5",
    ):
        assert text in page, text


def test_names_cannot_write_html():
    page = module.page([report("<script>alert(1)</script>", 1.0, 0.5)], {})
    assert "<script>" not in page and "no <network>" not in page


def test_the_better_of_two_is_marked_by_what_is_better():
    page = module.page([report("a", 1.0, 0.5), report("b", 2.0, 0.75)], {})
    assert re.findall(r"class=best>([\d.]+)", page) == ["1", "0.75"]


def test_a_plot_of_settings_is_a_picture():
    reports = [report("a", d, c, f"a, guidance {d}") for d, c in ((1.0, 0.5), (2.0, 0.9), (2.5, 0.8))]
    image = module.pareto_plot(reports)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 10

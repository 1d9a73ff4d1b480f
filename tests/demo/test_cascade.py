"""The page of a cascade: it has what cascades have, and counts the steps of all stages."""

import time

import numpy as np
import pytest

pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
import httpx  # noqa: E402  comes with Gradio

from sd_tf.demo.drawing import Drawings, Drawn  # noqa: E402
from tests.cascade.conftest import tiny_cascade  # noqa: E402
from tests.demo.asking import REQUEST, follow, pictures, png, uploaded  # noqa: E402
from tests.demo.conftest import served  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return tiny_cascade(length=20)


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "cascade"
    model.save(folder)
    temporary = tmp_path_factory.mktemp("served") / "temporary"
    with served(folder, temporary, max_steps=50, max_images=4, max_seconds=60) as found:
        yield found


def ask(page, **changes):
    asked = {**REQUEST, "thresholding": "dynamic", **changes}
    with httpx.Client(base_url=page.address, timeout=120) as client:
        return follow(client, list(asked.values()), str(time.monotonic_ns()))


def test_a_request_draws_what_generate_draws_with_its_thresholding_inside(page, model):
    data, error, warnings = ask(page, num_images=2, thresholding="static", guidance_scale=7)
    assert (error, warnings) == (None, [])
    drawn = pictures(page, data)
    expected = model.generate("a red dress", 2, 2, 7, seed=5, sampler="ddim", thresholding="static")
    assert np.abs(np.stack([np.asarray(each) for each in drawn]).astype(int) - expected).max() <= 1
    assert drawn[0].text["thresholding"] == "static" == data[4][0]["thresholding"]


def test_the_page_begins_with_the_models_own_thresholding(page):
    parts = httpx.get(f"{page.address}/config").json()["components"]
    [own] = [each["props"] for each in parts if "Thresholding" in str(each["props"].get("label"))]
    assert own["value"] == "dynamic" and [name for name, _ in own["choices"]] == ["dynamic", "static", "none"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"thresholding": "dynamical"}, "unknown thresholding 'dynamical': did you mean 'dynamic'"),
        ({"thresholding": 3}, "thresholding is 3: give one of its names"),
        ({"thresholding": None}, "thresholding is None: give one of its names"),
        ({"steps": 51}, "steps is 51: give a whole number from 1 to 50"),
        ({"num_images": 5}, "number of pictures is 5: give a whole number from 1 to 4"),
    ],
    ids=str,
)
def test_bad_requests_are_refused(page, changes, message):
    _, error, _ = ask(page, **changes)
    assert message in error.replace("&#x27;", "'")


def test_a_picture_begins_and_only_what_is_painted_changes(page):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    strokes = np.zeros((256, 256, 4), np.uint8)
    strokes[:128] = (255, 0, 255, 178)
    layers = [uploaded(page, png(strokes))]
    begin = {"background": uploaded(page, png(pixels.repeat(16, 0).repeat(16, 1))), "layers": layers}
    data, error, _ = ask(page, begin=begin, strength=1)
    assert error is None
    [drawn] = pictures(page, data)
    assert (np.asarray(drawn)[8:] == pixels[8:]).all() and (np.asarray(drawn)[:8] != pixels[:8]).any()


def test_the_steps_of_all_stages_are_counted_in_batches(model):
    drawings = Drawings(model, max_seconds=300, engine="tensorflow", batch_size=2)
    *under_way, drawn = drawings.draw(prompt="a dress", num_images=3, steps=4, strength=1.0)
    assert isinstance(drawn, Drawn) and drawn.images.shape == (3, 16, 16, 3)
    steps = [progress for progress in under_way if progress.steps]
    assert {progress.steps for progress in steps} == {2 * (4 + 10)}
    assert steps[-1].step == 28
    assert {each.guesses.shape[1:] for each in steps if each.guesses is not None} <= {(8, 8, 3), (16, 16, 3)}

"""The page as it is served: requests by HTTP, good, bad, large and many, and how it ends."""

import contextlib
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sd_tf.demo.__main__ import main
from sd_tf.errors import InputError

gradio = pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
import httpx  # noqa: E402  comes with Gradio

from tests.demo.asking import REQUEST, ask, follow, join, pictures, png, uploaded  # noqa: E402


def test_a_request_draws_what_generate_draws_with_its_settings_inside(page, tiny_model):
    data, error, warnings = ask(page, num_images=2, guidance_scale=2.5)
    assert (error, warnings) == (None, [])
    drawn = pictures(page, data)
    expected = tiny_model.generate("a red dress", 2, steps=2, guidance_scale=2.5, seed=5, engine="tensorflow")
    assert np.abs(np.stack([np.asarray(each) for each in drawn]).astype(int) - expected).max() <= 1
    assert [each.text["seed"] for each in drawn] == ["5", "6"]
    settings = {
        "prompt": "a red dress",
        "negative_prompt": "",
        "steps": 2,
        "sampler": "ddim",
        "karras": False,
        "guidance_scale": 2.5,
        "guidance_interval": [0, 1],
        "seed": 6,
        "model": "tiny",
    }
    assert "Seed: 6, Size: 16x16" in drawn[1].text.pop("parameters")
    assert drawn[1].text == {name: str(value) for name, value in settings.items()}
    assert data[4][1] == settings


def test_a_picture_of_any_size_begins_and_only_what_is_painted_changes(page):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    strokes = np.zeros((256, 256, 4), np.uint8)
    strokes[:128] = (255, 0, 255, 178)
    large = np.pad(pixels.repeat(16, 0).repeat(16, 1), ((0, 0), (40, 40), (0, 0)))
    begin = {
        "background": uploaded(page, png(large)),
        "layers": [uploaded(page, png(strokes))],
        "composite": None,
    }
    data, error, _ = ask(page, begin=begin, strength=1)
    assert error is None
    [drawn] = pictures(page, data)
    assert (np.asarray(drawn)[8:] == pixels[8:]).all() and (np.asarray(drawn)[:8] != pixels[:8]).any()
    assert {name: drawn.text[name] for name in ("image", "mask", "strength")} == {
        "image": "given",
        "mask": "painted",
        "strength": "1",
    }


def test_malformed_weights_are_taken_literally_with_a_warning(page):
    data, error, warnings = ask(page, prompt="a <b>(red:1.3 dress")
    assert error is None and pictures(page, data)
    unknown, warning = sorted(warnings)
    assert "&lt;b&gt; is no word of this model" in unknown
    assert "a &lt;b&gt;(red:1.3 dress" in warning and "the parenthesis of a weight is not closed" in warning


def test_what_is_over_the_limits_gets_one_clear_line(page):
    for changes, message in [
        ({"steps": 1001}, "steps is 1001: give a whole number from 1 to 1000"),
        ({"steps": "many"}, "steps is 'many': give a number"),
        ({"steps": None}, "steps is None: give a whole number"),
        ({"num_images": 5}, "number of pictures is 5: give a whole number from 1 to 4"),
        ({"strength": 7}, "strength is 7: give a number from 0 to 1"),
        ({"sampler": ["ddim"]}, "sampler is ['ddim']: give one of its names"),
        ({"sampler": "dim"}, "did you mean 'ddim'"),
        ({"karras": True}, "karras is true, but 'ddim' steps through timesteps"),
        ({"karras": "yes"}, "karras is 'yes': give True or False"),
        ({"prompt": {"a": 1}}, "the prompt is {'a': 1}: give a string"),
        ({"prompt": "x" * 2001}, "the prompt has 2001 characters: give 2000 or fewer"),
        ({"prompt": "<i>(a:99)</i>"}, "prompt '&lt;i&gt;(a:99)&lt;/i&gt;' has the weight 99"),
        ({"prompt": "\ud800"}, "has characters that are not valid Unicode: type it again"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan: give a number"),
        ({"seed": -1}, "seed is -1"),
        ({"begin": {"background": uploaded(page, b"no picture")}}, "the file cannot be read as a picture"),
    ]:
        data, error, _ = ask(page, **changes)
        assert data is None and message in error and "\n" not in error, (changes, error)


def test_a_browser_is_told_to_ask_no_other_host(page):
    answer = httpx.get(page.address)
    assert answer.headers["content-security-policy"].startswith("default-src 'self' data: blob:")
    assert "fonts.googleapis.com" not in answer.text


def test_twenty_at_once_get_their_own_picture_or_are_told_that_the_queue_is_full(page, tiny_model):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda seed: ask(page, seed=seed, steps=20), range(20)))
    expected = {
        seed: tiny_model.generate("a red dress", steps=20, seed=seed, engine="tensorflow")[0]
        for seed in range(20)
    }
    refused = 0
    for seed, (data, error, _) in enumerate(answers):
        if data is None:
            assert error.startswith("Queue is full")
            refused += 1
        else:
            [drawn] = pictures(page, data)
            assert np.abs(np.asarray(drawn).astype(int) - expected[seed]).max() <= 1
    assert refused <= 9  # ten wait


def test_programs_ask_with_what_the_page_begins_with(page, tiny_model):
    gradio_client = pytest.importorskip("gradio_client", reason="comes with Gradio")
    client = gradio_client.Client(page.address, verbose=False)
    given = {"prompt": "a red dress", "sampler": "unipc", "karras": True, "steps": 8}
    drawn = client.predict(**given, seed=5, random_seed=False, api_name="/draw")[2]
    expected = tiny_model.generate(**given, seed=5, num_images=4, engine="tensorflow", progress=False)
    for each, image in zip(drawn, expected, strict=True):
        with Image.open(each["image"]) as file:
            assert np.abs(np.asarray(file).astype(int) - image).max() <= 1


def test_who_leaves_makes_room_for_the_next(page):
    long = {"steps": 400, "num_images": 4}
    begun = time.monotonic()
    assert ask(page, **long)[1] is None
    whole = time.monotonic() - begun
    with httpx.Client(base_url=page.address, timeout=60) as client:
        request = REQUEST | long
        join(client, list(request.values()), "leaving").raise_for_status()
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "leaving"}) as lines:
            next(line for line in lines.iter_lines() if "process_generating" in line)
    begun = time.monotonic()
    assert ask(page)[1] is None
    assert time.monotonic() - begun < whole / 2


def test_nothing_unexpected_happened_and_ctrl_c_ends_it_without_a_trace(page):  # the last of this page
    assert "a request failed" not in "".join(page.errors)
    before = len(page.errors)
    with httpx.Client(base_url=page.address, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(
            follow, client, list({**REQUEST, "steps": 900, "num_images": 4}.values()), "long"
        )
        time.sleep(1)
        page.process.send_signal(signal.SIGINT)
        assert page.process.wait(timeout=60) == 130
        data = None
        with contextlib.suppress(AssertionError, httpx.TransportError):  # told so, or cut off
            data, _, _ = drawing.result()
        assert data is None
    assert page.errors[before:] == ["interrupted\n"]
    assert not [path for path in page.temporary.iterdir() if path.name.startswith("sd_tf-demo")]


def test_a_port_that_is_taken_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be listened on .* take another port"):
            main(["--port", str(port)])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--port", "70000"], "--port 70000 cannot be listened on"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid"),
        (["--max-steps", "0"], "--max-steps is 0"),
        (["--max-seconds", "nan"], "--max-seconds is nan"),
        (["--max-images", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_flags_are_said_in_one_line(flags, message):
    with pytest.raises(InputError, match=message):
        main(flags)


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -c constraints.txt "\.\[demo\]"'):
        main([])

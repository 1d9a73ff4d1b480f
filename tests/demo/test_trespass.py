"""No client reads, opens or fetches through the page what is not theirs, whatever they send as a picture."""

import contextlib
import os
import re
import secrets
import signal
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
import httpx  # noqa: E402  comes with Gradio

from tests.demo.asking import ask, png, uploaded  # noqa: E402

META = {"_type": "gradio.FileData"}
TARGETS = [
    "a file",
    "a file from here",
    "a link in the server's folder",
    "a pipe",
    "a device",
    "http",
    "https",
    "file",
    "ftp",
    "no scheme",
]


@pytest.fixture(scope="module")
def page(besieged_page):
    return besieged_page


@pytest.fixture(scope="module")
def prey(page, tmp_path_factory):
    """A file with a secret, a pipe that nobody writes to, and a port that nobody should knock at."""
    outside = tmp_path_factory.mktemp("outside")
    secret = secrets.token_hex(32).encode()
    (outside / "secret.png").write_bytes(secret)
    os.mkfifo(outside / "pipe.png")
    [folder] = page.temporary.glob("sd_tf-demo-*")
    inside = [folder, *(path for path in folder.iterdir() if path.is_dir())][-1]
    (inside / "link.png").symlink_to(outside / "secret.png")
    knocks = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def note():
            while True:
                try:
                    knocks.append(listener.accept())
                except OSError:
                    return

        threading.Thread(target=note, daemon=True).start()
        port = listener.getsockname()[1]
        paths = [
            str(outside / "secret.png"),
            os.path.relpath(outside / "secret.png", page.cwd),
            str(inside / "link.png"),
            str(outside / "pipe.png"),
            "/dev/zero",
            f"http://127.0.0.1:{port}/a.png",
            f"https://127.0.0.1:{port}/a.png",
            f"file://{outside / 'secret.png'}",
            f"ftp://127.0.0.1:{port}/a.png",
            f"//127.0.0.1:{port}/a.png",
        ]
        yield SimpleNamespace(
            secret=secret, folder=folder, knocks=knocks, paths=dict(zip(TARGETS, paths, strict=True))
        )


def events(page):
    """What can be asked for, as the page itself says, with the values that it begins with."""
    config = httpx.get(f"{page.address}/config", timeout=20).json()
    values = {each["id"]: each["props"].get("value") for each in config["components"]}
    for event in config["dependencies"]:
        yield event, [values.get(number) for number in event["inputs"]]


def disguises(path):
    """What makes a path look like something that was sent."""
    file = {"path": path, "meta": META}
    yield file
    yield {"path": path, "url": path, "orig_name": "a.png", "is_stream": False, "meta": META}
    yield {"path": "a.png", "url": path, "meta": META}
    yield path
    yield [file]
    yield [[file, "caption"]]
    yield {"background": file, "layers": [file], "composite": file}
    yield {"image": file, "value": file, "deep": {"deeper": [{"er": file}]}}


def answers(client, event, data, by_all_ways):
    """What the server says to a request: by the page's ways, or by all that Gradio has."""
    name, session = event["api_name"] or "predict", f"t{time.monotonic_ns()}"
    clicked = {"index": data[0] if data else 0, "value": data[0] if data else None}
    body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": clicked}
    joined = client.post("/gradio_api/queue/join", json=body)
    yield joined.text
    if joined.status_code == 200:
        with contextlib.suppress(httpx.NetworkError, httpx.ProtocolError):  # hung up on
            stream = client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session})
            with stream as lines:
                for line in lines.iter_lines():
                    yield line
                    if "process_completed" in line or "unexpected_error" in line:
                        break
    yield content(client, "POST", "run/predict", body).decode()
    if not by_all_ways:
        return
    for way in (f"run/{name}", f"api/{name}"):
        yield content(client, "POST", way, body).decode()
    for way in ("call", "call/v2"):
        given = {"data": data} if way == "call" else dict(enumerate_names(event, data))
        called = content(client, "POST", f"{way}/{name}", given).decode()
        yield called
        if found := re.search(r'"event_id":"(\w+)"', called):
            yield content(client, "GET", f"{way}/{name}/{found[1]}").decode()


def content(client, method, path, body=None):
    """Of an answer; empty where there is none."""
    try:
        return client.request(method, f"/gradio_api/{path}", json=body).content
    except (httpx.NetworkError, httpx.ProtocolError):  # hung up on
        return b""


def enumerate_names(event, data):
    names = event.get("input_parameter_names") or [f"param_{number}" for number in range(len(data))]
    return zip(names, data, strict=False)


def served_files(client, text):
    """The content of every file that an answer names."""
    for path in set(re.findall(r"/[^\"'\s\\,;&]*sd_tf-demo-[^\"'\s\\,;&<>]+", text)):
        yield content(client, "GET", f"file={path.removeprefix('/gradio_api/file=')}")


@pytest.mark.parametrize("target", TARGETS)
def test_no_value_of_any_request_leads_to_what_is_not_its_senders(page, prey, target):
    path, tried = prey.paths[target], 0
    with httpx.Client(base_url=page.address, timeout=10) as client:
        for event, defaults in events(page):
            for number in range(len(defaults)):
                for kind, disguise in enumerate(disguises(path)):
                    if kind in (3, 4, 5) and target in TARGETS[-4:]:  # others have shown what they do
                        continue
                    data = [*defaults[:number], disguise, *defaults[number + 1 :]]
                    tried += 1
                    for text in answers(client, event, data, by_all_ways=kind < 2):
                        assert prey.secret not in text.encode(), (event["api_name"], number, disguise)
                        for file in served_files(client, text):
                            assert prey.secret not in file, (event["api_name"], number, disguise)
    assert tried > 80  # the page says that there is something to try
    copies = [file for file in prey.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert not [file for file in copies if prey.secret in file.read_bytes()]
    assert not prey.knocks


@pytest.mark.parametrize("target", ["a file", "http"])
def test_files_are_refused_before_gradio_sees_them(page, prey, target):
    file = {"path": prey.paths[target], "meta": META}
    with httpx.Client(base_url=page.address, timeout=10) as client:
        for event, defaults in events(page):
            for number in range(len(defaults)):
                data = [*defaults[:number], file, *defaults[number + 1 :]]
                body = {"data": data, "fn_index": event["id"], "session_hash": "early"}
                for way in ("queue/join", "run/predict"):
                    assert client.post(f"/gradio_api/{way}", json=body).status_code == 422
        for part in ("fn_index", "session_hash", "event_data", "event_id", "trigger_id", "batched", "more"):
            for event, defaults in events(page):
                body = {"data": defaults, "fn_index": event["id"], "session_hash": "early", part: file}
                for way in ("queue/join", "run/predict", "cancel", "reset"):
                    assert prey.secret not in client.post(f"/gradio_api/{way}", json=body).content
    assert not prey.knocks


def test_what_is_a_picture_of_another_is_refused_without_a_trace(page, prey):
    before = sorted(prey.folder.rglob("*"))
    for begin in (
        {"background": {"path": prey.paths["a file"], "meta": META}},
        {"background": {"path": prey.paths["a link in the server's folder"]}},
        {"background": {"path": "a\0b"}},
        {"background": {"path": ["a"]}},
        {"background": {"path": "x" * 100_000}},
        {"background": [], "layers": []},
        {"layers": [None]},
        {"layers": 3},
        "text",
        [1],
    ):
        data, error, _ = ask(page, begin=begin)
        assert data is None and error.startswith("begin"), (begin, error)
        assert len(error) < 300
    assert sorted(prey.folder.rglob("*")) == before


def test_files_are_served_only_where_they_were_drawn(page, prey, tiny_folder):
    mine = uploaded(page, png(np.zeros((4, 4, 3), np.uint8)))["path"]
    known = ask(page)[0][2][0]["image"]["path"]
    with httpx.Client(base_url=page.address, timeout=20) as client:
        assert client.get(f"/gradio_api/file={known}").headers["content-type"] == "image/png"
        hidden = [
            *prey.paths.values(),
            mine,
            str(tiny_folder / "model_index.json"),
            "/etc/passwd",
            "/dev/null",
            "setup.cfg",
            f"{known}%00",
            f"/{known}",
            f"{known}/",
            os.path.dirname(known),
            f"{prey.folder}/in-use",
            "x" * 10_000,
            "",
        ]
        for path in hidden:
            for encoded in (path, path.replace("/", "%2f"), path.replace(".", "%2e")):
                for way in ("file=", "file/", "file", "proxy=", "stream/", "static/", "assets/"):
                    answer = client.get(f"/gradio_api/{way}{encoded}")
                    assert answer.status_code in (400, 404), (way, encoded)
        folder, name = os.path.split(known)
        for path in (  # as no client writes them
            "/static/../../../etc/passwd",
            "/assets/%2e%2e/%2e%2e/routes.py",
            "/static//etc/passwd",
            f"/gradio_api/file={known}/../../../../../../../../etc/passwd",
            f"/gradio_api/file={folder}/../{os.path.basename(folder)}/{name}",
            f"/gradio_api/file={folder}/./{name}",
            f"/gradio_api/file={folder}//{name}",
        ):
            target = path.encode()
            with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as raw:
                host = f"{client.base_url.host}:{client.base_url.port}".encode()
                raw.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
                assert raw.recv(100).startswith(b"HTTP/1.1 404 ")


def test_afterwards_it_draws_and_ends_without_a_trace(page, prey):  # the last of this page
    assert ask(page)[1] is None
    assert "Traceback" not in "".join(page.errors)
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait(timeout=20) == 143
    assert not list(page.temporary.glob("sd_tf-demo*"))

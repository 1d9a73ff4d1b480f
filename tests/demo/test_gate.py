"""Strangers at the gate: other routes, hosts and bodies, much of everything, and nobody who listens."""

import contextlib
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

gradio = pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
import httpx  # noqa: E402  comes with Gradio

from tests.demo.asking import JSON, REQUEST, ask, join, png, uploaded  # noqa: E402

WAYS_OF_THE_PAGE = {
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/gradio_api/info"),
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data"),
    ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/cancel"),
    ("POST", "/gradio_api/reset"),
    ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/heartbeat/x"),
}


@pytest.fixture(scope="module")
def page(besieged_page):
    return besieged_page


@pytest.fixture
def client(page):
    with httpx.Client(base_url=page.address, timeout=60) as client:
        yield client


def connected(page):
    host, port = page.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(page, request):
    """The first line of the answer to bytes that no client would send."""
    with connected(page) as connection:
        connection.sendall(request)
        return connection.recv(100).partition(b"\r\n")[0]


def memory(page):
    """Resident bytes of the server."""
    with open(f"/proc/{page.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def paths(routes):
    """Of routes and of the routers among them, with x for each parameter."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from paths(route.original_router.routes)
        else:
            yield re.sub(r"\{[^}]*\}", "x", route.path)


def test_of_all_routes_of_gradio_only_those_of_the_page_are_open(page, client):
    with gradio.Blocks() as blocks:
        pass
    tried = 0
    for path in set(paths(gradio.routes.App.create_app(blocks).routes)):
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}:
            if (method, path) in WAYS_OF_THE_PAGE or path in ("/static/x", "/assets/x"):
                continue
            tried += 1
            assert client.request(method, path).status_code == 404, (method, path)
    assert tried > 200
    recording = client.post("/gradio_api/process_recording", files={"video": ("a", b"x" * 1_000_000)})
    assert recording.status_code == 404
    assert [each.name[:11] for each in page.temporary.iterdir()] == ["sd_tf-demo-"]


def test_websockets_are_not_spoken(page):
    head = b"GET /gradio_api/queue/data HTTP/1.1\r\nHost: localhost\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    assert b" 101 " not in raw(
        page, head + upgrade + b"Sec-WebSocket-Key: aaaa\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:7860"}, 403),
        ({"host": "192.168.0.1"}, 403),  # only where all addresses are listened on
        ({"host": "localhost@evil.example"}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "LOCALHOST:1"}, 200),
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "https://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),  # another program's page
        ({"host": "localhost:1", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:1", "origin": "null"}, 403),
        ({"host": "localhost:1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        (
            {"host": "localhost:1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
            200,
        ),  # a link
    ],
)
def test_pages_of_others_are_not_answered(client, headers, status):
    assert client.get("/", headers=headers).status_code == status


def test_no_page_of_others_makes_the_server_work(client):
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/predict"):
            assert client.post(path, headers=headers, content=b"{}").status_code == 403
    root = client.get("/config", headers={"x-forwarded-host": "evil.example"}).json()["root"]
    assert "evil" not in root


@pytest.mark.parametrize(
    "length, body, status",
    [
        (b"Content-Length: " + b"9" * 5000, b"", 400),
        (b"Content-Length: 99999999999999999999", b"", 400),
        (b"Content-Length: 999999999", b"", 413),
        (b"Content-Length: -1", b"", 400),
        (b"Content-Length: 0x10", b"", 400),
        (b"Content-Length: 2\r\nContent-Length: 3", b"{}", 400),
        (b"Content-Length: 2\r\nContent-Length: 2", b"{}", 422),
        (b"Transfer-Encoding: gzip", b"", 400),
        (b"Transfer-Encoding: chunked", b"ZZZ\r\n{}\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5000", b"2\r\n{}\r\n0\r\n\r\n", 422),
        (b"Content-Length: 2\r\nX: " + b"y" * 100_000, b"{}", 431),
    ],
)
def test_bodies_of_no_known_length_are_refused(page, length, body, status):
    for path in (b"/gradio_api/queue/join", b"/gradio_api/upload"):
        request = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n" + body
        expected = {b"400"} if path.endswith(b"upload") and status == 422 else {b"%d" % status}
        assert raw(page, request).split()[1] in expected, (path, length[:40])


def test_endless_bodies_are_hung_up_on(client):
    def endless():
        for _ in range(100):
            yield b"x" * 1024**2

    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel"):
        with contextlib.suppress(httpx.TransportError):  # hung up on
            assert client.post(path, content=endless()).status_code == 413
        assert client.post(path, content=b"x" * 11 * 1024**2).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b"\xff\xfe",
        b'{"fn_index": 1' + b"0" * 6000 + b"}",
        b'{"fn_index": true, "data": []}',
        b'{"fn_index": 1.0, "data": []}',
        b'{"fn_index": -1, "data": []}',
        b'{"fn_index": 6, "data": [], "session_hash": "a"}',
        b'{"fn_index": 1, "data": {}, "session_hash": "a"}',
        b'{"fn_index": 1, "data": [], "session_hash": "a"}',
        b'{"fn_index": {"path": "/etc/passwd"}, "session_hash": {"path": "/etc/passwd"}, "event_id": []}',
    ],
)
def test_what_is_no_request_gets_422(client, body):
    for path in ("queue/join", "run/predict", "cancel"):
        answer = client.post(f"/gradio_api/{path}", content=body, headers=JSON)
        assert answer.status_code == 422 and len(answer.text) < 300


@pytest.mark.parametrize(
    "number", [float("nan"), float("inf"), -float("inf"), 1e308, 10**400, -(2**60), [1], {}]
)
def test_numbers_that_are_none_are_refused_by_their_name(page, number):
    for name in ("num_images", "steps", "guidance_scale", "guidance_start", "seed", "strength"):
        data, error, _ = ask(page, **{name: number})
        assert data is None and error.startswith(name.replace("_", " ")), (name, error)


@pytest.mark.parametrize("session", [None, "", "a" * 65, "../a", "a b", 3, ["a"], {"path": "/etc/passwd"}])
def test_sessions_have_plain_names(client, session):
    assert join(client, list(REQUEST.values()), session).status_code == 422


def test_uploads_get_a_place_of_their_own_whatever_they_are_called(page, client):
    [folder] = page.temporary.glob("sd_tf-demo-*/pictures")
    for name in ("../../evil.png", "/etc/evil", "evil.html", ".", "a\0b", "x" * 5000, "\u202e.png"):
        path = uploaded(page, b"<script>alert(1)</script>", name)["path"]
        assert path.startswith(f"{folder}/") and path.endswith("/picture")
    several = client.post("/gradio_api/upload", files=[("files", (f"{n}", b"x")) for n in range(8)])
    assert len(set(several.json())) == 8
    before = sorted(folder.rglob("*"))
    nine = client.post("/gradio_api/upload", files=[("files", (f"{n}", b"x")) for n in range(9)])
    assert nine.status_code == 413
    for refused in (
        {"files": {"file": ("a.png", b"x")}},
        {"data": {"files": "no file"}},
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=" + "x" * 100}},
        {"content": b"--x\r\n" * 10_000, "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"--x\r\n\r\n--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"x", "headers": {"content-type": "image/png"}},
        {"content": b"x"},
    ):
        assert client.post("/gradio_api/upload", **refused).status_code in (400, 413), refused
    assert sorted(folder.rglob("*")) == before


def test_a_bad_picture_leaves_nothing_behind(page, client):
    [number] = [
        each["id"] for each in client.get("/config").json()["dependencies"] if each["api_name"] == "open"
    ]
    bad = uploaded(page, b"no picture")
    [folder] = page.temporary.glob("sd_tf-demo-*/pictures")
    before = sorted(folder.rglob("*"))
    body = {"fn_index": number, "data": [bad], "session_hash": "opening"}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "opening"}) as lines:
        assert "cannot be read as a picture" in next(
            each for each in lines.iter_lines() if "completed" in each
        )
    assert sorted(folder.rglob("*")) == before


def test_refused_requests_leave_nothing_in_memory(page, client):
    def flood(size, n):
        for number in range(n):
            data = list({**REQUEST, "prompt": "x" * size}.values())
            body = {"fn_index": 1, "data": data, "session_hash": f"s{time.monotonic_ns()}{number}"}
            assert client.post("/gradio_api/queue/join", json=body).status_code in (413, 422)

    flood(120_000, 50)
    before = memory(page)
    flood(9 * 1024**2, 10)
    flood(120_000, 300)
    assert memory(page) - before < 20 * 1024**2


def test_what_nobody_listens_to_is_not_drawn(page, client):
    long = list({**REQUEST, "steps": 1000, "num_images": 4}.values())
    begun = time.monotonic()
    for number in range(11):
        join(client, long, f"deaf{number}")
    time.sleep(max(0, begun + 6 - time.monotonic()))
    assert ask(page)[1] is None
    assert time.monotonic() - begun < 15  # of eleven drawings of up to 20 seconds


def test_streams_are_only_for_those_who_asked_and_one_each(page, client):
    for session in ("nobody", "../x", "a" * 1000, ""):
        answer = client.get("/gradio_api/queue/data", params={"session_hash": session})
        assert answer.status_code in (404, 422)
    join(client, list({**REQUEST, "steps": 900}.values()), "twice")
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "twice"}) as lines:
        heard = lines.iter_lines()
        next(line for line in heard if "process_generating" in line)
        second = httpx.get(f"{page.address}/gradio_api/queue/data?session_hash=twice", timeout=20)
        assert second.status_code == 409
    assert ask(page)[1] is None


def test_many_who_say_nothing_shut_nobody_out(page, client):
    with contextlib.ExitStack() as held:
        for number in range(700):
            with contextlib.suppress(OSError):  # the system's own limit
                connection = held.enter_context(connected(page))
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" if number % 2 else b"")
        begun = time.monotonic()
        assert ask(page)[1] is None
        assert time.monotonic() - begun < 10


def test_many_open_tabs_leave_room_for_drawings(page, client):
    request = b"GET /gradio_api/heartbeat/tab%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as held:
        tabs = [held.enter_context(connected(page)) for _ in range(210)]
        for number, tab in enumerate(tabs):
            tab.sendall(request % number)
        answers = [tab.recv(20).split()[1] for tab in tabs]
        assert answers.count(b"200") == 200 and answers.count(b"503") == 10
        assert ask(page)[1] is None


def test_many_large_uploads_at_once_stay_within_memory_and_disk(page):
    [folder] = page.temporary.glob("sd_tf-demo-*/pictures")
    before, content = memory(page), np.random.default_rng(0).bytes(9 * 1024**2)

    def send(_):
        with httpx.Client(base_url=page.address, timeout=60) as client:
            return client.post("/gradio_api/upload", files={"files": ("a.png", content)}).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(send, range(40)))
    assert set(statuses) <= {200, 503} and 200 in statuses
    assert memory(page) - before < 400 * 1024**2
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 512 * 1024**2
    assert ask(page, begin={"background": uploaded(page, png(np.zeros((4, 4, 3), np.uint8)))})[1] is None


def test_what_is_waited_for_too_long_ends(page):
    """A body that stops half way; a request's head; both while somebody else is served."""
    head = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with connected(page) as slow, connected(page) as silent:
        slow.sendall(head)
        silent.sendall(b"GET / HTTP/1.1\r\n")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(100) == b""
        assert 5 < time.monotonic() - begun < 15
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun < 20


def test_programs_send_pictures(page, tmp_path):
    gradio_client = pytest.importorskip("gradio_client", reason="comes with Gradio")
    (tmp_path / "picture.png").write_bytes(png(np.full((16, 16, 3), 200, np.uint8)))
    client = gradio_client.Client(page.address, verbose=False)
    begin = {
        "background": gradio_client.handle_file(tmp_path / "picture.png"),
        "layers": [],
        "composite": None,
    }
    drawn = client.predict(prompt="a red dress", num_images=1, steps=2, begin=begin, api_name="/draw")
    assert drawn[3][0]["image"] == "given"


def test_nothing_of_it_is_worth_a_line_in_the_log(page):  # the last of this page
    assert page.errors == []

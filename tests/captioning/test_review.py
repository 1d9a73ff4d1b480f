"""`--review`: a page corrects captions for the browser that has its address, and for nobody else."""

import contextlib
import http.client
import io
import json
import re
import threading
from types import SimpleNamespace
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from sd_tf.captioning import review
from sd_tf.data.captioned_folder import list_folder
from sd_tf.errors import InputError
from tests.captioning.tiny import write_pictures


@pytest.fixture
def folder(tmp_path):
    """Three pictures with captions, and what is nobody's business."""
    folder = write_pictures(tmp_path / "pictures", 3)
    rows = [
        {"file_name": "0.png", "text": "a red dress", "score": 1},
        {"file_name": "1.png", "text": "</textarea><script>alert(1)</script>"},
        {"file_name": "2.png", "text": ["a bag", "a blue bag"]},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "secret.txt").write_text("secret")
    return folder


@contextlib.contextmanager
def served(folder):
    """The page's port, token and `ask(method, path, body, headers)`, which gives (status, headers, body)."""
    started, found, servers = threading.Event(), {}, []
    with pytest.MonkeyPatch.context() as patch:

        class Server(review._Server):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                servers.append(self)

        patch.setattr(review, "_Server", Server)

        def listening(address):
            found["address"] = address
            started.set()

        thread = threading.Thread(target=review.serve, args=(folder, 0, listening), daemon=True)
        thread.start()
        assert started.wait(30)
        port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{32})/", found["address"]).groups()

        def ask(method="GET", path=f"/{token}/", body=None, headers=()):
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
            connection.request(method, path, body, {"Host": f"127.0.0.1:{port}"} | dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

        try:
            yield SimpleNamespace(port=port, token=token, ask=ask)
        finally:
            servers[0].shutdown()
            thread.join(30)


def post(page, fields, path=None, **headers):
    """Sends the form as the page itself does."""
    own = {"Origin": f"http://127.0.0.1:{page.port}", "Content-Type": "application/x-www-form-urlencoded"}
    return page.ask("POST", path or f"/{page.token}/?page=0", urlencode(fields), own | headers)


def captions_of(folder):
    return [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_captions_are_shown_and_corrected(folder):
    with served(folder) as page:
        status, headers, body = page.ask()
        assert status == 200 and b"a red dress</textarea>" in body and b"a bag\na blue bag</textarea>" in body
        status, headers, _ = post(page, {"0": "a  green\r\ndress ", "2": "a bag\r\n\r\na small bag"})
        assert (status, headers["Location"]) == (303, "?page=0")
        assert b"a green dress</textarea>" in page.ask()[2]
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert rows[0] == {"file_name": "0.png", "text": "a green dress", "score": 1}
    assert rows[1]["text"] == "</textarea><script>alert(1)</script>"
    assert rows[2]["text"] == ["a bag", "a small bag"]
    found = {each.file.name: each.caption for each in list_folder(folder).pictures}
    assert found["0.png"] == "a green dress" and found["2.png"] == ("a bag", "a small bag")
    assert not (folder / ".captions.lock").exists()


def test_an_unchanged_form_leaves_the_file_as_it_is(folder):
    before = (folder / "metadata.jsonl").read_bytes()
    with served(folder) as page:
        assert post(page, {"0": "a red dress", "2": "a bag\r\na blue bag"})[0] == 303
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_thumbnails_are_small_and_of_the_pictures(folder):
    Image.new("RGB", (900, 600), (200, 30, 30)).save(folder / "1.png")
    with served(folder) as page:
        status, headers, body = page.ask(path=f"/{page.token}/picture/1")
    assert status == 200 and headers["Content-Type"] == "image/jpeg"
    picture = Image.open(io.BytesIO(body))
    assert picture.size == (256, 171)
    assert np.abs(np.asarray(picture).astype(int) - [200, 30, 30]).max() <= 5


def test_captions_and_names_are_text_and_nothing_runs(folder):
    with open(folder / "metadata.jsonl", "a") as stream:
        stream.write(json.dumps({"file_name": '"><img src=x onerror=alert(1)>.png', "text": "x"}) + "\n")
    with served(folder) as page:
        _, headers, body = page.ask()
    assert b"<script" not in body and b"<img src=x" not in body
    assert b"&lt;/textarea&gt;&lt;script&gt;" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "script-src" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_many_captions_have_many_pages(folder, monkeypatch):
    monkeypatch.setattr(review, "ON_A_PAGE", 2)
    with served(folder) as page:
        first, second = (page.ask(path=f"/{page.token}/?page={number}")[2] for number in (0, 1))
        assert b"picture/1" in first and b"picture/2" not in first
        assert b"picture/2" in second and b"?page=0" in second
        assert page.ask(path=f"/{page.token}/?page=2")[0] == 404
        assert post(page, {"2": "changed"})[0] == 400  # which is not on the page of that form
        assert post(page, {"2": "changed"}, f"/{page.token}/?page=1")[0] == 303


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/picture/0", "", "//", "/metadata.jsonl"])
def test_without_the_token_there_is_nothing(folder, path):
    with served(folder) as page:
        assert page.ask(path=path)[0] == 404
        assert post(page, {"0": "evil"}, path or "/x")[0] == 404
    assert captions_of(folder)[0] == "a red dress"


@pytest.mark.parametrize(
    "path",
    [
        "secret.txt",
        "metadata.jsonl",
        "picture/../secret.txt",
        "picture/..%2fsecret.txt",
        "picture/3",
        "picture/-1",
        "picture/0/",
        "picture/99999999999999",
        "?page=x",
        "?page=9",
    ],
)
def test_there_are_no_other_files(folder, path):
    with served(folder) as page:
        status, _, body = page.ask(path=f"/{page.token}/{path}")
    assert status == 404 and b"secret" not in body


def test_pictures_outside_the_folder_are_not_served(folder, tmp_path):
    outside = write_pictures(tmp_path / "outside", 1)
    (folder / "link.png").symlink_to(outside / "0.png")
    rows = [
        {"file_name": name, "text": "x"} for name in ("../outside/0.png", str(outside / "0.png"), "link.png")
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with served(folder) as page:
        assert [page.ask(path=f"/{page.token}/picture/{number}")[0] for number in range(3)] == [404] * 3


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""]
)
def test_a_page_under_another_name_is_not_answered(folder, host):
    with served(folder) as page:
        headers = {"Host": host.format(port=page.port)}
        assert page.ask(headers=headers)[0] == 403
        assert post(page, {"0": "evil"}, **headers)[0] == 403
    assert captions_of(folder)[0] == "a red dress"


def test_it_answers_as_localhost_as_well(folder):
    with served(folder) as page:
        own = {"Host": f"localhost:{page.port}", "Origin": f"http://localhost:{page.port}"}
        assert page.ask(headers=own)[0] == 200
        assert post(page, {"0": "a hat"}, **own)[0] == 303
    assert captions_of(folder)[0] == "a hat"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "https://127.0.0.1:{port}"])
def test_a_form_of_another_site_changes_nothing(folder, origin):
    with served(folder) as page:
        assert post(page, {"0": "evil"}, Origin=origin.format(port=page.port))[0] == 403
    assert captions_of(folder)[0] == "a red dress"


def test_a_form_without_an_origin_changes_nothing(folder):
    with served(folder) as page:
        assert page.ask("POST", f"/{page.token}/?page=0", "0=evil")[0] == 403
    assert captions_of(folder)[0] == "a red dress"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("7=evil", {}),
        ("x=evil", {}),
        ("0=a&0=b", {}),
        ("0", {}),
        ("&".join(f"{number}=x" for number in range(200)), {}),
        ("0=evil", {"Content-Length": "999999999"}),
        ("0=evil", {"Content-Length": "-1"}),
        ("0=\xe9", {}),
    ],
)
def test_a_form_that_the_page_did_not_make_is_refused(folder, body, headers):
    with served(folder) as page:
        own = {"Origin": f"http://127.0.0.1:{page.port}"} | headers
        assert page.ask("POST", f"/{page.token}/?page=0", body.encode("latin-1"), own)[0] == 400
    assert captions_of(folder)[0] == "a red dress"


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_known(folder, method):
    with served(folder) as page:
        assert page.ask(method)[0] == 501


def test_a_disk_that_is_full_is_said_and_nothing_is_lost(folder, monkeypatch):
    def full(*_):
        raise InputError("cannot write metadata.jsonl: No space left on device")

    monkeypatch.setattr(review, "rewrite", full)
    with served(folder) as page:
        status, _, body = post(page, {"0": "a hat"})
        assert status == 500 and b"No space left" in body
        assert b"a red dress</textarea>" in page.ask()[2]
    assert captions_of(folder)[0] == "a red dress"


def test_without_captions_there_is_nothing_to_review(tmp_path):
    with pytest.raises(InputError, match="has no metadata.jsonl: write captions first, without review"):
        review.serve(write_pictures(tmp_path, 1))
    with pytest.raises(InputError, match="is not a folder"):
        review.serve(tmp_path / "nothing")


def test_a_port_that_is_taken_is_named(folder):
    with served(folder) as page:
        other = write_pictures(folder.parent / "other", 1)
        (other / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n')
        with pytest.raises(InputError, match=f"port {page.port} cannot be listened on .*: take another one"):
            review.serve(other, int(page.port))

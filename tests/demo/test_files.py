"""Pictures in a folder, bodies in memory and names of hosts: what is known, and what is let go of."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from sd_tf.demo.bodies import Bodies, Refused, parsed, sent_files
from sd_tf.demo.files import Files
from sd_tf.demo.hosts import Hosts


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_oldest_files_give_way(tmp_path):
    files = Files(tmp_path, most_bytes=25, most_files=3)
    a, b, c = (files.keep(f"{name}.png", b"x" * 10) for name in "abc")
    assert not files.is_kept(a) and files.is_kept(b) and files.is_kept(c)
    assert {path.name for path in tmp_path.rglob("*.png")} == {"b.png", "c.png"}
    assert len(list(tmp_path.iterdir())) == 2  # no empty folder stays
    small = [files.keep("d.png", b"x") for _ in range(3)]
    assert not files.is_kept(c) and all(map(files.is_kept, small))


def test_the_limit_holds_at_every_moment_while_many_write(tmp_path):
    files, most = Files(tmp_path, most_bytes=100_000, most_files=50), 0
    with ThreadPoolExecutor(8) as pool:
        for n in range(10):
            written = [pool.submit(files.keep, "a.png", b"x" * (1000 + n)) for _ in range(60)]
            while not all(each.done() for each in written):
                try:
                    most = max(most, size_of(tmp_path))
                except FileNotFoundError:  # it gave way just now
                    continue
            assert all(each.result() for each in written)
    assert 10_000 < most <= 100_000
    assert len(list(tmp_path.iterdir())) == 50


def test_only_the_very_path_that_was_given_out_is_known(tmp_path):
    files = Files(tmp_path)
    path = files.keep("a.png", b"x")
    folder, name = os.path.split(path)
    (tmp_path / "other.png").write_bytes(b"x")
    for other in (f"{folder}//{name}", f"{folder}/./{name}", folder, str(tmp_path / "other.png"), "", "a\0b"):
        assert not files.is_kept(other)
    for other in (None, 3, [path], {"path": path}, path.encode()):
        assert not files.is_kept(other)
    os.remove(path)
    os.symlink(tmp_path / "other.png", path)
    assert not files.is_kept(path)


def received(*messages, pause=0.0):
    """ASGI's receive; after the messages nothing comes any more."""
    left = list(messages)

    async def receive():
        await asyncio.sleep(pause if left else 60)
        return left.pop(0)

    return receive


def some(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    "headers, messages, status",
    [
        ({b"content-length": b"11"}, [], 413),
        ({b"content-length": b"9" * 5000}, [], 400),
        ({b"content-length": b"1, 1"}, [], 400),
        ({b"content-length": "\u0661".encode()}, [], 400),
        ({}, [some(b"x" * 6), some(b"x" * 6)], 413),
        ({}, [some(b"x"), {"type": "http.disconnect"}], 400),
        ({}, [some(b"x")], 408),
    ],
)
def test_bodies_are_read_within_bytes_and_seconds(headers, messages, status):
    bodies = Bodies()
    with pytest.raises(Refused) as refused:
        asyncio.run(bodies.read(headers, received(*messages), most_bytes=10, seconds=0.1))
    assert refused.value.status == status
    whole = received(some(b"a"), some(b"b", more=False))
    assert asyncio.run(bodies.read({}, whole, most_bytes=10, seconds=1)) == b"ab"


def test_of_too_many_bodies_the_one_that_has_taken_longest_is_dropped():
    bodies = Bodies(most_held=100)

    async def read(content, pause):
        messages = [some(content), some(b"", more=False)]
        return await bodies.read({}, received(*messages, pause=pause), most_bytes=100, seconds=5)

    async def both():
        slow = asyncio.ensure_future(read(b"x" * 60, 0.2))
        await asyncio.sleep(0.3)  # it has sent its 60 bytes
        return await read(b"y" * 60, 0), await asyncio.gather(slow, return_exceptions=True)

    quick, [slow] = asyncio.run(both())
    assert quick == b"y" * 60
    assert isinstance(slow, Refused) and slow.status == 503
    assert asyncio.run(read(b"z" * 90, 0)) == b"z" * 90  # nothing is counted any more


def test_json_is_an_object_or_refused():
    assert parsed(b'{"a": [1, null]}') == {"a": [1, None]}
    for body in (b"", b"3", b"[]", b"{" * 1000, b"[" * 100_000, b"\xff", b'{"a": 1' + b"0" * 5000 + b"}"):
        with pytest.raises(Refused):
            parsed(body)


def test_files_are_taken_from_multipart_bodies_to_the_byte():
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    content = bytes(range(256)) + b"\r\n--a\r\n\r\n"
    body = head + content + b"\r\n" + head + b"\r\n--b--\r\n"
    assert sent_files("multipart/form-data; boundary=b", body) == [content, b""]
    assert sent_files('multipart/form-data; boundary="b"', body) == [content, b""]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "text/plain; boundary=b", ""):
        with pytest.raises(Refused):
            sent_files(kind, body)
    for broken in (body[:-10], b"x" + body, body.replace(b"files", b"other"), b"--b--\r\n"):
        with pytest.raises(Refused):
            sent_files("multipart/form-data; boundary=b", broken)


def test_all_addresses_are_asked_for_by_address_or_by_allowed_names():
    hosts = Hosts("0.0.0.0", ["Page.Example"])
    for known in ("192.168.0.7:7860", "[fe80::1]:7860", "localhost", "page.example", "PAGE.example.:443"):
        assert hosts.is_known(known)
    for other in ("evil.example", "192.168.0.7.evil.example", "", ":80", "[::1", "a b", "localhost:port"):
        assert not hosts.is_known(other)
    assert not Hosts("127.0.0.1").is_known("192.168.0.7")
    assert Hosts("page.lan").is_known("page.lan:80")


def test_a_page_is_ones_own_under_the_name_that_was_asked_for_or_an_allowed_one():
    hosts = Hosts("127.0.0.1", ["page.example"])
    for origin in ("http://localhost:80", "https://page.example", "https://page.example:8443"):
        assert hosts.is_own_page(origin, "localhost:80")
    for origin in ("http://localhost:81", "http://127.0.0.1:80", "null", "file://", "ftp://localhost:80"):
        assert not hosts.is_own_page(origin, "localhost:80")

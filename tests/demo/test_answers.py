"""What is the same for everybody is made once, and is forgotten where it gets too much."""

import asyncio

import pytest

pytest.importorskip("starlette", reason="comes with Gradio")

from sd_tf.demo.answers import Answers  # noqa: E402


def making(body, made, status=200):
    async def make(send):
        made.append(body)
        await asyncio.sleep(0.01)
        headers = [(b"etag", b'"a"'), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:2], "more_body": True})
        await send({"type": "http.response.body", "body": body[2:]})

    return make


def test_an_answer_is_made_once_however_many_ask_at_once():
    async def ask():
        answers, made = Answers(), []
        got = await asyncio.gather(*(answers.of("a", making(b"hello", made)) for _ in range(20)))
        return got, made

    got, made = asyncio.run(ask())
    assert made == [b"hello"]
    assert {answer.body for answer in got} == {b"hello"}
    assert got[0].response("").status_code == 200
    assert got[0].response('"a"').status_code == 304


def test_failures_and_what_nobody_asks_for_are_forgotten():
    async def ask():
        answers, made = Answers(most_bytes=10), []
        for key in ("a", "b", "a", "c", "a", "b"):  # two have room
            await answers.of(key, making(b"hello", made))
        await answers.of("d", making(b"wrong", made, status=500))
        await answers.of("d", making(b"wrong", made, status=500))
        return made

    assert asyncio.run(ask()) == [b"hello"] * 4 + [b"wrong"] * 2

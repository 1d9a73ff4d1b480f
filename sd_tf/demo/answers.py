"""Answers that are the same for everybody: made once, so that asking for them again costs next to nothing."""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from starlette.responses import Response

MOST_BYTES = 64 * 1024**2


class Answer(NamedTuple):
    """A whole answer: HTTP's status, headers and body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def response(self, known: str) -> Response:
        """What is sent to somebody who has a copy whose etag is `known`."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        if known and known == headers.get("etag"):
            return Response(status_code=304, headers={"etag": known})
        return Response(self.body, self.status, headers)


class Answers:
    """Remembers answers, and forgets those that nobody has asked for longest.

    Args:
        most_bytes: of all bodies.
    """

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes, self._size, self._known = most_bytes, 0, OrderedDict()
        self._making = asyncio.Lock()  # one at a time, and the same one never twice

    async def of(self, key, make) -> Answer:
        """The answer to what `key` asks for.

        Args:
            make: an ASGI application that was given all but `send`.
        """
        if key not in self._known:
            async with self._making:
                if key not in self._known:
                    answer = await _made(make)
                    if answer.status != 200:
                        return answer
                    self._remember(key, answer)
        self._known.move_to_end(key)
        return self._known[key]

    def _remember(self, key, answer):
        self._known[key] = answer
        self._size += len(answer.body)
        while self._size > self._most_bytes and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._size -= len(oldest.body)


async def _made(make):
    status, headers, body = 500, [], bytearray()

    async def send(message):
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        else:
            body.extend(message.get("body", b""))

    await make(send)
    return Answer(status, headers, bytes(body))

"""Bodies of requests: read within bytes and seconds, and taken apart without trust in their shape."""

import asyncio
import json
import re

MB = 1024**2
MOST_HELD = 64 * MB  # bytes of all bodies that are being read
MOST_PARTS = 8  # files of one request
MULTIPART = re.compile(
    r"multipart/form-data; *boundary=(\"?)([0-9A-Za-z'()+_,./:=?-]{1,70})\1", re.IGNORECASE
)


class Refused(Exception):
    """A request that goes no further; its text is for whoever sent it.

    Args:
        status: of HTTP.
        text: what is wrong, and the way out.
    """

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


class Bodies:
    """Reads bodies; where all together get too large, the one that has taken longest is dropped.

    Args:
        most_held: bytes of all bodies together.
    """

    def __init__(self, most_held: int = MOST_HELD):
        self._most_held, self._held = most_held, 0
        self._reading = {}  # a key for each body: the body, oldest first

    async def read(self, headers: dict[bytes, bytes], receive, most_bytes: int, seconds: float) -> bytes:
        """The body of a request.

        Args:
            headers: with names in lower case.
            receive: of ASGI.
            most_bytes: it may have.
            seconds: it may take.

        Raises:
            Refused: it is too large or too slow, was broken off, or others needed its room.
        """
        _check_length(headers.get(b"content-length", b"0"), most_bytes)
        key, body, deadline = object(), bytearray(), asyncio.get_running_loop().time() + seconds
        self._reading[key] = body
        try:
            more = True
            while more:
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await receive()
                except TimeoutError:
                    raise Refused(408, f"the request took longer than {seconds:g} seconds") from None
                if message["type"] != "http.request":
                    raise Refused(400, "the request was broken off")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                self._hold(key, len(chunk))
                body += chunk
                _check_size(len(body), most_bytes)
            return bytes(body)
        finally:
            if self._reading.pop(key, None) is not None:
                self._held -= len(body)

    def _hold(self, key, size):
        while self._held + size > self._most_held and len(self._reading) > 1:
            oldest = self._reading.pop(next(iter(self._reading)))
            self._held -= len(oldest)
            oldest.clear()
        if key not in self._reading:
            raise Refused(503, "too much is being sent at once: try again")
        self._held += size


def _check_length(announced, most_bytes):
    if not re.fullmatch(rb"[0-9]{1,18}", announced):
        raise Refused(400, "the length of the request is no number")
    _check_size(int(announced), most_bytes)


def _check_size(size, most_bytes):
    if size > most_bytes:
        most = f"{most_bytes // MB} MB" if most_bytes >= MB else f"{most_bytes // 1024} kB"
        raise Refused(413, f"a request of this kind has {most} at most: send less")


def parsed(body: bytes) -> dict:
    """The JSON object of a body. Numbers that JSON has not, such as NaN, become floats.

    Raises:
        Refused: it is no object, or nobody could read it.
    """
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError and integers of 5,000 digits are ValueErrors
        raise Refused(422, "the request cannot be read as JSON") from None
    if not isinstance(value, dict):
        raise Refused(422, "the request is no JSON object")
    return value


def sent_files(content_type: str, body: bytes) -> list[bytes]:
    """The files of a multipart body, all of which are called "files"; their own names are not used.

    Raises:
        Refused: it is no such body, has no file, or too many.
    """
    found = MULTIPART.fullmatch(content_type.strip())
    if found is None:
        raise Refused(400, "send pictures as multipart/form-data")
    before, *parts = (b"\r\n" + body).split(b"\r\n--" + found[2].encode(), MOST_PARTS + 2)
    if len(parts) > MOST_PARTS + 1:
        raise Refused(413, f"a request has {MOST_PARTS} files at most")
    if before or len(parts) < 2 or parts.pop().strip() != b"--":
        raise Refused(400, "the pictures of the request cannot be told apart")
    return [_content(part) for part in parts]


def _content(part):
    head, separator, content = part.partition(b"\r\n\r\n")
    head = head.lower()
    if not separator or b'name="files"' not in head or b"filename" not in head:
        raise Refused(400, 'send each picture as a file called "files"')
    return content

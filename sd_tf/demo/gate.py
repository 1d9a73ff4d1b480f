"""The one gate in front of Gradio: what it does not know is 404, what it does not understand goes no further.

Gradio gets requests that were built here, from values of known types: no header, query, path of a file or
field of JSON reaches it because somebody sent it.
"""

import asyncio
import contextlib
import html
import json
import logging
import re
from pathlib import Path
from urllib.parse import parse_qs, quote

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from sd_tf.demo import fields
from sd_tf.demo.answers import Answers
from sd_tf.demo.bodies import MB, Bodies, Refused, parsed, sent_files
from sd_tf.demo.files import Files
from sd_tf.demo.hosts import Hosts
from sd_tf.demo.listeners import Listeners

log = logging.getLogger(__name__)
LARGEST_HEAD = 16 * 1024  # bytes of a request's headers
MOST_UPLOADED = 10 * MB  # bytes of one request with pictures
MOST_ASKED = 128 * 1024  # bytes of one request without
UPLOAD_SECONDS, ASK_SECONDS = 60.0, 15.0  # that it may take to arrive
LINGER_SECONDS, LINGER_BYTES = 2.0, 16 * MB  # of a refused body that are read, so that the answer is as well
MOST_STREAMS = 200  # that tell whether tabs are open; those of drawings are bounded by the queue
API = "/gradio_api"
NAMES = r"(/[0-9A-Za-z_-][0-9A-Za-z_.-]*)+"  # no name begins with a dot, so none leads upwards
ROUTES = [  # method, path, what answers; the rest of the path is matched as it was sent, without decoding
    ("GET", r"/|/config|/theme\.css|/favicon\.ico", "_plain"),
    ("GET", rf"(/assets|/static){NAMES}|{API}/info", "_plain"),
    ("GET", rf"{API}/heartbeat/[0-9A-Za-z_-]{{1,64}}", "_heartbeat"),
    ("GET", rf"{API}/queue/data", "_listen"),
    ("POST", rf"{API}/(queue/join|run/predict)", "_ask"),
    ("POST", rf"{API}/cancel", "_cancel"),
    ("POST", rf"{API}/reset", "_reset"),
    ("POST", rf"{API}/upload", "_upload"),
    ("GET", rf"{API}/file=.+", "_file"),
]
SAFETY = {  # a browser asks no other host, whatever Gradio's scripts hold, and no other page shows this one
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "object-src 'none'; form-action 'self'; base-uri 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Request:
    """One request on its way: ASGI's three arguments, with headers as a dictionary."""

    def __init__(self, scope, receive, send):
        self.scope, self._receive, self._send = scope, receive, send
        self.headers = {name.lower(): value for name, value in scope["headers"]}
        self.path = scope.get("raw_path", b"").decode("latin-1")  # as it was sent, without decoding
        self.is_answered = self.is_read = False

    def header(self, name: str) -> str:
        return self.headers.get(name.encode(), b"").decode("latin-1")

    def has_body(self) -> bool:
        return self.header("content-length") not in ("", "0") or b"transfer-encoding" in self.headers

    async def receive(self):
        message = await self._receive()
        self.is_read |= not message.get("more_body", False)
        return message

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.is_answered = True
            added = [(name.encode(), value.encode()) for name, value in SAFETY.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await self._send(message)

    async def answer(self, response: Response):
        await response(self.scope, self.receive, self.send)

    async def refuse(self, refused: Refused):
        """Answers, lets go of what is still being sent, and ends the connection."""
        if self.is_answered:
            return
        body = json.dumps({"detail": html.escape(refused.text, quote=False)}).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        await self.send(
            {
                "type": "http.response.start",
                "status": refused.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.is_read and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        await self.send({"type": "http.response.body"})


class Gate:
    """ASGI, around Gradio's.

    Args:
        app: Gradio's.
        queue: Gradio's, of requests that wait.
        known: `Fields`.
        sent, drawn: `Files`.
        listeners: `Listeners`.
        hosts: `Hosts`.
    """

    def __init__(
        self, app, queue, known: fields.Fields, sent: Files, drawn: Files, listeners: Listeners, hosts: Hosts
    ):
        self._app, self._queue, self._fields, self._hosts = app, queue, known, hosts
        self._sent, self._drawn, self._listeners = sent, drawn, listeners
        self._bodies, self._answers, self._streams, self._tasks = Bodies(), Answers(), 0, set()
        listeners.waiting = self._waiting

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope, receive, send)
        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEAD:
                raise Refused(431, "the head of the request is too large")
            self._check_origin(request)
            if scope["method"] == "GET" and request.has_body():
                raise Refused(400, "this takes no body")
            await self._answering(request)(request)
        except Refused as refused:
            await request.refuse(refused)

    def _check_origin(self, request):
        hosts = [value for name, value in request.scope["headers"] if name.lower() == b"host"]
        host = request.header("host")
        if len(hosts) != 1 or not self._hosts.is_known(host):
            raise Refused(403, f"{host[:80]!r} is no name of this server: start with --allow-host NAME")
        origin = request.header("origin")
        if origin and not self._hosts.is_own_page(origin, host):
            raise Refused(403, f"the page {origin[:80]!r} may not ask: start with --allow-host NAME")
        site, mode = request.header("sec-fetch-site"), request.header("sec-fetch-mode")
        if not origin and site in ("cross-site", "same-site") and (mode != "navigate" or request.path != "/"):
            raise Refused(403, "a page of another site may not ask")

    def _answering(self, request):
        for method, path, name in ROUTES:
            if request.scope["method"] == method and re.fullmatch(path, request.path):
                return getattr(self, name)
        raise Refused(404, "there is nothing here")

    async def _pass(self, request, query="", body=None, path=None, send=None, encoding=None):
        """Hands a request to Gradio: of what was sent, the path and the name under which it was asked."""
        headers = [(b"host", request.headers[b"host"]), *self._forwarded(request)]
        if encoding is not None:
            headers.append((b"accept-encoding", encoding))
        if body is not None:
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope = {**request.scope, "query_string": query.encode(), "headers": headers}
        if path is not None:
            scope |= {"path": path, "raw_path": path.encode()}
        first = {"type": "http.request", "body": body or b"", "more_body": False}

        async def receive():
            nonlocal first
            if first is not None:
                message, first = first, None
                return message
            while (message := await request.receive())["type"] != "http.disconnect":
                pass
            return message

        await self._app(scope, receive, send or request.send)

    def _forwarded(self, request):
        """Under which name and scheme a proxy was asked, as far as it is believed."""
        headers, host = [], request.header("x-forwarded-host")
        if host and self._hosts.is_known(host):
            headers.append((b"x-forwarded-host", host.encode()))
        if request.header("x-forwarded-proto") == "https":
            headers.append((b"x-forwarded-proto", b"https"))
        return headers

    async def _plain(self, request):
        """What is the same for everybody who asks under the same name."""
        query = "all_endpoints=True" if request.path == f"{API}/info" else ""
        encoding = b"br" if re.search(r"\bbr\b", request.header("accept-encoding")) else b"identity"
        name = None  # files do not hold it
        if not request.path.startswith(("/assets/", "/static/")):
            name = (request.header("host"), *self._forwarded(request))

        async def make(send):
            await self._pass(request, query, send=send, encoding=encoding)

        answer = await self._answers.of((request.path, encoding, name), make)
        await request.answer(answer.response(request.header("if-none-match")))

    async def _heartbeat(self, request):
        """Gradio's way to learn that a tab was closed."""
        if self._streams >= MOST_STREAMS:
            raise Refused(503, "too many tabs are open")
        self._streams += 1
        try:
            await self._pass(request)
        finally:
            self._streams -= 1

    async def _listen(self, request):
        """A stream of what becomes of a session's requests: one for each session that waits for something."""
        query = parse_qs(request.scope["query_string"].decode("latin-1"))
        session = fields.session(query.get("session_hash", [""])[0])
        for _ in range(20):  # a stream that is just being left
            if not self._listeners.is_open(session):
                break
            await asyncio.sleep(0.1)
        if not self._queue.pending_event_ids_session.get(session):
            raise Refused(404, "nothing was asked for")
        if not self._listeners.opened(session):
            raise Refused(409, "somebody listens already")

        async def send(message):
            self._listeners.sending(session, True)
            await request.send(message)
            self._listeners.sending(session, False)

        try:
            await self._pass(request, f"session_hash={session}", send=send)
        except Exception:  # Gradio's way to end the stream of a session that it has forgotten
            log.debug("a stream ended", exc_info=True)
            if not request.is_answered:
                raise Refused(404, "nothing was asked for") from None
            await request.send({"type": "http.response.body"})
        finally:
            self._listeners.closed(session)
            self._forget_later(session)

    def _waiting(self, session):
        messages = self._queue.pending_messages_per_session.get(session)
        return 0 if messages is None else messages.qsize()

    def _forget_later(self, session):
        """Ends what a session asked for, unless somebody listens in time."""

        async def forget():
            await asyncio.sleep(self._listeners.patience + 0.1)
            if not self._listeners.is_given_up(session):
                return
            await self._queue.clean_events(session_hash=session)
            self._queue.pending_event_ids_session.pop(session, None)
            self._queue.pending_messages_per_session.pop(session, None)

        task = asyncio.ensure_future(forget())
        self._tasks.add(task)  # without which it could be collected before it is done
        task.add_done_callback(self._tasks.discard)

    async def _json(self, request):
        return parsed(await self._bodies.read(request.headers, request.receive, MOST_ASKED, ASK_SECONDS))

    async def _ask(self, request):
        """Something that the page does: drawing, choosing, editing."""
        is_queued = request.path == f"{API}/queue/join"
        asked = self._fields.asked(await self._json(request), is_queued)
        if is_queued:
            self._listeners.expect(asked["session_hash"])
            self._forget_later(asked["session_hash"])
        path = f"{API}/queue/join" if is_queued else f"{API}/run/predict"
        await self._pass(request, body=json.dumps(asked).encode(), path=path)

    async def _cancel(self, request):
        asked = fields.cancelled(await self._json(request))
        await self._pass(request, body=json.dumps(asked).encode())

    async def _reset(self, request):
        """Part of Gradio's protocol, in which it means nothing any more."""
        await self._json(request)
        await request.answer(JSONResponse({"success": True}))

    async def _upload(self, request):
        """Keeps pictures that are sent; who sent them learns the paths, by which requests name them."""
        body = await self._bodies.read(request.headers, request.receive, MOST_UPLOADED, UPLOAD_SECONDS)
        files = sent_files(request.header("content-type"), body)
        paths = [await to_thread.run_sync(self._sent.keep, "picture", content) for content in files]
        await request.answer(JSONResponse(paths))

    async def _file(self, request):
        """A picture that was drawn here. What was sent is not shown to anybody."""
        path = request.scope["path"].partition("file=")[2]
        try:
            content = await to_thread.run_sync(Path(path).read_bytes) if self._drawn.is_kept(path) else None
        except OSError:  # it has just given way to newer ones
            content = None
        if content is None:
            raise Refused(404, "there is no such picture, or it has given way to newer ones")
        headers = {
            "content-disposition": f"inline; filename*=utf-8''{quote(Path(path).name)}",
            "cache-control": "private",
        }
        await request.answer(Response(content, media_type="image/png", headers=headers))

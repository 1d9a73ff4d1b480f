"""The page over HTTP: what reaches Gradio, what a browser may ask for, which files stay, how it ends."""

import logging
import signal
import socket
from pathlib import Path

import fastapi
import gradio as gr
import uvicorn
from anyio import to_thread

from sd_tf.demo.page import THEME
from sd_tf.errors import InputError

MOST_BYTES = 10 * 1024**2  # of one request: a picture
MOST_KEPT = 512 * 1024**2  # bytes of files
MOST_FILES = 10_000
MOST_CONNECTIONS = 512
CLOSED = ("/gradio_api/component_server", "/gradio_api/deep_link", "/monitoring")  # fill memory or disk
POLICY = (  # a browser asks no other host, whatever Gradio's scripts hold
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; form-action 'self'"
)


class Guard:
    """Around Gradio's application: closes doors that the page does not need, and bounds requests and files.

    Args:
        app: ASGI.
        folder: of uploads and pictures.
    """

    def __init__(self, app, folder: Path):
        self._app, self._folder = app, folder

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["path"].startswith(CLOSED):
            return await fastapi.Response("closed", 404)(scope, receive, send)
        if int(dict(scope["headers"]).get(b"content-length", b"0")) > MOST_BYTES:
            text = f"a request has {MOST_BYTES // 1024**2} MB at most: send a smaller picture"
            return await fastapi.Response(text, 413)(scope, receive, send)
        size = 0

        async def receive_some():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= MOST_BYTES else {"type": "http.disconnect"}

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive_some, send_with_policy)
        if scope["method"] == "POST":
            await to_thread.run_sync(keep_newest, self._folder)


def keep_newest(folder: Path, most_bytes: int = MOST_KEPT, most_files: int = MOST_FILES):
    """Deletes the oldest files of a folder and its folders until those left are few and small enough."""
    files = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                state = path.stat()
                files.append((state.st_mtime, state.st_size, path))
        except FileNotFoundError:  # another request was first
            continue
    size = 0
    for number, (_, own, path) in enumerate(sorted(files, reverse=True), 1):
        size += own
        if size > most_bytes or number > most_files:
            path.unlink(missing_ok=True)
            if path.parent != folder and not any(path.parent.iterdir()):
                path.parent.rmdir()


def application(blocks: gr.Blocks, style: str, folder: Path):
    """The ASGI application of a page."""
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        path="/",
        max_file_size=MOST_BYTES,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=THEME,
        css=style,
    )
    return Guard(app, folder)


def listening(host: str, port: int) -> socket.socket:
    """A socket there; port 0 is a free one.

    Raises:
        InputError: the port is taken, or there is no such host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {host} --port {port} cannot be listened on ({error}): take another port"
        ) from None


class _Server(uvicorn.Server):
    def __init__(self, config, closing):
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, *received):
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # connections that are cut are no news
        self._closing()
        super().handle_exit(*received)


def serve(app, found: socket.socket, closing):
    """Answers until Ctrl-C or SIGTERM, which then raise `KeyboardInterrupt` or `SystemExit`.

    Args:
        app: ASGI.
        found: of `listening`.
        closing: called as soon as the end has begun.
    """
    signal.signal(signal.SIGTERM, _terminated)
    settings = {"log_level": "error", "access_log": False, "timeout_graceful_shutdown": 2}
    config = uvicorn.Config(app, limit_concurrency=MOST_CONNECTIONS, **settings)
    _Server(config, closing).run(sockets=[found])


def _terminated(*_):
    raise SystemExit(143)

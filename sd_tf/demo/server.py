"""The page over HTTP: Gradio behind its gate, how many may connect, how it ends."""

import logging
import socket

import fastapi
import gradio as gr
import uvicorn

from sd_tf.demo.connections import TimedConnection
from sd_tf.demo.fields import Fields, functions
from sd_tf.demo.files import Files
from sd_tf.demo.gate import LARGEST_HEAD, MOST_UPLOADED, Gate
from sd_tf.demo.hosts import Hosts
from sd_tf.demo.listeners import Listeners
from sd_tf.demo.page import THEME
from sd_tf.errors import InputError


def application(blocks: gr.Blocks, style: str, sent: Files, drawn: Files, listeners: Listeners, hosts: Hosts):
    """The ASGI application of a page.

    Args:
        blocks, style: of `page`.
        sent, drawn: the only files that exist for it.
        listeners: of the drawings.
        hosts: as which it is known.
    """
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        path="/",
        max_file_size=MOST_UPLOADED,
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
    blocks.has_launched = True  # which nothing but `launch` sets, and without which Gradio checks no path
    _move_no_files(sent, drawn)
    return Gate(app, blocks._queue, Fields(functions(blocks), sent, drawn), sent, drawn, listeners, hosts)


def _move_no_files(*kinds):
    """Gradio copies or fetches files that values name; here they stay where they are, or are refused."""

    def moved(_, path):
        if not any(kind.is_kept(path) for kind in kinds):
            raise gr.Error("there is no such picture (any more)", print_exception=False)
        return path

    async def moved_later(_, path):
        return moved(_, path)

    gr.blocks.Block.move_resource_to_block_cache = moved
    gr.blocks.Block.async_move_resource_to_block_cache = moved_later


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
        self._closing(*received)
        super().handle_exit(*received)


def serve(app, found: socket.socket, closing):
    """Answers until Ctrl-C or SIGTERM, which are raised again when it has ended.

    Args:
        app: ASGI.
        found: of `listening`.
        closing: called with the signal as soon as the end has begun.
    """
    config = uvicorn.Config(
        app,
        http=TimedConnection,
        ws="none",
        loop="asyncio",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # what proxies say is the gate's matter
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_graceful_shutdown=2,
    )
    _Server(config, closing).run(sockets=[found])

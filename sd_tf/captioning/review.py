"""A page on this machine to correct captions: pictures with text boxes, and a button that saves them.

It has no script. Only the browser that was given its address, which holds a random token, gets an answer;
pages of other sites do not, whether they ask by another name (DNS rebinding) or send a form. It shows the
pictures that `metadata.jsonl` names, by their row, and no other file.
"""

import functools
import html
import http.server
import io
import re
import secrets
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from sd_tf.captioning.table import TABLE, column_of, only_one_writer, remove_unfinished_line, rewrite
from sd_tf.data.captioned_folder import LONGEST_CAPTION, captions_of, contents_of, tidy
from sd_tf.data.opening import open_picture
from sd_tf.data.tables import READERS
from sd_tf.errors import InputError, argument
from sd_tf.files import is_inside, reason

HOST = "127.0.0.1"
ON_A_PAGE = 100  # pictures
THUMBNAIL = 256  # pixels along the longer side
LARGEST_FORM = 4 * 3 * ON_A_PAGE * LONGEST_CAPTION  # bytes: 4 for a character, each written as %XX
SECONDS = 30.0  # that a request may take to arrive
SAFETY = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with "no-referrer", a form would not tell its Origin
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em }
div { display: flex; gap: 1em; margin: 1em 0 } img { width: 256px; object-fit: contain }
label { flex: 1 } textarea { width: 100%; font: inherit } small { color: #666 }
"""


class Row(NamedTuple):
    """A line of the table: its picture's file, the name of its column of captions, and all its values."""

    file: Path
    column: str
    values: dict

    def corrected(self, text: str) -> "Row":
        """The row with another caption; where it lists several, with one for each line of the text."""
        if isinstance(self.values[self.column], list):
            caption = [tidy(line) for line in text.splitlines() if line.strip()]
        else:
            caption = tidy(text)
        return self._replace(values=self.values | {self.column: caption})


class Review:
    """The captions of a folder, to be shown and corrected.

    Args:
        folder: with pictures and a `metadata.jsonl`.

    Raises:
        InputError: there is none, or it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.table = contents_of(self.folder).top / TABLE
        if not self.table.is_file():
            raise InputError(
                f"{self.folder} has no {TABLE}: write captions first, without {argument('review')}"
            )
        remove_unfinished_line(self.table)
        self.rows, self._lock = [], threading.Lock()
        for number, values in READERS[".jsonl"](self.table, self.folder, ()):
            column = column_of(values, f"{self.table}, row {number}")
            self.rows.append(Row(self.table.parent / str(values["file_name"]), column, values))

    @property
    def pages(self) -> int:
        """Number of pages, at least 1."""
        return max(1, -(-len(self.rows) // ON_A_PAGE))

    def numbers_of(self, page: int) -> range:
        """The numbers of the rows on a page, which counts from 0."""
        return range(page * ON_A_PAGE, min((page + 1) * ON_A_PAGE, len(self.rows)))

    def caption(self, number: int) -> str:
        """A row's caption; of a list of captions, each on a line of its own."""
        row = self.rows[number]
        found = captions_of(row.values[row.column]) or ""
        return found if isinstance(found, str) else "\n".join(found)

    def correct(self, captions: dict[int, str]):
        """Replaces captions, number of a row -> caption, in the table; others keep what they have.

        Raises:
            InputError: the table cannot be written. Nothing has changed then.
        """
        with self._lock:
            rows = [row.corrected(captions[n]) if n in captions else row for n, row in enumerate(self.rows)]
            if rows != self.rows:
                rewrite(self.table, [row.values for row in rows])
                self.rows = rows

    def thumbnail(self, number: int) -> bytes:
        """A row's picture as a small JPEG.

        Raises:
            InputError: it cannot be read, or lies outside the folder.
        """
        file = self.rows[number].file
        if not is_inside(self.folder, file):
            raise InputError(f"{file} lies outside {self.folder}")
        return open_picture(file, least_side=THUMBNAIL, use=_small_jpeg, root=self.folder)

    def html(self, page: int) -> str:
        """A page."""
        boxes = "".join(self._box(number) for number in self.numbers_of(page))
        links = " ".join(
            f'<a href="?page={other}">{said}</a>'
            for other, said in ((page - 1, "previous"), (page + 1, "next"))
            if 0 <= other < self.pages
        )
        title = f"Captions of {html.escape(str(self.folder))}"
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
            f"<h1>{title}</h1><p>Page {page + 1} of {self.pages} {links}</p>"
            f'<form method=post action="?page={page}">{boxes}<button>Save</button></form></html>'
        )

    def _box(self, number):
        name, caption = (
            html.escape(str(self.rows[number].values["file_name"])),
            html.escape(self.caption(number)),
        )
        return (
            f'<div><img loading=lazy src="picture/{number}" alt=""><label><small>{name}</small><textarea '
            f'name="{number}" rows=4 maxlength={LONGEST_CAPTION}>\n{caption}</textarea></label></div>'
        )


def _small_jpeg(picture):
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET of a page or a picture, and POST of a page's form."""

    timeout = SECONDS
    server_version, sys_version = "sd_tf", ""

    def __init__(self, review, token, *arguments):
        self._review, self._token = review, token
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_GET(self):
        if (path := self._path()) is None:
            return
        if path == "" and (page := self._page()) is not None:
            self._answer(200, self._review.html(page).encode(errors="replace"), "text/html; charset=utf-8")
        elif (found := re.fullmatch(r"picture/([0-9]{1,9})", path)) and int(found[1]) < len(
            self._review.rows
        ):
            self._send_thumbnail(int(found[1]))
        else:
            self._refuse(404)

    def do_POST(self):
        if (path := self._path()) is None:
            return
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            return self._refuse(403)
        if path != "" or (page := self._page()) is None:
            return self._refuse(404)
        captions = self._form(page)
        if captions is None:
            return self._refuse(400)
        try:
            self._review.correct(captions)
        except InputError as error:
            return self._answer(500, str(error).encode(), "text/plain; charset=utf-8")
        self._answer(303, b"", "text/plain", {"Location": f"?page={page}"})

    def _path(self):
        """What follows the token in the path; None, and an answer, for those who may not ask."""
        port = self.server.server_port
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            return self._refuse(403)
        _, token, *rest = self.path.partition("?")[0].split("/", 2)
        if not rest or not secrets.compare_digest(token.encode(), self._token.encode()):
            return self._refuse(404)
        return rest[0]

    def _page(self):
        """The number in the query, None if there is no such page."""
        query = self.path.partition("?")[2]
        found = re.fullmatch(r"page=([0-9]{1,7})", query or "page=0")
        return int(found[1]) if found and int(found[1]) < self._review.pages else None

    def _form(self, page):
        """Number of a row -> caption, None for what no form of that page sends."""
        length = self.headers.get("Content-Length") or ""
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST_FORM:
            return None
        try:
            body = self.rfile.read(int(length)).decode("ascii")
            fields = parse_qsl(body, True, True, max_num_fields=ON_A_PAGE)
            captions = {int(name): text for name, text in fields if re.fullmatch("[0-9]{1,9}", name)}
        except (ValueError, OSError):
            return None
        is_whole = len(captions) == len(fields) and set(captions) <= set(self._review.numbers_of(page))
        return captions if is_whole else None

    def _send_thumbnail(self, number):
        try:
            self._answer(200, self._review.thumbnail(number), "image/jpeg")
        except InputError:
            self._refuse(404)

    def _refuse(self, status):
        self._answer(status, http.HTTPStatus(status).phrase.encode(), "text/plain")

    def _answer(self, status, content, kind, headers=None):
        self.close_connection = True
        self.send_response(status)
        for name, value in {**SAFETY, "Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(http.server.ThreadingHTTPServer):
    """Connections that a browser has cut are no news."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


def serve(folder, port: int = 0, listening=print):
    """Serves the page of a folder until Ctrl-C.

    Args:
        folder: with pictures and a `metadata.jsonl`, which no other process may write meanwhile.
        port: 0 is any free one.
        listening: called with the page's address once it answers.

    Raises:
        InputError: there are no captions, or the port is taken.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{argument('folder', '--data-dir')} {folder} is not a folder: name one of pictures")
    with only_one_writer(folder):
        token = secrets.token_urlsafe(24)
        handler = functools.partial(_Handler, Review(folder), token)
        try:
            server = _Server((HOST, port), handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"{argument('port')} {port} cannot be listened on ({reason(error)}): take another one"
            ) from None
        with server:
            listening(f"http://{HOST}:{server.server_port}/{token}/")
            server.serve_forever()

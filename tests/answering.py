"""A request handler for tests' own servers, such as one in the place of the hub."""

import hashlib
import http.server


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers with bytes or files, and logs nothing."""

    def answer(self, content, headers, body):
        """Sends `content`, or only what a HEAD request asks for if `body` is False."""
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def answer_file(self, file, commit, body):
        """Sends a file with the headers by which the hub's client knows it."""
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)

    def log_message(self, *args):
        pass

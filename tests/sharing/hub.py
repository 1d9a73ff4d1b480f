"""A hub on this machine: models' repositories over the protocol of huggingface_hub, kept in memory.

It makes repositories, takes files as Git LFS objects and commits as lines of JSON, and gives files out
again. `Hub.answers` has an answer for the next requests of a path, to be refused.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote

import pytest

TOKEN = "hf_of_the_tests"
OBJECTS = (".safetensors", ".png")  # files that are stored as objects


class Repository:
    """Branch -> path -> content, and the commits in order."""

    def __init__(self, private):
        self.private, self.commits, self.parents = private, [], {}
        self.branches = {"main": {}}

    def sha(self, branch):
        content = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.files(branch)))
        return hashlib.sha1(content.encode()).hexdigest()

    def files(self, revision):
        if revision in self.branches:
            return sorted(self.branches[revision].items())
        return next((self.files(branch) for branch in self.branches if self.sha(branch) == revision), None)


class Hub:
    """The state of the stand-in.

    Attributes:
        repositories: id -> `Repository`.
        objects: SHA-256 -> content, uploaded but perhaps not committed.
        asked: (method, path) of each request.
        answers: regular expression of a path -> (status, headers, JSON), in place of the usual answer.
    """

    def __init__(self):
        self.repositories, self.objects, self.asked, self.answers = {}, {}, [], {}
        self.address = None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request by the first route that fits."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._route("GET")

    do_HEAD = do_GET

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def _route(self, method):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, self.query = self.path.partition("?")
        self.hub.asked.append((self.command, path))
        for pattern, (status, headers, content) in self.hub.answers.items():
            if re.search(pattern, path):
                return self._json(content, status, headers)
        if not path.startswith("/objects/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        for wanted, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                return answer(self, *map(unquote, found.groups()))
        return self._json({"error": f"no route {method} {path}"}, 404)

    def _json(self, content, status=200, headers=None):
        headers = {"Content-Type": "application/json"} | (headers or {})
        self._send(json.dumps(content).encode(), status, headers)

    def _send(self, content, status=200, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _repository(self, name):
        if name not in self.hub.repositories:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self.hub.repositories.get(name)

    # -- repositories ---------------------------------------------------------------------------

    def validate_card(self):
        return self._json({"errors": [], "warnings": []})

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(bool(private))
        return self._json({"url": url, "name": name, "id": "0"})

    def create_branch(self, name, branch):
        repository = self._repository(name)
        if branch in repository.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repository.branches[branch] = dict(repository.branches["main"])
        return self._json({})

    def info(self, name, revision="main"):
        repository = self._repository(name)
        if repository is None:
            return None
        if repository.files(revision) is None:
            return self._no_revision()
        info = {"id": name, "modelId": name, "private": repository.private, "sha": repository.sha(revision)}
        files = [{"rfilename": path} for path, _ in repository.files(revision)]
        return self._json({**info, "siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def _no_revision(self):
        return self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})

    def tree(self, name, revision):
        repository = self._repository(name)
        if repository.files(revision) is None:
            return self._no_revision()
        return self._json([_entry(path, content) for path, content in repository.files(revision)])

    def file(self, name, revision, path):
        repository = self._repository(name)
        if repository is None:
            return None
        if repository.files(revision) is None:
            return self._no_revision()
        content = dict(repository.files(revision)).get(path)
        if content is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else repository.sha(revision)
        return self._send(content, 200, {"ETag": f'"{_oid(path, content)}"', "X-Repo-Commit": commit})

    # -- uploads --------------------------------------------------------------------------------

    def preupload(self, name, revision):
        if self._repository(name) is None:
            return None
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(OBJECTS) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return self._json({"files": files})

    def batch(self, name):
        asked = json.loads(self.body)
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256"
        objects = [
            {
                **each,
                "actions": {
                    "upload": {"href": f"{self.hub.address}/objects/{each['oid']}"},
                    "verify": {"href": f"{self.hub.address}/{name}/verify"},
                },
            }
            for each in asked["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def put_object(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json({"error": "the SHA-256 is another"}, 400)
        self.hub.objects[oid] = self.body
        return self._send(b"")

    def verify(self, name):
        asked = json.loads(self.body)
        kept = self.hub.objects.get(asked["oid"])
        return self._json({}, 200 if kept is not None and len(kept) == asked["size"] else 400)

    def commit(self, name, revision):
        repository = self._repository(name)
        if repository is None:
            return None
        creates_pr = "create_pr=1" in self.query
        if revision not in repository.branches:
            return self._no_revision()
        lines = [json.loads(line) for line in self.body.splitlines()]
        assert lines[0]["key"] == "header"
        files = dict(repository.branches[revision])
        for line in lines[1:]:
            _apply(line["key"], line["value"], files, self.hub.objects)
        branch = f"refs/pr/{len(repository.branches)}" if creates_pr else revision
        repository.branches[branch] = files
        repository.commits.append((branch, lines[0]["value"]["summary"]))
        url = f"{self.hub.address}/{name}"
        sha = repository.sha(branch)
        found = {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "success": True}
        return self._json({**found, "pullRequestUrl": f"{url}/discussions/1" if creates_pr else None})


def _apply(key, value, files, objects):
    """One line of a commit."""
    if key == "file":
        assert value["encoding"] == "base64"
        files[value["path"]] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        content = objects[value["oid"]]
        assert len(content) == value["size"] and value["algo"] == "sha256"
        files[value["path"]] = content
    elif key == "deletedFile":
        del files[value["path"]]
    else:
        raise AssertionError(f"a line {key}")


def _oid(path, content):
    if path.endswith(OBJECTS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)[:40]}
    if path.endswith(OBJECTS):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
    return entry


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", rf"/api/models/{NAME}/branch/([^/]+)", Handler.create_branch),
    ("GET", rf"/api/models/{NAME}", Handler.info),
    ("GET", rf"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    ("GET", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.file),
    ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/objects/([0-9a-f]{64})", Handler.put_object),
    ("POST", rf"/{NAME}/verify", Handler.verify),
    ("POST", rf"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
]


@contextlib.contextmanager
def serving():
    """A `Hub` that answers at `hub.address` within the block."""
    hub = Hub()
    handler = type("HandlerOfHub", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def known_to_this_process(hub, home):
    """Within the block, huggingface_hub in this process knows this hub alone, and its token."""
    from huggingface_hub import constants, hf_api

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(hf_api.api, "endpoint", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home))
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub

"""Models by name: bundled, in folders, and on a hub, which a small server of this file stands for."""

import configparser
import functools
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import sd_tf
from sd_tf.checkpoints import sources
from sd_tf.checkpoints.sources import bundled_names, resolve
from sd_tf.errors import InputError
from tests.answering import Answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(sd_tf.__file__).parent.parent


class Hub(Answering):
    """One repository, `team/model`, over the hub's own protocol."""

    def __init__(self, folder, asked, *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        self.asked.append((path, self.headers.get("Authorization")))
        files = [f for f in sorted(self.folder.rglob("*")) if f.is_file()]
        names = [str(f.relative_to(self.folder)) for f in files]
        sizes = [{"size": f.stat().st_size, "oid": "0"} for f in files]
        if re.fullmatch("/api/models/team/model(/revision/.*)?", path):
            said = sizes if "blobs=" in self.path.partition("?")[2] else [{}] * len(files)
            siblings = [{"rfilename": name, **own} for name, own in zip(names, said, strict=True)]
            info = {"id": "team/model", "sha": COMMIT, "siblings": siblings}
            return self.answer(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        if path.startswith("/api/models/team/model/tree/"):
            tree = [{"type": "file", "path": name, **own} for name, own in zip(names, sizes, strict=True)]
            return self.answer(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        file = self.folder / path.removeprefix("/team/model/resolve/").partition("/")[2]
        if path.startswith("/team/model/resolve/") and file.is_file():
            return self.answer_file(file, COMMIT, body)
        self.send_error(404)


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    """`hub(*arguments)`: `sd_tf.load` in a process that knows only this hub; the paths it asked for."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_model.save(folder)
    for part in ("vae", "unet"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.with_name("diffusion_pytorch_model.fp16.safetensors").write_bytes(plain.read_bytes())
        plain.with_name("diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"x")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"x")
    asked, home = [], tmp_path_factory.mktemp("home")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def load(arguments, home=home, before="", **environment):
        asked.clear()
        program = (
            f"import sd_tf, numpy\n{before}\nmodel = sd_tf.load({arguments})\n"
            "print(float(sum(numpy.abs(value).sum() for value in model.unet.get_weights())))"
        )
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_XET": "1",
        }
        return subprocess.run(
            [sys.executable, "-c", program],
            env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield load, asked, sum(np.abs(value).sum() for value in tiny_model.unet.get_weights())
    server.shutdown()


def files_of(asked):
    return {path.partition(f"/{COMMIT}/")[2] or path for path, _ in asked if "/resolve/" in path}


def test_a_hub_id_is_downloaded_once_and_then_opened_offline(hub):
    load, asked, expected = hub
    done = load("'team/model'", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)
    files = files_of(asked)
    assert "unet/diffusion_pytorch_model.safetensors" in files
    assert not [file for file in files if file.endswith(".bin") or "fp16" in file or "safety" in file]
    assert "v1-5-pruned.safetensors" not in files
    assert "Bearer hf_secret" in {token for _, token in asked}
    done = load("'team/model'", HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and not asked
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


def test_a_revision_and_a_variant_are_asked_for(hub, tmp_path):
    load, asked, _ = hub
    done = load("'team/model', revision='refs/pr/1', variant='fp16'", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any("refs%2Fpr%2F1" in path or "refs/pr/1" in path for path, _ in asked)
    files = files_of(asked)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files
    assert "unet/diffusion_pytorch_model.safetensors" not in files
    assert "text_encoder/model.safetensors" in files  # which has no such variant


def test_weights_that_are_more_than_the_memory_are_refused_before_they_are_downloaded(hub, tmp_path):
    load, asked, _ = hub
    machine = "from sd_tf.checkpoints import sources\nsources.GPU_DEVICE = 'none'\n"
    machine += "sources.memory_of_machine = lambda: 10_000"
    done = load("'team/model'", home=tmp_path, before=machine)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "'team/model' has 0.0 GB of weights, which were not downloaded: this machine has 0.0 GB" in last
    files = files_of(asked)
    assert any(file.endswith("model_index.json") for file in files)
    assert not [file for file in files if file.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("team/nothing", {}),
        ("team/other", {"HF_HUB_OFFLINE": "1"}),
        ("team/far", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ],
    ids=["not there", "offline", "no network"],
)
def test_a_hub_id_that_cannot_be_had_says_so_in_one_line(name, environment, hub, tmp_path):
    done = hub[0](f"'{name}'", home=tmp_path, **environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"no folder '{name}' here, so it was looked for on the Hugging Face hub" in last
    assert "check the path; or, of a hub id, the name and the network" in last


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # which accepts, and says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = "from sd_tf.checkpoints.sources import resolve\nresolve('team/far')"
        done = hub[0]("", before=asking, home=tmp_path, HF_ENDPOINT=endpoint, HF_HUB_ETAG_TIMEOUT="1")
    last = done.stderr.strip().splitlines()[-1]
    assert "InputError: no folder 'team/far' here, so it was looked for on the Hugging Face hub" in last
    assert "time" in last  # in the words of the library that asks


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_what_is_in_the_cache_is_taken(environment, hub, tmp_path):
    assert hub[0]("'team/model'", home=tmp_path).returncode == 0
    asking = (
        "from sd_tf.checkpoints.sources import resolve\nprint(resolve('team/model').name)\nraise SystemExit"
    )
    done = hub[0]("", before=asking, home=tmp_path, **environment)
    assert done.stdout.strip() == COMMIT, done.stderr


def test_bundled_names_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diffusion = ["fashion-mnist", "fashion-mnist-classifier", "fashion-mnist-small"]
    assert bundled_names("model") == ["emoji", "fashion-mnist", "fashion-mnist-small"]
    assert bundled_names("text encoder") == bundled_names("CLIP") == ["clip-mini"]
    assert bundled_names("tokenizer") == ["clip-mini", "fashion-mnist", "fashion-mnist-small"]
    assert bundled_names("classifier") == ["fashion-mnist-classifier"]
    assert bundled_names("perceptual network") == ["perceptual-mini"]
    assert bundled_names() == ["clip-mini", "emoji", *diffusion, "perceptual-mini"]
    assert (resolve("fashion-mnist") / "model_index.json").is_file()


def test_a_run_folder_that_is_mistyped_is_no_folder_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match="no folder 'runs/nix' here, so it was looked for on the") as error:
        resolve("runs/nix")
    assert str(error.value).endswith("check the path; or, of a hub id, the name and the network")


@pytest.mark.parametrize("name", ["./nothing", "none.safetensors", "a/b/c", "/nowhere/x"])
def test_a_path_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=f"no file or folder '{name}'"):
        resolve(name)


# -- models in Python packages ------------------------------------------------------------------------

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package with one file, which stands for MiniLM's; its own code is never run."""
    folder = tmp_path / "packages" / "carries_a_model" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('was run')\n")
    (folder / "config.json").write_text("{}")
    sha256 = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    carried = sources.PACKAGED[MINILM]._replace(package="carries_a_model", sha256=sha256)
    monkeypatch.setitem(sources.PACKAGED, MINILM, carried)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sources, "_download", lambda hub_id, *_: Path("from the hub"))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return folder


def test_a_model_that_a_package_carries_is_taken_from_there(packaged):
    assert resolve(MINILM, kind="text encoder") == packaged
    assert resolve(MINILM, revision="main") == Path("from the hub")
    assert resolve("sentence-transformers/another") == Path("from the hub")


@pytest.mark.parametrize("damage", ["another", "of the same size and time", "missing"])
def test_a_package_with_another_file_is_refused_in_one_line(damage, packaged):
    resolve(MINILM)  # whose hash is remembered
    file = packaged / "config.json"
    state = file.stat()
    file.unlink()
    if damage == "another":
        file.write_text("{ }")
    elif damage == "of the same size and time":
        file.write_text("[]")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(InputError, match=f"{file} .*install.* again") as error:
        resolve(MINILM)
    assert "\n" not in str(error.value)


def test_without_the_package_and_the_network_the_extra_is_named(tmp_path):
    program = (
        "from sd_tf.checkpoints import sources\n"
        f"found = sources.PACKAGED[{MINILM!r}]._replace(package='is_not_installed')\n"
        f"sources.PACKAGED[{MINILM!r}] = found\n"
        f"sources.resolve({MINILM!r})"
    )
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    message = done.stderr.splitlines()[-1]
    assert f"no folder '{MINILM}' here" in message and '".[minilm]"' in message


def test_the_extra_has_the_package_and_the_package_has_the_published_weights():
    carried = sources.PACKAGED[MINILM]
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    needed = extras["options.extras_require"][carried.extra]
    assert carried.package.replace("_", "-") in needed
    pytest.importorskip(carried.package)
    folder = resolve(MINILM)
    # All that `open_text_encoder` reads, such as whether texts are lower-cased and how states are pooled.
    read = {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"}
    read |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert set(carried.sha256) == read
    assert not [name for name in ("text_encoder", "tokenizer") if (folder / name).exists()]

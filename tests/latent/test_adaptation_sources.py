"""Adaptations by name: on disk, or on a hub, which a small server of this file stands for."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import types
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sd_tf
from sd_tf import generate
from sd_tf.errors import InputError
from sd_tf.lora.files import FILE, PEFT_FILE
from sd_tf.lora.sources import find_lora
from tests.answering import Answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(sd_tf.__file__).parent.parent
MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


class Hub(Answering):
    """A folder of repositories, as `folder/team/name`, over the hub's own protocol."""

    def __init__(self, folder, asked, *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.asked.append(path)
        if path.startswith("/api/models/"):
            _, _, _, team, name, *_ = path.split("/")
            repository = self.folder / team / name
            files = [file for file in sorted(repository.rglob("*")) if file.is_file()]
            names = [str(file.relative_to(repository)) for file in files]
            answer = {
                "id": f"{team}/{name}",
                "sha": COMMIT,
                "siblings": [{"rfilename": each} for each in names],
            }
            if repository.is_dir():
                return self.answer(json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
        team, name, *_ = [*path.split("/")[1:], "", ""]
        file = self.folder / team / name / path.partition("/resolve/")[2].partition("/")[2]
        if "/resolve/" in path and file.is_file():
            return self.answer_file(file, COMMIT, body)
        self.send_error(404)


def write(file, prefix=f"{MODULE}."):
    file.parent.mkdir(parents=True, exist_ok=True)
    down = np.ones((2, 32), "f4")
    save_file({f"{prefix}lora_A.weight": down, f"{prefix}lora_B.weight": np.ones((32, 2), "f4")}, file)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """`hub(program)`: runs it with `find_lora`, knowing only this hub; the paths it asked for."""
    folder = tmp_path_factory.mktemp("hub")
    write(folder / "team" / "style" / FILE)
    (folder / "team" / "style" / "pytorch_lora_weights.bin").write_bytes(b"a pickle")
    write(folder / "team" / "kohya" / "Ink v2.safetensors")
    write(folder / "team" / "many" / "a.safetensors")
    write(folder / "team" / "many" / "sub" / "b.safetensors")
    write(folder / "team" / "peft" / PEFT_FILE, "base_model.model.mid_block.attentions.0.proj_in.")
    (folder / "team" / "peft" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    for stage in ("base", "sr2"):
        write(folder / "team" / "cascade" / stage / FILE)
    for step in (500, 1000):
        write(folder / "team" / "steps" / f"checkpoint-{step}" / FILE)
    (folder / "team" / "none").mkdir()
    (folder / "team" / "none" / "README.md").write_text("nothing")
    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("home")

    def run(program, **environment):
        asked.clear()
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_XET": "1",
        }
        return subprocess.run(
            [sys.executable, "-c", f"from sd_tf.lora.sources import find_lora\n{program}"],
            env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield run, asked
    server.shutdown()


def fetched(asked):
    return {path.partition("/resolve/main/")[2] for path in asked if "/resolve/main/" in path}


def test_the_files_of_all_stages_of_a_cascade_are_fetched(hub):
    run, asked = hub
    done = run(
        "found = find_lora('team/cascade')\n"
        "print(found.name, *sorted(str(file.relative_to(found.path)) for file in found.path.glob('*/*')))"
    )
    assert done.stdout.split() == ["cascade", f"base/{FILE}", f"sr2/{FILE}"], done.stderr
    assert fetched(asked) == {f"base/{FILE}", f"sr2/{FILE}"}


@pytest.mark.parametrize(
    "arguments, name, files",
    [
        ("'team/style'", "style", {FILE}),
        ("'team/kohya'", "Ink v2", {"Ink v2.safetensors"}),
        ("'team/peft'", "peft", {PEFT_FILE, "adapter_config.json"}),
    ],
)
def test_a_hub_id_is_downloaded_once_and_only_the_lora(hub, arguments, name, files):
    run, asked = hub
    program = (
        f"found = find_lora({arguments})\nprint(found.name, found.path.is_file(), "
        "(found.path.parent / 'adapter_config.json').is_file(), sep='|')"
    )
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{name}|True|{'adapter_config.json' in files}"
    assert fetched(asked) == files
    assert done.stderr == ""
    again = run(program, HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, done.stdout) and not asked, again.stderr


def test_a_file_and_a_revision_are_asked_for_by_name(hub):
    run, asked = hub
    done = run("print(find_lora('team/many', weight_name='sub/b.safetensors', revision='v2').name)")
    assert (done.returncode, done.stdout) == (0, "b\n"), done.stderr
    assert any("/resolve/v2/sub/b.safetensors" in path for path in asked)
    assert any("/revision/v2" in path for path in asked)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("'team/many'", "the hub's team/many holds a.safetensors and sub/b.safetensors: name the file"),
        ("'team/steps'", f"team/steps holds checkpoint-1000/{FILE} and checkpoint-500/{FILE}: name the file"),
        ("'team/none'", "the hub's team/none has no safetensors file: is it a LoRA?"),
        ("'team/nobody'", "no folder 'team/nobody' here, so it was looked for on the Hugging Face hub"),
        (
            "'team/style', weight_name='no.safetensors'",
            "looked for on the Hugging Face hub",
        ),
        ("'team/style', weight_name='/'", "looked for on the Hugging Face hub"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub, arguments, message):
    done = hub[0](f"find_lora({arguments})")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "InputError" in last and message in last


def test_without_network_a_hub_id_is_one_line(hub, tmp_path):
    done = hub[0]("find_lora('team/style')", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert "InputError: no folder 'team/style' here, so it was looked for on the Hugging Face hub" in last


def test_a_folder_or_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # cannot be imported
    monkeypatch.chdir(tmp_path)
    write(Path("team/style") / FILE)
    write(Path("team/many") / "a.safetensors")
    write(Path("team/many") / "b.safetensors")
    assert find_lora("team/style") == (Path("team/style"), "style")
    assert find_lora(f"team/style/{FILE}") == (Path(f"team/style/{FILE}"), "style")
    assert find_lora("team/many", weight_name="b.safetensors") == (Path("team/many/b.safetensors"), "b")
    with pytest.raises(InputError, match="weight_name is 'b.safetensors', which is for a folder or a hub id"):
        find_lora("team/many/a.safetensors", weight_name="b.safetensors")


@pytest.mark.parametrize(
    "arguments", [{"file_or_id": 5}, {"weight_name": 5}, {"revision": 1.5}, {"weight_name": Path("a")}]
)
def test_names_that_are_no_texts_are_refused(arguments):
    name = next(iter(arguments)).replace("_or_id", "")
    with pytest.raises(InputError, match=f"^{name} is .*: give a text"):
        find_lora(**{"file_or_id": "team/style"} | arguments)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What is asked of a hub that has team/style."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    write(tmp_path / "snapshot" / FILE)
    asked = []

    def hf_hub_download(hub_id, file, revision):
        asked.append((hub_id, file, revision))
        return str(tmp_path / "snapshot" / file)

    files = [types.SimpleNamespace(rfilename=name) for name in (FILE, "b.safetensors")]
    info = types.SimpleNamespace(siblings=files)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda hub_id, revision, timeout: info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return asked


def test_the_command_line_loads_a_lora_from_the_hub(tiny_model, tmp_path, asked):
    tiny_model.save(tmp_path / "model")
    output = tmp_path / "out"
    command = ["a dress", "--model", str(tmp_path / "model"), "--steps", "1", "--output", str(output)]
    generate.main([*command, "--lora", "team/style"])
    assert asked == [("team/style", FILE, None)]
    with Image.open(output / "a-dress-0.png") as picture:
        assert picture.text["lora"] == "{'team/style': 1.0}"
    with pytest.raises(InputError, match="--lora nothing/here/either is missing"):
        generate.main([*command, "--lora", "nothing/here/either"])


def test_a_model_loads_a_lora_from_the_hub(tiny_model, asked):
    tiny_model.load_lora("team/style", 0.5, revision="v2")
    assert asked == [("team/style", FILE, "v2")]
    assert tiny_model.adaptations.weights == {"style": 0.5}
    tiny_model.adaptations.remove("style")

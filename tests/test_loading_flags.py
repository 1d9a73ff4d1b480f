"""Flags that say how a model is read are the same for all commands, and mistakes in them are said early."""

import json
import os
import subprocess
import sys

import pytest

import sd_tf
from sd_tf import commandline, evaluate, export, generate, sweep, train
from sd_tf.checkpoints.sources import PACKAGE, weights_sha256
from sd_tf.demo import __main__ as demo
from sd_tf.errors import InputError
from sd_tf.generation.conversions import Origin
from sd_tf.latent import loading
from sd_tf.latent.loading import PARTS, needs_networks
from tests.checkpoints.undamaged import CHECKPOINTS, SINGLE

GIVEN = {"revision": "main", "variant": "fp16", "tokenizer": "elsewhere", "prediction_type": "v_prediction"}
FLAGS = [word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", value)]
COMMANDS = {
    "generate": (generate.main, ["a dress", "--model", "m", "--engine", "tensorflow", "--output", "out"]),
    "export": (export.main, ["--model", "m", "--output", "out"]),
    "evaluate": (evaluate.main, ["--model", "m", "--output", "out"]),
    "sweep": (sweep.main, ["a dress", "--run", "run", "--output", "sweep.png"]),
    "demo": (demo.main, ["--model", "m", "--port", "0"]),
    "train": (train.main, ["--dataset", "garments", "--init-from", "m", "--output", "out"]),
}


class Stopped(Exception):
    """Raised by the stub of a loader."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_its_model_as_the_flags_say(command, tmp_path, monkeypatch):
    asked = []

    def stub(name, dtype=None, **options):
        asked.append((name, options))
        if len(asked) > 1:  # the first only checks
            raise Stopped

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "snapshots" / "000001").mkdir(parents=True)
    monkeypatch.setattr(sweep, "steps_in", lambda folder: {1: folder / "000001"})
    monkeypatch.setattr(evaluate, "_judges", lambda flags, names: None)
    monkeypatch.setattr(evaluate, "_open_data", lambda flags: None)
    for name in ("check", "load", "load_lazily"):
        monkeypatch.setattr(loading, name, stub)
    if command == "demo":
        pytest.importorskip("gradio", reason="the page needs Gradio")
    main, flags = COMMANDS[command]
    with pytest.raises(Stopped):
        main([*flags, *FLAGS])
    assert asked == [("run" if command == "sweep" else "m", GIVEN)] * 2


def test_the_flags_have_one_help(capsys):
    for command, (main, _) in COMMANDS.items():
        with pytest.raises(SystemExit):
            main(["--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for name, text in commandline.LOADING.items():
            assert f"--{name.replace('_', '-')}" in shown, command
            assert text in shown or (command, name) == ("train", "prediction_type"), (command, name)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder and a single file."""
    root = tmp_path_factory.mktemp("models")
    CHECKPOINTS["model"].write(root / "folder")
    CHECKPOINTS["file of 1.x"].write(root)
    return {"folder": str(root / "folder"), "file": str(root / SINGLE), "bundled": "fashion-mnist"}


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("folder", ["--revision", "main"], "--revision is 'main', but .*folder is on this machine"),
        ("bundled", ["--revision", "main"], "--revision is 'main', but fashion-mnist is on this machine"),
        ("file", ["--revision", "main"], "--revision is 'main', but .*safetensors is on this machine"),
        ("file", ["--variant", "fp16"], "--variant is 'fp16', but .*safetensors is a single file: it is for"),
        ("folder", ["--variant", "fp16"], "no part has files of the variant 'fp16': leave --var"),
        ("folder", ["--tokenizer", "/nowhere"], "no file or folder '/nowhere'"),
        ("folder", ["--prediction-type", "v"], "unknown --prediction-type 'v'"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "export", "evaluate", "demo", "train"])
def test_flags_that_do_not_go_together_are_one_line(
    command, model, flags, message, models, tmp_path, monkeypatch
):
    main, words = COMMANDS[command]
    if command == "train" and "--prediction-type" in flags:
        message = "--prediction-type is 'v'|prediction-type 'v'"  # an option with choices
    words = [models[model] if word == "m" else word for word in words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "_open_data", lambda flags: None)
    with pytest.raises(InputError, match=message) as refused:
        main([*words, *flags])
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_flags_for_models_beside_reports_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "read_reports", lambda file: [])
    with pytest.raises(InputError, match="--variant is for models, but only reports are compared"):
        evaluate.main(["--compare", "a.json", "--variant", "fp16", "--output", str(tmp_path / "out")])


def test_train_says_what_the_flags_need():
    with pytest.raises(InputError, match="--variant.*needs.*--init-from"):
        train.main(["--dataset", "garments", "--variant", "fp16"])


def test_a_variant_is_hashed_as_it_is_read_and_needs_its_networks(tmp_path):
    CHECKPOINTS["model"].write(tmp_path)
    before = weights_sha256(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.with_suffix(".fp16.safetensors").write_bytes(content[:-1] + b"\x01")
    assert weights_sha256(tmp_path) == before != weights_sha256(tmp_path, "fp16")
    assert needs_networks(tmp_path, variant="fp16")
    model = sd_tf.load(tmp_path, variant="fp16")
    assert (
        model.weights_sha256() == weights_sha256(tmp_path, "fp16") and Origin(tmp_path, PARTS, "fp16").variant
    )


EARLY = {
    "generate --model": ("generate", ["a", "--model", "/nowhere/m"], "no file or folder '/nowhere/m'"),
    "generate --lora": ("generate", ["a", "--lora", "/nowhere/l"], "--lora /nowhere/l is missing"),
    "export --model": (
        "export",
        ["--model", "fashion-mnits", "--output", "out"],
        "did you mean 'fashion-mnist'",
    ),
    "evaluate --model": ("evaluate", ["--model", "/nowhere/m"], "no file or folder '/nowhere/m'"),
    "evaluate --data-dir": ("evaluate", ["--data-dir", "/nowhere"], "--data-dir /nowhere is not a folder"),
    "evaluate --classifier": ("evaluate", ["--classifier", "/nowhere/c"], "no file or folder '/nowhere/c'"),
    "sweep --run": ("sweep", ["a", "--run", "/nowhere"], "/nowhere has no snapshots"),
    "demo --model": ("demo", ["--model", "/nowhere/m"], "no file or folder '/nowhere/m'"),
    "train --data-dir": ("train", ["--data-dir", "/nowhere"], "--data-dir /nowhere is not a folder"),
    "train pictures": (
        "train",
        ["--dataset", "folder", "--data-dir", "/nowhere"],
        "/nowhere is not a folder",
    ),
    "train --init-from": (
        "train",
        ["--dataset", "garments", "--init-from", "/nowhere/m"],
        "no file or folder '/nowhere/m'",
    ),
    "train --text-encoder": (
        "train",
        ["--dataset", "garments", "--text-encoder", "clip-mimi"],
        "did you mean 'clip-mini'",
    ),
}
PROGRAM = """
import json, runpy, sys
sys.argv = ["sd_tf", *json.loads(sys.argv[1])[1:]]
try:
    runpy.run_module("sd_tf." + json.loads(sys.orig_argv[-1])[0], run_name="__main__", alter_sys=True)
finally:
    print(sorted({"keras", "tensorflow", "torch"} & set(sys.modules)))
"""


@pytest.mark.parametrize("mistake", EARLY)
def test_a_mistyped_path_is_said_before_tensorflow_is_imported(mistake, tmp_path):
    module, flags, message = EARLY[mistake]
    data = {"SD_TF_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([module, *flags])],
        cwd=tmp_path,
        env=os.environ | data | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (done.returncode, done.stdout) == (2, "[]\n")


def test_a_check_of_a_whole_model_imports_neither(models):
    program = (
        "import sys, sd_tf.families\n"
        "for name in sys.argv[1:]:\n"
        "    sd_tf.families.check(name, tokenizer=sys.argv[1])\n"
        "print(sorted({'keras', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, models["folder"], models["file"]],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")

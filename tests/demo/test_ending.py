"""However a server ends, its folder goes: at once, or with the next server's start."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import sd_tf
from sd_tf.demo import ending


def started(temporary, *words):
    """A server of the bundled model that has just made its folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sd_tf.demo", "--port", "0", *words],
        env=os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(temporary.iterdir()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    return process


@pytest.mark.parametrize("seconds", [0, 0.3, 1.5, 3])
def test_sigterm_while_it_starts_leaves_nothing(tmp_path, seconds):
    pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
    process = started(tmp_path)
    time.sleep(seconds)  # in which it imports, loads and draws
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", -signal.SIGINT)])
def test_a_signal_while_the_folder_is_made_leaves_nothing(tmp_path, name, status):
    """It comes to any thread, such as those that libraries begin when they are imported."""
    code = f"""
import os, pathlib, signal, tempfile, threading, time
from sd_tf.demo.ending import Ending
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
make = tempfile.mkdtemp

def interrupted(**options):
    folder = make(dir={str(tmp_path)!r}, **options)
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.1)
    return folder

tempfile.mkdtemp = interrupted
with Ending() as ending:
    print("began")
"""
    environment = os.environ | {
        "PYTHONPATH": str(Path(sd_tf.__file__).parent.parent),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == status and done.stdout == ""
    assert ("KeyboardInterrupt" in done.stderr) == (name == "SIGINT")
    assert not list(tmp_path.iterdir())


def test_one_that_was_killed_is_cleaned_up_after_by_the_next(tmp_path):
    pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
    process = started(tmp_path)
    time.sleep(0.3)
    process.kill()
    process.wait()
    [left] = tmp_path.iterdir()
    following = started(tmp_path)  # or soon will
    try:
        deadline = time.monotonic() + 20
        while list(tmp_path.iterdir()) in ([], [left]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left.exists() and list(tmp_path.iterdir())
    finally:
        following.kill()
        following.wait()


def test_folders_of_others_and_of_living_servers_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, dead = (tmp_path / f"{ending.PREFIX}{name}" for name in ("living", "dead"))
    for folder in (living, dead):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
    lock = ending._locked(living)
    os.close(ending._locked(dead))
    (tmp_path / f"{ending.PREFIX}unmarked").mkdir()
    (tmp_path / f"{ending.PREFIX}file").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    os.close(ending._locked(tmp_path / "elsewhere"))
    (tmp_path / f"{ending.PREFIX}link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{ending.PREFIX}marked-by-link").mkdir()
    (tmp_path / f"{ending.PREFIX}marked-by-link" / ending.LOCK).symlink_to(
        tmp_path / "elsewhere" / ending.LOCK
    )
    before = {path.name for path in tmp_path.iterdir()}
    ending.remove_abandoned()
    assert before - {path.name for path in tmp_path.iterdir()} == {dead.name}
    os.close(lock)


def test_a_server_that_hangs_is_ended(tmp_path):
    code = (
        "import os, signal, threading, time\n"
        "from sd_tf.demo import ending\n"
        "ending.LONGEST_END = 0.5\n"
        "with ending.Ending() as end:\n"
        "    end.begin_serving()\n"
        "    threading.Thread(target=lambda: time.sleep(1000)).start()\n"  # which Python would wait for
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(sd_tf.__file__).parent.parent)
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60)
    assert ended.returncode == 143
    assert not list(tmp_path.iterdir())

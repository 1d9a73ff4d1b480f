"""A page of a tiny model, really served, by another process."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import sd_tf


@contextlib.contextmanager
def served(model, temporary, **flags):
    """Its address, process, lines of standard error and folder for temporary files."""
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "sd_tf.demo", "--model", str(model), "--port", "0", *words],
        env=os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.match(r"(http://\S+) draws with ", line)
        assert found, (line, errors)
        yield SimpleNamespace(
            address=found[1], process=process, errors=errors, temporary=temporary, cwd=Path.cwd()
        )
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    tiny_model.save(folder)
    return folder


@pytest.fixture(scope="session")
def serve_page(tiny_folder, tmp_path_factory):
    """A function that starts a page with room for ten requests that wait, as a context manager."""
    pytest.importorskip("gradio", reason='the page needs Gradio: pip install ".[demo]"')
    limits = {"max_queue": 10, "max_steps": 1000, "max_images": 4, "max_seconds": 20}

    def serve():
        temporary = tmp_path_factory.mktemp("served") / "temporary"
        return served(tiny_folder, temporary, engine="tensorflow", **limits)

    return serve


@pytest.fixture(scope="module")
def page(serve_page):
    with serve_page() as found:
        yield found


@pytest.fixture(scope="session")
def besieged_page(serve_page):
    """One page for all hostile requests, as it is after those before; the last of them may end it."""
    with serve_page() as found:
        yield found

"""Every notebook runs from top to bottom, as committed, with a fraction of a minute to train."""

import ast
import re
from pathlib import Path

import pytest

import sd_tf

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEED_DATA = ("2_train_on_fashion_mnist",)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def code(notebook):
    """All its code, without the magic of Jupyter's."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)


def printed(notebook):
    """Everything that its cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_there_are_four():
    assert [path.stem[0] for path in NOTEBOOKS] == list("1234")


def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch, request):
    nbclient = pytest.importorskip("nbclient")
    path, cells = notebook
    if path.stem in NEED_DATA:
        request.getfixturevalue("data_dir")
    monkeypatch.setenv("SD_TF_NOTEBOOK_MINUTES", "0.1")
    monkeypatch.setenv("PYTHONPATH", str(Path(sd_tf.__file__).parent.parent))
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(cells, timeout=600, kernel_name="python3", resources=folder).execute()
    assert "Warning" not in printed(cells)


def test_it_defines_no_model_and_has_a_badge_of_its_own_name(notebook):
    path, cells = notebook
    assert not [node for node in ast.walk(ast.parse(code(cells))) if isinstance(node, ast.ClassDef)]
    address = rf"colab\.research\.google\.com/github/\S+/notebooks/{path.name}\)"
    assert re.search(address, cells.cells[0].source)


def test_its_committed_outputs_are_pictures_and_no_errors(notebook):
    _, cells = notebook
    outputs = [output for cell in cells.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output.output_type == "error"]
    text = printed(cells)
    assert "\r" not in text and len(text) < 10_000 and "Warning" not in text

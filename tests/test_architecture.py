"""What holds the package together: imports point one way, and `import sd_tf` does nothing else."""

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sd_tf
import sd_tf.families

PACKAGE = Path(sd_tf.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)

# A module may import from rooms before its own, and from its own. Files beside the rooms that hold what
# everybody needs come first, command lines last.
STREAM = [
    {"errors", "files", "config", "options", "graphs", "skeleton", "images", "seeding", "hashing", "progress"}
    | {"quiet", "commandline", "showing", "unread"},
    {"nn", "data", "diffusion"},
    {"text"},
    {"checkpoints", "generation"},
    {"lora"},
    {"training"},
    {"sharing"},
    {"latent", "cascade", "gan"},
    {"families"},
    {"evaluation", "exporting", "captioning", "checkup"},
    {"studies"},
    {"__init__", "train", "generate", "evaluate", "recommend", "sweep", "export", "demo"}
    | {"push", "caption", "doctor", "study"},
]
FAMILIES = STREAM[7]
KNOW_NO_FAMILY = ("diffusion", "checkpoints", "generation", "lora", "training", "sharing")
MAY_IMPORT_TENSORFLOW = {"data", "training", "exporting", "graphs", "skeleton", "quiet", "commandline"}
# And never as they are imported: for speed, for gradients, and the one network that is a graph.
IN_FUNCTIONS = {
    *("nn/fused.py", "nn/remat.py", "generation/engines.py", "evaluation/inception.py"),
    *("latent/clip_guidance.py", "latent/initial_noise.py", "gan/inversion.py"),
}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name):
    return next(i for i, names in enumerate(STREAM) if name in names)


def imports(path):
    """Every module that a file imports, wherever in it the import stands, with the function it stands in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name: give the whole one"
            if node.module == "sd_tf":
                for alias in node.names:
                    yield f"sd_tf.{alias.name}", id(node) in inside
            else:
                yield node.module, id(node) in inside


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    for module, _ in imports(path):
        if not module.startswith("sd_tf."):
            continue
        own, other = room(path), module.split(".")[1]
        if level(own) == level(other) and own != other and level(own) > 0:
            raise AssertionError(f"{path} imports {module}, a sibling")
        assert level(other) <= level(own), f"{path} imports {module}, against the stream"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tensorflow_is_imported_only_where_it_is_at_home(path):
    if room(path) in MAY_IMPORT_TENSORFLOW or path.name == "stages.py":  # what a family trains
        return
    where = [inside for module, inside in imports(path) if module.split(".")[0] == "tensorflow"]
    assert all(where), f"{path} imports TensorFlow as it is imported"
    assert not where or str(path.relative_to(PACKAGE)) in IN_FUNCTIONS, f"{path} imports TensorFlow"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(path) in KNOW_NO_FAMILY], ids=lambda path: path.name
)
def test_rooms_that_families_share_name_none(path):
    text = path.read_text(encoding="utf-8")
    for family, home in sd_tf.families.FAMILIES.items():
        assert f"sd_tf.{family}" not in text and home.name not in text, path


def test_torch_and_its_libraries_are_imported_nowhere():
    for path in MODULES:
        if room(path) == "captioning":  # its models are theirs; the `caption` extra has them
            continue
        found = {module.split(".")[0] for module, _ in imports(path)}
        assert not found & {"torch", "diffusers", "transformers"}, path


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_import_sd_tf_prints_nothing_makes_nothing_and_loads_no_backend(tmp_path):
    program = (
        "import sys, sd_tf; sd_tf.__version__; dir(sd_tf)\n"
        "heavy = {'keras', 'tensorflow', 'numpy', 'tokenizers', 'socket'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "KERAS_HOME")}
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=tmp_path,
        env=os.environ | home | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_public_names_are_few_and_there():
    assert set(sd_tf.__all__) == {
        *("CascadedDiffusion", "GigaGAN", "InputError", "LatentDiffusion", "load", "open_data", "show"),
        *("CrossAttention", "LoRA", "TextualInversion"),
    }
    assert all(hasattr(sd_tf, name) for name in sd_tf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        sd_tf.lode  # noqa: B018


def test_every_folder_of_code_is_installed():
    setup = PACKAGE.parent / "setup.cfg"
    if not setup.is_file():
        pytest.skip("an installed package has no setup.cfg beside it")
    found = configparser.ConfigParser()
    found.read(setup)
    listed = set(found["options"]["packages"].split()) - {"sd_tf.weights"}
    assert listed == {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in MODULES}

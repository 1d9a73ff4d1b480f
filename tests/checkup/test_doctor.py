"""`python -m sd_tf.doctor`: what is true of this machine, no secrets; what is broken hides nothing else."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sd_tf
from sd_tf import doctor
from sd_tf.checkpoints import sources
from sd_tf.checkup import machine, places, versions
from sd_tf.checkup.findings import Finding, found_by, run_apart, size_in_words
from sd_tf.errors import InputError, install_extra

ROOT = Path(sd_tf.__file__).parent.parent
SECTIONS = (
    *("Versions", "Extras", "Machine", "Engines", "Caches"),
    *("Bundled models", "Data", "Environment", "Language"),
)


def examined(*flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sd_tf.doctor", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def values(findings):
    return {finding.name: finding.value for finding in findings}


# -- what it says ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The JSON of a process with secrets in its environment."""
    home = tmp_path_factory.mktemp("home")
    (home / "data" / "pokemon").mkdir(parents=True)
    done = examined(
        "--json",
        HOME=str(home),
        HF_TOKEN="hf_abcdefghijklmnop",
        HF_ENDPOINT="https://user:swordfish@hub.example/",
        TF_API_KEY="swordfish",
        HF_HOME=str(home / "hub"),
        SD_TF_DATA_DIR=str(home / "data"),
    )
    return done, home


def test_it_ends_well_and_names_every_section(whole):
    done, _ = whole
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found) == (*SECTIONS, "missing")
    assert found["missing"] == []


def test_versions_are_those_that_are_installed(whole):
    found = json.loads(whole[0].stdout)
    assert found["Versions"]["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    for name in ("numpy", "tensorflow", "keras", "safetensors"):
        assert found["Versions"][name] == importlib.metadata.version(name)
    assert found["Extras"]["transformers"] == importlib.metadata.version("transformers")
    import keras
    import tensorflow as tf

    assert found["Engines"]["TensorFlow"] == f"{tf.__version__} works"
    assert found["Engines"]["Keras"] == f"{keras.__version__} on tensorflow"


def test_no_secret_and_no_home_folder_is_shown(whole):
    done, home = whole
    for secret in ("hf_abcdefghijklmnop", "swordfish", str(home)):
        assert secret not in done.stdout and secret not in done.stderr
    found = json.loads(done.stdout)
    assert found["Environment"]["HF_TOKEN"] == found["Environment"]["TF_API_KEY"] == "set, not shown"
    assert found["Environment"]["HF_ENDPOINT"] == "https://(not shown)hub.example/"
    assert found["Environment"]["HF_HOME"] == "~/hub"


def test_data_and_caches_are_found_where_the_environment_says(whole):
    found = json.loads(whole[0].stdout)
    assert found["Data"]["pokemon"] == "~/data/pokemon"
    assert found["Data"]["emoji"].startswith("not there")
    assert found["Caches"]["models of the hub"] == "~/hub/hub: not there yet, can be made"


def test_text_is_aligned_and_on_lines(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"One": (lambda: [Finding("a", "1\n2"), Finding("long", "3")],)})
    doctor.main([])
    assert capsys.readouterr().out == (
        "One\n  a     1\\n2\n  long  3\n\nNothing that is needed is missing.\n"
    )


def test_bundled_models_are_whole():
    found = places.models()
    assert {finding.name for finding in found} == set(sources.bundled_names())
    assert not [finding for finding in found if finding.is_missing or not finding.value.startswith("whole")]


def test_memory_and_cores_are_those_of_the_system():
    found = values(machine.processor())
    assert found["cores"].startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} ")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert f"of {size_in_words(total)} free" in found["memory"]


def test_the_limits_of_a_cgroup_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert "cgroup" not in values(machine.processor())["memory"]
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    assert "cgroup" not in values(machine.processor())["memory"]
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    found = values(machine.processor())
    assert found["memory"].endswith("the cgroup allows 2.0 GB, 5.0 MB of it are used")
    assert found["cores"].endswith("for 1.5 cores' time by the cgroup")


def test_the_limits_of_an_old_cgroup_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert "cgroup" not in "".join(values(machine.processor()).values())
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000000")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000")
    found = values(machine.processor())
    assert "the cgroup allows 1.0 MB" in found["memory"] and "for 2 cores' time" in found["cores"]


# -- what is broken -------------------------------------------------------------------------------------


def broken(folder, name, content):
    """A folder for PYTHONPATH with a package of that name."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(content)
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ImportError('libcudart.so.12 is missing')", "ImportError: libcudart.so.12 is missing"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "it ends by SIGILL",
        ),  # of an old processor
    ],
)
def test_a_tensorflow_that_is_broken_is_said_and_the_rest_goes_on(tmp_path, program, said):
    done = examined(PYTHONPATH=broken(tmp_path, "tensorflow", program))
    assert done.returncode == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"TensorFlow cannot be used: {said}" in lines
    assert [title for title in lines if title in SECTIONS] == list(SECTIONS)
    assert [line for line in lines if line.startswith("fashion-mnist whole")]
    assert lines[-1] == "Missing or broken: TensorFlow"
    assert done.stderr == ""


def test_an_openvino_that_is_broken_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", broken(tmp_path, "openvino", "raise OSError('a plugin is missing')"))
    (found,) = machine.openvino()
    assert found == Finding("OpenVINO", "cannot be used: OSError: a plugin is missing", False)


def test_keras_on_another_backend_is_said(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = next(finding for finding in machine.tensorflow() if finding.name == "Keras")
    assert keras.is_missing and keras.value.endswith("on torch: sd_tf needs KERAS_BACKEND=tensorflow")


def test_what_hangs_is_ended():
    with pytest.raises(InputError, match="it takes longer than 1 seconds"):
        run_apart("import time; time.sleep(60)", seconds=1)


def test_a_check_that_raises_is_a_finding():
    def check():
        raise RuntimeError("it is dark\nin here")

    assert found_by(check, "light") == [Finding("light", "cannot be told (RuntimeError: it is dark in here)")]


def test_packages_that_are_missing_or_of_another_version_are_named(monkeypatch):
    found = {"tensorflow": "2.1.0", "keras": None, "gradio": None, "numpy": "2.0.0"}
    monkeypatch.setattr(versions, "_version", lambda name: found.get(name, "1.0"))
    needed = {finding.name: finding for finding in versions.needed()}
    assert needed["tensorflow"].is_missing
    assert needed["tensorflow"].value.startswith('2.1.0, sd_tf needs another: pip install "tensorflow>=')
    assert needed["keras"].is_missing and needed["keras"].value.startswith(
        'not installed: pip install "keras>='
    )
    assert needed["numpy"] == Finding("numpy", "2.0.0", False)
    assert values(versions.optional())["gradio"] == f"not installed: {install_extra('demo')}"


def test_the_extras_of_an_installed_package_are_read_as_well(tmp_path, monkeypatch):
    lines = ["numpy>=1.26", 'torch>=2.6; extra == "caption"', "gradio<7,>=6; extra == 'demo'"]
    monkeypatch.setattr(versions, "CHECKOUT", tmp_path)
    monkeypatch.setattr(versions.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(versions, "_version", lambda name: None)
    assert [finding.name for finding in versions.needed()] == ["numpy"]
    assert values(versions.optional()) == {
        "gradio": f"not installed: {install_extra('demo')}",
        "torch": f"not installed: {install_extra('caption')}",
    }


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    assert "/proc/self: " in places.described(Path("/proc/self"), counts=False)
    assert "CANNOT be written" in places.described(Path("/proc/self"), counts=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    found = values(places.caches())
    assert found["converted models"] == "/proc/self/sd_tf/conversions: not there yet, CANNOT be made"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "sd_tf" / "conversions"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(bytes(8192))
    assert f"{folder}: 8.2 kB, can be written" in values(places.caches())["converted models"]
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_a_model_whose_files_are_cut_or_missing_is_named(tmp_path, monkeypatch):
    for name in ("cut", "lacking", "whole", "garbled"):
        shutil.copytree(sources.BUNDLED / "fashion-mnist-small", tmp_path / name)
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    shutil.rmtree(tmp_path / "lacking" / "vae")
    (tmp_path / "garbled" / "unet" / "config.json").write_text("{")
    monkeypatch.setattr(places, "BUNDLED", tmp_path)
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    found = {finding.name: finding for finding in places.models()}
    assert not found["whole"].is_missing
    assert "is no readable safetensors file" in found["cut"].value and found["cut"].is_missing
    assert "has no weights of vae" in found["lacking"].value and found["lacking"].is_missing
    assert "cannot be read as JSON" in found["garbled"].value and found["garbled"].is_missing


def test_the_parts_of_a_gan_are_its_own(tmp_path, monkeypatch):
    for name in ("whole", "lacking"):
        for part in ("generator", "discriminator", "text_encoder"):
            shutil.copytree(sources.BUNDLED / "fashion-mnist-small" / "unet", tmp_path / name / part)
        (tmp_path / name / "model_index.json").write_text('{"_class_name": "GigaGANPipeline"}')
    shutil.rmtree(tmp_path / "lacking" / "generator")
    monkeypatch.setattr(places, "BUNDLED", tmp_path)
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    found = {finding.name: finding for finding in places.models()}
    assert not found["whole"].is_missing
    assert "has no weights of generator" in found["lacking"].value


def test_a_package_without_models_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "BUNDLED", tmp_path)
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    (found,) = places.models()
    assert found.is_missing and "install sd_tf again" in found.value


def test_a_locale_of_bytes_is_said(monkeypatch):
    monkeypatch.setattr(places.sys, "getfilesystemencoding", lambda: "ascii")
    assert "set LANG=C.UTF-8 or PYTHONUTF8=1" in values(places.language())["encoding"]


def test_a_wrong_flag_is_one_line(capsys):
    done = examined("--jsno")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1

"""The machine: cores, memory, what its processor can do, GPUs, and whether the engines run on it."""

import os
from pathlib import Path

from sd_tf.checkup.findings import Finding, run_apart, size_in_words
from sd_tf.errors import InputError, install_extra

CGROUP = Path("/sys/fs/cgroup")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # of a processor that matter here
UNLIMITED = 2**60  # bytes; a first version's cgroup writes a number near 2**63 for "no limit"
WORTH_IT = 1.2  # times as fast as float32
TENSORFLOW = """
import os, json, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
import sd_tf
import keras
import tensorflow as tf

def seconds(dtype):
    matrix = tf.ones((1024, 1024), dtype)
    multiply = tf.function(lambda: tf.reduce_sum(tf.cast(matrix @ matrix, tf.float32)))
    float(multiply())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        float(multiply())
        times.append(time.perf_counter() - start)
    return min(times)

found = {"tensorflow": tf.__version__, "keras": keras.__version__, "backend": keras.backend.backend()}
found["gpus"] = [
    tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
    for gpu in tf.config.list_physical_devices("GPU")
]
found["faster"] = seconds("float32") / seconds("bfloat16")
print()
print(json.dumps(found))
"""
OPENVINO = """
import json
import numpy as np
import openvino
from openvino import opset13

x = opset13.parameter([2, 2], np.float32)
compiled = openvino.Core().compile_model(openvino.Model([opset13.add(x, x)], [x]), "CPU")
result = compiled(np.ones((2, 2), np.float32))[0]
assert (result == 2).all(), result
print()
print(json.dumps({"version": openvino.__version__}))
"""


def processor() -> list[Finding]:
    """Cores, memory and the processor's flags."""
    findings = [Finding("cores", _cores())]
    findings += [Finding("memory", _memory())]
    model, flags = _cpu()
    findings += [Finding("processor", model)]
    findings += [Finding("processor flags", " ".join(flag for flag in FLAGS if flag in flags) or "unknown")]
    return findings


def _cores():
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota()
    said = f"{usable} of {os.cpu_count()} may be used"
    return said if quota is None else f"{said}, for {quota:g} cores' time by the cgroup"


def _quota():
    """Cores whose time the cgroup allows, in its second version or its first; None for no limit."""
    first = f"{_read(CGROUP / 'cpu/cpu.cfs_quota_us')} {_read(CGROUP / 'cpu/cpu.cfs_period_us')}"
    for words in (_read(CGROUP / "cpu.max").split(), first.split()):
        if len(words) == 2 and all(word.isdigit() for word in words):
            return int(words[0]) / int(words[1])
    return None


def _memory():
    known = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    total, free = (int(known[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    said = f"{size_in_words(free)} of {size_in_words(total)} free"
    limit, used = _cgroup_memory()
    if limit is None:
        return said
    return f"{said}; the cgroup allows {size_in_words(limit)}, {size_in_words(used)} of it are used"


def _cgroup_memory():
    """The limit of the cgroup and what is used, in bytes; (None, None) for no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        found = _read(CGROUP / limit), _read(CGROUP / used)
        if all(each.isdigit() for each in found) and int(found[0]) < UNLIMITED:
            return int(found[0]), int(found[1])
    return None, None


def _cpu():
    """The processor's name and its flags; of Linux alone."""
    known = dict(
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines())
    )
    flags = known.get("flags") or known.get("Features") or ""
    return known.get("model name", "unknown"), flags.split()


def _read(file):
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def tensorflow() -> list[Finding]:
    """Whether TensorFlow and Keras can be imported, the GPUs they see, and the precision that is fastest."""
    try:
        found = run_apart(TENSORFLOW)
    except InputError as error:
        return [Finding("TensorFlow", f"cannot be used: {error}", is_missing=True)]
    faster = found["faster"]
    advice = f"bfloat16 multiplies matrices {faster:.1f} times as fast as float32: "
    advice += "try --precision mixed_bfloat16" if faster >= WORTH_IT else "stay with float32"
    is_tensorflow = found["backend"] == "tensorflow"
    backend = f"{found['keras']} on {found['backend']}"
    if not is_tensorflow:
        backend += ": sd_tf needs KERAS_BACKEND=tensorflow"
    return [
        Finding("TensorFlow", f"{found['tensorflow']} works"),
        Finding("Keras", backend, is_missing=not is_tensorflow),
        Finding("GPUs", ", ".join(found["gpus"]) or "none that TensorFlow sees"),
        Finding("precision", advice),
    ]


def openvino() -> list[Finding]:
    """Whether OpenVINO computes."""
    from importlib.util import find_spec

    if find_spec("openvino") is None:
        return [Finding("OpenVINO", f"not installed: {install_extra('openvino')}")]
    try:
        return [Finding("OpenVINO", f"{run_apart(OPENVINO)['version']} works")]
    except InputError as error:
        return [Finding("OpenVINO", f"cannot be used: {error}")]

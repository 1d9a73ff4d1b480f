"""What runs a model's networks while it draws: TensorFlow, or OpenVINO, which is faster on a CPU.

An engine is three functions of float32 or integer arrays (or tensors), which return arrays:

    encode: token ids (n, tokens) -> context (n, tokens, width)
    denoise: latents (n, h, w, channels), float timesteps (n,), context (n, tokens, width) -> like the latents
    decode: latents (n, h, w, channels) -> images (n, f h, f w, 3), about [-1, 1], not clipped
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sd_tf.compiled import compiled, cores
from sd_tf.data.cache import fingerprint, weights_fingerprint
from sd_tf.errors import InputError, unknown

ENGINES = ("auto", "tensorflow", "openvino")
ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0")  # NVIDIA's, AMD's, a TPU
ARGUMENTS = "float timesteps, contexts of any length"  # what a kept conversion must have been made for
SOURCE = "source.json"  # in a kept conversion: which files it is of


class Engine(NamedTuple):
    """See the module."""

    encode: Callable
    denoise: Callable
    decode: Callable


class Engines:
    """The engines of a model, each made when it is first asked for.

    Args:
        functions: gives name -> (Keras model, its function, the shapes and dtypes of its arguments),
            for each field of `Engine`; None in a shape is a size that varies. Called when first needed.

    Attributes:
        folder: where OpenVINO's conversions are kept, None for nowhere.
    """

    def __init__(self, functions):
        self._functions, self.folder = functions, None
        self._converted = (None, None)  # a glance at the weights, and the engine that was made of them
        self._source, self._as_read = None, None  # what the files were, and a glance at their weights
        self._kept = None

    def came_from(self, source, own, parts, kept=None):
        """Says which files the weights are of, so that conversions can be kept and found again.

        Args:
            source: the model's folder, or its file.
            own: whether it is the user's, rather than ours or a cache's.
            parts: the folders in it that networks are read from.
            kept: what `kept_conversion` gave, if no network has been read.
        """
        self.folder, self._kept = place_of_conversions(source, own), kept
        if kept is None and self._openvino_fits() is None:
            self._source, self._as_read = state_of_files(source, parts), self._glance()

    def forget_kept(self):
        """From now on the networks' weights are what counts."""
        self._kept = None

    @functools.cached_property
    def networks(self):
        """See `functions` above."""
        return self._functions()

    def __getitem__(self, name):
        if name not in ENGINES:
            raise unknown("engine", name, ENGINES)
        if self._kept is not None and name != "tensorflow":
            if self._converted[0] != self._kept:
                self._converted = (self._kept, _read(self._kept))
            return self._converted[1]
        if name == "auto":  # a conversion that is not kept would take longer than most drawing
            fits = self.folder is not None and self._openvino_fits() is None
            name = "openvino" if fits else "tensorflow"
        return self._tensorflow if name == "tensorflow" else self._openvino()

    @functools.cached_property
    def _tensorflow(self):
        return Engine(**{name: compiled(function) for name, (_, function, _) in self.networks.items()})

    def _openvino_fits(self):
        """None where OpenVINO can and should be used; otherwise the reason why not."""
        if importlib.util.find_spec("openvino") is None:
            return "it is not installed: pip install 'sd_tf[openvino]'"
        import keras

        if keras.backend.backend() != "tensorflow":
            return f"it converts from TensorFlow, and Keras runs on {keras.backend.backend()}"
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return "there is a GPU, which it would leave idle: take 'tensorflow'"
        policies = {model.dtype_policy.name for model, _, _ in self.networks.values()}
        if policies != {"float32"}:
            return f"it converts float32 models, this one computes in {', '.join(sorted(policies))}"
        return None

    def _openvino(self):
        reason = self._openvino_fits()
        if reason is not None:
            raise InputError(f"engine 'openvino': {reason}")
        weights = self._glance()
        if self._converted[0] != weights:
            self._converted = (weights, self._convert())
        return self._converted[1]

    def _glance(self):
        """Some of every variable's values: a model that has been trained on is converted anew."""
        import tensorflow as tf

        some = []
        for handle, dtype in self._handles:
            values = memoryview(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))  # not a copy
            values = np.asarray(values).reshape(-1)
            some.append(values[:: max(1, values.size // 4)].tobytes())
        return hash(tuple(some))

    @functools.cached_property
    def _handles(self):
        variables = [variable.value for model, _, _ in self.networks.values() for variable in model.variables]
        # Under a strategy, each is several that are the same.
        variables = [getattr(variable, "values", (variable,))[0] for variable in variables]
        return [(variable.handle, variable.dtype) for variable in variables]

    def _convert(self):
        """OpenVINO's engine, from the files in the folder, which are written if they are not there."""
        key = fingerprint(
            ARGUMENTS,
            importlib.metadata.version("openvino"),
            *(weights_fingerprint(model) for model, _, _ in self.networks.values()),
            *(repr(model.config) for model, _, _ in self.networks.values()),
        )
        kept = None if self.folder is None else Path(self.folder) / key
        with tempfile.TemporaryDirectory(prefix="sd_tf-") as temporary:
            files = Path(temporary)
            if kept is not None and kept.is_dir():
                files = kept
            else:
                for name, network in self.networks.items():
                    write_conversion(*network, files / f"{name}.xml")
                if self._source is not None and self._as_read == self._glance():
                    (files / SOURCE).write_text(json.dumps(self._source))
                if kept is not None and _keep(files, kept):
                    files = kept
            return _read(files)


def _read(files):
    return Engine(**{name: read_conversion(files / f"{name}.xml") for name in Engine._fields})


def state_of_files(source, parts):
    """What a model's files are, but for their content: a change of one changes this. JSON."""
    files = [source] if source.is_file() else [source / "model_index.json"]
    for part in sorted(parts):
        files += sorted((source / part).glob("*"))
    return {
        "arguments": ARGUMENTS,
        "openvino": importlib.metadata.version("openvino"),
        "files": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
    }


def kept_conversion(source, own, parts):
    """The folder of OpenVINO's conversion of exactly these files; None where there is none to use.

    It is not used beside a GPU, as it was not made for one. The arguments are those of
    `Engines.came_from`.
    """
    if importlib.util.find_spec("openvino") is None or any(map(os.path.exists, ACCELERATORS)):
        return None
    try:
        state = state_of_files(source, parts)
        for file in place_of_conversions(source, own).glob(f"*/{SOURCE}"):
            if json.loads(file.read_text()) == state:
                return file.parent
    except (OSError, ValueError):  # it is converted again
        return None
    return None


def place_of_conversions(source: Path, own: bool):
    """Where conversions of a model are kept: beside it, where it is the user's own, or in their cache."""
    if own and source.is_dir() and os.access(source, os.W_OK):
        return source / "openvino"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sd_tf" / "openvino" / fingerprint(str(source.resolve()))


def write_conversion(model, function, arguments, file):
    """A function of a Keras model's, of arguments (shape, dtype), as OpenVINO's `file` and one beside it.

    The weights go in as arguments, of which OpenVINO then makes constants: a TensorFlow graph that
    holds them would be larger than a graph may be.
    """
    import keras
    import openvino
    import tensorflow as tf
    from openvino import opset13 as opset

    variables = model.variables

    def call(inputs, weights):
        with keras.StatelessScope(state_mapping=zip(variables, weights, strict=True)):
            return function(*inputs)

    graph = tf.function(call, autograph=False).get_concrete_function(
        [tf.TensorSpec(shape, dtype) for shape, dtype in arguments],
        [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables],
    )
    converted = openvino.convert_model(graph)
    parameters = converted.get_parameters()[len(arguments) :]
    for parameter, variable in zip(parameters, variables, strict=True):
        constant = opset.constant(np.asarray(variable.value), shared_memory=True)
        parameter.output(0).replace(constant.output(0))
        converted.remove_parameter(parameter)
    openvino.save_model(converted, file, compress_to_fp16=False)


def _keep(files, kept):
    """Copies a folder's files beside, then renames; False where they cannot be kept."""
    beside = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(files, beside)
        for older in kept.parent.iterdir():  # of other weights, or another release
            if older != beside:
                shutil.rmtree(older, ignore_errors=True)
        beside.rename(kept)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        return kept.is_dir()  # another process was first
    return True


@functools.cache
def _openvino_core():
    """The one of this process, never released.

    Its CPU plugin sets the stack that signal handlers run on, and unmaps it when the last core is
    released, after which Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def read_conversion(file):
    """A conversion's file as a function of arrays.

    OpenVINO is a quarter faster with shapes it knows, and faster still with a part of the batch on
    each core, so there is a compiled model for each shape, of the last two.
    """
    core = _openvino_core()
    unshaped = core.read_model(file)

    @functools.lru_cache(maxsize=2)
    def requests(*shapes):
        streams = max(n for n in range(1, cores() + 1) if shapes[0][0] % n == 0)
        model = unshaped.clone()
        model.reshape(
            {
                argument: (shape[0] // streams, *shape[1:])
                for argument, shape in zip(model.inputs, shapes, strict=True)
            }
        )
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
            "NUM_STREAMS": str(streams),
        }
        compiled = core.compile_model(model, "CPU", settings)
        return [compiled.create_infer_request() for _ in range(streams)]

    def call(*arrays):
        arrays = [np.asarray(array) for array in arrays]
        found = requests(*(array.shape for array in arrays))
        parts = [np.split(array, len(found)) for array in arrays]
        for request, part in zip(found, zip(*parts, strict=True), strict=True):
            request.start_async(part, share_inputs=True)
        for request in found:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in found])

    return call

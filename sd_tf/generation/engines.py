"""What runs a model's networks while it draws: TensorFlow, or OpenVINO, which is faster on a CPU.

An engine is three functions of float32 or integer arrays (or tensors), which return arrays:

    encode: token ids (n, tokens) -> context (n, tokens, width)
    denoise: latents (n, h, w, channels), float timesteps (n,), context (n, tokens, width) -> like the latents
    decode: latents (n, h, w, channels) -> images (n, f h, f w, 3), about [-1, 1], not clipped
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sd_tf.errors import InputError, unknown
from sd_tf.files import reason
from sd_tf.generation import conversions
from sd_tf.generation.conversions import Origin
from sd_tf.graphs import compiled, cores

ENGINES = ("auto", "tensorflow", "openvino")
ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0")  # NVIDIA's, AMD's, a TPU


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
        keeps_conversions: whether OpenVINO's conversions are kept in the user's cache, which is so once
            `came_from` has said where the model is from.
    """

    def __init__(self, functions):
        self._functions, self.keeps_conversions = functions, False
        self._converted = (None, None)  # a checksum of the weights, and the engine that was made of them
        self._origin = self._kept = None
        self._as_read = None  # a checksum of the weights as they were read

    def came_from(self, origin: Origin, kept: Path | None = None):
        """Says which files the weights are of, so that conversions can be kept and found again.

        Args:
            origin: these files.
            kept: what `kept_conversion` gave, if no network has been read.
        """
        self.keeps_conversions, self._origin, self._kept = True, origin, kept
        if kept is None:
            self._remember_as_read()

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
        if name != "tensorflow" and self._kept is not None and self._has_read_kept():
            return self._converted[1]
        if name == "auto":  # a conversion that is not kept would take longer than most drawing
            name = "tensorflow"
            if self.keeps_conversions and self._openvino_fits() is None:
                try:
                    return self._openvino()
                except InputError as error:
                    warnings.warn(f"{error}; TensorFlow draws instead", stacklevel=2)
                    self.keeps_conversions = False  # it is not tried again for every batch
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
        why_not = self._openvino_fits()
        if why_not is not None:
            raise InputError(f"engine 'openvino': {why_not}")
        weights = self._checksum()
        if self._converted[0] != weights:
            self._converted = (weights, self._convert())
        return self._converted[1]

    def _has_read_kept(self):
        """Reads the kept conversion; False where that fails, and the networks are to be converted again."""
        if self._converted[0] == self._kept:
            return True
        try:
            self._converted = (self._kept, _read(self._kept))
            return True
        except Exception:  # whatever OpenVINO says of a file that another process has just deleted
            conversions.discard(self._kept)
            self._kept = None
            self.networks  # noqa: B018  from the files, where nothing else has asked for them
            self._remember_as_read()
            return False

    def _remember_as_read(self):
        if self._openvino_fits() is None:
            self._as_read = self._checksum()

    def _checksum(self):
        """Of all weights, so that a model that has been trained on is converted again.

        Sums of their bits take a tenth of the time of a hash; nobody needs to be kept from finding others
        with the same sums, as what is kept has a hash for its name. A few bytes tell one order from another.
        """
        import tensorflow as tf

        sums = []
        for handle, dtype in self._handles:
            values = memoryview(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))  # not a copy
            values = np.asarray(values).reshape(-1).view(np.uint8)
            end = values.size // 8 * 8
            some = values[:: max(1, values.size // 31)].tobytes()
            sums.append((int(np.add.reduce(values[:end].view(np.uint64))), values[end:].tobytes(), some))
        return tuple(sums)

    @functools.cached_property
    def _handles(self):
        variables = [variable.value for model, _, _ in self.networks.values() for variable in model.variables]
        # Under a strategy, each is several that are the same.
        variables = [getattr(variable, "values", (variable,))[0] for variable in variables]
        return [(variable.handle, variable.dtype) for variable in variables]

    def _convert(self):
        """OpenVINO's engine, from the conversion in the user's cache, which is made if it is not there."""
        origin = self._origin if self._as_read == self._checksum() else None
        key = None
        if self.keeps_conversions:
            key = (origin and origin.key) or self._key_of_weights()
        kept = conversions.find(key)
        if kept is not None:
            with contextlib.suppress(Exception):  # see `_has_read_kept`
                return _read(kept)
        try:
            with tempfile.TemporaryDirectory(prefix="sd_tf-", ignore_cleanup_errors=True) as temporary:
                for name, network in self.networks.items():
                    write_conversion(*network, Path(temporary) / f"{name}.xml")
                if key is not None:
                    conversions.keep(Path(temporary), key, origin)
                return _read(Path(temporary))
        except (OSError, RuntimeError) as error:  # OpenVINO says no more of a full disk than "iostream error"
            raise InputError(
                f"engine 'openvino' cannot write its conversion to a temporary folder ({reason(error)}): "
                "make room there, or name another by TMPDIR"
            ) from None

    def _key_of_weights(self):
        """The name of the conversion of these weights, whatever files they are of."""
        parts = []
        for model, _, _ in self.networks.values():
            digest = hashlib.sha256()
            for variable in model.variables:
                digest.update(np.ascontiguousarray(variable.value))
            parts.append((repr(model.config), digest.hexdigest()))
        return conversions.key_of("weights", *parts)


def _read(files):
    return Engine(**{name: read_conversion(files / f"{name}.xml") for name in Engine._fields})


def kept_conversion(origin: Origin) -> Path | None:
    """The folder of OpenVINO's conversion of exactly these files; None where there is none to use.

    It is not used beside a GPU, as it was not made for one.
    """
    if importlib.util.find_spec("openvino") is None or any(map(os.path.exists, ACCELERATORS)):
        return None
    return conversions.find_of(origin)


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

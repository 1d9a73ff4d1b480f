"""Inference engines: TensorFlow, or OpenVINO, which is faster on a CPU.

An engine is three functions of float32 or integer arrays (or tensors) that return arrays:

    encode: token ids (n, tokens) -> context (n, tokens, width)
    denoise: latents (n, h, w, channels), float timesteps (n,), context (n, tokens, width) -> like the latents
    decode: latents (n, h, w, channels) -> images (n, f h, f w, 3), about [-1, 1], not clipped

A family without an autoencoder has engines of fewer functions, see `Engines`.
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

from sd_tf.errors import InputError, install_extra, unknown
from sd_tf.files import reason
from sd_tf.generation import conversions
from sd_tf.generation.conversions import Origin
from sd_tf.graphs import compiled, cores

ENGINES = ("auto", "tensorflow", "openvino")
MOST_SHAPES = 3  # that are held in memory besides the model's own
ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0")  # NVIDIA's, AMD's, a TPU


class Engine(NamedTuple):
    """The three functions; see the module's docstring."""

    encode: Callable
    denoise: Callable
    decode: Callable


class Engines:
    """The engines of a model, each made when it is first used.

    Args:
        functions: returns name -> (Keras model, function, (shape, dtype) of each argument) for each field of
            `kind`; None in a shape is any size. It is called when first needed.
        kind: a named tuple of functions, such as `Engine`; what an engine is here.

    Attributes:
        keeps_conversions: whether OpenVINO's conversions are cached in the user's cache folder, which needs
            `came_from`.
    """

    def __init__(self, functions, kind=Engine):
        self._functions, self._kind, self.keeps_conversions = functions, kind, False
        self._converted = (None, None)  # a checksum of the weights, and the engine made from them
        self._origin = self._kept = None
        self._of_other_shapes = {}
        self._as_read = None  # a checksum of the weights as they were read

    def came_from(self, origin: Origin, kept: Path | None = None):
        """Sets which files the weights are from, so that conversions can be cached and found again.

        Args:
            origin: these files.
            kept: the result of `kept_conversion`, if no network has been read yet.
        """
        self.keeps_conversions, self._origin, self._kept = True, origin, kept
        if kept is None:
            self._remember_as_read()

    def forget_kept(self):
        """Stops using the cached conversion, as the networks may change from now on."""
        self._kept = None

    def at(self, shape, functions):
        """The engines for other sizes than the model's own; OpenVINO's conversions are for one size each.

        Args:
            shape: of the latents, (h, w, channels).
            functions: as of this class, for that shape.
        """
        if shape not in self._of_other_shapes:
            kept = list(self._of_other_shapes.items())[1 - MOST_SHAPES :]
            self._of_other_shapes = dict(kept) | {shape: Engines(functions, self._kind)}
        found = self._of_other_shapes[shape]
        found.keeps_conversions = self.keeps_conversions
        return found

    @functools.cached_property
    def networks(self):
        """The result of `functions`."""
        return self._functions()

    def __getitem__(self, name):
        if name not in ENGINES:
            raise unknown("engine", name, ENGINES)
        if name != "tensorflow" and self._kept is not None and self._has_read_kept():
            return self._converted[1]
        if name == "auto":  # converting for this process only would take longer than most drawing
            name = "tensorflow"
            if self.keeps_conversions and self._openvino_fits() is None:
                try:
                    return self._openvino()
                except InputError as error:
                    warnings.warn(f"{error}; TensorFlow draws instead", stacklevel=2)
                    self.keeps_conversions = False  # not to try again in each call
        return self._tensorflow if name == "tensorflow" else self._openvino()

    @functools.cached_property
    def _tensorflow(self):
        return self._kind(**{name: compiled(function) for name, (_, function, _) in self.networks.items()})

    def _openvino_fits(self):
        """None if OpenVINO can and should be used, otherwise why not."""
        if importlib.util.find_spec("openvino") is None:
            return f"it is not installed: {install_extra('openvino')}"
        import keras

        if keras.backend.backend() != "tensorflow":
            return f"it converts from TensorFlow, and Keras runs on {keras.backend.backend()}"
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return "there is a GPU, which it would not use: take 'tensorflow'"
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
        """Reads the cached conversion. False if that fails; then the networks must be converted again."""
        if self._converted[0] == self._kept:
            return True
        try:
            self._converted = (self._kept, _read(self._kept, self._kind))
            return True
        except Exception:  # OpenVINO's errors, such as for a file that another process has just deleted
            conversions.discard(self._kept)
            self._kept = None
            self.networks  # noqa: B018  reads them from their files if they have not been read
            self._remember_as_read()
            return False

    def _remember_as_read(self):
        if self._openvino_fits() is None:
            self._as_read = self._checksum()

    def _checksum(self):
        """A checksum of all weights: when it changes, the model is converted again.

        Sums of the bits take a tenth of the time of a hash. They need not resist forgery, since cache keys
        are hashes. A few sampled bytes distinguish reordered weights.
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
        # Under a distribution strategy each variable has several equal copies.
        variables = [getattr(variable, "values", (variable,))[0] for variable in variables]
        return [(variable.handle, variable.dtype) for variable in variables]

    def _convert(self):
        """OpenVINO's engine, from a cached conversion or a new one, which is cached if possible."""
        origin = self._origin if self._as_read == self._checksum() else None
        key = None
        if self.keeps_conversions:
            key = (origin and origin.key) or self._key_of_weights()
        kept = conversions.find(key)
        if kept is not None:
            with contextlib.suppress(Exception):  # see `_has_read_kept`
                return _read(kept, self._kind)
        try:
            with tempfile.TemporaryDirectory(prefix="sd_tf-", ignore_cleanup_errors=True) as temporary:
                for name, network in self.networks.items():
                    write_conversion(*network, Path(temporary) / f"{name}.xml")
                if key is not None:
                    conversions.keep(Path(temporary), key, origin)
                return _read(Path(temporary), self._kind)
        except (OSError, RuntimeError) as error:  # of a full disk OpenVINO says only "iostream error"
            raise InputError(
                f"engine 'openvino' cannot write its conversion to a temporary folder ({reason(error)}): "
                "make room there, or set TMPDIR to another"
            ) from None

    def _key_of_weights(self):
        """The cache key of these weights' conversion, independent of files."""
        parts = []
        for model, _, _ in self.networks.values():
            digest = hashlib.sha256()
            for variable in model.variables:
                digest.update(np.ascontiguousarray(variable.value))
            parts.append((repr(model.config), digest.hexdigest()))
        parts += [repr(arguments) for _, _, arguments in self.networks.values()]
        return conversions.key_of("weights", *parts)


def _read(files, kind):
    return kind(**{name: read_conversion(files / f"{name}.xml") for name in kind._fields})


def kept_conversion(origin: Origin) -> Path | None:
    """The folder of the cached OpenVINO conversion of exactly these files; None if there is none.

    None as well on a machine with a GPU, where OpenVINO is not used.
    """
    if importlib.util.find_spec("openvino") is None or any(map(os.path.exists, ACCELERATORS)):
        return None
    return conversions.find_of(origin)


def write_conversion(model, function, arguments, file):
    """Converts a function of a Keras model for OpenVINO: `file` (.xml), and the weights beside it (.bin).

    Weights are converted as arguments and then replaced by constants, since a TensorFlow graph that contains
    large weights would exceed the size limit of graphs.

    Args:
        model: the Keras model.
        function: a function of tensors that uses the model.
        arguments: (shape, dtype) of each argument; None in a shape is any size.
        file: path of the .xml file.
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
    """OpenVINO's `Core`, one for this process, never released.

    Its CPU plugin sets the stack of signal handlers, and unmaps it when the last `Core` is released: Ctrl-C
    would then crash.
    """
    import openvino

    return openvino.Core()


def read_conversion(file):
    """Reads a converted function as a function of numpy arrays.

    OpenVINO is a quarter faster with static shapes, and faster still with a slice of the batch on each core.
    So the model is compiled for each shape; the last two are cached.

    Args:
        file: path of the .xml file.
    """
    core = _openvino_core()
    any_shape = core.read_model(file)

    @functools.lru_cache(maxsize=2)
    def requests(*shapes):
        streams = max(n for n in range(1, cores() + 1) if shapes[0][0] % n == 0)
        model = any_shape.clone()
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

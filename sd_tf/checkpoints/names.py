"""One rule between a Keras variable's path and the key of the same tensor in a PyTorch checkpoint.

`unet/down_blocks.0/resnets.1/conv1/kernel`  <->  `down_blocks.0.resnets.1.conv1.weight`

Sublayers carry the names of the PyTorch modules, so only the last word differs, and a kernel's
axes: Keras has the output axis last, PyTorch first.
"""

import warnings

import numpy as np

from sd_tf.errors import InputError
from sd_tf.skeleton import fill

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before 0.18
PROJECTIONS = ("text_projection.", "visual_projection.")  # stand beside their tower
LAST_WORDS = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias"}


def key_of(variable) -> str:
    """The checkpoint key of a Keras variable."""
    *modules, last = variable.path.split("/")[1:]
    return ".".join([*modules, LAST_WORDS.get(last, last)])


def to_torch(variable) -> np.ndarray:
    """The variable's value with PyTorch's order of axes."""
    return _output_axis_first(variable, np.asarray(variable.value))


def torch_shape(variable) -> tuple[int, ...]:
    """The shape that the variable's tensor has in a checkpoint."""
    return _output_axis_first(variable, np.broadcast_to(np.float32(0), variable.shape)).shape


def from_torch(variable, tensor: np.ndarray) -> np.ndarray:
    """`tensor`, in PyTorch's order of axes, with Keras' order of axes."""
    if variable.path.endswith("/kernel"):
        return tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    return tensor


def _output_axis_first(variable, value):
    if variable.path.endswith("/kernel"):
        return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    return value


def current_names(tensors: dict, tower: str = "") -> dict:
    """Tensors by today's keys, whichever release of diffusers or transformers wrote them.

    Args:
        tensors: key -> tensor, as a file has them.
        tower: what all keys of a tower begin with, or all leave out: transformers 5 leaves it out.

    Raises:
        InputError: an old and a new key name the same tensor.
    """
    has_tower = any(key.startswith(tower) for key in tensors)
    current = {}
    for key, tensor in tensors.items():
        *modules, attention, last = ["", *key.split(".")] if key.count(".") else ["", "", key]
        if attention in OLD_ATTENTION and "attentions" in modules:
            new = ".".join([*modules[1:], OLD_ATTENTION[attention], last])
        else:
            new = key
        if not has_tower and not new.startswith(PROJECTIONS):
            new = tower + new
        if new in current:
            raise InputError(
                f"{tensor.file}: {current[new].key} and {key} are both {new}: another writer's file?"
            )
        current[new] = tensor
    return current


def keyed_variables(model) -> dict:
    """Every variable of a built model by its checkpoint key."""
    variables = {key_of(variable): variable for variable in model.variables}
    if len(variables) != len(model.variables):
        raise ValueError(f"two variables of {model.name} have one checkpoint key")
    return variables


def check(expected: dict, tensors: dict, source: str):
    """Every key there, none left over, every shape right.

    Args:
        expected: key -> shape, as `shapes` gives it.
        tensors: key -> something with a `shape` and the `file` that it stands in.
        source: the file's or folder's name, for what is missing.

    Raises:
        InputError: keys are missing or left over, or shapes differ.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise InputError(f"{source}: missing {_some(missing)}: the file belongs to another configuration")
    if extra:
        file = tensors[extra[0]].file
        raise InputError(f"{file}: has {_some(extra)} that the model does not: another configuration?")
    for key, shape in expected.items():
        found = tuple(tensors[key].shape)
        if found != shape:
            raise InputError(f"{tensors[key].file}: {key} has shape {found}, the configuration wants {shape}")


def shapes(model) -> dict:
    """Checkpoint key -> the shape that the tensor has there, for every variable of a built model."""
    return {key: torch_shape(variable) for key, variable in keyed_variables(model).items()}


def assign(model, tensors: dict, source: str):
    """Copies tensors that `check` has passed into a built model, one at a time.

    Args:
        model: a built Keras model, or the skeleton of one.
        tensors: key -> something with a `read()` that returns the values.
        source: the file's name, for warnings.

    Warns:
        UserWarning: a tensor holds NaN or infinite values.
    """
    bad = []
    for key, variable in keyed_variables(model).items():
        values = from_torch(variable, tensors[key].read())
        if not np.isfinite(values).all():
            bad.append(key)
        fill(variable, values)
    if bad:
        warnings.warn(f"{source}: NaN or infinite values in {_some(bad)}", stacklevel=2)


def _some(keys, limit=3):
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{len(keys)} tensor{'s' * (len(keys) > 1)}: {', '.join(keys[:limit])}{more}"

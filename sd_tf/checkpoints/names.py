"""One rule between a Keras variable's path and the key of the same tensor in a PyTorch checkpoint.

`unet/down_blocks.0/resnets.1/conv1/kernel`  <->  `down_blocks.0.resnets.1.conv1.weight`

Sublayers carry the names of the PyTorch modules, so only the last word differs, and a kernel's
axes: Keras has the output axis last, PyTorch first.
"""

import numpy as np

from sd_tf.errors import InputError

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


def keyed_variables(model) -> dict:
    """Every variable of a built model by its checkpoint key."""
    variables = {key_of(variable): variable for variable in model.variables}
    if len(variables) != len(model.variables):
        raise ValueError(f"two variables of {model.name} have one checkpoint key")
    return variables


def assign(model, tensors, source: str):
    """Copies tensors into a model: every key consumed exactly once, with its shape.

    Args:
        model: a built Keras model.
        tensors: a mapping with `keys()`, `shape(key)` and `[key] -> np.ndarray`, as `Tensors` of
            `sd_tf.checkpoints.folder` is; nothing is read before all keys and shapes are checked.
        source: the file's name, for errors.

    Raises:
        InputError: keys are missing or left over, or shapes differ. The model is then untouched.
    """
    variables = keyed_variables(model)
    keys = set(tensors.keys())
    missing, extra = sorted(variables.keys() - keys), sorted(keys - variables.keys())
    if missing:
        raise InputError(f"{source}: missing {_some(missing)}: the file belongs to another configuration")
    if extra:
        raise InputError(f"{source}: has {_some(extra)} that the model does not: another configuration?")
    for key, variable in variables.items():
        expected, found = torch_shape(variable), tuple(tensors.shape(key))
        if expected != found:
            raise InputError(f"{source}: {key} has shape {found}, the configuration wants {expected}")
    for key, variable in variables.items():
        variable.assign(from_torch(variable, tensors[key]))


def _some(keys, limit=3):
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{len(keys)} tensor{'s' * (len(keys) > 1)}: {', '.join(keys[:limit])}{more}"

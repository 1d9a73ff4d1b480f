"""From a Keras variable's path to the key of the same tensor in a PyTorch checkpoint, and back.

`unet/down_blocks.0/resnets.1/conv1/kernel`  <->  `down_blocks.0.resnets.1.conv1.weight`

Sublayers have the names of the PyTorch modules, so only the last word differs. A kernel's axes differ too:
Keras puts the output channels last, PyTorch first (`Dense` IO <-> OI, `Conv2D` HWIO <-> OIHW,
`Conv3D` DHWIO <-> OIDHW).
"""

import warnings

import numpy as np

from sd_tf.errors import InputError
from sd_tf.skeleton import fill

OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # before diffusers 0.18
PROJECTIONS = ("text_projection.", "visual_projection.")  # not inside a tower
LAST_WORDS = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias"}


def key_of(variable) -> str:
    """The checkpoint key of a Keras variable."""
    *modules, last = variable.path.split("/")[1:]
    return ".".join([*modules, LAST_WORDS.get(last, last)])


def to_torch(variable) -> np.ndarray:
    """The variable's value in PyTorch's order of axes."""
    return _output_axis_first(variable, np.asarray(variable.value))


def torch_shape(variable) -> tuple[int, ...]:
    """The shape of the variable's tensor in a checkpoint."""
    return _output_axis_first(variable, np.broadcast_to(np.float32(0), variable.shape)).shape


def from_torch(variable, tensor: np.ndarray) -> np.ndarray:
    """`tensor`, given in PyTorch's order of axes, in Keras' order of axes."""
    if variable.path.endswith("/kernel"):
        return tensor.transpose(*range(2, tensor.ndim), 1, 0)  # OIHW -> HWIO
    return tensor


def _output_axis_first(variable, value):
    if variable.path.endswith("/kernel"):
        return value.transpose(-1, -2, *range(value.ndim - 2))  # HWIO -> OIHW
    return value


def current_names(tensors: dict, tower: str = "") -> dict:
    """Renames the keys of older and newer releases of diffusers and transformers to those used here.

    Args:
        tensors: key -> tensor, as in a file.
        tower: the prefix of a tower's keys, such as "text_model.". Files of transformers 5 leave it out.

    Raises:
        InputError: two keys of the file are names of the same tensor.
    """
    has_tower = any(key.startswith(tower) for key in tensors)
    current = {}
    for key, tensor in tensors.items():
        *modules, attention, last = ["", *key.split(".")] if key.count(".") else ["", "", key]
        if attention in OLD_ATTENTION and "attentions" in modules:
            new = ".".join([*modules[1:], OLD_ATTENTION[attention], last])
        else:
            new = key
        if (not has_tower or tower + new in tensors) and not new.startswith(PROJECTIONS):
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
    """Checks that a file has the expected keys, with the expected shapes.

    Args:
        expected: key -> shape, as `shapes` returns it.
        tensors: key -> a `sd_tf.checkpoints.tensors.Tensor`.
        source: the file's or folder's name, for messages about missing keys.

    Raises:
        InputError: keys are missing, shapes differ, or values are quantised.

    Warns:
        UserWarning: keys are left over, as in diffusers.
    """
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise InputError(f"{source}: missing {_some(missing)}: the file belongs to another configuration")
    for key, shape in expected.items():
        tensors[key].check_dtype()
        found = tuple(tensors[key].shape)
        if found != shape:
            raise InputError(f"{tensors[key].file}: {key} has shape {found}, the configuration wants {shape}")
    if extra:
        file = tensors[extra[0]].file
        warnings.warn(f"{file}: not read, as the network has no such weights: {_some(extra)}", stacklevel=2)


def shapes(model) -> dict:
    """Checkpoint key -> the tensor's shape in the checkpoint, for every variable of a built model."""
    return {key: torch_shape(variable) for key, variable in keyed_variables(model).items()}


def assign(model, tensors: dict, source: str):
    """Copies tensors that passed `check` into a built model, one at a time.

    Args:
        model: a built Keras model, or the skeleton of one.
        tensors: key -> an object whose `read()` returns the values.
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
    return f"{len(keys)} tensor{'s' * (len(keys) > 1)}: {', '.join(key[:200] for key in keys[:limit])}{more}"

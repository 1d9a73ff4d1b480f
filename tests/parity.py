"""Where two networks part: what every layer of each says, and the first on which they differ.

Our sublayers carry the names of PyTorch's modules (`sd_tf.checkpoints.names`), so that layers find
each other by name:

    ours, theirs = record(unet, *arrays), record_torch(reference, *tensors)
    print(first_divergence(ours, theirs))

A layer is listed when it ends. A mistake inside a layer is therefore found in it and not in what
stands around it, and a mistake between two layers is found in the second of them.
"""

import contextlib
import functools
from typing import NamedTuple

import numpy as np
from keras import ops


class Divergence(NamedTuple):
    """The first layer that differs."""

    name: str  # as in a checkpoint's keys: "up_blocks.0.resnets.1.conv2"; "" for the model itself
    difference: float  # the largest, in standard deviations of the reference
    agreed: tuple[str, ...]  # the layers before it

    def __str__(self):
        before = "it is the first of all"
        if self.agreed:
            before = f"{len(self.agreed)} before it agree, the last is {self.agreed[-1]}"
        return f"{self.name or 'the model'} differs by {self.difference:.2g} standard deviations ({before})"


@contextlib.contextmanager
def recording(model):
    """Within the block, what every sublayer of a built Keras model returns, eagerly.

    Yields a dictionary, name -> float array, in the order in which layers end: "conv_in", or
    "conv_in#2" when it is called a second time. Layers that return several tensors are left out.
    """
    activations = {}
    layers = [layer for layer in model._flatten_layers() if layer.path]
    for layer in layers:
        name = ".".join(layer.path.split("/")[1:])

        def call(*args, name=name, layer=layer, original=layer.call, **kwargs):
            result = seen = original(*args, **kwargs)
            if getattr(layer, "silu", False):  # which is no part of the norm in PyTorch
                layer.silu = False
                seen = original(*args, **kwargs)
                layer.silu = True
            if ops.is_tensor(seen):
                _add(activations, name, ops.convert_to_numpy(ops.cast(seen, "float32")))
            return result

        # On the instance, past Keras' tracking of attributes.
        object.__setattr__(layer, "call", functools.wraps(layer.call)(call))
    try:
        yield activations
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


@contextlib.contextmanager
def recording_torch(module, prefix=""):
    """`recording` for a PyTorch module, in our naming and with channels last.

    Of a tuple the first is taken: the others are skips and attention weights. A dictionary of several
    is left out. `prefix` is put before the names, where ours have a tower's that a module standing
    alone has not.
    """
    import torch

    activations = {}

    def hook(part, args, result, name):
        if isinstance(result, dict) and len(result) == 1:
            (result,) = result.values()
        if isinstance(result, tuple) and result:
            result = result[0]
        if isinstance(result, torch.Tensor):
            array = result.detach().float().numpy()
            if array.ndim == 4 or isinstance(part, torch.nn.GroupNorm):
                array = np.moveaxis(array, 1, -1)
            _add(activations, name, array)

    handles = [
        part.register_forward_hook(functools.partial(hook, name=prefix + name if name else prefix[:-1]))
        for name, part in module.named_modules()
    ]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def record(model, *inputs):
    """What every sublayer of a built Keras model says to `inputs`."""
    with recording(model) as activations:
        model(*inputs)
    return activations


def record_torch(module, *inputs, prefix=""):
    """What every part of a PyTorch module says to `inputs`, its own tensors."""
    import torch

    with torch.no_grad(), recording_torch(module, prefix) as activations:
        module(*inputs)
    return activations


def deviation(ours, reference):
    """The largest difference, in standard deviations of the reference; infinite where one is no number."""
    ours, reference = np.asarray(ours, "float64"), np.asarray(reference, "float64")
    spread = max(reference.std(), np.finfo("float32").tiny)
    largest = np.abs(ours - reference).max()
    return np.inf if np.isnan(largest) else float(largest / spread)


def first_divergence(ours, theirs, tolerance=1e-4):
    """The first layer, in our order, on which two records differ by more than `tolerance`, or None.

    Only layers in both records count: diffusers has modules for activations and dropout, we have
    functions. Where one side has pictures and the other tokens, positions are put in a row.

    Raises:
        ValueError: the shapes of a layer differ, or the records have no layer in common.
    """
    common = [name for name in ours if name in theirs]
    if not common:
        raise ValueError(f"no layer in common: ours are {list(ours)[:3]}…, theirs {list(theirs)[:3]}…")
    for i, name in enumerate(common):
        mine, reference = ours[name], theirs[name]
        if mine.ndim != reference.ndim:
            mine, reference = (x.reshape(-1, x.shape[-1]) for x in (mine, reference))
        if mine.shape != reference.shape:
            raise ValueError(f"{name}: ours has shape {ours[name].shape}, theirs {theirs[name].shape}")
        difference = deviation(mine, reference)
        if difference > tolerance:
            return Divergence(name, difference, tuple(common[:i]))
    return None


def _add(activations, name, array):
    calls, key = 1, name
    while key in activations:
        calls += 1
        key = f"{name}#{calls}"
    activations[key] = array

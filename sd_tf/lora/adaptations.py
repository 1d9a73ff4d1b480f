"""Adaptations of a model, such as LoRA (Hu et al. 2021): several at once, each with a weight.

    W = W0 + sum over adaptations of weight * change(W0)

An adapted weight holds the sum, so that drawing is as fast as without, on any engine. The original weights
are kept in memory: weight 0 restores them exactly.
"""

import abc
import contextlib
import dataclasses
import functools
import math

import numpy as np

from sd_tf.checkpoints.names import from_torch, key_of, to_torch, torch_shape
from sd_tf.errors import InputError, shown, unknown


class Change(abc.ABC):
    """A change of one weight. Shapes have PyTorch's order of axes: (outputs, inputs, height, width)."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, or (outputs, all other axes in one)."""

    @abc.abstractmethod
    def delta(self, original: np.ndarray) -> np.ndarray:
        """What is added to the original weight, float32 of the original's shape."""


class Addition(Change):
    """A change that is the same for every original."""

    @abc.abstractmethod
    def product(self) -> np.ndarray:
        """What is added, float32 of the shape `shape`."""

    def delta(self, original):
        return self.product().reshape(original.shape)


@dataclasses.dataclass(frozen=True)
class LowRank(Addition):
    """LoRA: a product of two matrices of low rank.

    Attributes:
        down: float32 (rank, inputs); for a convolution (rank, inputs, height, width).
        up: float32 (outputs, rank); for a convolution (outputs, rank, 1, 1).
        scale: alpha / rank.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self):
        return (self.up.shape[0], *self.down.shape[1:])

    def product(self):
        flat = self.up.reshape(-1, self.rank) @ self.down.reshape(self.rank, -1)
        return self.scale * flat.reshape(self.shape)


class Adaptations:
    """The adaptations of a model, by name.

    Args:
        networks: name, such as "unet" or "text_encoder" -> Keras model.
        fused: called when their weights have changed for good.
    """

    def __init__(self, networks, fused=lambda: None):
        self._fused = fused
        self._variables = {
            f"{name}.{key_of(variable).removesuffix('.weight')}": variable
            for name, network in networks.items()
            for variable in network.variables
            if variable.path.endswith(("/kernel", "/gamma", "/beta", "/bias"))
        }
        self._changes, self._weights, self._original = {}, {}, {}

    @functools.cached_property
    def modules(self) -> dict[str, tuple[int, ...]]:
        """All that can be adapted -> its shape, with PyTorch's order of axes.

        "unet.conv_in" is the kernel of a layer or the scale of a norm, "unet.conv_in.bias" is its bias.
        """
        return {module: torch_shape(variable) for module, variable in self._variables.items()}

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a layer's kernel, with PyTorch's order of axes."""
        return self.modules[module]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each adaptation, by its name."""
        return dict(self._weights)

    def add(self, name: str, changes: dict[str, Change], weight: float = 1.0, source="the adaptation"):
        """Adds an adaptation.

        Args:
            name: name of the adaptation.
            changes: module, as in `modules` -> `Change`.
            weight: -100 to 100: 1 applies the adaptation as it was trained, 0 not at all.
            source: its file, for error messages.

        Raises:
            InputError: it is for another architecture, or the name is taken. The model is not changed then.
        """
        _check_weight(name, weight)
        if name in self._changes:
            raise InputError(
                f"{source}: an adaptation called {shown(name)} is loaded already: give another name, or "
                f"first call adaptations.remove({shown(name)})"
            )
        if not changes:
            raise InputError(f"{source} changes nothing: is it a LoRA?")
        for module, change in changes.items():
            if module not in self._variables:
                raise InputError(
                    f"{source} changes {module}, which this model lacks: it is a LoRA for "
                    "another architecture"
                )
            check_shape(source, module, change.shape, self.modules[module])
        self._changes[name], self._weights[name] = changes, float(weight)
        self._apply(set(self._original) | set(changes))

    def weigh(self, weights: dict[str, float]):
        """Sets the weights of some adaptations, name -> weight; others keep theirs.

        Raises:
            InputError: there is no such adaptation, or a weight is not a number from -100 to 100.
        """
        for name, weight in weights.items():
            if name not in self._changes:
                raise unknown("adaptation", name, self._changes)
            _check_weight(name, weight)
        self._weights |= {name: float(weight) for name, weight in weights.items()}
        self._apply(set(self._original))

    def remove(self, name: str):
        """Removes an adaptation; the kernels are restored.

        Raises:
            InputError: there is no such adaptation.
        """
        if name not in self._changes:
            raise unknown("adaptation", name, self._changes)
        del self._changes[name], self._weights[name]
        self._apply(set(self._original))

    @contextlib.contextmanager
    def weighing(self, weights: dict[str, float]):
        """Within the block, adaptations have these weights; see `weigh`."""
        before = dict(self._weights)
        self.weigh(weights)
        try:
            yield
        finally:
            self.weigh(before)

    def switched_off(self):
        """Within the block, the model is without adaptations."""
        return self.weighing(dict.fromkeys(self._weights, 0.0))

    def fuse(self):
        """Makes the current change of the kernels permanent, and removes the adaptations from the list."""
        self._changes, self._weights, self._original = {}, {}, {}
        self._fused()

    def _apply(self, modules):
        for module in modules:
            variable = self._variables[module]
            if module not in self._original:
                self._original[module] = to_torch(variable).copy()
            adapted = original = self._original[module]
            for name, changes in self._changes.items():
                if module in changes and self._weights[name]:
                    change = changes[module].delta(original.astype(np.float32, copy=False))
                    adapted = adapted + self._weights[name] * change
            variable.assign(from_torch(variable, adapted))


def check_shape(source, module, shape, wanted):
    """Checks that a change fits a weight; a layer with a window of 1x1 may be a convolution or a matrix.

    Args:
        source: the adaptation's file, for the error message.
        module: name of the weight.
        shape: shape of the change, see `Change.shape`.
        wanted: shape of the weight.
    """
    if shape not in (wanted, (*wanted, 1, 1), (wanted[0], math.prod(wanted[1:]))):
        raise InputError(
            f"{source}: its {module} is {shape}, this model's is {wanted}: it is a LoRA for another "
            "architecture"
        )


def _check_weight(name, weight):
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not -100 <= weight <= 100:
        raise InputError(
            f"the weight of {name} is {shown(weight)}: give a number, such as 1 for as trained, 0 for none"
        )

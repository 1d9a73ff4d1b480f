"""Low-rank adaptations of a model (LoRA, Hu et al. 2021): several at once, each with a weight.

    W = W0 + sum over adaptations of weight * scale * up @ down

An adapted kernel holds the sum, so that drawing is as fast as without, on any engine. The original kernels
are kept in memory: weight 0 restores them exactly.
"""

import contextlib
import dataclasses

import numpy as np

from sd_tf.checkpoints.names import from_torch, key_of, torch_shape
from sd_tf.errors import InputError, shown, unknown


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The low-rank change of one kernel, with PyTorch's order of axes.

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

    def product(self) -> np.ndarray:
        """What is added to the kernel, float32 (outputs, inputs, ...)."""
        flat = self.up.reshape(-1, self.rank) @ self.down.reshape(self.rank, -1)
        return self.scale * flat.reshape(-1, *self.down.shape[1:])


class Adaptations:
    """The adaptations of a model, by name.

    Args:
        networks: "unet" and "text_encoder" -> Keras model.
        fused: called when their weights have changed for good.
    """

    def __init__(self, networks, fused=lambda: None):
        self._fused = fused
        self._kernels = {
            f"{name}.{key_of(variable).removesuffix('.weight')}": variable
            for name, network in networks.items()
            for variable in network.variables
            if variable.path.endswith("/kernel")
        }
        self._changes, self._weights, self._original = {}, {}, {}

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of all layers that can be adapted, such as "unet.down_blocks.1.attentions.0.proj_in"."""
        return tuple(self._kernels)

    def shape(self, module: str) -> tuple[int, ...]:
        """The shape of a layer's kernel, with PyTorch's order of axes."""
        return torch_shape(self._kernels[module])

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each adaptation, by its name."""
        return dict(self._weights)

    def add(self, name: str, changes: dict[str, LowRank], weight: float = 1.0, source="the adaptation"):
        """Adds an adaptation.

        Args:
            name: name of the adaptation.
            changes: module -> `LowRank`.
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
            if module not in self._kernels:
                raise InputError(
                    f"{source} changes {module}, which this model lacks: it is a LoRA for "
                    "another architecture"
                )
            outputs, inputs = change.up.shape[0], change.down.shape[1:]
            wanted = self.shape(module)
            if (outputs, *inputs) != wanted and (outputs, *inputs) != wanted[:2] + (1, 1) * (
                len(wanted) == 2
            ):
                raise InputError(
                    f"{source}: its {module} is {(outputs, *inputs)}, this model's is {wanted}: it is a LoRA "
                    "for another architecture"
                )
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
            kernel = self._kernels[module]
            if module not in self._original:
                self._original[module] = np.asarray(kernel.value).copy()
            original, total = self._original[module], 0.0
            for name, changes in self._changes.items():
                if module in changes and self._weights[name]:
                    total = total + self._weights[name] * changes[module].product()
            if isinstance(total, float):
                kernel.assign(original)
            else:
                kernel.assign(original + from_torch(kernel, total.reshape(torch_shape(kernel))))


def _check_weight(name, weight):
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not -100 <= weight <= 100:
        raise InputError(
            f"the weight of {name} is {shown(weight)}: give a number, such as 1 for as trained, 0 for none"
        )

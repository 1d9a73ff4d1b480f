"""Low-rank adaptations of a model (LoRA, Hu et al. 2021): several at once, each with a weight.

    W = W0 + sum over adaptations of weight * scale * up @ down

An adapted kernel holds the sum, so that drawing takes no longer than without, on any engine. The original
kernels are kept in memory: weight 0 restores them exactly.
"""

import contextlib
import dataclasses

import numpy as np

from sd_tf.checkpoints.names import from_torch, key_of, torch_shape
from sd_tf.errors import InputError, shown, unknown


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The change of one kernel, with PyTorch's order of axes.

    Attributes:
        down: float32 (rank, inputs), of a convolution (rank, inputs, height, width).
        up: float32 (outputs, rank), of a convolution (outputs, rank, 1, 1).
        scale: alpha / rank.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> np.ndarray:
        """float32 (outputs, inputs, ...), to be added to the kernel."""
        flat = self.up.reshape(-1, self.rank) @ self.down.reshape(self.rank, -1)
        return self.scale * flat.reshape(-1, *self.down.shape[1:])


class Adaptations:
    """The adaptations that a model has now, by name.

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
        self._changes, self._weights, self._before = {}, {}, {}

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all layers that can be adapted, such as "unet.down_blocks.1.attentions.0.proj_in"."""
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
            name: to call it by.
            changes: module -> `LowRank`.
            weight: multiplies its change; 1 applies it as it was trained, 0 not at all.
            source: where it comes from, for messages.

        Raises:
            InputError: it is for another architecture, or the name is taken. The model is not changed then.
        """
        _check_weight(name, weight)
        if name in self._changes:
            raise InputError(
                f"{source}: an adaptation called {shown(name)} is there already: give another name, or "
                f"remove that one first, by adaptations.remove({shown(name)})"
            )
        if not changes:
            raise InputError(f"{source} changes nothing: is it a LoRA?")
        for module, change in changes.items():
            if module not in self._kernels:
                raise InputError(
                    f"{source} changes {module}, which this model has not: a LoRA for another architecture"
                )
            outputs, inputs = change.up.shape[0], change.down.shape[1:]
            wanted = self.shape(module)
            if (outputs, *inputs) != wanted and (outputs, *inputs) != wanted[:2] + (1, 1) * (
                len(wanted) == 2
            ):
                raise InputError(
                    f"{source}: its {module} is {(outputs, *inputs)}, this model's is {wanted}: a LoRA for "
                    "another architecture"
                )
        self._changes[name], self._weights[name] = changes, float(weight)
        self._apply(set(self._before) | set(changes))

    def weigh(self, weights: dict[str, float]):
        """Sets the weights of some adaptations; others keep theirs."""
        for name, weight in weights.items():
            if name not in self._changes:
                raise unknown("adaptation", name, self._changes)
            _check_weight(name, weight)
        self._weights |= {name: float(weight) for name, weight in weights.items()}
        self._apply(set(self._before))

    def remove(self, name: str):
        """Removes an adaptation."""
        if name not in self._changes:
            raise unknown("adaptation", name, self._changes)
        del self._changes[name], self._weights[name]
        self._apply(set(self._before))

    @contextlib.contextmanager
    def switched_off(self):
        """Within the block, the model is what it was without adaptations."""
        before = self._weights
        self._weights = dict.fromkeys(before, 0.0)
        self._apply(set(self._before))
        try:
            yield
        finally:
            self._weights = before
            self._apply(set(self._before))

    def fuse(self):
        """Makes the present change of the kernels permanent, and forgets the adaptations."""
        self._changes, self._weights, self._before = {}, {}, {}
        self._fused()

    def _apply(self, modules):
        for module in modules:
            kernel = self._kernels[module]
            if module not in self._before:
                self._before[module] = np.asarray(kernel.value).copy()
            before, total = self._before[module], 0.0
            for name, changes in self._changes.items():
                if module in changes and self._weights[name]:
                    total = total + self._weights[name] * changes[module].product()
            if isinstance(total, float):
                kernel.assign(before)
            else:
                kernel.assign(before + from_torch(kernel, total.reshape(torch_shape(kernel))))


def _check_weight(name, weight):
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not -100 <= weight <= 100:
        raise InputError(
            f"the weight of {name} is {shown(weight)}: give a number, 0 for nothing and 1 for all of it"
        )

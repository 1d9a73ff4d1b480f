"""Kinds of adaptations beside plain LoRA, as LyCORIS and peft train them.

LoCon's Tucker core, LoHa (Hadamard product, FedPara, Hyeon-Woo et al. 2022), LoKr (Kronecker product,
KronA, Edalati et al. 2022), full differences, and DoRA (Liu et al. 2024), which rescales any of them.
LyCORIS as a whole: Yeh et al. 2024.
"""

import dataclasses

import numpy as np

from sd_tf.lora.adaptations import Addition, Change

_LEAST_NORM = np.finfo(np.float32).tiny


@dataclasses.dataclass(frozen=True)
class Difference(Addition):
    """A change that is stored as it is added; also one factor of a LoKr.

    Attributes:
        values: float32, of the weight's shape.
    """

    values: np.ndarray
    rank = None  # as of all others that have none

    @property
    def shape(self):
        return self.values.shape

    def product(self):
        return self.values


@dataclasses.dataclass(frozen=True)
class Tucker(Addition):
    """A convolution's change in Tucker's form: a core of the rank's width between two matrices.

    Attributes:
        core: float32 (rank, rank, height, width).
        down: float32 (rank, inputs).
        up: float32 (outputs, rank).
        scale: alpha / rank.
    """

    core: np.ndarray
    down: np.ndarray
    up: np.ndarray
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.core.shape[0]

    @property
    def shape(self):
        return (self.up.shape[0], self.down.shape[1], *self.core.shape[2:])

    def product(self):
        outputs, inputs = self.shape[:2]
        halves = self.up.reshape(outputs, -1) @ self.core.reshape(self.rank, -1)
        halves = halves.reshape(outputs, self.rank, -1)  # (outputs, rank, height * width)
        product = self.down.reshape(self.rank, inputs).T @ halves  # (outputs, inputs, height * width)
        return self.scale * product.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class LoHa(Addition):
    """The elementwise (Hadamard) product of two changes.

    Attributes:
        first, second: `LowRank` or `Tucker`, of one shape.
        scale: alpha / rank.
    """

    first: Addition
    second: Addition
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.first.rank

    @property
    def shape(self):
        return self.first.shape

    def product(self):
        return self.scale * self.first.product() * self.second.product()


@dataclasses.dataclass(frozen=True)
class LoKr(Addition):
    """The Kronecker product of a small matrix and a change.

    Attributes:
        first: `Difference` or `LowRank`, of two axes.
        second: `Difference`, `LowRank` or `Tucker`, of two axes or, for a convolution, four.
        scale: alpha / rank, or 1 where both are `Difference`s, which have no rank.
    """

    first: Addition
    second: Addition
    scale: float = 1.0

    @property
    def rank(self) -> int | None:
        return self.second.rank or self.first.rank

    @property
    def shape(self):
        (a, b), (c, d, *window) = self.first.shape, self.second.shape
        return (a * c, b * d, *window)

    def product(self):
        first, second = self.first.product(), self.second.product()
        return self.scale * np.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


@dataclasses.dataclass(frozen=True)
class DoRA(Change):
    """A change of the weight's direction, and norms of its own: W = m V / ||V||, where V = W0 + change.

    A weight w of the adaptation goes from W0 to W in a straight line, W0 + w (W - W0), as web interfaces have
    it; peft has w scale the change inside the norm. Both are W at 1, and only the line is W0 at 0.

    Attributes:
        change: any other kind.
        magnitude: float32, m, one number for each output or input.
        axis: the axis of m: 0 for outputs, as in peft and LyCORIS; 1 for inputs, as in LyCORIS with
            `wd_on_output=False`. The norm runs over all other axes.
    """

    change: Addition
    magnitude: np.ndarray
    axis: int = 0

    @property
    def rank(self) -> int | None:
        return self.change.rank

    @property
    def shape(self):
        return self.change.shape

    def delta(self, original):
        direction = original + self.change.delta(original)
        others = tuple(axis for axis in range(original.ndim) if axis != self.axis)
        norm = np.sqrt(np.sum(np.square(direction), others, keepdims=True))
        return self.magnitude.reshape(norm.shape) * direction / np.maximum(norm, _LEAST_NORM) - original

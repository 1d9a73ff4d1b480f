"""Activation functions by the names that configurations have."""

from keras import ops

from sd_tf.errors import unknown
from sd_tf.nn.fused import fused


@fused
def silu(x):
    """x times its sigmoid (Elfwing et al. 2018)."""
    return ops.silu(x)


@fused
def gelu(x):
    """The exact GELU, by the error function (Hendrycks & Gimpel 2016)."""
    return ops.gelu(x, approximate=False)


ACTIVATIONS = {"silu": silu, "swish": silu, "gelu": gelu}


def activation(name: str):
    """The activation function of that name.

    Raises:
        InputError: there is none.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]

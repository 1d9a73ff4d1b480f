"""The activations that a configuration may name."""

from keras import ops

from sd_tf.errors import unknown
from sd_tf.nn.fused import fused


@fused
def gelu(x):
    """The exact (erf) GELU (Hendrycks & Gimpel 2016), in the dtype of x."""
    return ops.gelu(x, approximate=False)


ACTIVATIONS = {"silu": ops.silu, "gelu": gelu}


def activation(name: str):
    """The elementwise function of that name.

    Raises:
        InputError: no activation is called so.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]

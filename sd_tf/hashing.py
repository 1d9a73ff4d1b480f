"""Short hashes of what something depends on."""

import hashlib

import numpy as np


def fingerprint(*parts) -> str:
    """A short hash of strings, numbers and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.shape, part.dtype.str)).encode())
            digest.update(np.ascontiguousarray(part))
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")  # 1, 23 are not 12, 3
    return digest.hexdigest()[:16]


def weights_fingerprint(model) -> str:
    """A hash of a Keras model's weights."""
    return fingerprint(*(np.asarray(variable.value) for variable in model.variables))

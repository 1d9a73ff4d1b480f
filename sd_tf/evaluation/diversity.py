"""How much the pictures of one prompt differ: perceptual distances of pairs."""

import numpy as np

from sd_tf.checkpoints.perceptual import load_perceptual
from sd_tf.evaluation.lpips import load_lpips
from sd_tf.graphs import compiled
from sd_tf.hashing import weights_fingerprint
from sd_tf.images import to_unit

AT_ONCE = 100  # pairs
STAND_IN = "perceptual-mini"


class PairDistances:
    """Called with uint8 (n, h, w, 3), twice; returns the perceptual distance of each pair, float32 (n,).

    Args:
        files: LPIPS' weights, see `load_lpips`; None for the bundled network that has learned garments, which
            stands in for it.

    Attributes:
        about: what a protocol says of it.

    Raises:
        InputError: the files cannot be read or are of another network.
    """

    def __init__(self, files=None):
        if files:
            network = load_lpips(files)
            name, distance = f"LPIPS, {network.backbone}", network
        else:
            network = load_perceptual(STAND_IN)
            name, distance = f"{STAND_IN}, which stands in for LPIPS", network.distance
        self._distance = compiled(distance)
        self.about = {"extractor": name, "sha256": weights_fingerprint(network)}

    def __call__(self, first, second):
        parts = [
            np.asarray(self._distance(to_unit(first[i : i + AT_ONCE]), to_unit(second[i : i + AT_ONCE])))
            for i in range(0, len(first), AT_ONCE)
        ]
        return np.concatenate(parts)


def pairs_of(groups, most=None):
    """The first and the second pictures of pairs within groups.

    Args:
        groups: arrays of pictures.
        most: pairs of each group; None for all.
    """
    pairs = [(group[: 2 * (len(group) // 2) : 2], group[1::2]) for group in groups]
    first, second = (np.concatenate([pair[i][:most] for pair in pairs]) for i in (0, 1))
    return first, second

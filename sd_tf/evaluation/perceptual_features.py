"""Features of pictures that no judge has learned: what the bundled perceptual network makes of them."""

import numpy as np

from sd_tf.checkpoints.perceptual import load_perceptual
from sd_tf.graphs import compiled
from sd_tf.hashing import weights_fingerprint
from sd_tf.images import to_unit

AT_ONCE = 100  # pictures
STAND_IN = "perceptual-mini"
RESERVATION = "its extractor has learned garments alone, and stands in for one of such pictures"


class PerceptualFeatures:
    """What a Fréchet distance asks of an extractor: the means over places of the network's maps.

    Attributes:
        name, sha256, resize: for the protocol.
        reservation: why a distance in these features is no headline.
    """

    name, resize, reservation = f"{STAND_IN}, means of its maps", "none", RESERVATION

    def __init__(self):
        network = load_perceptual(STAND_IN)
        self._maps = compiled(network.maps)
        self.sha256 = weights_fingerprint(network)

    def features(self, images):
        """uint8 (n, height, width, 3) -> float32 (n, 168)."""
        found = []
        for i in range(0, len(images), AT_ONCE):
            maps = self._maps(to_unit(images[i : i + AT_ONCE]))
            found.append(np.concatenate([np.asarray(each).mean(axis=(1, 2)) for each in maps], axis=1))
        return np.concatenate(found)

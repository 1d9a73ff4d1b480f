"""A perceptual distance of pictures: that of a small network's activations (LPIPS, Zhang et al. 2018)."""

import keras
from keras import layers, ops

from sd_tf.nn.precision import at_least_float32

WIDTHS = (24, 48, 96)


class PerceptualNetwork(keras.Model):
    """Three levels of two convolutions with ReLU; the second of each level halves the resolution.

    It is trained as a classifier and used for its intermediate activations:
    `distance` is equation 1 of LPIPS without learned weights.

    Args:
        num_classes: of the classifier's head.
    """

    def __init__(self, num_classes, **kwargs):
        super().__init__(name="perceptual", **kwargs)
        self.num_classes = num_classes
        self.levels = [
            [
                layers.Conv2D(width, 3, stride, "same", activation="relu", name=f"levels.{i}.convs.{j}")
                for j, stride in enumerate((1, 2))
            ]
            for i, width in enumerate(WIDTHS)
        ]
        self.head = layers.Dense(num_classes, name="head")

    def build(self, input_shape=(None, None, None, 3)):
        channels = 3
        for width, convolutions in zip(WIDTHS, self.levels, strict=True):
            for convolution in convolutions:
                convolution.build((None, None, None, channels))
                channels = width
        self.head.build((None, 2 * channels))
        self.built = True

    def maps(self, images):
        """The activations of each level, each half the size of the one before.

        Args:
            images: float (batch, height, width, 3) in [-1, 1].

        Returns:
            A list of (batch, height / 2^i, width / 2^i, width of level i), rounded up.
        """
        x, found = images, []
        for convolutions in self.levels:
            for convolution in convolutions:
                x = convolution(x)
            found.append(x)
        return found

    def call(self, images):
        """Logits (batch, classes), from the means and maxima of the last level over its positions."""
        last = self.maps(images)[-1]
        return self.head(ops.concatenate([ops.mean(last, axis=(1, 2)), ops.max(last, axis=(1, 2))], axis=-1))

    def distance(self, images, others):
        """The perceptual distance of each pair of pictures (LPIPS, equation 1, all weights 1).

        Args:
            images, others: float (batch, height, width, 3) in [-1, 1].

        Returns:
            (batch,), float32 or wider: squared differences of activations that are normalised over the
            channels, averaged over positions and summed over the levels.
        """
        total = 0.0
        for a, b in zip(self.maps(images), self.maps(others), strict=True):
            total += ops.mean(ops.sum(ops.square(_unit(a) - _unit(b)), axis=-1), axis=(1, 2))
        return total


def _unit(maps):
    """Normalised to length 1 over the channels; where activations vanish, shorter, with finite gradients."""
    maps = at_least_float32(maps)
    return maps / (ops.sqrt(ops.sum(ops.square(maps), axis=-1, keepdims=True) + 1e-6) + 1e-2)

"""How different two pictures look: a distance of a small network's activations (Zhang et al. 2018, LPIPS)."""

import keras
from keras import layers, ops

WIDTHS = (24, 48, 96)


class PerceptualNetwork(keras.Model):
    """Three levels of two convolutions with ReLU, of which the second halves the resolution.

    Trained as a classifier, used for what it sees on the way: `distance` is that of LPIPS' equation 1
    without learned weights. `sd_tf.latent.perceptual` trains it.

    Args:
        num_classes: of its head.
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
        """Images (batch, height, width, 3) in [-1, 1] -> what each level sees, in half the size each."""
        x, found = images, []
        for convolutions in self.levels:
            for convolution in convolutions:
                x = convolution(x)
            found.append(x)
        return found

    def call(self, images):
        """Logits, (batch, classes), of the means and maxima over the last level's places."""
        last = self.maps(images)[-1]
        return self.head(ops.concatenate([ops.mean(last, axis=(1, 2)), ops.max(last, axis=(1, 2))], axis=-1))

    def distance(self, images, others):
        """float32 (batch,): squared differences of activations of unit length, meaned over places, summed."""
        total = 0.0
        for a, b in zip(self.maps(images), self.maps(others), strict=True):
            total += ops.mean(ops.sum(ops.square(_unit(a) - _unit(b)), axis=-1), axis=(1, 2))
        return total


def _unit(maps):
    """Of length 1 over the channels, and of less where there is next to nothing."""
    maps = ops.cast(maps, "float32")
    return maps / (ops.sqrt(ops.sum(ops.square(maps), axis=-1, keepdims=True) + 1e-6) + 1e-2)

"""LPIPS (Zhang et al. 2018): how different two pictures look to a network that has learned from photographs.

Its weights are those of the package `lpips` and of torchvision, which are not bundled. They are read from
safetensors files with torchvision's names (`features.0.weight`) and those of the linear heads
(`lin0.model.1.weight`), in one file or in two.
"""

from pathlib import Path
from typing import NamedTuple

import keras
from keras import layers, ops

from sd_tf.checkpoints.names import assign, check, shapes
from sd_tf.checkpoints.tensors import read_file
from sd_tf.errors import InputError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for pixels in [-1, 1]
EPSILON = 1e-10  # added to lengths, as in the package


class Convolution(NamedTuple):
    """A convolution of a backbone, and the ReLU behind it.

    Attributes:
        place: its number in torchvision's `features`.
        channels: of its result.
        size, stride: of its kernel.
        padding: zeros at each edge.
        pool: size of the maximum that is taken before it, every two pixels; 0 for none.
        is_seen: whether a head compares its activations.
    """

    place: int
    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    is_seen: bool = True


ALEX = (
    Convolution(0, 64, 11, 4, 2),
    Convolution(3, 192, 5, 1, 2, pool=3),
    Convolution(6, 384, pool=3),
    Convolution(8, 256),
    Convolution(10, 256),
)
VGG = tuple(
    Convolution(place, channels, pool=2 * (place in (5, 10, 17, 24)), is_seen=place in (2, 7, 14, 21, 28))
    for place, channels in (
        *((0, 64), (2, 64), (5, 128), (7, 128), (10, 256), (12, 256), (14, 256)),
        *((17, 512), (19, 512), (21, 512), (24, 512), (26, 512), (28, 512)),
    )
)
BACKBONES = {"alex": ALEX, "vgg": VGG}


class LPIPS(keras.Model):
    """`lpips(images, others)`: the distance of each pair, float32 (batch,), 0 for equal pictures.

    Pictures are float (batch, height, width, 3) in [-1, 1]; AlexNet needs 32 pixels along each side or more,
    VGG 16.

    Args:
        backbone: a key of `BACKBONES`.
    """

    def __init__(self, backbone="alex", **kwargs):
        super().__init__(**{"name": "lpips", **kwargs})
        self.backbone, self.convolutions = backbone, BACKBONES[backbone]
        self.features = [
            layers.Conv2D(
                each.channels, each.size, each.stride, activation="relu", name=f"features.{each.place}"
            )
            for each in self.convolutions
        ]
        number = sum(each.is_seen for each in self.convolutions)
        self.heads = [
            layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name=f"lin{i}.model.1")
            for i in range(number)
        ]

    def build(self, *input_shapes):
        channels, heads = 3, iter(self.heads)
        for each, layer in zip(self.convolutions, self.features, strict=True):
            layer.build((None, None, None, channels))
            channels = each.channels
            if each.is_seen:
                next(heads).build((None, None, None, channels))
        self.built = True

    def maps(self, images):
        """What the heads compare: activations of unit length over the channels, of each level."""
        x = (images - ops.array(SHIFT)) / ops.array(SCALE)
        found = []
        for each, layer in zip(self.convolutions, self.features, strict=True):
            if each.pool:
                x = ops.max_pool(x, each.pool, 2)
            margin = (each.padding, each.padding)
            x = layer(ops.pad(x, ((0, 0), margin, margin, (0, 0))))
            if each.is_seen:
                found.append(x / (ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) + EPSILON))
        return found

    def call(self, images, others):
        total = 0.0
        for head, a, b in zip(self.heads, self.maps(images), self.maps(others), strict=True):
            total += ops.mean(head(ops.square(a - b)), axis=(1, 2, 3))
        return total


def load_lpips(files) -> LPIPS:
    """LPIPS with its weights.

    Args:
        files: safetensors files that have the backbone's and the heads' tensors; others of torchvision's
            network, such as its classifier's, are not used.

    Raises:
        InputError: a file is missing or damaged, or tensors are missing or are those of another network.
    """
    tensors = {}
    for file in files:
        tensors |= read_file(Path(file))
    said = " and ".join(map(str, files))
    last = {name: f"features.{convolutions[-1].place}.weight" for name, convolutions in BACKBONES.items()}
    backbone = next((name for name in ("vgg", "alex") if last[name] in tensors), None)
    if backbone is None:
        raise InputError(
            f"{said}: there is no {last['alex']} (AlexNet) and no {last['vgg']} (VGG-16): name the "
            "backbone's file, with torchvision's names, and that of the linear heads"
        )
    network = LPIPS(backbone)
    network.build()
    expected = shapes(network)
    check(expected, {key: tensor for key, tensor in tensors.items() if key in expected}, said)
    assign(network, tensors, said)
    network.trainable = False
    return network

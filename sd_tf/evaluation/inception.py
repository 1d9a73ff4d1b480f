"""The Inception network of published Frechet distances (Heusel et al. 2017), where its weights can be had.

It is the graph that Google released on 5 December 2015, run as it is, on pictures resized with Pillow's
antialiased bicubic filter in float ("clean" resizing: Parmar, Zhang and Zhu 2022).
"""

import hashlib
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from sd_tf.data.staging import unfinished_folder
from sd_tf.errors import InputError, argument
from sd_tf.files import read_bytes, reason

URL = "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
FILE = "classify_image_graph_def.pb"
LARGEST = 300_000_000  # bytes; it has 95 million
INPUT, OUTPUT = "ExpandDims:0", "pool_3:0"
SIDE, WIDTH = 299, 2048
CONNECT_SECONDS = 5
OPERATIONS = {  # all that the network needs: a file that asks for others is not it
    *("AvgPool", "BatchNormWithGlobalNormalization", "BiasAdd", "Cast", "CheckNumerics", "Concat"),
    *("ConcatV2", "Const", "Conv2D", "DecodeJpeg", "ExpandDims", "Identity", "MatMul", "MaxPool", "Mul"),
    *("Placeholder", "Relu", "Reshape", "ResizeBilinear", "Softmax", "Sub"),
}


class Inception:
    """Features of pictures, 2048 wide.

    Args:
        file: `classify_image_graph_def.pb`; None looks in the user's cache and downloads it there.

    Attributes:
        name, resize: for the protocol.
        sha256: of the file.

    Raises:
        InputError: there is none and it cannot be downloaded, or the file is not that network.
    """

    name = "inception-2015-12-05"
    resize = "299 x 299, Pillow, bicubic with antialiasing, in float"

    def __init__(self, file=None):
        import tensorflow as tf

        file = Path(file) if file is not None else _cached()
        try:
            content = read_bytes(file, LARGEST)
            definition = tf.compat.v1.GraphDef.FromString(content)
        except Exception as error:  # of the file system, or of protobuf
            raise InputError(f"{file} cannot be read as {FILE}: {reason(error)}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        strange = sorted({node.op for node in definition.node} - OPERATIONS)
        if strange or definition.library.function:
            raise InputError(f"{file} has operations that {FILE} has not ({', '.join(strange[:5])}): refused")

        def network(pictures):
            return tf.import_graph_def(definition, {INPUT: pictures}, [OUTPUT])[0]

        specification = tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32)
        try:
            self._network = tf.function(network, autograph=False).get_concrete_function(specification)
        except (ValueError, KeyError) as error:
            raise InputError(f"{file} is no {FILE}: {str(error).splitlines()[0]}") from None

    def features(self, images):
        """uint8 (n, height, width, 3) -> float32 (n, 2048)."""
        found = []
        for start in range(0, len(images), 32):
            pictures = np.stack([resized(image, SIDE) for image in images[start : start + 32]])
            found.append(np.asarray(self._network(pictures)).reshape(len(pictures), -1))
        return np.concatenate(found)


def resized(image, side):
    """uint8 (height, width, 3) -> float32 (side, side, 3) in [0, 255], channel by channel, not rounded."""
    channels = [
        Image.fromarray(channel.astype("float32"), "F").resize((side, side), Image.Resampling.BICUBIC)
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0.0, 255.0)


def _cached():
    """The file in Keras' cache, downloaded where it is not there yet."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    file = home / "models" / "inception-2015-12-05" / FILE
    if file.is_file():
        return file
    try:
        with (
            urllib.request.urlopen(URL, timeout=CONNECT_SECONDS) as answer,
            tarfile.open(fileobj=answer, mode="r|gz") as archive,
        ):
            for member in archive:
                if member.name.rpartition("/")[2] == FILE and member.isfile():
                    with unfinished_folder(file) as new:
                        (new / FILE).write_bytes(archive.extractfile(member).read(LARGEST))
                        return (new / FILE).replace(file)
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"the Inception network is not on this machine and cannot be downloaded ({error}): "
            f"put {FILE} from {URL} somewhere and name it with {argument('inception')}"
        ) from None
    raise InputError(f"{URL} has no {FILE}: name the file with {argument('inception')}")

"""A judge of our own: a Fashion-MNIST classifier that no stage of training ever sees.

`python -m sd_tf.evaluation.classifier --output weights/fashion-mnist-classifier` trained the bundled one.
"""

import hashlib
import math
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from sd_tf import commandline
from sd_tf.checkpoints.networks import load_alone, save_alone
from sd_tf.checkpoints.sources import resolve
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.errors import InputError, argument, shown
from sd_tf.files import open_file, read_json

NUM_CLASSES = 10
SIDE = 28  # the pictures' own size, without the padding
WIDTHS = (16, 48, 96)
FEATURES = 128
DROPOUT = 0.3


class Classifier(keras.Model):
    """Three levels of two convolutions with batch norm and ReLU, then a dense layer: 0.35 M parameters.

    Attributes:
        accuracy: on the test pictures, from 0 to 1, as the folder it was read from says; None if none.
        sha256: of its weights' file, likewise.
    """

    def __init__(self, **kwargs):
        super().__init__(name="classifier", **kwargs)
        self.accuracy = self.sha256 = None
        self.convolutions = [
            [
                (
                    layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"levels.{i}.convs.{j}"),
                    layers.BatchNormalization(name=f"levels.{i}.norms.{j}"),
                )
                for j in range(2)
            ]
            for i, width in enumerate(WIDTHS)
        ]
        self.pool = layers.MaxPooling2D(padding="same")
        self.dense = layers.Dense(FEATURES, activation="relu", name="dense")
        self.head = layers.Dense(NUM_CLASSES, name="head")

    def build(self, input_shape=(None, SIDE, SIDE, 1)):
        channels, side = 1, SIDE
        for width, pairs in zip(WIDTHS, self.convolutions, strict=True):
            for convolution, norm in pairs:
                convolution.build((None, side, side, channels))
                norm.build((None, side, side, width))
                channels = width
            side = -(-side // 2)
        self.dense.build((None, side * side * channels))
        self.head.build((None, FEATURES))
        self.built = True

    def maps(self, pictures, training=False):
        """What each level sees before it halves the resolution: (batch, side, side, width) of each."""
        x, found = pictures, []
        for pairs in self.convolutions:
            for convolution, norm in pairs:
                x = ops.relu(norm(convolution(x), training=training))
            found.append(x)
            x = self.pool(x)
        return found

    def features(self, pictures, training=False):
        """Brightness, float32 (batch, 28, 28, 1) in [0, 1] -> float32 (batch, 128), none below 0."""
        x = self.pool(self.maps(pictures, training)[-1])
        x = ops.reshape(x, (ops.shape(x)[0], -1))
        return self.dense(keras.random.dropout(x, DROPOUT) if training else x)

    def call(self, pictures, training=False):
        """Logits, float32 (batch, 10)."""
        return self.head(self.features(pictures, training))


def brightness(images, full_scale=255):
    """The classifier's input: the brightest channel, with the padding cut off.

    Args:
        images: uint8 (n, 32, 32, any channels).
        full_scale: the largest value a picture's tint allows, so that a dark tint is no dark picture:
            a number or (n,).

    Returns:
        float32 (n, 28, 28, 1) in [0, 1].
    """
    border = (images.shape[1] - SIDE) // 2
    inner = images[:, border : border + SIDE, border : border + SIDE].max(axis=-1, keepdims=True)
    scale = np.broadcast_to(np.asarray(full_scale, "float32"), len(images))
    return np.minimum(inner.astype("float32") / scale[:, None, None, None], 1.0)


def train_classifier(train, epochs=12, batch_size=128, seed=0) -> Classifier:
    """Trains one on pictures that are flipped and shifted by up to two pixels.

    Args:
        train: `FashionMNIST("train")`.
        seed: of the weights, the order and the shifts; Keras keeps it.
    """
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    pictures, labels = brightness(train.grey[..., None]), train.labels.astype("int32")
    model = Classifier()
    model.build()
    steps = math.ceil(len(labels) / batch_size)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, (epochs - 1) * steps, warmup_target=2e-3, warmup_steps=steps
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=2e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05),
    )
    for epoch in range(epochs):
        model.fit(
            _moved(pictures, generator),
            np.eye(NUM_CLASSES, dtype="float32")[labels],
            batch_size=batch_size,
            initial_epoch=epoch,
            epochs=epoch + 1,
            verbose=2,
        )
    return model


def _moved(pictures, generator, most=2):
    """Every picture flipped or not, and shifted into the padding around it."""
    padded = np.pad(pictures, ((0, 0), (most, most), (most, most), (0, 0)))
    moved = np.empty_like(pictures)
    places = generator.integers(0, 2 * most + 1, (len(pictures), 2))
    for top in range(2 * most + 1):
        for left in range(2 * most + 1):
            chosen = (places == (top, left)).all(axis=1)
            moved[chosen] = padded[chosen, top : top + SIDE, left : left + SIDE]
    flipped = generator.random(len(pictures)) < 0.5
    moved[flipped] = moved[flipped, :, ::-1]
    return moved


def classify(model, images, full_scale=255):
    """The class of each picture, int (n,); see `brightness` for the arguments."""
    return model.predict(brightness(images, full_scale), batch_size=512, verbose=0).argmax(axis=1)


# -- in files ---------------------------------------------------------------------------------------


def save_classifier(model, folder, accuracy, command):
    """Writes weights in half precision, and a config.json that says how good they are and what made them."""
    values = {"model_type": "classifier", "widths": WIDTHS, "features": FEATURES}
    save_alone(model, folder, values | {"test_accuracy": accuracy, "command": command})


def load_classifier(name="fashion-mnist-classifier") -> Classifier:
    """A bundled one, or what `save_classifier` wrote.

    Raises:
        InputError: it is no folder of a classifier of this shape.
    """
    folder = resolve(name, kind="classifier")
    values = read_json(folder / "config.json", root=folder)
    if values.get("widths") != list(WIDTHS) or values.get("features") != FEATURES:
        raise InputError(f"{folder} holds no classifier of this version: leave {argument('classifier')} out")
    model = load_alone(Classifier(), folder)
    accuracy = values.get("test_accuracy")
    if accuracy is not None and not (type(accuracy) in (int, float) and 0 <= accuracy <= 1):
        raise InputError(f"{folder / 'config.json'}: test_accuracy is {shown(accuracy)}, expected 0 to 1")
    model.accuracy = accuracy
    with open_file(folder / "model.safetensors", root=folder) as opened:
        model.sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return model


@commandline.naming_flags()
def main(arguments=None):
    """Trains a classifier, says what it scores on the test pictures and writes it."""
    parser = commandline.Parser("python -m sd_tf.evaluation.classifier", description=main.__doc__)
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST files (default: $SD_TF_DATA_DIR)")
    parser.add_argument("--output", required=True, help="folder for the weights")
    parser.add_argument("--epochs", type=int, default=12, help="over the training pictures (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts (default: 0)")
    flags = parser.parse_args(arguments)
    commandline.check_writable(Path(flags.output))
    commandline.load_tensorflow()
    train, test = (FashionMNIST(split, flags.data_dir) for split in ("train", "test"))
    model = train_classifier(train, flags.epochs, seed=flags.seed)
    accuracy = float(np.mean(classify(model, test.grey[..., None]) == test.labels))
    command = f"python -m sd_tf.evaluation.classifier --epochs {flags.epochs} --seed {flags.seed}"
    save_classifier(model, flags.output, accuracy, command)
    print(f"{accuracy:.4f} of the test pictures are recognised: {flags.output}")


if __name__ == "__main__":
    commandline.run(main)

"""A judge of our own: a small Fashion-MNIST classifier that no stage of training ever sees."""

from pathlib import Path

import keras
import numpy as np
from keras import layers

from sd_tf.errors import InputError

NUM_CLASSES = 10
SIDE = 28  # the pictures' own size, without the padding


def build_classifier() -> keras.Model:
    """Three convolutional levels and a dense one, 0.4 M parameters.

    Takes brightness, float32 (batch, 28, 28, 1) in [0, 1]; returns logits (batch, 10).
    """
    model = keras.Sequential(name="classifier")
    model.add(keras.Input((SIDE, SIDE, 1)))
    for width in (32, 64, 128):
        model.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D(padding="same"))
        model.add(layers.Dropout(0.1))
    model.add(layers.Flatten())
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(NUM_CLASSES))
    return model


def load_or_train_classifier(folder, train, test, epochs=6):
    """The classifier, and its accuracy on the test pictures.

    Args:
        folder: keeps the weights; trained and written there if it holds none, from the random seed 0,
            which Keras then keeps.
        train, test: `FashionMNIST` of either split.
        epochs: of training; 6 reach about 92 %.
    """
    file = Path(folder) / "classifier.weights.h5"
    if not file.is_file():
        keras.utils.set_random_seed(0)
    model = build_classifier()
    pictures, labels = brightness(train.grey[..., None]), train.labels.astype("int32")
    if file.is_file():
        try:
            model.load_weights(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} holds no classifier ({error}): delete it to train another") from None
    else:
        steps = epochs * -(-len(labels) // 128)
        model.compile(
            keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps), weight_decay=1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum_over_batch_size"),
        )
        model.fit(pictures, labels, batch_size=128, epochs=epochs, verbose=2)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            model.save_weights(file)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror or error}") from None
    predicted = classify(model, test.grey[..., None])
    return model, float(np.mean(predicted == test.labels))


def brightness(images):
    """uint8 (n, 32, 32, any channels) -> float32 (n, 28, 28, 1): the brightest channel, padding cut off."""
    border = (images.shape[1] - SIDE) // 2
    inner = images[:, border : border + SIDE, border : border + SIDE]
    return inner.max(axis=-1, keepdims=True).astype("float32") / 255.0


def classify(model, images, full_scale=255):
    """The class of each picture.

    Args:
        model: from `load_or_train_classifier`.
        images: uint8 (n, 32, 32, channels).
        full_scale: the largest value a picture's tint allows, so that a dark tint is no dark picture:
            a number or (n,).
    """
    scale = 255.0 / np.broadcast_to(np.asarray(full_scale, "float32"), len(images))
    pictures = np.minimum(brightness(images) * scale[:, None, None, None], 1.0)
    return model.predict(pictures, batch_size=512, verbose=0).argmax(axis=1)

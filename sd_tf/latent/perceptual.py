"""Trains and reads the network whose activations say how different two pictures look.

`python -m sd_tf.latent.perceptual --output weights/perceptual-mini` trained the bundled one: to tell
garments and colours apart, on the training pictures.
"""

from pathlib import Path

import keras
import numpy as np

from sd_tf import commandline
from sd_tf.checkpoints.networks import load_alone, save_alone
from sd_tf.checkpoints.sources import resolve
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.pipeline import stream
from sd_tf.errors import InputError
from sd_tf.files import read_json
from sd_tf.images import to_unit
from sd_tf.nn.perceptual import WIDTHS, PerceptualNetwork

BATCH, LEARNING_RATE = 128, 2e-3


def train_perceptual(dataset, steps, num_classes, seed=0) -> PerceptualNetwork:
    """A network that has learned to tell the groups of a data set's examples apart.

    Args:
        dataset: `CaptionedImages` whose groups are below `num_classes`.
        steps: of 128 pictures.
        seed: of the weights and the order; Keras keeps it.
    """
    keras.utils.set_random_seed(seed)

    def fetch(indices, epoch):
        examples = dataset.examples(indices, epoch)
        return {"images": to_unit(examples.images), "groups": examples.groups}

    batches = stream(fetch, len(dataset), BATCH, seed).map(lambda batch: (batch["images"], batch["groups"]))
    network = PerceptualNetwork(num_classes)
    network.build()
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    network.fit(batches, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=2)
    return network


def save_perceptual(network, folder, accuracy, command):
    """Writes weights in half precision, and a config.json that says how good they are and what made them."""
    values = {"model_type": "perceptual", "widths": WIDTHS, "num_classes": network.num_classes}
    save_alone(network, folder, values | {"test_accuracy": accuracy, "command": command})


def load_perceptual(name="perceptual-mini") -> PerceptualNetwork:
    """A bundled one, or what `save_perceptual` wrote; frozen.

    Raises:
        InputError: it is no folder of such a network.
    """
    folder = resolve(name, kind="perceptual network")
    values = read_json(folder / "config.json", root=folder)
    number = values.get("num_classes")
    if values.get("widths") != list(WIDTHS) or type(number) is not int or not 0 < number <= 10_000:
        raise InputError(f"{folder} holds no perceptual network of this version")
    network = load_alone(PerceptualNetwork(number), folder)
    network.trainable = False
    return network


@commandline.naming_flags()
def main(arguments=None):
    """Trains a network, says how many test pictures it tells apart and writes it."""
    parser = commandline.Parser("python -m sd_tf.latent.perceptual", description=main.__doc__)
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST files (default: $SD_TF_DATA_DIR)")
    parser.add_argument("--output", required=True, help="folder for the weights")
    parser.add_argument("--steps", type=int, default=469, help="of 128 pictures (default: 469, an epoch)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    flags = parser.parse_args(arguments)
    commandline.check_writable(Path(flags.output))
    commandline.load_tensorflow()
    train, test = (FashionMNIST(split, flags.data_dir) for split in ("train", "test"))
    network = train_perceptual(train, flags.steps, num_classes=90, seed=flags.seed)
    examples = test.examples(np.arange(len(test)), 0)
    found = network.predict(to_unit(examples.images), batch_size=500, verbose=0).argmax(axis=1)
    accuracy = float(np.mean(found == examples.groups))
    command = f"python -m sd_tf.latent.perceptual --steps {flags.steps} --seed {flags.seed}"
    save_perceptual(network, flags.output, accuracy, command)
    print(f"{accuracy:.4f} of the test pictures have garment and colour recognised: {flags.output}")


if __name__ == "__main__":
    commandline.run(main)

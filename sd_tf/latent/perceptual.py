"""Trains the network whose activations say how different two pictures look.

`python -m sd_tf.latent.perceptual --output weights/perceptual-mini` trained the bundled one: to tell
garments and colours apart, on the training pictures.
"""

from pathlib import Path

import keras
import numpy as np

from sd_tf import commandline
from sd_tf.checkpoints.perceptual import save_perceptual
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.pipeline import stream
from sd_tf.images import to_unit
from sd_tf.nn.perceptual import PerceptualNetwork

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

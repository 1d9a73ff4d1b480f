"""The perceptual network in a folder: written by the latent family."""

from sd_tf.checkpoints.networks import load_alone, save_alone
from sd_tf.checkpoints.sources import resolve
from sd_tf.errors import InputError
from sd_tf.files import read_json
from sd_tf.nn.perceptual import WIDTHS, PerceptualNetwork


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

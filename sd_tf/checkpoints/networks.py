"""Networks in folders: a configuration, and the weights in safetensors files."""

from pathlib import Path

from sd_tf.checkpoints.names import assign, check, shapes
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.sources import refuse_links_out
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.weight_files import TRANSFORMERS
from sd_tf.errors import InputError, naming, shown
from sd_tf.files import read_json, write_json
from sd_tf.skeleton import skeleton

SHARD = "10GB"  # diffusers' own
TENSORS_OF_A_LAYER = 8  # at least: a residual block has that many
TENSORS_OF_A_LEVEL = 4  # at least: a discriminator's has one block without norms
MOST_LAYERS = 200  # in one direction of a network; Stable Diffusion has 8, its towers up to 24


def save_alone(network, folder, values):
    """Writes a network that is part of no model, in half precision, with `values` as its config.json."""
    with replacing(Path(folder), keep_others=True) as new:
        write_json(new / "config.json", values)
        write(new, TRANSFORMERS, network, "float16", SHARD)


def load_alone(network, folder):
    """Fills a network, built or not, with what `save_alone` wrote."""
    if not network.built:
        network.build()
    tensors = find(Path(folder), TRANSFORMERS)
    check(shapes(network), tensors, folder)
    assign(network, tensors, folder)
    return network


def config_of(folder):
    folder = Path(folder)
    refuse_links_out(folder)
    return read_json(folder / "config.json", root=folder), str(folder / "config.json")


def filled(make, config, tensors, source):
    """The network that `make` makes, with the tensors of `source` in it."""
    check_counts(config, tensors, source)
    try:
        with skeleton(), naming(source):
            model = make()
            model.build()
            expected = shapes(model)
    except InputError:
        raise
    except Exception as error:  # whatever Keras and TensorFlow say of sizes that make no sense
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source}: its configuration makes no network: {reason[:200]}") from None
    files = {tensor.file for tensor in tensors.values()}
    source = files.pop() if len(files) == 1 else source
    check(expected, tensors, source)
    assign(model, tensors, source)
    return model


def check_counts(config, tensors, source):
    """A network of many layers would take for ever to lay out, only to find that its file has others."""
    levels = len(getattr(config, "block_out_channels", "1"))
    for name in ("block_out_channels", "layers_per_block", "num_hidden_layers", "num_layers"):
        if not hasattr(config, name):
            continue
        value = getattr(config, name)
        least = TENSORS_OF_A_LEVEL if name == "block_out_channels" else TENSORS_OF_A_LAYER
        most = min(len(tensors) // least, MOST_LAYERS)
        if isinstance(value, tuple):
            layers = sum(value) if name == "layers_per_block" else len(value)
        else:
            layers = levels * value
        if not 0 < layers <= most:
            raise InputError(
                f"{source}: {name} is {shown(value)}, but {len(tensors)} tensors make at most {most} layers: "
                "another model's?"
            )

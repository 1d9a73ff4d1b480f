"""Reads and writes GANs as folders in the manner of diffusers: one for each network.

generator/        config.json and weights: what draws
discriminator/    the same, for training that goes on
text_encoder/     the frozen text encoder, as transformers opens it, and tokenizer/
generation_config.json      the settings that it recommends
model_index.json
"""

from pathlib import Path

from sd_tf.checkpoints.config_files import of_diffusers
from sd_tf.checkpoints.networks import SHARD, config_of, filled
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.sources import refuse_links_out
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.text_encoders import save_text_encoder_folders
from sd_tf.checkpoints.weight_files import DIFFUSERS
from sd_tf.files import read_json, write_json
from sd_tf.gan.config_files import DISCRIMINATOR, GENERATOR
from sd_tf.generation.settings import FILE as SETTINGS_FILE
from sd_tf.generation.settings import write_settings
from sd_tf.text.known_words import FILE as WORDS_FILE
from sd_tf.text.known_words import write_words
from sd_tf.unread import Unread

MODEL_INDEX, PIPELINE = "model_index.json", "GigaGANPipeline"
OTHER_FILES = (WORDS_FILE, SETTINGS_FILE)
KINDS = {"generator": GENERATOR, "discriminator": DISCRIMINATOR}


def save(model, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a whole GAN, which `sd_tf.load` opens.

    An existing model in the folder stays intact until the new one replaces it in one rename. Otherwise
    `model_index.json` is written last.

    Args:
        model: a `GigaGAN`.
        folder: made if it is missing; other files in it are left alone.
        dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of one file, a whole number or a string such as "5GB".

    Raises:
        InputError: the folder cannot be written, or the dtype or the size is invalid.
    """
    folder = Path(folder)
    if folder.is_symlink() and folder.is_dir():  # the link stays, and its target is written to
        folder = folder.resolve()
    if (folder / MODEL_INDEX).is_file():
        with replacing(folder, keep_others=True) as new:
            _save_parts(model, new, dtype, max_shard_size)
    else:
        _save_parts(model, folder, dtype, max_shard_size)


def _save_parts(model, folder, dtype, max_shard_size):
    folder.mkdir(parents=True, exist_ok=True)
    save_network(model.generator, folder / "generator", dtype, max_shard_size)
    if model.discriminator_config is not None:
        save_network(model.discriminator, folder / "discriminator", dtype, max_shard_size)
    if model.text_encoder is not None:
        save_text_encoder_folders(model.text_encoder, folder, dtype, max_shard_size)
    if model.known_words is not None:
        write_words(folder, model.known_words)
    write_settings(folder, model.recommended)
    write_json(folder / MODEL_INDEX, of_diffusers(PIPELINE))


def save_network(network, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a generator or a discriminator; see `save`."""
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", KINDS[network.name].to_json(network.config))
        write(new, DIFFUSERS, network, dtype, max_shard_size)


# -- reading ----------------------------------------------------------------------------------------


def unread_network(folder, name, dtype=None, variant=None) -> Unread:
    """A network of a model's folder: its configuration is read now, its weights when they are needed."""
    folder = Path(folder) / name
    refuse_links_out(folder)
    file = folder / "config.json"
    config = KINDS[name].from_json(read_json(file, root=folder), str(file))
    return Unread(config, lambda: load_network(folder, name, dtype, variant))


def load_network(folder, name, dtype=None, variant=None):
    """Reads what `save_network` wrote; see `loading.load` for the arguments."""
    from sd_tf.gan.discriminator import Discriminator  # only here: they import Keras
    from sd_tf.gan.generator import Generator

    values, source = config_of(folder)
    config = KINDS[name].from_json(values, source)
    kind = {"generator": Generator, "discriminator": Discriminator}[name]
    tensors = find(Path(folder), DIFFUSERS, variant)
    return filled(lambda: kind(config, dtype=dtype), config, tensors, Path(folder))

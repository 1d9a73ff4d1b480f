"""Reads and writes models as folders, in the format of diffusers' `StableDiffusionPipeline`.

Every part of a model is a folder with a configuration and weights in safetensors files.
"""

from pathlib import Path

from sd_tf.checkpoints.names import current_names
from sd_tf.checkpoints.networks import SHARD, config_of, filled
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.schedulers import SCHEDULE
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.text_encoders import save_text_encoder_folders
from sd_tf.checkpoints.weight_files import DIFFUSERS
from sd_tf.files import write_json
from sd_tf.generation.settings import write_settings
from sd_tf.latent import config_files
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.unet import UNet
from sd_tf.text.known_words import write_words

# -- writing ----------------------------------------------------------------------------------------


def save_autoencoder(autoencoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a folder that `diffusers.AutoencoderKL.from_pretrained` opens; see `save` for the arguments."""
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", config_files.autoencoder_json(autoencoder.config))
        write(new, DIFFUSERS, autoencoder, dtype, max_shard_size)


def save_unet(unet, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a folder that `diffusers.UNet2DConditionModel.from_pretrained` opens; see `save`."""
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", config_files.UNET.to_json(unet.config))
        write(new, DIFFUSERS, unet, dtype, max_shard_size)


def save(model: LatentDiffusion, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a whole model that `diffusers.StableDiffusionPipeline.from_pretrained` opens.

    An existing model in the folder stays intact until the new one replaces it in one rename. Otherwise, as
    in a run folder, `model_index.json` is written last.

    Args:
        model: the model.
        folder: made if it is missing; other files in it are left alone.
        dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of one file, a whole number or a string such as "5GB".

    Raises:
        InputError: the folder cannot be written, or the dtype or the size is invalid.
    """
    folder = Path(folder)
    if folder.is_symlink() and folder.is_dir():  # the link stays, and its target is written to
        folder = folder.resolve()
    if (folder / "model_index.json").is_file():
        with replacing(folder, keep_others=True) as new:
            _save_parts(model, new, dtype, max_shard_size)
    else:
        _save_parts(model, folder, dtype, max_shard_size)


def _save_parts(model, folder, dtype, max_shard_size):
    save_autoencoder(model.autoencoder, folder / "vae", dtype, max_shard_size)
    save_unet(model.unet, folder / "unet", dtype, max_shard_size)
    save_text_encoder_folders(model.text_reader(), folder, dtype, max_shard_size, pooling=False)
    with replacing(folder / "scheduler") as new:
        write_json(new / "scheduler_config.json", SCHEDULE.to_json(model.schedule.config))
    write_settings(folder, model.recommended)
    if model.known_words is not None:
        write_words(folder, model.known_words)
    index = config_files.model_index(model.schedule.config, type(model.text_encoder).__name__)
    write_json(folder / "model_index.json", index)


# -- reading ----------------------------------------------------------------------------------------


def load_autoencoder(folder, dtype=None, variant=None) -> AutoencoderKL:
    """Reads a folder that `save_autoencoder` or diffusers wrote; see `loading.load` for the arguments."""
    values, source = config_of(folder)
    config = config_files.AUTOENCODER.from_json(values, source)
    tensors = current_names(find(Path(folder), DIFFUSERS, variant))
    return filled(lambda: AutoencoderKL(config, dtype=dtype), config, tensors, Path(folder))


def load_unet(folder, dtype=None, variant=None) -> UNet:
    """Reads a folder that `save_unet` or diffusers wrote; see `loading.load` for the arguments."""
    values, source = config_of(folder)
    config = config_files.UNET.from_json(values, source)
    tensors = find(Path(folder), DIFFUSERS, variant)
    return filled(lambda: UNet(config, dtype=dtype), config, tensors, Path(folder))

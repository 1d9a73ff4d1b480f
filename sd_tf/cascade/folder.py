"""Reads and writes a cascade's UNets as folders: a configuration, and weights in safetensors files."""

from pathlib import Path

from sd_tf.cascade.config_files import PIXEL_UNET
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.networks import SHARD, config_of, filled
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.weight_files import DIFFUSERS
from sd_tf.files import write_json


def save_unet(unet: PixelUNet, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a folder that `diffusers.UNet2DConditionModel.from_pretrained` opens.

    diffusers has no blocks of Imagen's Efficient U-Net: a UNet with these is for `load_unet` alone.

    Args:
        unet: a built UNet of any stage.
        folder: made if it is missing; what was in it is replaced in one rename.
        dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of one file, a whole number or a string such as "5GB".

    Raises:
        InputError: the folder cannot be written, or the dtype or the size is invalid.
    """
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", PIXEL_UNET.to_json(unet.config))
        write(new, DIFFUSERS, unet, dtype, max_shard_size)


def load_unet(folder, dtype=None, variant=None) -> PixelUNet:
    """Reads a folder that `save_unet` or diffusers wrote, such as the `unet` of a DeepFloyd IF stage.

    Args:
        folder: with `config.json` and the weights.
        dtype: Keras' dtype policy of the UNet, None for the global one.
        variant: as in diffusers: "fp16" looks for `diffusion_pytorch_model.fp16.safetensors` first.

    Raises:
        InputError: the configuration is of another network, is out of bounds or does not fit the weights,
            or a file is damaged.

    Warns:
        UserWarning: there are tensors that the network does not have, or values that are not finite.
    """
    values, source = config_of(folder)
    config = PIXEL_UNET.from_json(values, source)
    tensors = find(Path(folder), DIFFUSERS, variant)
    return filled(lambda: PixelUNet(config, dtype=dtype), config, tensors, Path(folder))

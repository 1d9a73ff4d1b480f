"""The data set that `--dataset` names, opened as the other flags say."""

from collections.abc import Sequence
from pathlib import Path

from sd_tf.config import RunConfig
from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.garments import Garments
from sd_tf.data.pipeline import CaptionedImages
from sd_tf.data.sources import find_source
from sd_tf.errors import InputError


def find_dataset(config: RunConfig, image_size: int, folder, outputs: Sequence[Path] = ()) -> CaptionedImages:
    """Opens a data set; captioned pictures are still to be decoded then.

    Args:
        config: `dataset`, and the flags that are for it.
        image_size: pixels along a side.
        folder: for decoded pictures.
        outputs: folders that the run writes to, from which it does not learn.

    Raises:
        InputError: it is not there, or has no pictures of that size.
    """
    if config.dataset == "garments":
        return Garments(image_size, config.seed)
    if config.dataset == "fashion_mnist":
        if image_size != 32:
            raise InputError(
                f"--image-size is {image_size}: fashion_mnist has pictures of 32 pixels: take that, or "
                "another --preset"
            )
        return FashionMNIST("train", config.data_dir, config.seed)
    background = tuple(bytes.fromhex(config.background))
    source = find_source(
        config.dataset, config.data_dir, config.caption_column, background, config.caption, outputs
    )
    return CaptionedPictures(
        source,
        image_size,
        folder,
        config.fit,
        background,
        config.flip,
        config.jitter,
        config.caption_template,
        config.shorten_captions,
        config.seed,
    )

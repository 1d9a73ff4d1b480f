"""A stage of a cascade: a UNet on pixels with its noise schedule, and the settings that it is drawn with."""

import functools

from sd_tf.checkpoints.schedulers import thresholding_of
from sd_tf.diffusion.arrays import operations
from sd_tf.errors import InputError
from sd_tf.generation.settings import Settings
from sd_tf.graphs import compiled
from sd_tf.unread import Unread

CHANNELS = 3
BASE, SUPER_RESOLUTION = "base", "sr"


def stage_name(position: int) -> str:
    """That of a cascade's stage by its position, 0 for the first: "base", "sr2", "sr3" and so on."""
    return BASE if position == 0 else f"{SUPER_RESOLUTION}{position + 1}"


def by_condition(unet):
    """Adapts a UNet to take a `Condition` as its third argument.

    As in diffusers, it attends to all tokens of the context, padding included. A picture to enlarge goes in
    beside the noisy one, and the level of its noise beside the timestep.
    """

    def network(images, timesteps, condition):
        if condition.low_res is None:
            return unet(images, timesteps, condition.context)
        ops = operations(images)
        both = ops.concatenate([images, ops.cast(condition.low_res, images.dtype)], axis=-1)
        return unet(both, timesteps, condition.context, class_labels=condition.low_res_level)

    return network


class PixelStage:
    """Draws pictures of one size, from text or from text and a smaller picture.

    Args:
        unet: the `PixelUNet`, or `Unread`.
        schedule: the `NoiseSchedule` that it was, or will be, trained on.
        noising: of a super-resolution stage: the `NoiseSchedule` of the noise that is added to the smaller
            picture (noise conditioning augmentation, Ho et al. 2022).
        recommended: the `Settings` that it is drawn with where nobody gives others; None for the usual ones.
        augment_level: the timestep of `noising` that pictures are drawn at.

    Attributes:
        config: the UNet's configuration.
        thresholding: how its x0 is kept in range, from its schedule's configuration.

    Raises:
        InputError: the network draws something else than RGB pictures.
    """

    def __init__(self, unet, schedule, noising=None, recommended=None, augment_level=0):
        self._unet, self.config, self.schedule, self.noising = unet, unet.config, schedule, noising
        self.recommended, self.augment_level = recommended or Settings(), augment_level
        self.thresholding = thresholding_of(schedule.config)
        expected = 2 * CHANNELS if self.is_super_resolution else CHANNELS
        if self.config.in_channels != expected or self.config.out_channels not in (CHANNELS, 2 * CHANNELS):
            raise InputError(
                f"the UNet has {self.config.in_channels} and {self.config.out_channels} channels: give "
                f"{expected} and 3, or 6 with a learned variance"
            )

    @property
    def is_super_resolution(self) -> bool:
        """Whether it enlarges a smaller picture."""
        return self.config.class_embed_type is not None

    @property
    def learns_variance(self) -> bool:
        """Whether its UNet predicts the variance of DDPM's steps as well."""
        return self.config.out_channels == 2 * CHANNELS

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that it was trained on, in pixels."""
        return self.config.image_size

    def read(self):
        """Reads the network if it has not been read; its files may then be deleted."""
        if isinstance(self._unet, Unread):
            self._unet = self._unet.read()

    @property
    def unet(self):
        """The network, read when it is first asked for."""
        self.read()
        return self._unet

    def put(self, unet) -> bool:
        """Replaces the network by another of the same configuration, which may be `Unread`.

        Returns:
            Whether it is another.
        """
        if unet is self._unet:
            return False
        self._unet = unet
        self.__dict__.pop("_compiled", None)
        return True

    @property
    def precision(self) -> str | None:
        """The Keras precision policy of its network; None before it is read."""
        return None if isinstance(self._unet, Unread) else self._unet.dtype_policy.name

    @functools.cached_property
    def _compiled(self):
        unet = self.unet

        def call(images, timesteps, context, class_labels):
            if class_labels is None:
                return unet(images, timesteps, context)
            return unet(images, timesteps, context, class_labels=class_labels)

        return compiled(call)

    def denoise(self, images, timesteps, context, class_labels=None):
        """The compiled UNet, for arrays of any batch size."""
        return self._compiled(images, timesteps, context, class_labels)

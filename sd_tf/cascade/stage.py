"""A stage of a cascade: a UNet on pixels with its noise schedule, and the settings that it is drawn with."""

from collections.abc import Callable
from typing import NamedTuple

from sd_tf.checkpoints.schedulers import thresholding_of
from sd_tf.diffusion.arrays import operations
from sd_tf.errors import InputError
from sd_tf.generation.engines import Engines
from sd_tf.generation.settings import Settings
from sd_tf.unread import Unread

CHANNELS = 3
BASE, SUPER_RESOLUTION = "base", "sr"
MOST_STAGES = 8  # that are looked for in a folder


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


class StageEngine(NamedTuple):
    """An engine of a stage, see `sd_tf.generation.engines`.

    Attributes:
        denoise: images (n, h, w, 3), or with the picture to enlarge (n, h, w, 6); float timesteps (n,);
            context (n, tokens, width); and, to enlarge, levels of noise (n,) -> float32 (n, h, w, 3 or 6).
    """

    denoise: Callable


def drawing_facts(stages) -> dict[str, str]:
    """How a cascade's stages draw, in words: sizes, thresholding, and the settings of those that enlarge."""
    sizes = [f"{width} x {height}" for height, width in (stage.image_size for stage in stages)]
    kept = [stage.thresholding.described() for stage in stages]
    facts = {
        "sizes": ", then ".join(sizes),
        "thresholding": kept[0] if len(set(kept)) == 1 else ", then ".join(kept),
    }
    later = [
        f"{_described(stage.recommended)}, augment level {stage.augment_level}"
        for stage in stages
        if stage.is_super_resolution
    ]
    return facts | ({"super_resolution": ", then ".join(later)} if later else {})


def _described(settings):
    """Settings in words, those alone that are not the usual ones, but for the sampler's."""
    usual, told = Settings(), ("sampler", "steps", "guidance_scale")
    given = {name: getattr(settings, name) for name in told} | {
        name: value for name, value in vars(settings).items() if value != getattr(usual, name)
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())


class PixelStage:
    """Draws pictures of one size, from text or from text and a smaller picture.

    Args:
        unet: the `PixelUNet`, or `Unread`.
        schedule: the `NoiseSchedule` that it was, or will be, trained on.
        noising: of a super-resolution stage: the `NoiseSchedule` of the noise that is added to the smaller
            picture (noise conditioning augmentation, Ho et al. 2022).
        recommended: the `Settings` that it is drawn with where nobody gives others; None for the usual ones.
        augment_level: the timestep of `noising` that pictures are drawn at.
        origin: the files that the UNet is, or will be, read from, an `Origin`; None if there are none.

    Attributes:
        engines: the `Engines` that run the UNet.
        config: the UNet's configuration.
        thresholding: how its x0 is kept in range, from its schedule's configuration.

    Raises:
        InputError: the network draws something else than RGB pictures.
    """

    def __init__(self, unet, schedule, noising=None, recommended=None, augment_level=0, origin=None):
        self._unet, self.config, self.schedule, self.noising = unet, unet.config, schedule, noising
        self.recommended, self.augment_level = recommended or Settings(), augment_level
        self.engines, self._origin = Engines(self.functions, StageEngine), origin
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
            if self._origin is not None:
                self.engines.came_from(self._origin)

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
        self.forget_engines()
        return True

    def forget_engines(self):
        """Compiles the network anew when it is next drawn with: its layers compute something else now."""
        self._origin, self.engines = None, Engines(self.functions, StageEngine)

    @property
    def precision(self) -> str | None:
        """The Keras precision policy of its network; None before it is read."""
        return None if isinstance(self._unet, Unread) else self._unet.dtype_policy.name

    def functions(self, size=None):
        """The `functions` of `Engines`, for pictures of (height, width); None for the stage's own size."""
        images = ((None, *(size or self.image_size), self.config.in_channels), "float32")
        context = ((None, None, self.config.context_width), "float32")
        arguments = [images, ((None,), "float32"), context]
        unet = self.unet
        if not self.is_super_resolution:
            return {"denoise": (unet, unet, arguments)}

        def enlarge(images, timesteps, context, levels):
            return unet(images, timesteps, context, class_labels=levels)

        return {"denoise": (unet, enlarge, [*arguments, ((None,), "float32")])}

    def denoiser(self, engine="auto", size=None) -> Callable:
        """What runs the UNet: images, timesteps, context and `class_labels` as of the UNet -> its output.

        Args:
            engine: one of `sd_tf.generation.engines.ENGINES`.
            size: (height, width) of the pictures; None for the stage's own.

        Raises:
            InputError: there is no such engine, or it cannot run the stage at this size.
        """
        self.read()  # only then it is known whether conversions can be kept
        engines, has_own_size = self.engines, size is None or tuple(size) == tuple(self.image_size)
        if not has_own_size and engine == "openvino":
            engines = engines.at(tuple(size), lambda: self.functions(size))
        elif not has_own_size and engine == "auto":
            engine = "tensorflow"  # which needs no conversion
        run = engines[engine].denoise

        def denoise(images, timesteps, context, class_labels=None):
            levels = () if class_labels is None else (class_labels,)
            return run(images, timesteps, context, *levels)

        return denoise

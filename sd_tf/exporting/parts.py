"""What an export is made of, for every family: a text encoder, stages that draw, perhaps a decoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from sd_tf.cascade.drawing import AUGMENTATION, DRAWS_OF_A_STAGE
from sd_tf.cascade.model import CascadedDiffusion
from sd_tf.cascade.stage import CHANNELS, stage_name
from sd_tf.diffusion.levels import Level
from sd_tf.diffusion.thresholding import Thresholding
from sd_tf.errors import InputError


class Network(NamedTuple):
    """A network that is written to a file.

    Attributes:
        file: its name, without what it ends with.
        model: the Keras model.
        function: of tensors, which uses it.
        arguments: (shape, dtype) of each; None in a shape is any size.
    """

    file: str
    model: Any
    function: Callable
    arguments: list


class Stage(NamedTuple):
    """What draws latents or pixels by DDIM.

    Attributes:
        network: of (x, timesteps, context), or to enlarge of (x and what is enlarged, timesteps, context,
            levels).
        schedule: its `NoiseSchedule`.
        shape: (h, w, channels) of what it draws.
        first_draw: number of its initial noise, see `Request.noise`.
        thresholding: a `Thresholding`.
        small_size: (height, width) of the pictures that it enlarges; None if it draws from text alone.
        noising: the `Level` of the noise that is added to them.
        noising_draw: number of that noise.
    """

    network: Network
    schedule: Any
    shape: tuple[int, int, int]
    first_draw: int = 0
    thresholding: Thresholding = Thresholding("none")
    small_size: tuple[int, int] | None = None
    noising: Level | None = None
    noising_draw: int = 0


class Parts(NamedTuple):
    """Everything of a model that draws.

    Attributes:
        tokenizer: makes rows of texts.
        encode: of token ids, and of their mask if the text encoder reads one.
        stages: `Stage`s, the first draws from text.
        decode: of latents; None where stages draw pixels.
    """

    tokenizer: Any
    encode: Network
    stages: list[Stage]
    decode: Network | None = None

    @property
    def networks(self) -> list[Network]:
        """All networks."""
        found = [self.encode, *(stage.network for stage in self.stages), self.decode]
        return [each for each in found if each is not None]

    @property
    def reads_mask(self) -> bool:
        """Whether the text encoder reads a mask."""
        return len(self.encode.arguments) == 2


def parts_of(model) -> Parts:
    """The parts of a model, in the precision that its networks compute in."""
    return _parts_of_cascade(model) if isinstance(model, CascadedDiffusion) else _parts_of_latent(model)


def _parts_of_latent(model):
    networks = model.engines.networks
    shape = (*model.unet.config.latent_size, model.unet.config.in_channels)
    return Parts(
        model.tokenizer,
        Network("text_encoder", *networks["encode"]),
        [Stage(Network("unet", *networks["denoise"]), model.schedule, shape)],
        Network("decoder", *networks["decode"]),
    )


def _parts_of_cascade(model):
    if model.upsampler is not None:
        raise InputError(
            f"stage {model.upsampler_name} of the model enlarges in one pass, and an export draws in steps: "
            "export the stages before it"
        )
    stages = []
    for number, stage in enumerate(model.stages):
        first = number * DRAWS_OF_A_STAGE
        enlarges = stage.is_super_resolution
        stages.append(
            Stage(
                Network(stage_name(number), *stage.functions()["denoise"]),
                stage.schedule,
                (*stage.image_size, CHANNELS),
                first,
                stage.thresholding,
                model.small_size_of(number) if enlarges else None,
                stage.noising.level(stage.augment_level) if enlarges else None,
                first + AUGMENTATION,
            )
        )
    return Parts(model.text_encoder.tokenizer, _text_encoder(model.text_encoder), stages)


def _text_encoder(encoder):
    network, rows = encoder.network(), (None, encoder.length)
    if encoder.most_rows > 1:  # CLIP's tower, which takes no mask

        def encode(ids):
            return encoder.encode(ids, None).states

        return Network("text_encoder", network, encode, [(rows, "int32")])

    def encode_masked(ids, mask):
        return tf.cast(encoder.encode(ids, tf.cast(mask, tf.bool)).states, tf.float32)

    return Network("text_encoder", network, encode_masked, [(rows, "int32"), (rows, "int32")])

"""What a latent diffusion model is made of: three networks, a tokenizer and a schedule that fit together."""

import functools

from sd_tf.errors import InputError
from sd_tf.generation.checks import checked_size
from sd_tf.generation.engines import Engines
from sd_tf.text.config import CLIPTextConfig
from sd_tf.text.encoder import TextEncoder, text_encoder_of
from sd_tf.unread import Unread

LARGEST_IMAGE = 512**2  # pixels of a given `image`, or four times the model's own if that is more


class Parts:
    """Networks that are read when they are first used, and the sizes of what they draw.

    Args:
        autoencoder: an `AutoencoderKL`.
        unet: a `UNet` for the autoencoder's latents and the width of the text encoder's output.
        text_encoder: a `CLIPTextModel`, `T5EncoderModel` or `BertModel`.
        tokenizer: its `Tokenizer`, or of T5 and BERT its `SubwordTokenizer`.
        schedule: the `NoiseSchedule` that the UNet was, or will be, trained on.

    Each network may be `Unread`.

    Attributes:
        dtype: the Keras precision policy of its networks; None for Keras' global one.
        origin: the files that its weights were read from, an `Origin`; None if they have changed since.
        engines: the `Engines` that run the networks.

    Raises:
        InputError: the parts do not fit together.
    """

    def __init__(self, autoencoder, unet, text_encoder, tokenizer, schedule):
        _check_fit(autoencoder, unet, text_encoder, tokenizer, schedule)
        self._parts = {"autoencoder": autoencoder, "unet": unet, "text_encoder": text_encoder}
        self.tokenizer, self.schedule = tokenizer, schedule
        self._unet_config = unet.config
        self.engines = Engines(self._functions)
        self.dtype = self.origin = None

    autoencoder = property(lambda self: self._network("autoencoder"))
    unet = property(lambda self: self._network("unet"))
    text_encoder = property(lambda self: self._network("text_encoder"))

    def _network(self, name):
        if isinstance(self._parts[name], Unread):
            self._parts[name] = self._parts[name].read()
            self.engines.forget_kept()  # the caller may change the network
        return self._parts[name]

    def put(self, **networks):
        """Replaces networks by others of the same names, which may be `Unread`."""
        if all(self._parts[name] is network for name, network in networks.items()):
            return
        self._parts |= networks
        self.origin = None
        self.forget_engines()
        for name in list(self.__dict__):
            if isinstance(getattr(type(self), name, None), functools.cached_property):
                del self.__dict__[name]  # made of the networks of before

    def forget_engines(self):
        """Compiles the networks anew when they are next used: their layers compute something else now."""
        self.engines = Engines(self._functions)

    def read_networks(self):
        """Reads networks that are still `Unread`; their files may then be deleted."""
        for name in self._parts:
            self._network(name)

    def config_of(self, name):
        """The configuration of "autoencoder", "unet" or "text_encoder", without reading the network."""
        return self._parts[name].config

    @property
    def text_config(self):
        """The `CLIPTextConfig`, `T5Config` or `BertConfig` of the text encoder."""
        return self._parts["text_encoder"].config

    @property
    def reads_by_clip(self) -> bool:
        """Whether its text encoder is a CLIP."""
        return isinstance(self.text_config, CLIPTextConfig)

    def text_reader(self, run=None) -> TextEncoder:
        """The text encoder with its tokenizer.

        Args:
            run: runs the network, such as an engine's `encode`; None for the network itself.
        """
        return text_encoder_of(self.text_config, self.tokenizer, lambda: self.text_encoder, run=run)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that it draws by default, in pixels."""
        factor = self._parts["autoencoder"].config.downsampling
        return tuple(factor * side for side in self._unet_config.latent_size)

    @property
    def precision(self) -> str:
        """The Keras precision policy of its networks."""
        import keras

        unet = self._parts["unet"]
        policy = unet.dtype_policy if not isinstance(unet, Unread) else self.dtype
        return keras.dtype_policies.get(policy or keras.config.dtype_policy()).name

    @property
    def latent_shape(self):
        """Shape (h, w, channels) of the latents of a picture of the default size."""
        return (*self._unet_config.latent_size, self._unet_config.in_channels)

    def latent_shape_of(self, height, width):
        """Shape (h, w, channels) of the latents of a picture of so many pixels; None for the default."""
        factor = self._parts["autoencoder"].config.downsampling
        own_height, own_width, channels = self.latent_shape
        return (
            height // factor if height else own_height,
            width // factor if width else own_width,
            channels,
        )

    @property
    def most_pixels(self):
        """The most pixels that `image` may have: attention's memory grows with their square."""
        height, width, _ = self.latent_shape
        return max(LARGEST_IMAGE, 4 * height * width * self._parts["autoencoder"].config.downsampling ** 2)

    @property
    def sides_multiple(self):
        """Height and width of pictures must be multiples of this number of pixels."""
        levels = len(self._unet_config.block_out_channels) - 1
        return self._parts["autoencoder"].config.downsampling * 2**levels

    def _checked_size(self, height, width):
        return checked_size(height, width, self.image_size, self.sides_multiple, self.most_pixels)

    def _functions(self, shape=None):
        """The `functions` of `Engines`, for latents of a shape; None for the model's own."""
        unet, autoencoder, text_encoder = self.unet, self.autoencoder, self.text_encoder
        latents = ((None, *(shape or self.latent_shape)), "float32")
        context = ((None, None, self._unet_config.cross_attention_dim), "float32")
        token_ids = ((None, self.tokenizer.max_length), "int32")

        return {
            "encode": (text_encoder, self.text_reader().states, [token_ids]),
            "denoise": (unet, unet, [latents, ((None,), "float32"), context]),
            "decode": (autoencoder, autoencoder.decode, [latents]),
        }

    def engine_for(self, engine, shape):
        """An `Engine` by its name, for latents of a shape (h, w, channels).

        Raises:
            InputError: there is no such engine, or it cannot run the model at this size.
        """
        if shape == self.latent_shape:
            return self.engines[engine]
        if engine == "openvino":
            return self.engines.at(shape, lambda: self._functions(shape))[engine]
        return self.engines["tensorflow" if engine == "auto" else engine]  # which needs no conversion


def _check_fit(autoencoder, unet, text_encoder, tokenizer, schedule):
    if unet.config.cross_attention_dim != text_encoder.config.width:
        raise InputError(
            f"the UNet's context is {unet.config.cross_attention_dim} wide, the text encoder's output "
            f"{text_encoder.config.width}: use the text encoder that the UNet was trained with"
        )
    if unet.config.in_channels != autoencoder.config.latent_channels:
        raise InputError(
            f"the UNet takes latents of {unet.config.in_channels} channels, the autoencoder's have "
            f"{autoencoder.config.latent_channels}: use the autoencoder that the UNet was trained with"
        )
    if unet.config.out_channels != unet.config.in_channels:
        raise InputError(
            f"the UNet's output has {unet.config.out_channels} channels, its latents have "
            f"{unet.config.in_channels}: only equal numbers are supported"
        )
    channels = autoencoder.config.in_channels, autoencoder.config.out_channels
    if channels != (3, 3):
        raise InputError(
            f"the autoencoder's input and output have {channels[0]} and {channels[1]} channels: only "
            "RGB, 3 and 3, is supported"
        )
    if schedule.config.clip_sample:
        raise InputError(
            "clip_sample is true, but latents, unlike pixels, have no range to clip to: set it to false"
        )
    text_encoder_of(text_encoder.config, tokenizer, None)  # which says what does not fit

"""Text to picture: the text tower, the UNet, the autoencoder and the noise schedule as one model."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sd_tf.diffusion.editing import between_noises, ddim_inversion, noised, part_of_the_way
from sd_tf.diffusion.losses import diffusion_loss
from sd_tf.diffusion.predictions import denoiser
from sd_tf.errors import InputError
from sd_tf.generation.engines import Engines
from sd_tf.generation.loop import (
    MOST_PICTURES,
    Settings,
    batches,
    check_number,
    check_text,
    check_whole,
    checked_image,
    checked_mask,
    draw,
    free_latents,
    to_uint8,
)
from sd_tf.graphs import compiled
from sd_tf.latent.adaptations import Adaptations
from sd_tf.latent.options import LatentOptions
from sd_tf.seeding import normals
from sd_tf.text.new_words import with_word
from sd_tf.text.prompts import encoded

LARGEST_SEED = 2**32 - 1
LARGEST_IMAGE = 512**2  # pixels to begin with, for models that draw fewer than a quarter of that
PICTURE_NOISE = 1  # names the stream of random numbers that `generate` draws from


class Unread(NamedTuple):
    """A network that nobody has asked for yet: its configuration, and what reads it."""

    config: Any
    read: Callable


class LatentDiffusion:
    """A text-to-image latent diffusion model (Rombach et al. 2022).

    Args:
        autoencoder: an `AutoencoderKL`.
        unet: a `UNet` whose context is as wide as the text tower and whose latents are the autoencoder's.
        text_encoder: a `CLIPTextModel`, frozen.
        tokenizer: its `Tokenizer`.
        schedule: the `NoiseSchedule` that the UNet was, or will be, trained on.

    Each network may be `Unread`: then it is read when it is first asked for.

    Attributes:
        dtype: the Keras precision policy that networks are made with, None for Keras' own.
        origin: the files that its weights are of, an `Origin`; None where they have changed since.
        beginning: what a new model began as, a `latent.new_model.Beginning`; None for one that was loaded.
        is_trained: whether all its networks have learned.
        bases: run folder -> hash of the weights that the model had when it was first trained there.
        taught_words: words that a training has added.

    Example:
        >>> model = sd_tf.load("fashion-mnist")
        >>> images = model.generate("a red dress", num_images=4, seed=0)  # uint8 (4, 32, 32, 3)
        >>> model.save("my-model")

    Raises:
        InputError: the parts do not fit together.
    """

    Options = LatentOptions

    def __init__(self, autoencoder, unet, text_encoder, tokenizer, schedule):
        if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
            raise InputError(
                f"the UNet's context is {unet.config.cross_attention_dim} wide, the text tower's states "
                f"{text_encoder.config.hidden_size}: take the tower that the UNet was trained with"
            )
        if unet.config.in_channels != autoencoder.config.latent_channels:
            raise InputError(
                f"the UNet takes latents of {unet.config.in_channels} channels, the autoencoder's have "
                f"{autoencoder.config.latent_channels}: take the autoencoder that the UNet was trained with"
            )
        if unet.config.out_channels != unet.config.in_channels:
            raise InputError(
                f"the UNet gives {unet.config.out_channels} channels for latents of "
                f"{unet.config.in_channels}: only those that give as many are supported"
            )
        channels = autoencoder.config.in_channels, autoencoder.config.out_channels
        if channels != (3, 3):
            raise InputError(
                f"the autoencoder reads and draws pictures of {channels[0]} and {channels[1]} channels: only "
                "those of 3, red, green and blue, are supported"
            )
        tokenizer.check_fits(text_encoder.config)
        self._parts = {"autoencoder": autoencoder, "unet": unet, "text_encoder": text_encoder}
        self.tokenizer, self.schedule = tokenizer, schedule
        self._unet_config = unet.config
        self.engines = Engines(self._functions)
        self.dtype = self.origin = self.beginning = None
        self.is_trained, self.bases, self.taught_words = True, {}, set()

    autoencoder = property(lambda self: self._network("autoencoder"))
    unet = property(lambda self: self._network("unet"))
    text_encoder = property(lambda self: self._network("text_encoder"))

    def _network(self, name):
        if isinstance(self._parts[name], Unread):
            self._parts[name] = self._parts[name].read()
            self.engines.forget_kept()  # whoever asks for a network may change it
        return self._parts[name]

    def put(self, **networks):
        """Puts networks, or `Unread` ones, in the place of those of these names."""
        if all(self._parts[name] is network for name, network in networks.items()):
            return
        self._parts |= networks
        self.origin, self.engines = None, Engines(self._functions)
        for name in ("adaptations", "_encode_images"):
            self.__dict__.pop(name, None)

    def read_networks(self):
        """Reads those that are still `Unread`: their files may go afterwards."""
        for name in self._parts:
            self._network(name)

    def config_of(self, name):
        """The configuration of "autoencoder", "unet" or "text_encoder", whether it is read or not."""
        return self._parts[name].config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures that it draws unless it is asked for others."""
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
    def has_adaptations(self) -> bool:
        """Whether LoRAs are loaded."""
        return "adaptations" in self.__dict__ and bool(self.adaptations.weights)

    def weights_sha256(self) -> str:
        """A hash of all weights, LoRAs left out; by the files that they were read from where they are still
        those."""
        from sd_tf.checkpoints.sources import weights_sha256
        from sd_tf.hashing import fingerprint, weights_fingerprint

        if self.origin is not None and self.origin.is_unchanged:
            return weights_sha256(self.origin.source)
        off = self.adaptations.switched_off() if self.has_adaptations else contextlib.nullcontext()
        with off:
            return fingerprint(*(weights_fingerprint(self._network(name)) for name in sorted(self._parts)))

    def read_from(self, folder):
        """Takes over the networks and the tokenizer of a model's folder of the same configuration."""
        from sd_tf.checkpoints.tokenizers import load_tokenizer
        from sd_tf.generation.conversions import Origin
        from sd_tf.latent.loading import PARTS, unread

        self.put(**{name: unread(folder, name, self.dtype) for name in self._parts})
        length = self._parts["text_encoder"].config.max_position_embeddings
        self.tokenizer, self.origin = load_tokenizer(folder, length), Origin(folder, PARTS)

    def _functions(self):
        """What the engines run: see `Engines`."""
        unet, autoencoder, text_encoder = self.unet, self.autoencoder, self.text_encoder
        latents = ((None, *self._latent_shape), "float32")
        context = ((None, None, self._unet_config.cross_attention_dim), "float32")
        token_ids = ((None, self.tokenizer.max_length), "int32")

        def encode(token_ids):
            return text_encoder(token_ids).last_hidden_state

        return {
            "encode": (text_encoder, encode, [token_ids]),
            "denoise": (unet, unet, [latents, ((None,), "float32"), context]),
            "decode": (autoencoder, autoencoder.decode, [latents]),
        }

    @property
    def _latent_shape(self):
        return (*self._unet_config.latent_size, self._unet_config.in_channels)

    def encode_prompts(self, prompts):
        """Prompts (n strings) -> context, float32 (n, tokens, width)."""
        return np.asarray(self.engines["tensorflow"].encode(self.tokenizer(prompts)), "float32")

    def loss(self, latents, context, timesteps, noise, min_snr_gamma=None):
        """The training loss of each example, float32 (batch,); see `sd_tf.diffusion.losses`."""
        return diffusion_loss(self.unet, latents, context, timesteps, noise, self.schedule, min_snr_gamma)

    def generate(
        self,
        prompt,
        num_images=1,
        steps=20,
        guidance_scale=3.0,
        guidance_interval=(0.0, 1.0),
        guidance_rescale=0.0,
        seed=0,
        negative_prompt="",
        sampler="ddim",
        timestep_spacing=None,
        karras=False,
        eta=0.0,
        batch_size=64,
        latents=None,
        image=None,
        strength=0.8,
        mask=None,
        clip_guidance=None,
        initial_noise=None,
        engine="auto",
        callback=None,
        progress=True,
    ):
        """Draws pictures from text, or anew what there is of one.

        Picture j of a prompt depends on the prompt, the settings and `seed + j` alone: it is the same
        (up to rounding, at most 1 of 255) drawn alone with that seed, beside other prompts or in
        another batch size.

        Args:
            prompt: a string or a list of strings. "(red:1.3)" makes words weigh more; what is longer than
                the text tower is read in parts (`sd_tf.text.prompts`).
            num_images: pictures for each prompt.
            steps: sampling steps, 1 to the schedule's number of timesteps.
            guidance_scale: 1 follows the prompt plainly, more exaggerates it, 0 ignores it.
            guidance_interval: the part of the steps that is guided, as shares of all of them, those that
                `strength` leaves out included: (0.2, 0.8) leaves the first and the last fifth to the prompt
                alone, which keeps more variety at a high scale, and takes less time (Kynkaanniemi et al.
                2024).
            guidance_rescale: 0 to 1, how much of what a high scale adds to the contrast is taken back (Lin et
                al. 2023).
            seed: of the first picture of each prompt; 0 to 2**32 - 1.
            negative_prompt: what to lean away from: a string for all, or one for each prompt.
            sampler: a name of `sd_tf.diffusion.samplers.SAMPLERS`: "ddim", "ddpm", "pndm", "euler",
                "euler_ancestral", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde" or "unipc".
            timestep_spacing: "leading", "trailing" or "linspace", in place of the model's own.
            karras: spreads the steps as Karras et al. 2022 do, which "ddim", "ddpm" and "pndm" cannot.
            eta: 0 to 1, the share of fresh noise in each step of DDIM.
            batch_size: pictures drawn at once; it bounds memory.
            latents: the noise that pictures begin with, float (prompts x num_images, h, w, latent
                channels), standard normal, in place of the seeds'; it sets the pictures' size.
            image: a picture to begin with, uint8 (height, width, 3), or one for each prompt; it sets the
                pictures' size. It is encoded, noised and drawn on (SDEdit, Meng et al. 2022).
            strength: 0 to 1, the share of the steps that are taken then: how much of it may change. With 1
                and a mask nothing of what was below it is left to begin with.
            mask: where `image` may change, (height, width), or one for each prompt: bool, uint8 of 0 and
                255 or float of 0 and 1. The other pixels stay to the bit.
            clip_guidance: a `sd_tf.latent.clip_guidance.CLIPGuidance`, whose gradient is followed as well.
            initial_noise: a `sd_tf.latent.initial_noise.InitialNoise`, which chooses what they begin with.
            engine: "tensorflow"; "openvino", which needs `pip install "sd_tf[openvino]"` and a float32
                model; or "auto", OpenVINO where it is installed and the model fits it. Pictures of the
                two differ by at most 2 of 255.
            callback: `callback(step, latents, prediction)` after each step of each batch.
            progress: shows a progress bar, if standard error is a terminal.

        Returns:
            uint8 (prompts x num_images, height, width, 3), prompt by prompt.

        Raises:
            InputError: an argument is of the wrong type or out of range.

        Warns:
            UserWarning: a prompt is longer than eight times the text tower, has weights that are taken as
                text, or no Latin letter; `strength` is less than a step.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        _check_prompts(prompts)
        check_whole("num_images", num_images, 1, MOST_PICTURES)
        check_whole("seed", seed, 0, LARGEST_SEED - (num_images - 1))
        check_number("strength", strength, 0, 1)
        _check_has("clip_guidance", clip_guidance, "gradients", "CLIPGuidance")
        _check_has("initial_noise", initial_noise, "chosen", "InitialNoise")
        settings = Settings(
            steps,
            guidance_scale,
            guidance_interval,
            guidance_rescale,
            sampler,
            timestep_spacing,
            karras,
            eta,
            batch_size,
        )
        levels, number = settings.levels(self.schedule), len(prompts) * num_images
        negatives = _negatives(negative_prompt, len(prompts))
        shape, keep = self._latent_shape, None
        if latents is not None:
            latents = self._checked_latents(latents, number)
            shape = latents.shape[1:]
        if mask is not None and image is None:
            raise InputError("mask is of a picture: give image as well")
        if image is not None:
            image = checked_image(image, len(prompts), self._multiple, self._most_pixels)
            mask = None if mask is None else checked_mask(mask, image, len(prompts))
            known = self.encode_images(image)
            if latents is not None and shape != known.shape[1:]:
                raise InputError(
                    f"latents are {shape[:2]}, those of the picture {known.shape[1:3]}: give one of the two"
                )
            shape, levels = known.shape[1:], part_of_the_way(levels, strength)
            known = _for_each(known, len(prompts), num_images)
            if strength > 0 and len(levels) == 1:
                warnings.warn(
                    f"strength {strength:g} of {steps} steps is less than one: the picture stays as it is",
                    stacklevel=2,
                )
        if mask is not None:
            free = free_latents(mask, image.shape[1] // shape[0])
            keep = known, _for_each(free, len(prompts), num_images)

        networks = self._engine_for(engine, shape)
        pairs = list(zip(negatives, prompts, strict=True))
        contexts = [
            pair for pair in encoded(pairs, self.tokenizer, networks.encode) for _ in range(num_images)
        ]
        seeds = seed + np.tile(np.arange(num_images), len(prompts))
        if initial_noise is not None:
            if image is not None:
                raise InputError("initial_noise chooses what pictures begin with: leave it out, or image")
            latents = _noise(seeds, 0, shape) if latents is None else latents
            for places in batches([context.shape[1] for context in contexts], batch_size):
                latents[places] = initial_noise.chosen(
                    self,
                    [prompts[place // num_images] for place in places],
                    np.stack([contexts[place][1] for place in places]),
                    seeds[places],
                    latents[places],
                    levels[0],
                )

        def begin(places):
            noise = _noise(seeds[places], 0, shape) if latents is None else latents[places]
            if image is None:
                return noise
            if len(levels) == 1:
                return known[places]
            begins = noised(known[places], noise, levels[0])
            return np.where(keep[1][places], noise, begins) if keep is not None and strength == 1 else begins

        judge = None
        if clip_guidance is not None:
            of_pictures = [prompt for prompt in prompts for _ in range(num_images)]
            judge = clip_guidance.scale, clip_guidance.gradients(self, of_pictures)
        drawn = draw(
            networks,
            self.schedule,
            settings,
            contexts,
            begin,
            lambda places, step: _noise(seeds[places], step + 1, shape),
            levels,
            keep,
            judge,
            callback,
            progress,
        )
        if mask is None:
            return drawn
        image, mask = (_for_each(each, len(prompts), num_images) for each in (image, mask))
        return np.where(mask, drawn, image)

    def interpolate(
        self, prompts, frames=8, seeds=0, negative_prompt="", engine="auto", progress=True, **settings
    ):
        """Draws pictures on the way from prompt to prompt, from seed to seed, or both.

        Contexts are mixed in proportion, noise on the arc between two (spherically).

        Args:
            prompts: a string or a list of them.
            frames: pictures, the first and the last those of the first and the last prompt and seed.
            seeds: one, or a list; of lists, as many as prompts, or prompts are one.
            negative_prompt: of all.
            settings: others of `generate`, of `Settings`.

        Returns:
            uint8 (frames, height, width, 3).

        Raises:
            InputError: there is nothing to go between, or an argument is out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        _check_prompts(prompts)
        seeds = list(seeds) if isinstance(seeds, (list, tuple)) else [seeds]
        stops = max(len(prompts), len(seeds))
        if stops < 2 or len(prompts) not in (1, stops) or len(seeds) not in (1, stops):
            raise InputError(
                f"{len(prompts)} prompts and {len(seeds)} seeds: give two or more of one of them, and as "
                "many or one of the other"
            )
        check_whole("frames", frames, 2, MOST_PICTURES)
        for seed in seeds:
            check_whole("seeds", seed, 0, LARGEST_SEED)
        settings = Settings(**settings)
        levels, shape = settings.levels(self.schedule), self._latent_shape
        networks = self._engine_for(engine, shape)
        [texts] = encoded([[*_negatives(negative_prompt, 1), *prompts]], self.tokenizer, networks.encode)
        negative, texts = texts[0], _for_each(texts[1:], stops, 1)
        positions = np.linspace(0, stops - 1, frames)
        where = [(first := min(int(position), stops - 2), float(position - first)) for position in positions]

        def noise(places, draw):
            stops_own = _for_each(_noise(np.array(seeds), draw, shape), stops, 1)
            mixed = [
                between_noises(*stops_own[first : first + 2], share)
                for first, share in (where[i] for i in places)
            ]
            return np.stack(mixed).astype("float32")

        return draw(
            networks,
            self.schedule,
            settings,
            [
                np.stack([negative, (1 - share) * texts[first] + share * texts[first + 1]])
                for first, share in where
            ],
            lambda places: noise(places, 0),
            lambda places, step: noise(places, step + 1),
            levels,
            progress=progress,
        )

    def encode_images(self, images):
        """uint8 pictures (n, height, width, 3) -> means of their latents, float32 (n, h, w, channels)."""
        images = np.asarray(images, "float32") / 127.5 - 1.0
        parts = [self._encode_images(images[i : i + 64])[0] for i in range(0, len(images), 64)]
        return np.concatenate([np.asarray(part) for part in parts])

    def decode_latents(self, latents, engine="auto"):
        """Clean latents, float32 (n, h, w, channels) -> uint8 pictures (n, height, width, 3)."""
        return to_uint8(np.asarray(self._engine_for(engine, latents.shape[1:]).decode(latents)))

    @functools.cached_property
    def _encode_images(self):
        return compiled(self.autoencoder.encode)

    def invert(self, image, prompt="", steps=50, batch_size=64, engine="auto"):
        """The noise from which DDIM draws a picture again (Dhariwal & Nichol 2021): `latents` of `generate`.

        `generate(prompt, latents=..., steps=steps, guidance_scale=1)` draws it about as it was, and another
        prompt changes it.

        Args:
            image: uint8 (height, width, 3), or several, (n, height, width, 3).
            prompt: what it shows.
            steps: of DDIM.
            batch_size: pictures at once; it bounds memory.

        Returns:
            float32 (n, h, w, latent channels).

        Raises:
            InputError: an argument is of the wrong type or out of range.
        """
        images = checked_image(
            image, len(image) if np.ndim(image) == 4 else 1, self._multiple, self._most_pixels
        )
        if not isinstance(prompt, str):
            raise InputError(f"prompt is {prompt!r}: give a string, what the pictures show")
        levels = Settings(steps, batch_size=batch_size).levels(self.schedule)
        if self.schedule.config.prediction_type == "sample":  # whose noise is unknown where there is none
            levels[-1] = self.schedule.level(0)
        latents = self.encode_images(images)
        networks = self._engine_for(engine, latents.shape[1:])
        [[context]] = encoded([[prompt]], self.tokenizer, networks.encode)
        found = []
        for first in range(0, len(latents), batch_size):
            some = latents[first : first + batch_size]
            denoise = denoiser(networks.denoise, self.schedule, np.stack([context] * len(some)))
            found.append(np.asarray(ddim_inversion(denoise, some, levels)))
        return np.concatenate(found)

    @property
    def _most_pixels(self):
        """Of a picture that is given: attention takes memory with the square of its pixels."""
        height, width, _ = self._latent_shape
        return max(LARGEST_IMAGE, 4 * height * width * self._parts["autoencoder"].config.downsampling ** 2)

    @property
    def _multiple(self):
        """Of which pictures' sides are multiples."""
        levels = len(self._unet_config.block_out_channels) - 1
        return self._parts["autoencoder"].config.downsampling * 2**levels

    def _engine_for(self, engine, shape):
        """An engine for latents of a shape."""
        if shape != self._latent_shape:  # OpenVINO's conversion is of one size
            if engine == "openvino":
                raise InputError(
                    f"engine 'openvino' draws {self._latent_shape[:2]} latents only, these are {shape[:2]}: "
                    "take 'tensorflow'"
                )
            engine = "tensorflow" if engine == "auto" else engine
        return self.engines[engine]

    def warmup(self, num_images=1, guidance_scale=3.0, batch_size=64, engine="auto"):
        """Compiles all that `generate` needs for so many pictures, so that the first are not slower.

        Networks are compiled once for each engine and, by OpenVINO, for each number of pictures. What it
        converts and compiles is kept beside the model, or in the user's cache, for other processes.
        """
        self.generate(
            "warm",
            num_images,
            steps=1,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            engine=engine,
            progress=False,
        )

    def _checked_latents(self, latents, number):
        latents, channels = np.asarray(latents), self._latent_shape[-1]
        fits = latents.ndim == 4 and latents.shape[0] == number and latents.shape[3] == channels
        if not fits or not min(latents.shape[1:3]):
            raise InputError(
                f"latents have the shape {latents.shape}: give ({number}, height, width, {channels}), "
                "one for each picture"
            )
        if not np.issubdtype(latents.dtype, np.floating) or not np.isfinite(latents).all():
            raise InputError(f"latents are {latents.dtype}, or not all finite: give standard normal noise")
        return np.array(latents, "float32")  # a copy: those of the caller stay

    @functools.cached_property
    def adaptations(self) -> Adaptations:
        """The LoRAs that have been loaded: their weights can be set, and they can be taken out or fused."""
        import sd_tf.checkpoints.names as names

        return Adaptations({"unet": self.unet, "text_encoder": self.text_encoder}, names)

    def load_lora(self, file, weight=1.0, name=None):
        """Adds a low-rank adaptation (Hu et al. 2021) of the UNet and, where it has one, the text tower.

        `model.adaptations.weigh({name: 0.5})` sets its weight anew; with 0 the model is what it was, to the
        bit. Several add up.

        Args:
            file: a safetensors file of diffusers' or kohya's layout, or a folder with diffusers'
                `pytorch_lora_weights.safetensors` or one of another name.
            weight: how much of it; 1 is all.
            name: of it from now on; None for the file's name without its suffix or, of a folder and of
                diffusers' `pytorch_lora_weights.safetensors`, the folder's name.

        Raises:
            InputError: the file is damaged, no LoRA, or one for another architecture, or the name is that
                of one before it. The model stays what it was.
        """
        from sd_tf.latent.lora_files import name_of, read_lora

        changes = read_lora(file, self.adaptations.modules)
        self.adaptations.add(name_of(file) if name is None else name, changes, weight, file)

    def load_textual_inversion(self, file, token=None):
        """Teaches the text tower a word that was learned elsewhere (textual inversion).

        Args:
            file: a safetensors file as diffusers and web interfaces write it, of one vector, or a folder
                with diffusers' `learned_embeds.safetensors`.
            token: the word in prompts, in place of the file's own.

        Raises:
            InputError: the file is damaged, of another width, or the word is known already. The model
                stays what it was.
        """
        from sd_tf.latent.word_files import read_word

        self.add_word(*read_word(file, token))

    def add_word(self, word, embedding):
        """Teaches the text tower a word.

        Args:
            word: in prompts.
            embedding: float (width,), of its token.
        """
        if self.has_adaptations:
            raise InputError(
                "the model has LoRAs, which know its text tower as it is: load words before them"
            )
        text_encoder, self.tokenizer = with_word(self.text_encoder, self.tokenizer, word, embedding)
        self.put(text_encoder=text_encoder)

    @classmethod
    def from_preset(cls, name, data, dtype=None, seed=0, **options):
        """A model with random weights, to be trained by `fit`.

        Args:
            name: of the preset, a key of `sd_tf.latent.presets.PRESETS` such as "fashion-mnist" or
            "pictures".
            data: of `sd_tf.open_data`, or what that opens. Its captions make the vocabulary where the preset
                has no pretrained text encoder.
            dtype: a Keras precision policy, such as "mixed_bfloat16"; None for Keras' own.
            seed: of the weights.
            options: fields of `sd_tf.latent.options.LatentOptions`, such as `image_size` and
                `prediction_type`.

        Raises:
            InputError: there is no such preset or option, or they do not go together.
        """
        from sd_tf.latent.new_model import new_model

        return new_model(LatentOptions.of(preset=name, **options), data, dtype, seed)

    def fit(self, data, tune=None, options=None, **settings):
        """Trains every stage that is left, or trains a finished model further.

            model = sd_tf.LatentDiffusion.from_preset("fashion-mnist", data)
            history = model.fit(data, minutes=20, folder="runs/mine")
            model.fit(stripes, minutes=5, tune=sd_tf.LoRA(rank=8), learning_rate=3e-3)

        Args:
            data: of `sd_tf.open_data`, or what that opens.
            tune: what of a finished model learns: `sd_tf.LoRA(...)`, `sd_tf.CrossAttention()`,
                `sd_tf.TextualInversion(...)`; None for the whole UNet.
            options: a dictionary of further options, or instances of `RunOptions`, `OptimizerOptions` and
                `LatentOptions`.
            settings: `minutes`, `steps`, `folder`, `batch_size`, `learning_rate`, `optimizer`, `callbacks`,
                `seed`, `verbose`: see `sd_tf.training.fit.fit`.

        Returns:
            A `History`: `.history`, `.epoch`, `.plot("loss")`.

        Raises:
            InputError: an argument is of the wrong type, does not go with the others or with what the folder
                holds. Nothing is written then.
            KeyboardInterrupt: Ctrl-C, or a notebook's stop button. In a folder, what was learned is saved,
                and the same call resumes.
        """
        from sd_tf.latent.recipe import recipe_for
        from sd_tf.training.fit import fit

        return fit(self, recipe_for(tune), data, options=options, **settings)

    def summary(self):
        """Prints what the model is made of: its networks with their numbers of weights, and their sizes."""
        from sd_tf.latent.summary import summary_of

        print(summary_of(self))

    def save(self, folder, dtype="float32", max_shard_size="10GB"):
        """Writes the folder that `sd_tf.load` and diffusers' `StableDiffusionPipeline` open.

        LoRAs that are loaded are written as part of the kernels, with the weights that they have.

        Args:
            folder: made if it is not there; a model in it stays whole until the new one is.
            dtype: of the files' tensors, "float32", "float16" or "bfloat16".
            max_shard_size: most bytes of one file, a whole number or a text such as "5GB".
        """
        from sd_tf.latent.folder import save

        save(self, folder, dtype, max_shard_size)


def _noise(seeds, draw, shape):
    """Standard normal latents, one for each seed; draw 0 begins a picture, draw k is step k's."""
    return normals((PICTURE_NOISE, draw), seeds, shape)


def _for_each(values, prompts, num_images):
    """One value for all prompts, or one for each, as one for each picture."""
    return np.repeat(np.broadcast_to(values, (prompts, *values.shape[1:])), num_images, axis=0)


def _check_has(name, value, method, kind):
    if value is not None and not hasattr(value, method):
        raise InputError(f"{name} is {value!r}: give a `{kind}` of sd_tf.latent.{name}")


def _negatives(negative_prompt, number):
    negatives = [negative_prompt] * number if isinstance(negative_prompt, str) else negative_prompt
    if not isinstance(negatives, (list, tuple)) or not all(isinstance(text, str) for text in negatives):
        raise InputError(f"negative_prompt is {negative_prompt!r}: give a string or a list of strings")
    for text in negatives:
        check_text("negative prompt", text)
    if len(negatives) != number:
        raise InputError(f"{len(negatives)} negative prompts for {number} prompts: give one, or one for each")
    return negatives


def _check_prompts(prompts):
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise InputError(f"prompt is {prompts!r}: give a string or a list of strings")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"prompt {prompt!r} is a {type(prompt).__name__}: give a string")
        check_text("prompt", prompt)
        if not prompt.strip():
            raise InputError("the prompt is empty: say what to draw, such as 'a red dress'")
        if not any("a" <= letter <= "z" for letter in prompt.lower()):
            warnings.warn(
                f"prompt {prompt!r} has no Latin letter: the text tower learned English captions",
                stacklevel=3,
            )

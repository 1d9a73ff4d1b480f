"""`GigaGAN`: a text encoder, a generator and its discriminator as one text-to-image model."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sd_tf.errors import InputError, argument, shown, unknown
from sd_tf.gan import drawing
from sd_tf.gan.options import MODEL, GanOptions
from sd_tf.gan.settings import GanSettings
from sd_tf.generation.checks import check_whole
from sd_tf.generation.engines import ENGINES, Engines
from sd_tf.generation.enlarging import pictures_to_enlarge, request_of_pictures
from sd_tf.generation.pictures import as_output, check_output, checked_image
from sd_tf.generation.request import Interpolation, Request
from sd_tf.images import to_unit
from sd_tf.options import check_of_new_model
from sd_tf.progress import tqdm
from sd_tf.quiet import import_tensorflow
from sd_tf.text.known_words import words_beyond
from sd_tf.text.prompt_syntax import parts_of
from sd_tf.training.provenance import Provenance
from sd_tf.unread import Unread

MOST_PIXELS = 4096**2  # of a picture to invert, which is scaled


class GanEngine(NamedTuple):
    """An engine of a GAN, see `sd_tf.generation.engines`; a model without a text has no context and no mask.

    Attributes:
        styles: z (n, latent dim), context (n, tokens, width), mask int32 (n, tokens) -> w (n, style dim).
        synthesize: w (n, levels, style dim), of a model that enlarges float32 pictures (n, low_res_size,
            low_res_size, 3), context, mask -> pictures, float32 (n, side, side, 3), about [-1, 1].
    """

    styles: Callable
    synthesize: Callable


class GigaGAN:
    """A text-to-image GAN (Kang et al. 2023) in small: one pass of its generator draws a picture.

    With `low_res_size` in its generator's configuration it enlarges pictures instead, by `upscale`, alone or
    as the last stage of a cascade.

    Args:
        generator: a `Generator`, or `Unread`.
        discriminator: a `Discriminator`, or `Unread`, for training; None if there is none.
        text_encoder: a `TextEncoder`, frozen; None if it draws without a text.
        recommended: the `GanSettings` that `generate` uses where nobody gives others.

    Attributes:
        generator_config, discriminator_config: the networks' configurations.
        known_words: the words of all captions that it has learned from, if its text encoder has learned from
            no others; None if that may know any word.
        provenance: a `Provenance`: how the model was made and trained, for later runs.
        dtype: the Keras precision policy of its networks; None for Keras' global one.
        origin: the files that its networks were read from, an `Origin`; None if they have changed since.

    Example:
        >>> model = sd_tf.GigaGAN.from_preset("fashion-mnist-gan", "fashion_mnist")
        >>> model.fit("fashion_mnist", minutes=28)
        >>> images = model.generate("a red dress", num_images=4, seed=0)  # uint8 (4, 32, 32, 3)

    Raises:
        InputError: the networks do not fit to each other or to the text encoder.
    """

    Options = GanOptions
    has_adaptations = False  # LoRAs

    def __init__(self, generator, discriminator=None, text_encoder=None, recommended=GanSettings()):
        self._generator, self._discriminator = generator, discriminator
        self.generator_config = generator.config
        self.discriminator_config = None if discriminator is None else discriminator.config
        self.text_encoder, self.recommended = text_encoder, recommended
        self._check_fit()
        self.known_words, self.provenance, self.dtype, self.origin = None, Provenance(), None, None
        self.engines = Engines(self._functions, GanEngine)

    def _check_fit(self):
        width = None if self.text_encoder is None else self.text_encoder.width
        for name, config in (
            ("generator", self.generator_config),
            ("discriminator", self.discriminator_config),
        ):
            if config is None:
                continue
            if config.text_dim != width:
                raise InputError(
                    f"the {name} reads text states {config.text_dim} wide, the text encoder writes {width}: "
                    "use the text encoder that it was trained with"
                )
            if config.sample_size != self.generator_config.sample_size:
                raise InputError(
                    f"the discriminator judges pictures of {config.sample_size} pixels, the generator draws "
                    f"{self.generator_config.sample_size}: take networks of one size"
                )

    @property
    def generator(self):
        """The `Generator`, read when it is first asked for."""
        if isinstance(self._generator, Unread):
            self._generator = self._generator.read()
        return self._generator

    @property
    def discriminator(self):
        """The `Discriminator`, read when it is first asked for; None if there is none."""
        if isinstance(self._discriminator, Unread):
            self._discriminator = self._discriminator.read()
        return self._discriminator

    def put(self, generator=None, discriminator=None):
        """Replaces networks by others of the same configuration, which may be `Unread`."""
        self.origin = None
        if generator is not None and generator is not self._generator:
            self._generator, self.engines = generator, Engines(self._functions, GanEngine)
        if discriminator is not None:
            self._discriminator = discriminator

    def read_networks(self):
        """Reads networks that are still unread; their files may then be deleted."""
        _ = self.generator, self.discriminator
        if self.text_encoder is not None:
            self.text_encoder.network()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that it draws, in pixels."""
        return (self.generator_config.sample_size,) * 2

    @property
    def small_size(self) -> tuple[int, int] | None:
        """(height, width) of the pictures that it enlarges; None if it draws from text alone."""
        side = self.generator_config.low_res_size
        return None if side is None else (side, side)

    @property
    def number_of_weights(self) -> int:
        """Of the generator, which need not be read."""
        from sd_tf.gan.generator import Generator
        from sd_tf.gan.summary import weights_of

        return weights_of(Generator, self.generator_config)

    @property
    def precision(self) -> str:
        """The Keras precision policy of its networks."""
        import keras

        if not isinstance(self._generator, Unread):
            return self._generator.dtype_policy.name
        return keras.dtype_policies.get(self.dtype or keras.config.dtype_policy()).name

    def weights_sha256(self) -> str:
        """A hash of all weights."""
        from sd_tf.hashing import fingerprint, weights_fingerprint

        networks = [each for each in (self.generator, self.discriminator) if each is not None]
        encoder = "" if self.text_encoder is None else self.text_encoder.fingerprint
        return fingerprint(*map(weights_fingerprint, networks), encoder)

    # -- drawing --------------------------------------------------------------------------------

    def text_reader(self):
        """The `TextEncoder`; None if it draws without a text."""
        return self.text_encoder

    def generate(
        self,
        prompt=None,
        num_images=1,
        seed=0,
        truncation=None,
        batch_size=64,
        z=None,
        styles=None,
        prompt_syntax="weights",
        prompt_embeds=None,
        output="array",
        engine="auto",
        progress=True,
    ):
        """Generates pictures from text, each in one pass.

        Picture j of a prompt depends only on the prompt, the truncation and `seed + j`, up to rounding.

        Args:
            prompt, num_images, seed, batch_size, prompt_syntax, prompt_embeds, output, progress: as in
                `LatentDiffusion.generate`. A model without a text takes any prompt and reads none.
            truncation: 0 to 1, how far styles are from their mean for the prompt: less is more usual and less
                varied (Karras et al. 2019, section 2.1); None for the model's.
            z: float (pictures, latent dim), standard normal, in the place of that of the seeds.
            styles: float (pictures, style dim), or (pictures, levels, style dim), in the place of those of z,
                such as those of `styles` or `invert`; they are not truncated.
            engine: "tensorflow"; "openvino", which needs the extra `openvino` and float32; or "auto".

        Returns:
            uint8 (prompts x num_images, side, side, 3), prompt by prompt: an array whose `seeds` are int64
                (pictures,). Or PIL pictures in a list, see `output`.

        Raises:
            InputError: an argument is of the wrong type or out of range.
        """
        check_output(output)
        self._check_draws_from_text()
        request = self._request(prompt, num_images, seed, batch_size, prompt_syntax, prompt_embeds)
        run, texts = self._engine(engine), drawing.texts_of_request(self, request)
        if styles is None:
            styles = self._styles(run, request, texts, truncation, z)
        elif z is not None or truncation is not None:
            raise InputError("styles stand in for z and its truncation: give one of them")
        else:
            width = self.generator_config.style_dim
            styles = drawing.checked_array(
                "styles", styles, request.number, (width,), (self._number_of_levels, width)
            )
        styles = drawing.at_each_level(styles, self._number_of_levels)
        images = drawing.pictures_of(self, run, styles, texts, request.batch_size, progress)
        return as_output(images, output, request)

    def styles(
        self,
        prompt=None,
        num_images=1,
        seed=0,
        truncation=None,
        batch_size=64,
        z=None,
        prompt_syntax="weights",
        engine="auto",
    ):
        """The styles of the pictures that `generate` draws with the same arguments.

        Their first levels say how a picture is laid out, their last ones how it is coloured. So styles are
        mixed (Karras et al. 2019, section 3.1):

            >>> mixed = model.styles("a dress", seed=0)
            >>> mixed[:, 2:] = model.styles("a dress", seed=1)[:, 2:]
            >>> images = model.generate("a dress", styles=mixed)

        Args:
            prompt, num_images, seed, truncation, batch_size, z, prompt_syntax, engine: as in `generate`.

        Returns:
            float32 (prompts x num_images, levels, style dim).

        Raises:
            InputError: an argument is of the wrong type or out of range.
        """
        request = self._request(prompt, num_images, seed, batch_size, prompt_syntax)
        run, texts = self._engine(engine), drawing.texts_of_request(self, request)
        styles = self._styles(run, request, texts, truncation, z)
        return drawing.at_each_level(styles, self._number_of_levels)

    def interpolate(
        self,
        prompts,
        frames=8,
        seeds=0,
        truncation=None,
        batch_size=64,
        prompt_syntax="weights",
        engine="auto",
        progress=True,
    ):
        """Generates pictures that interpolate between prompts, between seeds, or both.

        The text encoder's outputs are interpolated linearly, z spherically (slerp).

        Args:
            prompts, frames, seeds: as in `LatentDiffusion.interpolate`.
            truncation, batch_size, prompt_syntax, engine, progress: as in `generate`.

        Returns:
            uint8 (frames, side, side, 3).

        Raises:
            InputError: there is nothing to interpolate, or an argument is out of range.
        """
        self._check_draws_from_text()
        interpolation = Interpolation(prompts, seeds, frames, "", batch_size, prompt_syntax)
        self._check(interpolation)
        run, texts = self._engine(engine), drawing.texts_of_interpolation(self, interpolation)
        styles = self._styles(run, interpolation, texts, truncation)
        styles = drawing.at_each_level(styles, self._number_of_levels)
        return drawing.pictures_of(self, run, styles, texts, batch_size, progress)

    def invert(self, image, prompt=None, steps=300, progress=True):
        """Projection: styles of which `generate(prompt, styles=...)` draws about a given picture.

        Args:
            image: a picture or several, as `image` of `LatentDiffusion.generate`; scaled to `image_size`.
            prompt: a string that describes them.
            steps: of optimisation.
            progress: whether to show a bar.

        Returns:
            float32 (n, levels, style dim).

        Raises:
            InputError: an argument is of the wrong type or out of range.
        """
        self._check_draws_from_text()
        is_several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
        number = len(image) if is_several else 1
        pictures = checked_image(image, number, 1, MOST_PIXELS, self.image_size)
        check_whole("steps", steps, 1, 100_000)
        request = self._request(prompt, number, 0, 64, "weights")
        texts = drawing.texts_of_request(self, request)(range(number))
        from sd_tf.gan.inversion import inverted, nearest_styles  # which import Keras

        with tqdm(total=steps, disable=None if progress else True) as bar:
            return inverted(
                self.generator,
                to_unit(pictures),
                texts,
                nearest_styles(self, pictures, request.prompts[0], texts),
                steps,
                lambda _, difference: (bar.update(), bar.set_postfix_str(f"{difference:.4f}")),
            )

    def upscale(
        self,
        image,
        prompt="",
        seed=0,
        truncation=None,
        batch_size=64,
        output="array",
        engine="auto",
        progress=True,
    ):
        """Enlarges pictures, each in one pass.

        Args:
            image: a picture or several, as `image` of `LatentDiffusion.generate`, of `small_size`.
            prompt: what they show: a string for all, or a list with one for each; "" says nothing.
            seed, truncation, batch_size, output, engine, progress: as in `generate`.

        Returns:
            As `generate`, one picture for each.

        Raises:
            InputError: the model draws from text alone, or an argument is of the wrong type or out of range.
        """
        check_output(output)
        self._check_enlarges()
        images = pictures_to_enlarge(image)
        request = request_of_pictures(prompt, len(images), "", seed, batch_size)
        self._check(request)
        images = self.enlarge(images, request, truncation=truncation, engine=engine, progress=progress)
        return as_output(images, output, request)

    def enlarge(self, images, request, draw=0, truncation=None, engine="auto", progress=True):
        """Enlarges the pictures of a request; see `sd_tf.generation.enlarging.Enlarger`.

        Args:
            images, request, draw, engine, progress: as there.
            truncation: as in `generate`.
        """
        self._check_enlarges()
        if images.shape[1:3] != self.small_size:
            sizes = [f"{width} x {height}" for height, width in (images.shape[1:3], self.small_size)]
            raise InputError(f"image is {sizes[0]}, this model enlarges {sizes[1]}: scale it to that size")
        run, texts = self._engine(engine), drawing.texts_of(self, request)
        styles = drawing.at_each_level(
            self._styles(run, request, texts, truncation, draw=draw), self._number_of_levels
        )
        return drawing.pictures_of(self, run, styles, texts, request.batch_size, progress, to_unit(images))

    def _check_draws_from_text(self):
        if self.small_size is not None:
            raise InputError("this model only enlarges pictures: call upscale")

    def _check_enlarges(self):
        if self.small_size is None:
            raise InputError(
                "this model draws from text and enlarges no pictures: call generate, or train a model with "
                "enlarge_from"
            )

    @property
    def _number_of_levels(self):
        return len(self.generator_config.block_out_channels)

    def _request(self, prompt, num_images, seed, batch_size, prompt_syntax, prompt_embeds=None):
        if prompt is None and prompt_embeds is None and self.text_encoder is None:
            prompt = "a picture"
        request = Request(
            prompt, "", num_images, seed, batch_size, prompt_syntax, prompt_embeds=prompt_embeds
        )
        self._check(request)
        return request

    def _check(self, request):
        """Refuses prompts of a `Request` or an `Interpolation` that a GAN cannot follow, warns of words."""
        if getattr(request, "prompt_embeds", None) is not None:
            return
        _refuse_loras(request)
        _refuse_weights(request)
        of_request = getattr(request, "warnings", ())
        for warning in (*of_request, *words_beyond(request.prompts, self.known_words)):
            warnings.warn(warning, stacklevel=4)

    def _engine(self, name):
        if name not in ENGINES:
            raise unknown("engine", name, ENGINES)
        import_tensorflow()
        return self.engines[name]

    def _styles(self, run, request, texts, truncation=None, z=None, draw=0):
        """w of a `Request` or an `Interpolation`, (pictures, style dim)."""
        truncation = self.recommended.replaced(truncation=truncation).truncation
        size = self.generator_config.latent_dim
        if z is None:
            z = request.noise(np.arange(request.number), draw, (size,))
        else:
            z = drawing.checked_array("z", z, request.number, (size,))
        return drawing.styles_of(self, run, z, texts, truncation, request.batch_size)

    def _functions(self):
        """The `functions` of `Engines`."""
        generator, config, levels = self.generator, self.generator_config, self._number_of_levels
        z = ((None, config.latent_dim), "float32")
        w = ((None, levels, config.style_dim), "float32")
        text, side, low_res = [], config.low_res_size, []
        if side is not None:
            low_res = [((None, side, side, 3), "float32")]
        if self.text_encoder is not None:
            text = [((None, None, config.text_dim), "float32"), ((None, None), "int32")]

        def styles(z, *text):
            from keras import ops

            return ops.cast(generator.styles(z, generator.read(*text)[1]), "float32")

        def synthesize(w, *others):
            small, text = (None, others) if side is None else (others[0], others[1:])
            mask = text[1] if text else None
            of_levels = [w[:, i] for i in range(levels)]
            return generator.synthesize(of_levels, generator.read(*text)[0], mask, small)[-1]

        return {
            "styles": (generator, styles, [z, *text]),
            "synthesize": (generator, synthesize, [w, *low_res, *text]),
        }

    # -- making, training, writing --------------------------------------------------------------

    @classmethod
    def from_preset(cls, name, data, dtype=None, seed=0, **options):
        """A new model with random weights, to be trained by `fit`.

        Args:
            name: name of the preset, a key of `sd_tf.gan.presets.PRESETS` such as "fashion-mnist-gan".
            data: a data set of `sd_tf.open_data`, or anything that it opens.
            dtype: a Keras precision policy, such as "mixed_bfloat16"; None for Keras' global one.
            seed: random seed of the weights.
            options: of a new model: `text_encoder`, `num_kernels` and others of
                `sd_tf.gan.options.GanOptions`.

        Raises:
            InputError: there is no such preset or option, or options contradict each other.
        """
        import_tensorflow()
        from sd_tf.gan.new_model import new_model

        check_of_new_model(GanOptions, MODEL, options)
        return new_model(GanOptions.of(preset=name, **options), data, dtype, seed)

    def fit(self, data, options=None, **settings):
        """Trains both players of a new model, or goes on with a trained one.

        Args:
            data: a data set of `sd_tf.open_data`, or anything that it opens.
            options: a dictionary of further options, or instances of `RunOptions`, `OptimizerOptions` and
                `GanOptions`.
            settings: `minutes`, `steps`, `folder`, `batch_size`, `learning_rate`, `optimizer`, `callbacks`,
                `seed`, `verbose`: see `sd_tf.training.fit.fit`.

        Returns:
            A `History`: `.history`, `.epoch`, `.plot("generator/loss")`.

        Raises:
            InputError: an argument has the wrong type, or contradicts another or the run in the folder.
                Nothing is written then.
            KeyboardInterrupt: Ctrl-C, or a notebook's stop button. With a `folder`, a checkpoint is saved,
                and the same call resumes.
        """
        from sd_tf.gan.recipe import recipe_of
        from sd_tf.training.fit import check_names, fit

        check_names(settings)
        return fit(self, recipe_of, data, options=options, **settings)

    def save(self, folder, dtype="float32", max_shard_size="10GB"):
        """Writes a folder that `sd_tf.load` opens.

        Args:
            folder: made if it is missing. A model in it stays intact until the new one is complete.
            dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
            max_shard_size: the most bytes of one file, a whole number or a string such as "5GB".

        Raises:
            InputError: the folder cannot be written, or the dtype or the size is invalid.
        """
        from sd_tf.gan.folder import save  # which imports this module

        save(self, folder, dtype, max_shard_size)

    def push_to_hub(self, repo_id, **settings):
        """Uploads the model to the Hugging Face hub, with a model card, in one commit.

        Args:
            repo_id: "organisation/name" on the hub; made if it is missing.
            settings: keyword arguments, as of `LatentDiffusion.push_to_hub`.

        Returns:
            The address of the model, or of the pull request.

        Raises:
            InputError: an argument is invalid, or the hub refuses the upload.
        """
        from sd_tf.gan.card import traits_of
        from sd_tf.sharing.hub import push

        return push(self, repo_id, traits_of, **settings)

    def summary(self):
        """Prints the networks with their numbers of weights and sizes."""
        from sd_tf.gan.summary import summary_of

        print(summary_of(self))


def _refuse_weights(request):
    """A GAN's own text layers bring every token to one size, and a weight is no more than its size."""
    for prompt in request.prompts if request.syntax != "comfyui" else ():
        if any(part.weight != 1 for part in parts_of(prompt, request.syntax)):
            raise InputError(
                f"prompt {shown(prompt)} weighs words, which changes no picture of a GAN: leave the weights "
                f"out, or give {argument('prompt_syntax')} comfyui, where a weight is a way from the empty "
                "prompt"
            )


def _refuse_loras(request):
    if request.loras:
        raise InputError(f"the prompt names the LoRA {next(iter(request.loras))}: a GAN takes none")

"""`CascadedDiffusion`: a text encoder and a chain of UNets on pixels as one text-to-image model."""

import functools
import math

import numpy as np

from sd_tf.cascade.drawing import DRAWS_OF_A_STAGE, draw_interpolation, draw_request, enlarge_pictures
from sd_tf.cascade.options import CascadeOptions
from sd_tf.cascade.stage import MOST_STAGES, drawing_facts, stage_name
from sd_tf.diffusion.conditions import Condition
from sd_tf.errors import InputError, argument, shown, unknown
from sd_tf.generation.checks import check_whole, checked_size
from sd_tf.generation.engines import ENGINES
from sd_tf.generation.enlarging import pictures_to_enlarge, request_of_pictures
from sd_tf.generation.pictures import as_output, check_output, to_uint8
from sd_tf.generation.request import Interpolation, Request
from sd_tf.generation.settings import Settings
from sd_tf.lora.adaptable import Adaptable
from sd_tf.lora.adaptations import Adaptations
from sd_tf.quiet import import_tensorflow
from sd_tf.text.encoder import CLIPTextEncoder
from sd_tf.text.new_words import with_word
from sd_tf.training.provenance import Provenance

LARGEST_IMAGE = 512**2  # pixels of a picture, or four times the model's own if that is more
USUAL_FACTOR = 4  # of a first stage that enlarges: that of DeepFloyd IF


class CascadedDiffusion(Adaptable):
    """A text-to-image cascade on pixels (Imagen, Saharia et al. 2022; Ho et al. 2022).

    The first stage draws a small picture from text, each later one enlarges what the one before has drawn.

    Args:
        stages: `PixelStage`s, the smallest first. All but the first are super-resolution stages; the first
            may be one, too: such a model enlarges pictures that it is given.
        text_encoder: a `TextEncoder`, frozen, whose states all stages attend to.
        upsampler: an `Enlarger`, which enlarges in one pass what the last stage has drawn, such as a
            `GigaGAN`; None for none. It reads prompts by its own text encoder.

    Attributes:
        stages, text_encoder, upsampler: as given.
        known_words: the words of all captions that it has learned from, if its text encoder has learned from
            no others; None if that may know any word.
        provenance: a `Provenance`: how the model was made and trained, for later runs.
        dtype: the Keras precision policy of its UNets; None for Keras' global one.
        origin: the files that its networks were read from, an `Origin`; None if they have changed since.

    Example:
        >>> model = sd_tf.CascadedDiffusion.from_preset("cascade-small", "fashion_mnist")
        >>> model.fit("fashion_mnist", minutes=20)
        >>> images = model.generate("a red dress", num_images=4, seed=0)  # uint8 (4, 32, 32, 3)

    Raises:
        InputError: the stages do not fit to each other or to the text encoder.
    """

    Options = CascadeOptions

    def __init__(self, stages, text_encoder, upsampler=None):
        _check_fit(stages, text_encoder)
        if upsampler is not None:
            _check_upsampler(stages, upsampler)
        self.stages, self.text_encoder, self.upsampler = list(stages), text_encoder, upsampler
        self.known_words, self.provenance, self.dtype = None, Provenance(), None
        self.origin = None

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages: "base", "sr2" and so on; the upsampler is none of them."""
        return [stage_name(number) for number in range(len(self.stages))]

    @property
    def upsampler_name(self) -> str | None:
        """The name of the upsampler as a stage, such as "sr2"; None without one."""
        return None if self.upsampler is None else stage_name(len(self.stages))

    # -- sizes ----------------------------------------------------------------------------------

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that it draws by default, in pixels."""
        return (self.stages[-1] if self.upsampler is None else self.upsampler).image_size

    @property
    def factors(self) -> list[int]:
        """How many times larger each stage's pictures are than those of the stage before; 1 for the first,
        or of a first stage that enlarges, what it was trained to."""
        sides = [stage.image_size[0] for stage in self.stages]
        first = USUAL_FACTOR if self.stages[0].is_super_resolution else 1
        return [first, *(large // small for small, large in zip(sides, sides[1:], strict=False))]

    def small_size_of(self, number: int) -> tuple[int, int]:
        """(height, width) of the pictures that a super-resolution stage was trained to enlarge."""
        return tuple(side // self.factors[number] for side in self.stages[number].image_size)

    @property
    def sides_multiple(self) -> int:
        """Height and width of pictures must be multiples of this number of pixels."""
        total = math.prod(self.factors)
        multiples, grown = [], 1
        for stage, factor in zip(self.stages, self.factors, strict=True):
            grown *= factor
            multiples.append(stage.config.size_multiple * total // grown)
        return math.lcm(*multiples)

    @property
    def most_pixels(self) -> int:
        """The most pixels that a picture may have: attention's memory grows with their square."""
        return max(LARGEST_IMAGE, 4 * math.prod(self.stages[-1].image_size))

    def sizes_of(self, height=None, width=None) -> list[tuple[int, int]]:
        """(height, width) of each stage's pictures, for those of the last stage; None for the model's own."""
        own_size = self.stages[-1].image_size
        last = tuple(side or own for side, own in zip((height, width), own_size, strict=True))
        sizes = [last]
        for factor in self.factors[:0:-1]:
            sizes.insert(0, tuple(side // factor for side in sizes[0]))
        return sizes

    @property
    def recommended(self):
        """The `Settings` of the first stage that `generate` uses where its caller gives none."""
        return self.stages[0].recommended

    @property
    def schedule(self):
        """The `NoiseSchedule` of the first stage, whose steps `steps` are."""
        return self.stages[0].schedule

    @property
    def thresholding(self):
        """The `Thresholding` of the first stage where a caller gives none."""
        return self.stages[0].thresholding

    @property
    def later_settings(self) -> list[Settings]:
        """The `Settings` of the stages behind the first where a caller gives none."""
        return [stage.recommended for stage in self.stages[1:]]

    def drawing_facts(self) -> dict[str, str]:
        """How it draws besides the first stage's `Settings`: what the protocol of a score says of it."""
        facts = drawing_facts(self.stages)
        if self.upsampler is None:
            return facts
        height, width = self.image_size
        facts["sizes"] += f", then {width} x {height}"
        return facts | {"upsampler": f"{type(self.upsampler).__name__}, one pass"}

    @property
    def precision(self) -> str:
        """The Keras precision policy of its UNets."""
        import keras

        read = next((stage.precision for stage in self.stages if stage.precision), None)
        return read or keras.dtype_policies.get(self.dtype or keras.config.dtype_policy()).name

    def read_networks(self):
        """Reads networks that are still unread; their files may then be deleted."""
        for stage in self.stages:
            stage.read()
        self.text_encoder.network()
        if self.upsampler is not None:
            self.upsampler.read_networks()

    def weights_sha256(self) -> str:
        """A hash of all weights without LoRAs."""
        from sd_tf.hashing import fingerprint, weights_fingerprint

        with self.without_adaptations():
            return fingerprint(
                *(weights_fingerprint(stage.unet) for stage in self.stages),
                self.text_encoder.fingerprint,
                *([] if self.upsampler is None else [self.upsampler.weights_sha256()]),
            )

    def put(self, number: int, unet):
        """Replaces the network of a stage by another of the same configuration, which may be `Unread`.

        LoRAs are forgotten: they belong to the network of before.
        """
        if self.stages[number].put(unet):
            self.origin = None
            self.forget_adaptations()

    # -- drawing --------------------------------------------------------------------------------

    def text_reader(self):
        """The `TextEncoder`."""
        return self.text_encoder

    def encode_prompts(self, prompts) -> Condition:
        """Encodes n prompts, as plain text without weights, to context and mask of a `Condition`."""
        encoded = self.text_encoder.encode(*self.text_encoder.tokenize(prompts))
        return Condition(np.asarray(encoded.states, "float32"), np.asarray(encoded.mask))

    def generate(
        self,
        prompt=None,
        num_images=1,
        steps=None,
        guidance_scale=None,
        guidance_interval=None,
        guidance_rescale=None,
        seed=0,
        negative_prompt="",
        sampler=None,
        timestep_spacing=None,
        karras=None,
        eta=None,
        batch_size=16,
        latents=None,
        image=None,
        strength=0.8,
        mask=None,
        resamples=None,
        height=None,
        width=None,
        prompt_syntax="weights",
        prompt_embeds=None,
        negative_prompt_embeds=None,
        thresholding=None,
        percentile=None,
        augment_level=None,
        super_resolution=None,
        stages=None,
        output="array",
        engine="auto",
        callback=None,
        progress=True,
    ):
        """Generates pictures from text; with `image`, image-to-image; with `mask` too, inpainting.

        Picture j of a prompt depends only on the prompt, the settings and `seed + j`, up to rounding.

        Args:
            prompt, num_images, seed, negative_prompt, batch_size, prompt_syntax, prompt_embeds,
                negative_prompt_embeds, image, mask, output, callback, progress: as in
                `LatentDiffusion.generate`.
            steps, guidance_scale, guidance_interval, guidance_rescale, sampler, timestep_spacing, karras,
                eta, resamples: of the first stage, see `sd_tf.generation.settings.Settings`; None for what
                the model recommends.
            latents: initial noise of the first stage, float (prompts x num_images, h, w, 3).
            strength: 0 to 1, how much the first stage may change `image`: the share of its steps that is run.
            height, width: of the last stage's pictures, in pixels; None for the model's own size.
            thresholding: "dynamic" (Saharia et al. 2022, section 2.3), "static" (pixels are clipped) or
                "none", in all stages; None for the model's.
            percentile: 0 to 1, of dynamic thresholding; None for the model's.
            augment_level: the timestep whose noise is added to the smaller picture before it is enlarged
                (noise conditioning augmentation); None for the model's.
            super_resolution: settings of the later stages, such as {"steps": 10, "guidance_scale": 1}; a
                list has those of each.
            stages: how many stages are run, the upsampler among them; None for all.
            engine: "tensorflow"; "openvino", which needs the extra `openvino` and float32 UNets and runs them
                faster on a CPU; or "auto", which is OpenVINO if it is installed, there is no GPU and the
                model came from files. The text encoder is always TensorFlow's.

        Returns:
            uint8 (prompts x num_images, height, width, 3), prompt by prompt: an array whose `seeds` are int64
                (pictures,). Or PIL pictures in a list, see `output`.

        Raises:
            InputError: an argument is of the wrong type or out of range.

        Warns:
            UserWarning: a prompt has words that the model does not know.
        """
        check_output(output)
        _check_engine(engine)
        self._check_draws_from_text()
        request = Request(
            prompt,
            negative_prompt,
            num_images,
            seed,
            batch_size,
            prompt_syntax,
            prompt_embeds,
            negative_prompt_embeds,
        )
        number, enlarges = self._number_of(stages)
        if enlarges and mask is not None:
            raise InputError(
                f"{argument('mask')} is given, and {self.upsampler_name} enlarges all of a picture in one "
                f"pass, so that nothing would stay as it is: leave it out, or set {argument('stages')} to "
                f"{number}"
            )
        base = self.stages[0].recommended.replaced(
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            sampler=sampler,
            timestep_spacing=timestep_spacing,
            karras=karras,
            eta=eta,
            resamples=resamples,
        )
        with self._weighing(request.loras):
            images = draw_request(
                self,
                request,
                [base, *self._later_settings(super_resolution, self.stages[1:number])],
                [stage.thresholding.replaced(thresholding, percentile) for stage in self.stages[:number]],
                augment_level,
                self._checked_size(height, width),
                latents,
                image,
                strength,
                mask,
                engine,
                callback,
                progress,
            )
        if enlarges:
            images = self._enlarged(images, request, engine, progress)
        return as_output(images, output, request)

    def interpolate(
        self,
        prompts,
        frames=8,
        seeds=0,
        negative_prompt="",
        engine="auto",
        progress=True,
        batch_size=16,
        height=None,
        width=None,
        prompt_syntax="weights",
        thresholding=None,
        percentile=None,
        augment_level=None,
        super_resolution=None,
        stages=None,
        **settings,
    ):
        """Generates pictures that interpolate between prompts, between seeds, or both.

        The text encoder's outputs are interpolated linearly, the noise of each stage spherically (slerp).

        Args:
            prompts, frames, seeds, negative_prompt: as in `LatentDiffusion.interpolate`.
            engine, progress, batch_size, height, width, prompt_syntax, thresholding, percentile,
                augment_level, super_resolution, stages: as in `generate`.
            settings: of the first stage, see `sd_tf.generation.settings.Settings`.

        Returns:
            uint8 (frames, height, width, 3).

        Raises:
            InputError: there is nothing to interpolate, or an argument is out of range.
        """
        _check_engine(engine)
        self._check_draws_from_text()
        interpolation = Interpolation(prompts, seeds, frames, negative_prompt, batch_size, prompt_syntax)
        number, enlarges = self._number_of(stages)
        with self._weighing(interpolation.loras):
            images = draw_interpolation(
                self,
                interpolation,
                [
                    self.recommended.replaced(**settings),
                    *self._later_settings(super_resolution, self.stages[1:number]),
                ],
                [stage.thresholding.replaced(thresholding, percentile) for stage in self.stages[:number]],
                augment_level,
                self._checked_size(height, width),
                engine,
                progress,
            )
        return self._enlarged(images, interpolation, engine, progress) if enlarges else images

    def upscale(
        self,
        image,
        prompt="",
        seed=0,
        negative_prompt="",
        batch_size=16,
        thresholding=None,
        percentile=None,
        augment_level=None,
        super_resolution=None,
        output="array",
        engine="auto",
        callback=None,
        progress=True,
    ):
        """Enlarges pictures by the super-resolution stages and the upsampler.

        Args:
            image: a picture or several, as `image` of `generate`.
            prompt: what they show: a string for all, or a list with one for each; "" says nothing.
            seed, negative_prompt, batch_size, thresholding, percentile, augment_level, super_resolution,
                output, engine, callback, progress: as in `generate`.

        Returns:
            As `generate`, one picture for each.

        Raises:
            InputError: the model has no super-resolution stage, or an argument is out of range.
        """
        check_output(output)
        _check_engine(engine)
        later = [stage for stage in self.stages if stage.is_super_resolution]
        if not later and self.upsampler is None:
            raise InputError("this model has no super-resolution stage: train one, or name another model")
        images = pictures_to_enlarge(image, *self._limits_of_small_pictures())
        self._check_size_of_small_pictures(images)
        request = request_of_pictures(prompt, len(images), negative_prompt, seed, batch_size)
        settings = self._later_settings(super_resolution, later)
        thresholdings = [stage.thresholding.replaced(thresholding, percentile) for stage in later]
        if later:
            images = enlarge_pictures(
                self, request, settings, thresholdings, images, augment_level, engine, callback, progress
            )
        if self.upsampler is not None:
            images = self._enlarged(images, request, engine, progress)
        return as_output(images, output, request)

    def _enlarged(self, images, request, engine, progress):
        """What the upsampler makes of the last stage's pictures."""
        draw = len(self.stages) * DRAWS_OF_A_STAGE
        return self.upsampler.enlarge(images, request, draw, engine=engine, progress=progress)

    def _check_size_of_small_pictures(self, images):
        """Raises `InputError` for pictures that the stages do not enlarge to what the upsampler takes."""
        if self.upsampler is None:
            return
        pairs = zip(self.stages, self.factors, strict=True)
        total = math.prod(factor for stage, factor in pairs if stage.is_super_resolution)
        height, width = (side // total for side in self.upsampler.small_size)
        if images.shape[1:3] != (height, width):
            raise InputError(
                f"image is {images.shape[2]} x {images.shape[1]}, this model enlarges {width} x {height}: "
                "scale it to that size"
            )

    def _limits_of_small_pictures(self):
        """What sides of pictures to enlarge are multiples of, and the most pixels that they may have."""
        multiple, total = 1, 1
        for stage, factor in zip(self.stages, self.factors, strict=True):
            if stage.is_super_resolution:
                total *= factor
                own = stage.config.size_multiple
                multiple = math.lcm(multiple, own // math.gcd(own, total))
        return multiple, self.most_pixels // total**2

    def decode_latents(self, latents, engine="auto", batch_size=16):
        """Pixels in about [-1, 1], which a cascade draws in, to pictures, uint8 (n, height, width, 3)."""
        return to_uint8(np.asarray(latents))

    def _later_settings(self, given, stages):
        """`Settings` of the stages behind the first, with what a caller gives for all or for each."""
        several = list(given) if isinstance(given, (list, tuple)) else [given] * len(stages)
        for own in [given] if not isinstance(given, (list, tuple)) else given:
            _check_settings(own)
        if len(several) != len(stages):
            raise InputError(
                f"super_resolution has {len(several)} entries for {len(stages)} stages: give one dictionary, "
                "or one for each"
            )
        pairs = zip(stages, several, strict=True)
        return [stage.recommended.replaced(**(own or {})) for stage, own in pairs]

    def _number_of(self, stages):
        """How many of the `PixelStage`s are run, and whether the upsampler is; None for all."""
        own = len(self.stages)
        most = own + (self.upsampler is not None)
        number = most if stages is None else check_whole("stages", stages, 1, most)
        return min(number, own), number > own

    def _check_draws_from_text(self):
        if self.stages[0].is_super_resolution:
            raise InputError("this model only enlarges pictures: call upscale")

    def _checked_size(self, height, width):
        """(height, width) of the last `PixelStage`'s pictures; None for its own."""
        if self.upsampler is not None:
            for name, side, own in zip(("height", "width"), (height, width), self.image_size, strict=True):
                if side not in (None, own):
                    raise InputError(
                        f"{argument(name)} is {shown(side)}: {self.upsampler_name} draws pictures of {own} "
                        "alone, leave it out"
                    )
            return self.stages[-1].image_size
        return checked_size(height, width, self.image_size, self.sides_multiple, self.most_pixels)

    # -- LoRAs and words ------------------------------------------------------------------------

    @functools.cached_property
    def adaptations(self) -> Adaptations:
        """The loaded LoRAs, to set their weights, remove or fuse them."""
        pairs = zip(self.stage_names, self.stages, strict=True)
        networks = {f"{name}.unet": stage.unet for name, stage in pairs}
        return Adaptations(networks, fused=lambda: setattr(self, "origin", None))

    def load_lora(self, file, weight=1.0, name=None, weight_name=None, revision=None, stage=None):
        """Adds a LoRA (Hu et al. 2021) to the UNets of the stages that it has files for.

        `model.adaptations.weigh({name: 0.5})` changes its weight; weight 0 restores the original exactly.
        Several LoRAs add up.

        Args:
            file: a folder with one folder for each stage, such as that of a run; or the file or folder of one
                stage's LoRA, for the stage whose name its folder has or the only one that it fits; or a hub
                id of either.
            weight, name, weight_name, revision: as in `LatentDiffusion.load_lora`.
            stage: the stage that a single file is for, such as "base"; None to find it out.

        Raises:
            InputError: a file is damaged, not a LoRA or one for another architecture, it fits several stages,
                the name is taken, or the hub cannot be reached. The model is not changed then.
        """
        from sd_tf.cascade.lora import read_lora  # which imports files of this family
        from sd_tf.lora.sources import find_lora

        found = find_lora(file, weight_name, revision)
        changes = read_lora(found.path, self.adaptations.modules, self.stage_names, stage)
        self.adaptations.add(found.name if name is None else name, changes, weight, found.path)

    def load_textual_inversion(self, file, token=None):
        """Adds a word that was learned by textual inversion (Gal et al. 2023) to a CLIP text encoder.

        Args:
            file, token: as in `LatentDiffusion.load_textual_inversion`.

        Raises:
            InputError: the file is damaged or its embedding has another width, the word is known already,
                or the text encoder is no CLIP. The model is not changed then.
        """
        from sd_tf.checkpoints.word_files import read_word

        self.add_word(*read_word(file, token))

    def add_word(self, word, embedding):
        """Adds a word to the tokenizer and its embedding to the text encoder, a CLIP.

        Args:
            word: the word to use in prompts.
            embedding: float (width,).

        Raises:
            InputError: the word is known already, the embedding has another width, or the text encoder is a
                T5 or a BERT.
        """
        encoder = self.text_encoder
        if not isinstance(encoder, CLIPTextEncoder):
            raise InputError(
                f"{shown(word)} is a word for a CLIP, and this model's text encoder is a T5 or a BERT: words "
                "cannot be added to it"
            )
        network, tokenizer = with_word(encoder.network(), encoder.tokenizer, word, embedding)
        self.text_encoder = CLIPTextEncoder(tokenizer, network.config, lambda: network)
        self.origin = None

    # -- making, training, writing --------------------------------------------------------------

    @classmethod
    def from_preset(cls, name, data, dtype=None, seed=0, **options):
        """A new model with random weights, to be trained by `fit`.

        Args:
            name: name of the preset, a key of `sd_tf.cascade.presets.PRESETS` such as "cascade-small".
            data: a data set of `sd_tf.open_data`, or anything that it opens.
            dtype: a Keras precision policy, such as "mixed_bfloat16"; None for Keras' global one.
            seed: random seed of the weights.
            options: of a new model: `text_encoder`, `prediction_type` and the others of the group "new model"
                of `sd_tf.cascade.options.CascadeOptions`, whose other fields are for `fit`.

        Raises:
            InputError: there is no such preset or option, or options contradict each other.
        """
        import_tensorflow()
        from sd_tf.cascade.new_model import new_model, options_of_new_model

        return new_model(options_of_new_model(name, options), data, dtype, seed)

    def fit(self, data, tune=None, options=None, **settings):
        """Trains the stages of a new model, or fine-tunes a trained one.

        Args:
            data: a data set of `sd_tf.open_data`, or anything that it opens.
            tune: how to fine-tune a trained model: `sd_tf.LoRA(...)`, `sd_tf.CrossAttention()`,
                `sd_tf.TextualInversion(...)`; None for the whole UNets.
            options: a dictionary of further options, or instances of `RunOptions`, `OptimizerOptions` and
                `CascadeOptions`.
            settings: `minutes`, `steps`, `folder`, `batch_size`, `learning_rate`, `optimizer`, `callbacks`,
                `seed`, `verbose`: see `sd_tf.training.fit.fit`.

        Returns:
            A `History`: `.history`, `.epoch`, `.plot("loss")`.

        Raises:
            InputError: an argument has the wrong type, or contradicts another or the run in the folder.
                Nothing is written then.
            KeyboardInterrupt: Ctrl-C, or a notebook's stop button. With a `folder`, a checkpoint is saved,
                and the same call resumes.
        """
        from sd_tf.cascade.recipe import recipe_of
        from sd_tf.training.finetuning import recipe_for
        from sd_tf.training.fit import check_names, fit

        check_names(settings)
        return fit(self, recipe_for(tune, recipe_of), data, options=options, **settings)

    def save(self, folder, dtype="float32", max_shard_size="10GB"):
        """Writes a folder that `sd_tf.load` opens; diffusers' IF pipelines open the folder of each stage.

        LoRAs are merged into the kernels, with their current weights.

        Args:
            folder: made if it is missing. A model in it stays intact until the new one is complete.
            dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
            max_shard_size: the most bytes of one file, a whole number or a string such as "5GB".

        Raises:
            InputError: the folder cannot be written, or the dtype or the size is invalid.
        """
        from sd_tf.cascade.folder import save  # which imports this module

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
        from sd_tf.cascade.card import traits_of
        from sd_tf.sharing.hub import push

        return push(self, repo_id, traits_of, **settings)

    def summary(self):
        """Prints the stages with their numbers of weights and sizes."""
        from sd_tf.cascade.summary import summary_of

        print(summary_of(self))


def _check_settings(given):
    """Raises `InputError` for what are no settings of a stage."""
    if given is not None and not isinstance(given, dict):
        raise InputError(f"super_resolution is {shown(given)}: give a dictionary, such as {{'steps': 10}}")
    for name in given or ():
        if name not in vars(Settings()):
            raise unknown("setting of super_resolution", name, vars(Settings()))


def _check_engine(engine):
    """Raises `InputError` for an unknown engine, before anything is encoded."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)


def _check_upsampler(stages, upsampler):
    if not hasattr(upsampler, "enlarge") or upsampler.small_size is None:
        raise InputError(
            f"upsampler is a {type(upsampler).__name__} that enlarges no pictures: take one that does, such "
            "as a GAN that was trained with enlarge_from"
        )
    drawn, taken = (f"{width} x {height}" for height, width in (stages[-1].image_size, upsampler.small_size))
    if drawn != taken:
        raise InputError(
            f"stage {stage_name(len(stages) - 1)} draws {drawn}, and the upsampler enlarges {taken}: take "
            "models that fit"
        )
    if len(stages) == MOST_STAGES:
        raise InputError(f"the upsampler makes {MOST_STAGES + 1} stages, of which {MOST_STAGES} are the most")


def _check_fit(stages, text_encoder):
    if not stages:
        raise InputError("a cascade has one stage at least")
    for number, stage in enumerate(stages):
        name = stage_name(number)
        if number and not stage.is_super_resolution:
            raise InputError(f"stage {name} draws from text alone, which only the first one may")
        if stage.is_super_resolution and stage.noising is None:
            raise InputError(f"stage {name} has no noise schedule for the picture that it enlarges")
        if stage.config.context_width != text_encoder.width:
            raise InputError(
                f"the UNet of stage {name} reads text states {stage.config.context_width} wide, the text "
                f"encoder writes {text_encoder.width}: use the text encoder that it was trained with"
            )
    for number, (small, large) in enumerate(zip(stages, stages[1:], strict=False), 1):
        ratios = {
            (b // a if b % a == 0 else 0) for a, b in zip(small.image_size, large.image_size, strict=True)
        }
        if len(ratios) > 1 or not min(ratios):
            raise InputError(
                f"stage {stage_name(number)} draws {large.image_size}, no whole multiple of the "
                f"{small.image_size} before it: take stages that fit"
            )

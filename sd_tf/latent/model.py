"""`LatentDiffusion`: text encoder, UNet, autoencoder and noise schedule as one text-to-image model."""

import functools

import numpy as np

from sd_tf.diffusion.conditions import Condition
from sd_tf.diffusion.editing import ddim_inversion
from sd_tf.diffusion.losses import diffusion_loss
from sd_tf.diffusion.predictions import denoiser
from sd_tf.errors import InputError, argument
from sd_tf.generation.checks import check_number, check_text, check_whole
from sd_tf.generation.pictures import as_output, check_output, checked_image, to_uint8
from sd_tf.generation.request import LARGEST_BATCH, Interpolation, Request
from sd_tf.generation.settings import Settings, read_settings
from sd_tf.graphs import compiled
from sd_tf.latent.drawing import by_context, draw_interpolation, draw_request, text_encoder
from sd_tf.latent.options import LatentOptions
from sd_tf.latent.parts import Parts
from sd_tf.lora.adaptable import Adaptable
from sd_tf.lora.adaptations import Adaptations
from sd_tf.quiet import import_tensorflow
from sd_tf.text.encoder import kind_of
from sd_tf.text.known_words import read_words
from sd_tf.text.new_words import with_word
from sd_tf.text.prompts import encode_prompts
from sd_tf.training.provenance import Provenance


class LatentDiffusion(Adaptable, Parts):
    """A text-to-image latent diffusion model (Rombach et al. 2022).

    Args:
        autoencoder: an `AutoencoderKL`.
        unet: a `UNet` for the autoencoder's latents and the width of the text encoder's output.
        text_encoder: a `CLIPTextModel`, `T5EncoderModel` or `BertModel`, frozen.
        tokenizer: its `Tokenizer`, or of T5 and BERT its `SubwordTokenizer`.
        schedule: the `NoiseSchedule` that the UNet was, or will be, trained on.

    Each network may be `Unread`: then it is read when it is first used.

    Attributes:
        dtype: the Keras precision policy of its networks; None for Keras' global one.
        origin: the files that its weights were read from, an `Origin`; None if they have changed since.
        provenance: a `Provenance`: how the model was made and trained, for later runs.
        recommended: the `Settings` that `generate` uses where its caller gives none.
        known_words: the words of all captions that it has learned from, if its text encoder has learned from
            no others; None if that may know any word.

    Example:
        >>> model = sd_tf.load("fashion-mnist")
        >>> images = model.generate("a red dress", num_images=4, seed=0)  # uint8 (4, 32, 32, 3)
        >>> model.save("my-model")

    Raises:
        InputError: the parts do not fit together.
    """

    Options = LatentOptions

    def __init__(self, autoencoder, unet, text_encoder, tokenizer, schedule):
        super().__init__(autoencoder, unet, text_encoder, tokenizer, schedule)
        self.provenance, self.recommended, self.known_words = Provenance(), Settings(), None

    def weights_sha256(self) -> str:
        """A hash of all weights without LoRAs: of their files if unchanged, otherwise of their values."""
        from sd_tf.checkpoints.sources import weights_sha256
        from sd_tf.hashing import fingerprint, weights_fingerprint

        if self.origin is not None and self.origin.is_unchanged:
            return weights_sha256(self.origin.source, self.origin.variant)
        with self.without_adaptations():
            return fingerprint(*(weights_fingerprint(self._network(name)) for name in sorted(self._parts)))

    def read_from(self, folder):
        """Replaces networks and tokenizer by those of a folder with a model of the same configuration."""
        from sd_tf.checkpoints.text_encoders import tokenizer_of_model
        from sd_tf.generation.conversions import Origin
        from sd_tf.latent.loading import PARTS, unread

        self.put(**{name: unread(folder, name, self.dtype) for name in self._parts})
        self.tokenizer = tokenizer_of_model(self.text_config, folder)
        self.origin = Origin(folder, PARTS)
        self.recommended, self.known_words = read_settings(folder, self.recommended), read_words(folder)

    def encode_prompts(self, prompts):
        """Encodes n prompts, as plain text without weights, to context, float32 (n, tokens, width)."""
        ids, _ = self.text_reader().tokenize(prompts)
        return np.asarray(self.engines["tensorflow"].encode(ids), "float32")

    def encode_skipping(self, layers: int):
        """A function as `Engine.encode`, without the text encoder's last layers but with its layer norm."""
        if layers not in self._skipping:
            self._skipping[layers] = compiled(
                lambda token_ids: self.text_encoder(token_ids, layer=-1 - layers).last_hidden_state
            )
        return self._skipping[layers]

    @functools.cached_property
    def _skipping(self):
        return {}  # layers left out -> the function

    def loss(self, latents, context, timesteps, noise, min_snr_gamma=None):
        """The training loss of each example, float32 (batch,).

        Args:
            latents: clean latents, scaled, float (batch, h, w, channels).
            context: text encoder's output for the captions, float (batch, tokens, width).
            timesteps, noise, min_snr_gamma: see `sd_tf.diffusion.losses.diffusion_loss`.
        """
        condition, network = Condition(context), by_context(self.unet)
        return diffusion_loss(network, latents, condition, timesteps, noise, self.schedule, min_snr_gamma)

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
        batch_size=64,
        latents=None,
        image=None,
        strength=0.8,
        mask=None,
        resamples=None,
        clip_guidance=None,
        initial_noise=None,
        height=None,
        width=None,
        prompt_syntax="weights",
        prompt_embeds=None,
        negative_prompt_embeds=None,
        clip_skip=0,
        output="array",
        engine="auto",
        callback=None,
        progress=True,
    ):
        """Generates pictures from text; with `image`, image-to-image; with `mask` too, inpainting.

        Picture j of a prompt depends only on the prompt, the settings and `seed + j`. It is the same (up to
        rounding, at most 1 of 255) whatever the other prompts and the batch size. The same prompt given k
        times draws k times as many pictures, whose seeds go on.

        Args:
            prompt: a string or a list of strings. "(red:1.3)" gives words more weight, see `prompt_syntax`.
                A prompt with more tokens than the text encoder takes is encoded in parts by a CLIP
                (`sd_tf.text.prompts`), and cut for a T5 or BERT, with a warning.
            num_images: pictures for each prompt.
            steps: sampling steps, 1 to the schedule's number of timesteps.
            guidance_scale: of classifier-free guidance, 0 to 1000: 1 is no guidance, more follows the prompt
                more closely, 0 ignores it.
            guidance_interval: (start, stop), the part of the steps that is guided, as shares of all steps,
                including those that `strength` leaves out. (0.2, 0.8) leaves the first and the last fifth
                unguided, which keeps more variety at a high scale and is faster (Kynkaanniemi et al. 2024).
            guidance_rescale: 0 to 1, how far to undo the contrast that a high scale adds (Lin et al. 2023).
            seed: random seed of the first picture of each prompt; 0 to 2**32 - 1. A list has one for each
                prompt, or one for each picture. None draws one, which the result's `seeds` tell.
            negative_prompt: what to avoid: a string for all prompts, or a list with one for each.
            sampler: a name of `sd_tf.diffusion.samplers.SAMPLERS`: "ddim", "ddpm", "pndm", "euler",
                "euler_ancestral", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde" or "unipc".
            timestep_spacing: "leading", "trailing" or "linspace"; None for the model's.
            karras: uses the noise levels of Karras et al. 2022; not with "ddim", "ddpm" and "pndm".
            eta: 0 to 1, the noise added in each step of DDIM, as a share of DDPM's.
            batch_size: the most pictures, and prompts, that are computed at once; it bounds memory.
            latents: initial noise to use instead of the seeds': standard normal, float (prompts x
                num_images, h, w, latent channels). It sets the size of the pictures.
            image: picture for image-to-image (SDEdit, Meng et al. 2022), or one for each prompt: a path, a
                PIL picture, or an array, see `sd_tf.generation.pictures.checked_image`. It sets the size of
                the pictures, unless `height` and `width` do, which it is then scaled to.
            strength: 0 to 1, how much `image` may change: the share of the steps that is run. With 1 and a
                mask, nothing of the masked content remains.
            mask: for inpainting, where `image` may change, or one for each prompt: a path, a PIL picture, or
                an array of 0 and 1, or of 0 and 255. Pixels outside stay exactly as they are.
            resamples: 1 to 100, how often each step but the last is drawn with a mask, with noise added again
                in between (RePaint, Lugmayr et al. 2022): what is new comes to agree with what is around it,
                and takes that many times as long. 1 is diffusers' inpainting.
            clip_guidance: a `sd_tf.latent.clip_guidance.CLIPGuidance`, to add CLIP guidance.
            initial_noise: a `sd_tf.latent.initial_noise.InitialNoise`, to optimise the initial noise.
            height, width: of the pictures, in pixels, multiples of `sides_multiple`; None for the model's
                own size. Far from it, a model draws worse.
            prompt_syntax: what parentheses in prompts mean: "weights", "a1111" or "comfyui", see
                `sd_tf.text.prompt_syntax`. In "a1111", "<lora:name:0.7>" sets the weight of a loaded LoRA.
            prompt_embeds: text encoder's output instead of prompts, float (prompts, tokens, width).
            negative_prompt_embeds: the same instead of negative prompts, for all prompts or for each.
            clip_skip: layers at the end of a CLIP that are left out, as diffusers counts them: 1 is "Clip
                skip: 2" of A1111. As there, the syntaxes of web interfaces leave them out for negative
                prompts, too.
            output: "array", or "pil" for a list of PIL pictures, whose `info` has prompt and seed.
            engine: "tensorflow"; "openvino", which needs the extra `openvino` and a float32
                model; or "auto", OpenVINO if it is installed and can run the model. Their pictures differ by
                at most 2 of 255.
            callback: `callback(step, latents, prediction)` after each step of each batch, and after each
                repetition of it (`resamples`).
            progress: shows a progress bar, if standard error is a terminal.

        Returns:
            uint8 (prompts x num_images, height, width, 3), prompt by prompt: an array whose `seeds` are int64
                (pictures,). Or PIL pictures in a list, see `output`.

        Raises:
            InputError: an argument is of the wrong type or out of range.

        Warns:
            UserWarning: a prompt is longer than eight times what the text encoder takes, has invalid weights,
                which are read as text, no Latin letter, or words that the model does not know
                (`sd_tf.text.known_words`); `strength` is less than one step.
        """
        check_output(output)
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
        settings = self.recommended.replaced(
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
        check_number(argument("strength"), strength, 0, 1)
        with self._weighing(request.loras):
            images = draw_request(
                self,
                request,
                settings,
                self._checked_size(height, width),
                latents,
                image,
                strength,
                mask,
                clip_guidance,
                initial_noise,
                clip_skip,
                engine,
                callback,
                progress,
            )
        return as_output(images, output, request)

    def interpolate(
        self,
        prompts,
        frames=8,
        seeds=0,
        negative_prompt="",
        engine="auto",
        progress=True,
        batch_size=64,
        height=None,
        width=None,
        prompt_syntax="weights",
        **settings,
    ):
        """Generates pictures that interpolate between prompts, between seeds, or both.

        The text encoder's outputs are interpolated linearly, initial noise spherically (slerp).

        Args:
            prompts: a string or a list of strings.
            frames: number of pictures. The first and the last are those of the first and the last prompt and
                seed.
            seeds: a number or a list of numbers: as many as prompts, or a single one of either.
            negative_prompt: a string for all frames.
            engine, progress, batch_size, height, width, prompt_syntax: as in `generate`.
            settings: other arguments of `generate`, see `sd_tf.generation.settings.Settings`.

        Returns:
            uint8 (frames, height, width, 3).

        Raises:
            InputError: there is nothing to interpolate, or an argument is out of range.
        """
        interpolation = Interpolation(prompts, seeds, frames, negative_prompt, batch_size, prompt_syntax)
        shape = self.latent_shape_of(*self._checked_size(height, width))
        with self._weighing(interpolation.loras):
            settings = self.recommended.replaced(**settings)
            return draw_interpolation(self, interpolation, settings, shape, engine, progress)

    def encode_images(self, images, batch_size=64):
        """Encodes pictures to the means of their scaled latents, float32 (n, h, w, c).

        Args:
            images: uint8 (n, height, width, 3).
            batch_size: the most pictures at once; it bounds memory.
        """
        starts = range(0, len(images), batch_size)
        some = (np.asarray(images[i : i + batch_size], "float32") / 127.5 - 1.0 for i in starts)
        return np.concatenate([np.asarray(self._encode_images(each)[0]) for each in some])

    def decode_latents(self, latents, engine="auto", batch_size=64):
        """Decodes latents to pictures, uint8 (n, height, width, 3).

        Args:
            latents: clean latents, scaled, float32 (n, h, w, c).
            engine: as in `generate`.
            batch_size: the most pictures at once; it bounds memory.
        """
        decode, starts = self.engine_for(engine, latents.shape[1:]).decode, range(0, len(latents), batch_size)
        return np.concatenate([to_uint8(np.asarray(decode(latents[i : i + batch_size]))) for i in starts])

    @functools.cached_property
    def _encode_images(self):
        return compiled(self.autoencoder.encode)

    def invert(self, image, prompt="", steps=50, batch_size=64, engine="auto"):
        """DDIM inversion (Dhariwal & Nichol 2021): the initial noise from which DDIM reproduces a picture.

        `generate(prompt, latents=..., steps=steps, guidance_scale=1, sampler="ddim")` draws about the same
        picture again; another prompt edits it.

        Args:
            image: a picture or several, as `image` of `generate`.
            prompt: a string that describes them.
            steps: number of DDIM steps.
            batch_size: the most pictures at once; it bounds memory.
            engine: as in `generate`.

        Returns:
            float32 (n, h, w, latent channels).

        Raises:
            InputError: an argument is of the wrong type or out of range.
        """
        is_several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
        number = len(image) if is_several else 1
        images = checked_image(image, number, self.sides_multiple, self.most_pixels)
        check_text("prompt", prompt)
        check_whole("batch_size", batch_size, 1, LARGEST_BATCH)
        levels = Settings(steps).levels(self.schedule)
        if self.schedule.config.prediction_type == "sample":  # the first level has no noise to predict
            levels[-1] = self.schedule.level(0)
        latents = self.encode_images(images, batch_size)
        networks = self.engine_for(engine, latents.shape[1:])
        [condition] = encode_prompts([[prompt]], text_encoder(self, networks), batch_size)
        found = []
        for first in range(0, len(latents), batch_size):
            some = latents[first : first + batch_size]
            conditions = condition.repeat(len(some))
            denoise = denoiser(by_context(networks.denoise), self.schedule, conditions)
            found.append(np.asarray(ddim_inversion(denoise, some, levels)))
        return np.concatenate(found)

    def warmup(self, num_images=1, guidance_scale=None, batch_size=64, engine="auto"):
        """Compiles what `generate` needs for this number of pictures, so that its first call is fast.

        Networks are compiled once for each engine and, with OpenVINO, for each number of pictures.
        OpenVINO's conversion is kept in the user's cache for other processes.
        """
        self.generate(
            "a",
            num_images,
            steps=1,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            engine=engine,
            progress=False,
        )

    @functools.cached_property
    def adaptations(self) -> Adaptations:
        """The loaded LoRAs, to set their weights, remove or fuse them."""
        networks = {"unet": self.unet, "text_encoder": self.text_encoder}
        return Adaptations(networks, fused=lambda: setattr(self, "origin", None))

    def load_lora(self, file, weight=1.0, name=None, weight_name=None, revision=None):
        """Adds a LoRA (Hu et al. 2021) to the UNet and, if the file has weights for it, the text encoder.

        Beside LoRA these are LoCon, LoHa, LoKr, DoRA and full differences, as diffusers, peft, kohya and
        LyCORIS write them. `model.adaptations.weigh({name: 0.5})` changes its weight; weight 0 restores the
        original exactly. Several LoRAs add up.

        Args:
            file: a safetensors file, or a folder with diffusers' `pytorch_lora_weights.safetensors`, peft's
                `adapter_model.safetensors` or a single file of another name; or, if there is neither, a hub
                id such as "organisation/name", downloaded to the hub's cache.
            weight: -100 to 100; 1 applies the LoRA as it was trained.
            name: its name in `adaptations`; None for the file's name without its suffix, or the name of the
                folder or the hub's repository if that is given or the file has one of the names above.
            weight_name: the file to load from a folder or the hub, if there are several.
            revision: branch, tag or commit on the hub.

        Raises:
            InputError: the file is damaged, not a LoRA or one for another architecture, the name is taken,
                or the hub cannot be reached. The model is not changed then.
        """
        from sd_tf.latent.lora import read_lora
        from sd_tf.lora.sources import find_lora

        found = find_lora(file, weight_name, revision)
        changes = read_lora(found.path, self.adaptations.modules)
        self.adaptations.add(found.name if name is None else name, changes, weight, found.path)

    def load_textual_inversion(self, file, token=None):
        """Adds a word that was learned by textual inversion (Gal et al. 2023) to the text encoder.

        Args:
            file: a safetensors file with one vector, as diffusers and web interfaces write it, or a folder
                with diffusers' `learned_embeds.safetensors`.
            token: the word to use in prompts; None for the file's.

        Raises:
            InputError: the file is damaged or its embedding has another width, the word is known already,
                a LoRA is loaded, or the text encoder is no CLIP. The model is not changed then.
        """
        from sd_tf.checkpoints.word_files import read_word

        self.add_word(*read_word(file, token))

    def add_word(self, word, embedding):
        """Adds a word to the tokenizer and its embedding to the text encoder.

        Args:
            word: the word to use in prompts.
            embedding: float (width,).

        Raises:
            InputError: the word is known already, the embedding has another width, a LoRA is loaded, or the
                text encoder is no CLIP.
        """
        if not self.reads_by_clip:
            kind = kind_of(self.text_config)
            raise InputError(
                f"the model reads with a {kind}, and a word can be taught to a CLIP alone: train a LoRA"
            )
        if self.has_adaptations:
            raise InputError(
                "the model has LoRAs, which belong to its present text encoder: load words before LoRAs"
            )
        text_encoder, self.tokenizer = with_word(self.text_encoder, self.tokenizer, word, embedding)
        self.put(text_encoder=text_encoder)

    @classmethod
    def from_preset(cls, name, data, dtype=None, seed=0, **options):
        """A new model with random weights, to be trained by `fit`.

        Args:
            name: name of the preset, a key of `sd_tf.latent.presets.PRESETS` such as "fashion-mnist" or
                "pictures".
            data: a data set of `sd_tf.open_data`, or anything that it opens. If the preset has no pretrained
                text encoder, its captions make the vocabulary.
            dtype: a Keras precision policy, such as "mixed_bfloat16"; None for Keras' global one.
            seed: random seed of the weights.
            options: of a new model: `image_size`, `text_encoder`, `text_length`, `prediction_type`,
                `beta_schedule`, `zero_terminal_snr` and `perceptual_weight` of
                `sd_tf.latent.options.LatentOptions`, whose other fields are for `fit`.

        Raises:
            InputError: there is no such preset or option, or options contradict each other.
        """
        import_tensorflow()
        from sd_tf.latent.new_model import new_model, options_of_new_model

        return new_model(options_of_new_model(name, options), data, dtype, seed)

    def fit(self, data, tune=None, options=None, **settings):
        """Trains a new model, or fine-tunes a trained one.

            model = sd_tf.LatentDiffusion.from_preset("fashion-mnist", data)
            history = model.fit(data, minutes=20, folder="runs/mine")
            model.fit(stripes, minutes=5, tune=sd_tf.LoRA(rank=8), learning_rate=3e-3)

        Args:
            data: a data set of `sd_tf.open_data`, or anything that it opens.
            tune: how to fine-tune a trained model: `sd_tf.LoRA(...)`, `sd_tf.CrossAttention()`,
                `sd_tf.TextualInversion(...)`; None for the whole UNet.
            options: a dictionary of further options, or instances of `RunOptions`, `OptimizerOptions` and
                `LatentOptions`.
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
        from sd_tf.latent.recipe import recipe_of
        from sd_tf.training.finetuning import recipe_for
        from sd_tf.training.fit import check_names, fit

        check_names(settings)
        return fit(self, recipe_for(tune, recipe_of), data, options=options, **settings)

    def summary(self):
        """Prints the networks with their numbers of weights and sizes, and the noise schedule."""
        from sd_tf.latent.summary import summary_of

        print(summary_of(self))

    def save(self, folder, dtype="float32", max_shard_size="10GB"):
        """Writes a folder that `sd_tf.load` and diffusers' `StableDiffusionPipeline` open.

        LoRAs are merged into the kernels, with their current weights.

        Args:
            folder: made if it is missing. A model in it stays intact until the new one is complete.
            dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
            max_shard_size: the most bytes of one file, a whole number or a string such as "5GB".

        Raises:
            InputError: the folder cannot be written, or the dtype or the size is invalid.
        """
        from sd_tf.latent.folder import save  # which imports this module

        save(self, folder, dtype, max_shard_size)

    def push_to_hub(self, repo_id, **settings):
        """Uploads the model to the Hugging Face hub, with a model card, in one commit.

        Args:
            repo_id: "organisation/name" on the hub; made if it is missing.
            settings: keyword arguments.
                private: a new repository is private.
                token: of the hub; None for that of `hf auth login` or `HF_TOKEN`.
                revision: branch, made if it is missing; None for "main".
                create_pr: opens a pull request.
                commit_message: of the commit.
                card: "new", or a Markdown file. None keeps a README.md that is on the hub, or else takes
                    that in the model's folder, or else writes a new one.
                license: the hub's identifier, such as "apache-2.0", for a new card.
                base_model: hub id of the model that it was fine-tuned from, for a new card.
                prompts: prompts to draw for a new card.
                dtype, max_shard_size: see `save`.

        Returns:
            The address of the model, or of the pull request.

        Raises:
            InputError: the model has LoRAs, an argument is invalid, or the hub refuses the upload.
        """
        from sd_tf.latent.card import traits_of
        from sd_tf.sharing.hub import push

        return push(self, repo_id, traits_of, **settings)

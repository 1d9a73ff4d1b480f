"""How a latent diffusion model is trained: CLIP if none is given, the autoencoder, then the UNet on latents.

clip/                   the CLIP of the first stage
vae/ unet/ text_encoder/ tokenizer/ scheduler/ model_index.json      the model, each part once it is trained
prior/                  generated pictures for --prior-prompt
learned_embeds.safetensors          embedding of --finetune textual_inversion, which the model has as well
pytorch_lora_weights.safetensors    weights of --finetune lora, to be loaded into the base model
<run folder's name>.safetensors     the same with --lora-layout kohya
"""

import dataclasses
import functools
import itertools
import os
from pathlib import Path

import numpy as np

from sd_tf.checkpoints.clip import load_text_encoder, save_clip, text_config
from sd_tf.checkpoints.perceptual import load_perceptual
from sd_tf.checkpoints.word_files import FILE as WORD_FILE
from sd_tf.checkpoints.word_files import write_word
from sd_tf.errors import InputError
from sd_tf.latent import folder as folders
from sd_tf.latent.caching import cached_latents
from sd_tf.latent.loading import unread
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.new_model import copied, sketched
from sd_tf.latent.options import MODEL, STAGES, LatentOptions
from sd_tf.latent.presets import preset_named
from sd_tf.latent.stages import AutoencoderStage, ClipStage, DiffusionStage
from sd_tf.latent.textual_inversion import TextualInversionStage
from sd_tf.lora.files import FILE as LORA_FILE
from sd_tf.lora.files import write_lora
from sd_tf.nn.perceptual import PerceptualNetwork
from sd_tf.seeding import seeded
from sd_tf.text.clip import CLIPModel
from sd_tf.text.encoder import kind_of
from sd_tf.text.known_words import words_of, write_words
from sd_tf.text.tokenizer import Tokenizer
from sd_tf.training import prior
from sd_tf.training.base_weights import RecipeFromBase
from sd_tf.training.finetuning import (
    check_fine_tuning,
    choose_what_learns,
    learned_changes,
    without_lora,
)
from sd_tf.training.new_word import teach_word
from sd_tf.training.recipe import PlannedStage
from sd_tf.unread import Unread

LONGEST_NAME = 200  # bytes of the run folder's name in a file name; file systems allow 255 in all
ATTENTION = ".attn2."  # in the keys of cross-attention
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out")
MODEL_INDEX = "model_index.json"


class LatentRecipe(RecipeFromBase):
    """Trains a new model from scratch, or fine-tunes a trained one.

    Args:
        model: a `LatentDiffusion`.
        options: `LatentOptions`.
        folder: run folder.
        is_new: whether all stages are trained, from random weights.

    Raises:
        InputError: an option does not apply to the model.
    """

    family = "latent"
    stage_names = STAGES
    results = (MODEL_INDEX, LORA_FILE)
    files = (MODEL_INDEX, LORA_FILE, WORD_FILE)
    folders = ("clip", prior.FOLDER, "vae", "unet", "text_encoder", "tokenizer", "scheduler")

    def __init__(self, model: LatentDiffusion, options: LatentOptions, folder: Path, is_new: bool):
        super().__init__(model, folder, is_new)
        self.own = options
        if is_new:
            options.check_of_a_new_model()
            self.preset = model.provenance.beginning.preset
            self.image_size = self.preset.autoencoder.sample_size
        else:
            options.check_of_a_trained_model()
            self.preset = _fine_tuning_preset(options)
            self.image_size = _training_size(model, options)
        self.minutes, self.options = self.preset.max_minutes, (options,)

    @property
    def leaves_weights(self):
        return self.own.finetune == "lora"

    def described(self):
        model, schedule = self.model, self.model.schedule.config
        if not self.is_new:
            text_encoder = "the model's"
        else:
            trains_clip = model.provenance.beginning.trains_text_encoder
            text_encoder = "trained in this run" if trains_clip else self.own.text_encoder
        return {
            "text_encoder": text_encoder or self.preset.text_encoder,
            "prediction_type": schedule.prediction_type,
            "beta_schedule": schedule.beta_schedule,
        }

    def result(self, folder: Path) -> str:
        if self.own.finetune != "lora":
            return MODEL_INDEX
        if self.own.lora_layout == "kohya":
            name = os.fsencode(folder.resolve().name)[:LONGEST_NAME]
            return f"{name.decode(errors='ignore')}.safetensors"
        return LORA_FILE

    def read_model(self):
        self.model.read_networks()

    def finished(self, run):
        super().finished(run)
        results = [run.folder / each.result for each in self._all_stages(run)]
        self.model.provenance.is_trained = all(result.exists() for result in results)

    def check(self, run):
        own, options = self.own, run.options
        if own.finetune == "textual_inversion" and not self.model.reads_by_clip:
            kind = kind_of(self.model.text_config)
            raise InputError(
                f"{own.named_value('finetune')}, but the model reads with a {kind}, and a word can be taught "
                "to a CLIP alone: take lora"
            )
        if not self.is_new:
            check_fine_tuning(self.model, own, run, self._place in self.model.provenance.bases)
        if own.stage == "diffusion" and self.is_new and not options.dry_run:
            for planned in self._all_stages(run)[:-1]:
                if not (run.folder / planned.result).is_dir():
                    raise InputError(
                        f"{run.folder / planned.result} is missing: run {own.said('stage')} {planned.name} "
                        f"first, or leave {own.said('stage')} out"
                    )

    def stages(self, run):
        stages = self._all_stages(run)
        return [each for each in stages if self.own.stage in (None, each.name)]

    def stages_before(self, run):
        first = self.stages(run)[0].name
        return list(itertools.takewhile(lambda each: each.name != first, self._all_stages(run)))

    def _all_stages(self, run):
        if not self.is_new:
            return [Diffusion(self, run)]
        clip = [Clip(self, run)] if self.model.provenance.beginning.trains_text_encoder else []
        return [*clip, Autoencoder(self, run), Diffusion(self, run)]


def recipe_of(model, options, folder) -> LatentRecipe:
    """The recipe of a model's run in that folder; see `LatentRecipe`."""
    is_new = model.provenance.trains_from_random_weights(folder)
    if is_new:
        options = options.joined_with(model.provenance.beginning.options, MODEL)
    return LatentRecipe(model, options, folder, is_new)


class _Planned(PlannedStage):
    """Base class of the stages of a `LatentRecipe`.

    Attributes:
        network: name of the model's network that is trained; None if it is a new one.
    """

    network = None

    def __init__(self, recipe, run):
        self.recipe, self.model = recipe, recipe.model
        config = getattr(recipe.preset, f"{self.name}_stage")
        self.config, self.share = run.stage_config(config), config.share
        self.batch_size = self.config.batch_size

    def _begin(self):
        """Of a new model, a network that a stopped training has changed gets its random weights back."""
        provenance = self.model.provenance
        if self.recipe.is_new and self.network in provenance.half_trained:
            self.model.put(**{self.network: provenance.beginning.networks[self.network]})
            provenance.half_trained.remove(self.network)

    def stopped(self, run, has_learned):
        if has_learned and self.network is not None:
            self.model.provenance.half_trained.add(self.network)
            self.model.origin = None


class Clip(_Planned):
    """The preset's CLIP, whose text tower becomes the model's text encoder."""

    name, result = "clip", "clip"

    def make(self, run, budget=None):
        with seeded(run.options.seed):
            clip = CLIPModel(self.recipe.preset.text, self.recipe.preset.vision, dtype=self.model.dtype)
            clip.build()
        return ClipStage(self.config, clip, self.model.tokenizer, run.dataset, run.options.seed)

    def finish(self, run, stage):
        folder = run.folder / self.result
        save_clip(stage.network, stage.tokenizer, folder, run.options.save_dtype)
        write_words(folder, words_of(run.dataset.corpus()))

    def restore(self, run):
        folder = run.folder / self.result
        config = text_config(folder)
        self.model.tokenizer = Tokenizer.load(folder, max_length=config.max_position_embeddings)
        self.model.put(text_encoder=Unread(config, lambda: load_text_encoder(folder, self.model.dtype)))

    def outline(self, run):
        return self.make(run), 0


class Autoencoder(_Planned):
    """The preset's autoencoder."""

    name, result, network = "autoencoder", "vae", "autoencoder"

    def make(self, run, budget=None):
        weight = self._perceptual_weight
        perceptual = load_perceptual() if weight else None
        self._begin()
        return self._stage(run, self.model.autoencoder, perceptual, weight)

    @property
    def _perceptual_weight(self):
        weight = self.recipe.own.perceptual_weight
        return self.recipe.preset.perceptual_weight if weight is None else weight

    def _stage(self, run, network, perceptual, weight):
        return AutoencoderStage(self.config, network, run.dataset, run.options.seed, perceptual, weight)

    def finish(self, run, stage):
        stage.calibrate()
        folders.save_autoencoder(stage.network, run.folder / self.result, run.options.save_dtype)

    def restore(self, run):
        self.model.put(autoencoder=unread(run.folder, "autoencoder", self.model.dtype))

    def outline(self, run):
        perceptual, weight = None, self._perceptual_weight
        if weight:
            perceptual = PerceptualNetwork(num_classes=1)
            perceptual.build()
        return self._stage(run, sketched(self.model).autoencoder, perceptual, weight), 0


class Diffusion(_Planned):
    """The UNet, or a new word's embedding, on cached latents and captions."""

    name, network = "diffusion", "unet"

    def __init__(self, recipe, run):
        super().__init__(recipe, run)
        self.own, self.result, self._before = recipe.own, run.result, None

    def make(self, run, budget):
        model, own = self.model, self.own
        if not self.recipe.is_new:
            self.recipe.unload_lora(run)
        if own.finetune == "textual_inversion":
            self._teach_word()
        if own.prior_prompt is not None:
            prior.mix_in_prior(run, own, copied(model))  # whose graphs go with it
        self._remove_lora()  # of a start that was interrupted
        self._begin()
        with seeded(run.options.seed):
            self._choose_what_learns(model.unet)
        if own.finetune == "lora":
            model.forget_engines()  # compiled without it
        cache = cached_latents(
            run,
            model,
            budget,
            epochs=self.recipe.preset.cached_epochs,
            batch_size=self.batch_size,
            token_ids=own.new_word,
            each_once=not self.recipe.is_new,  # for fine-tuning, pictures are few: none is left out
        )
        return self._stage(run, model, cache)

    def _choose_what_learns(self, unet):
        given = self.own.lora_targets
        choose_what_learns(unet, self.own, ATTENTION, given.split(",") if given else LORA_TARGETS)

    def _stage(self, run, model, cache):
        preset, own = self.recipe.preset, self.own
        kind = DiffusionStage
        if own.finetune == "textual_inversion":
            kind = functools.partial(TextualInversionStage, token=own.new_word)
        return kind(
            self.config,
            model,
            cache,
            own.caption_dropout,
            run.options.seed,
            min_snr_gamma=own.min_snr_gamma,
            timestep_sampling=own.timestep_sampling or preset.timestep_sampling,
            logit_mean=preset.logit_mean if own.logit_mean is None else own.logit_mean,
            offset_noise=own.offset_noise,
            preview_prompts=run.dataset.preview_prompts,
        )

    def finish(self, run, stage):
        own, save_dtype = self.own, run.options.save_dtype
        if own.finetune == "textual_inversion":
            write_word(run.folder / WORD_FILE, own.new_word, stage.write_word())
        if own.finetune == "lora":
            changes = learned_changes(self.model.unet)
            write_lora(run.folder / self.result, changes, own.lora_layout or "diffusers", save_dtype)
        else:
            if self.model.known_words is not None:
                self.model.known_words |= words_of(run.dataset.corpus())
            self.model.save(run.folder, save_dtype)

    def restore(self, run):
        model = self.model
        if self.own.finetune == "lora":
            self._remove_lora()
            if run.folder.name not in model.adaptations.weights:
                model.load_lora(run.folder / self.result, name=run.folder.name)
        else:
            model.read_from(run.folder)

    def stopped(self, run, has_learned):
        if self.own.finetune == "lora":
            self._remove_lora()
        elif self.own.finetune == "textual_inversion":
            self._forget_word()
        else:
            super().stopped(run, has_learned)
            has_checkpoint = any((run.folder / "checkpoints" / self.name).glob("step-*"))
            if has_learned and not has_checkpoint:
                self.recipe.forget_base()

    def _teach_word(self):
        model = self.model
        if self.own.new_word not in model.provenance.taught_words:
            self._before = model.text_encoder, model.tokenizer, model.origin
        teach_word(model, model.text_encoder, model.tokenizer, self.own.new_word, self.own.like_word)

    def _forget_word(self):
        """The text tower is as it was before this stage taught it the word, which the checkpoint keeps."""
        if self._before is not None:
            text_encoder, tokenizer, origin = self._before
            self.model.put(text_encoder=text_encoder)
            self.model.tokenizer, self.model.origin = tokenizer, origin
            self.model.provenance.taught_words.discard(self.own.new_word)

    def _remove_lora(self):
        """Of what learns: the UNet is as it was."""
        origin = self.model.origin
        self.model.put(unet=without_lora(self.model.unet))
        self.model.origin = origin

    def outline(self, run):
        model = sketched(self.model)
        self._choose_what_learns(model.unet)
        frozen = [
            *model.autoencoder.variables,
            *model.text_encoder.variables,
            *model.unet.non_trainable_variables,
        ]
        stage = self._stage(run, model, _ShapesOnly(model))
        return stage, sum(variable.shape.num_elements() for variable in frozen)


class _ShapesOnly:
    """A stand-in for a `LatentCache`, of one picture: only its shapes matter."""

    def __init__(self, model):
        height, width = model.unet.config.latent_size
        self.mean = self.std = np.zeros((1, height, width, model.unet.config.in_channels), np.float16)
        self.contexts = np.zeros((2, model.tokenizer.max_length, model.text_config.width), np.float16)
        self.caption = np.zeros(1, np.int32)
        self.seconds = 0.0

    def __len__(self):
        return 1


def _fine_tuning_preset(options):
    """The preset for fine-tuning, with the learning rate for the weights that are trained."""
    preset = preset_named(options.preset or "fine-tuning")
    stage = preset.diffusion_stage
    stage = dataclasses.replace(
        stage, learning_rate=preset.learning_rates.get(options.fine_tuning, stage.learning_rate)
    )
    return dataclasses.replace(preset, diffusion_stage=stage)


def _training_size(model, options):
    """Pixels along a side of the pictures that a trained model is fine-tuned on: its own size."""
    height, width = model.image_size
    name = options.init_from or "the model"
    if height != width:
        raise InputError(
            f"{name} draws pictures of {width} x {height}: only models of square pictures can be fine-tuned"
        )
    if options.image_size not in (None, width):
        raise InputError(
            f"{options.named_value('image_size')}, but {name} can only be fine-tuned on "
            f"pictures of its own size, {width} x {height}: leave it out"
        )
    return width

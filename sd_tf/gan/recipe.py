"""How a GAN is trained: one stage of two players, on pictures and the cached states of captions.

generator/ discriminator/ text_encoder/ tokenizer/ model_index.json     the finished model
"""

import dataclasses
import functools

from sd_tf.checkpoints.clip import load_clip
from sd_tf.checkpoints.perceptual import load_perceptual
from sd_tf.checkpoints.tokenizers import load_tokenizer
from sd_tf.errors import InputError, argument
from sd_tf.gan import folder as folders
from sd_tf.gan.discriminator import Discriminator
from sd_tf.gan.enlarging import EnlargingStage
from sd_tf.gan.generator import Generator
from sd_tf.gan.new_model import changed
from sd_tf.gan.options import MODEL, GanOptions
from sd_tf.gan.presets import preset_named
from sd_tf.gan.stages import DISCRIMINATOR, GENERATOR, GanStage
from sd_tf.text.known_words import words_of
from sd_tf.training.base_weights import RecipeFromBase
from sd_tf.training.caption_states import ShapesOnly, cached_texts
from sd_tf.training.recipe import PlannedStage

USUAL = "fashion-mnist-gan"  # whose training settings a model of a folder goes on with


class GanRecipe(RecipeFromBase):
    """Trains the players of a new GAN, or goes on with a trained one.

    Args:
        model: a `GigaGAN`.
        options: `GanOptions`.
        folder: run folder.
        is_new: whether the networks have random weights.

    Raises:
        InputError: an option does not apply to the model.
    """

    family = "gan"
    stage_names = ("gan",)
    files = (folders.MODEL_INDEX, *folders.OTHER_FILES)
    folders = ("generator", "discriminator", "text_encoder", "tokenizer")

    def __init__(self, model, options: GanOptions, folder, is_new: bool):
        super().__init__(model, folder, is_new)
        self.own, self.options = options, (options,)
        if not is_new:
            options.check_of_a_trained_model()
        options.check_of_a_model(model.small_size is not None)
        if model.discriminator_config is None:
            raise InputError(
                "the model has no discriminator, so it cannot be trained: save it with one, or train a new "
                "one"
            )
        beginning = model.provenance.beginning
        self.preset = changed(usual_preset() if beginning is None else beginning.preset, options)
        self._check_losses()
        self.image_size, self.minutes = model.image_size[0], self.preset.max_minutes

    def _check_losses(self):
        """Raises `InputError` for options of a loss that is left out."""
        options, losses = self.own, self.preset.losses
        for name in ("clip", "clip_features"):
            if getattr(options, name) is not None and not losses.clip:
                raise InputError(
                    f"{options.said(name)} needs {options.said('clip_weight')}: add it, or leave "
                    f"{options.said(name)} out"
                )
        for name in ("reconstruction_weight", "perceptual_weight", "kl_weight"):
            if getattr(options, name) and not self.model.generator_config.encoder_channels:
                raise InputError(
                    f"{options.named_value(name)}, and the model has no encoder, which that loss trains: "
                    "leave it out, or train a new model with an encoder"
                )

    def described(self):
        encoder = self.model.text_encoder
        losses, small = self.preset.losses._asdict(), self.model.small_size
        if small is None:
            del losses["low_res"]
        if not self.model.generator_config.encoder_channels:
            del losses["reconstruction"], losses["perceptual"], losses["kl"]
        found = {
            "text_encoder": "none" if encoder is None else f"{encoder.width} wide, {encoder.length} tokens",
            "losses": ", ".join(f"{name} {value}" for name, value in losses.items()),
        }
        return found if small is None else found | {"enlarges": f"{small[1]} x {small[0]} pixels"}

    def read_model(self):
        self.model.read_networks()

    def finished(self, run):
        super().finished(run)
        self.model.origin = None
        self.model.provenance.is_trained = True
        self.learn_words(run)

    def learn_words(self, run):
        """The model knows the words of the run's captions."""
        if self.model.known_words is not None:
            self.model.known_words |= words_of(run.dataset.distinct_captions)

    def stages(self, run):
        return [PlannedGan(self, run)]


def usual_preset():
    """The training settings that a model of a folder goes on with.

    Without CLIP's loss, unless it is asked for: the bundled CLIP may not know the captions.
    """
    usual = preset_named(USUAL)
    return dataclasses.replace(usual, losses=usual.losses._replace(clip=0.0))


def recipe_of(model, options, folder) -> GanRecipe:
    """The recipe of a model's run in that folder; see `GanRecipe`."""
    is_new = model.provenance.trains_from_random_weights(folder)
    if is_new:
        options = options.joined_with(model.provenance.beginning.options, MODEL)
    return GanRecipe(model, options, folder, is_new)


class PlannedGan(PlannedStage):
    """The one stage."""

    name, share, result = "gan", 1.0, folders.MODEL_INDEX

    def __init__(self, recipe, run):
        self.recipe, self.model = recipe, recipe.model
        self.players = {
            DISCRIMINATOR: run.stage_config(recipe.preset.discriminator_training),
            GENERATOR: run.stage_config(recipe.preset.generator_training),
        }
        self.batch_size = self.players[GENERATOR].batch_size
        self.unit = self.model.discriminator_config.minibatch_groups

    def make(self, run, budget):
        model, provenance = self.model, self.model.provenance
        if self.recipe.is_new and self.name in provenance.half_trained:  # its random weights again
            model.put(*(provenance.beginning.networks[name] for name in (GENERATOR, DISCRIMINATOR)))
            provenance.half_trained.remove(self.name)
        texts = None if model.text_encoder is None else cached_texts(run, model.text_encoder)
        return self._stage(run, model.generator, model.discriminator, texts)

    def _stage(self, run, generator, discriminator, texts):
        preset, kind = self.recipe.preset, GanStage
        if self.model.small_size is not None:
            kind = functools.partial(
                EnlargingStage, low_res_noise=preset.low_res_noise, caption_dropout=preset.caption_dropout
            )
        return kind(
            generator,
            discriminator,
            self.players,
            run.dataset,
            texts,
            preset.losses,
            preset.augmentation,
            run.options.seed,
            self._clip() if preset.losses.clip else None,
            self.model,
            self._vision(discriminator),
        )

    def _vision(self, discriminator):
        """The frozen network that judges or compares pictures; None if nothing asks for it."""
        preset, config = self.recipe.preset, self.model.generator_config
        if discriminator.config.vision_channels or (config.encoder_channels and preset.losses.perceptual):
            return load_perceptual(preset.vision)
        return None

    def _clip(self):
        name = self.recipe.own.clip or "clip-mini"
        clip = load_clip(name)
        clip.trainable = False
        widths = clip.text_config.hidden_size, clip.vision_config.hidden_size
        if self.recipe.preset.losses.clip_features == "token_states" and widths[0] != widths[1]:
            raise InputError(
                f"{argument('clip')} is {name}, whose states are {widths[0]} and {widths[1]} wide and need "
                f"projections to be compared: leave {argument('clip_features')} token_states out"
            )
        return clip, load_tokenizer(name, clip.text_config.max_position_embeddings)

    def finish(self, run, stage):
        self.recipe.learn_words(run)
        folders.save(self.model, run.folder, run.options.save_dtype)

    def restore(self, run):
        dtype = self.model.dtype
        self.model.put(
            *(folders.unread_network(run.folder, name, dtype) for name in (GENERATOR, DISCRIMINATOR))
        )

    def stopped(self, run, has_learned):
        if has_learned:
            self.model.origin = None
            self.model.provenance.half_trained.add(self.name)
            has_checkpoint = any((run.folder / "checkpoints" / self.name).glob("step-*"))
            if not self.recipe.is_new and not has_checkpoint:
                self.recipe.forget_base()

    def outline(self, run):
        made = []
        for kind, config in (
            (Generator, self.model.generator_config),
            (Discriminator, self.model.discriminator_config),
        ):
            network = kind(config, dtype=self.model.dtype)
            network.build()
            made.append(network)
        encoder = self.model.text_encoder
        texts = None if encoder is None else ShapesOnly(encoder.length, encoder.width)
        return self._stage(run, *made, texts), 0

"""How a cascade is trained: each stage by itself, on pictures of its size and the cached states of captions.

base/ sr2/ ...          the stages, each a folder that diffusers' IF pipelines open; base has the text encoder
model_index.json        lists them; the first ones, while later ones are missing
prior/                  generated pictures for --prior-prompt
learned_embeds.safetensors                          embedding of --finetune textual_inversion
base/pytorch_lora_weights.safetensors sr2/...       weights of --finetune lora, in the place of the stages
"""

import dataclasses
import functools
import itertools

from sd_tf.cascade import folder as folders
from sd_tf.cascade.new_model import copied
from sd_tf.cascade.options import MODEL, CascadeOptions
from sd_tf.cascade.presets import preset_named
from sd_tf.cascade.stage import PixelStage, stage_name
from sd_tf.cascade.stages import BaseStage, SuperResolutionStage
from sd_tf.cascade.textual_inversion import TextualInversionStage, TokenIds
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.checkpoints.word_files import FILE as WORD_FILE
from sd_tf.checkpoints.word_files import write_word
from sd_tf.data.with_prior import WithPrior
from sd_tf.errors import InputError, unknown
from sd_tf.lora.files import FILE as LORA_FILE
from sd_tf.lora.files import write_lora
from sd_tf.seeding import seeded
from sd_tf.skeleton import skeleton
from sd_tf.text.known_words import words_of
from sd_tf.training import prior
from sd_tf.training.base_weights import RecipeFromBase
from sd_tf.training.caption_states import ShapesOnly, cached_texts
from sd_tf.training.finetuning import (
    check_fine_tuning,
    choose_what_learns,
    layers_for_lora,
    learned_changes,
    without_lora,
)
from sd_tf.training.new_word import teach_word
from sd_tf.training.recipe import PlannedStage

ATTENTION = ".attentions."  # in the keys of the layers that attend to the text
# Of diffusers' example for DeepFloyd IF. A stage that attends to the text alone has no to_k and to_v.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj")


class CascadeRecipe(RecipeFromBase):
    """Trains the stages of a new cascade, or fine-tunes a trained one.

    Args:
        model: a `CascadedDiffusion`.
        options: `CascadeOptions`.
        folder: run folder.
        is_new: whether all stages are trained, from random weights.

    Raises:
        InputError: an option does not apply to the model.
    """

    family = "cascade"
    files = (folders.MODEL_INDEX, *folders.OTHER_FILES, WORD_FILE)

    def __init__(self, model, options: CascadeOptions, folder, is_new: bool):
        super().__init__(model, folder, is_new)
        self.own, self.names = options, model.stage_names
        self.stage_names, self.folders = tuple(self.names), (*self.names, prior.FOLDER)
        loras = (f"{name}/{LORA_FILE}" for name in self.names)
        self.results = (folders.MODEL_INDEX, *folders.OTHER_FILES, *loras)
        options.check_of_a_model(self.names, is_new, model.text_encoder)
        if model.upsampler is not None:
            raise InputError(
                f"stage {model.upsampler_name} of the model is a {type(model.upsampler).__name__}, which is "
                "trained by itself: train a model of the other stages, and put them together again"
            )
        self.preset = model.provenance.beginning.preset if is_new else _fine_tuning_preset(options)
        height, width = model.image_size
        if height != width:
            raise InputError(
                f"the model draws {width} x {height} pixels: only models of square pictures can be trained"
            )
        self.image_size = height
        self.minutes, self.options = self.preset.max_minutes, (options,)

    @property
    def leaves_weights(self):
        return self.own.finetune == "lora"

    def result(self, folder):
        if self.own.finetune == "lora":
            return f"{(self.own.stages or self.names)[0]}/{LORA_FILE}"
        return folders.MODEL_INDEX

    def described(self):
        stage, encoder = self.model.stages[0], self.model.text_encoder
        return {
            "text_encoder": f"{encoder.width} wide, {encoder.length} tokens",
            "prediction_type": stage.schedule.config.prediction_type,
            "beta_schedule": stage.schedule.config.beta_schedule,
        }

    def read_model(self):
        self.model.read_networks()

    def finished(self, run):
        super().finished(run)
        if self.own.finetune == "lora":
            if run.folder.name not in self.model.adaptations.weights:
                self.model.load_lora(run.folder, name=run.folder.name)
            return
        self.model.origin = None
        self.learn_words(run)
        # Here and not when a stage is finished: a run that was ended between the two makes up for it.
        done = list(itertools.takewhile(lambda name: (run.folder / name).is_dir(), self.names))
        if run.workers.is_chief and done:
            folders.save_index(self.model, run.folder, len(done))
        run.workers.wait()
        self.model.provenance.is_trained = done == self.names

    def learn_words(self, run):
        """The model knows the words of the run's captions."""
        if self.model.known_words is not None:
            self.model.known_words |= words_of(run.dataset.distinct_captions)

    def check(self, run):
        if not self.is_new:
            check_fine_tuning(self.model, self.own, run, self._place in self.model.provenance.bases)
            if self.own.finetune == "lora":
                self._check_targets()
        if self.model.stages[0].is_super_resolution:
            self._check_only_enlarging()
        for number, stage in enumerate(self.model.stages):
            crop = self.crop_of(number)
            multiple = stage.config.size_multiple
            if crop and (crop > stage.image_size[0] or crop % multiple):
                raise InputError(
                    f"{self.own.said('crop')} is {crop}: stage {stage_name(number)} draws "
                    f"{stage.image_size[0]} pixels, give as many or fewer, a multiple of {multiple}"
                )

    def _check_only_enlarging(self):
        """Raises `InputError` for options for which pictures are drawn from text alone."""
        for name, is_given, way_out in (
            ("finetune", self.own.finetune == "textual_inversion", "train a LoRA"),
            ("prior_prompt", self.own.prior_prompt is not None, "leave it out"),
        ):
            if is_given:
                raise InputError(
                    f"{self.own.named_value(name)}, which needs a stage that draws from text alone, and this "
                    f"model only enlarges pictures: {way_out}"
                )

    def _check_targets(self):
        """Each layer that a LoRA is for is in one of the stages that learn, and each of these has one."""
        given, found = self.own.lora_targets, {}
        if not given:
            return
        for name, stage in zip(self.names, self.model.stages, strict=True):
            if self.own.stages is None or name in self.own.stages:
                with skeleton():
                    unet = PixelUNet(stage.config)
                    unet.build()
                found[name] = layers_for_lora(unet)
        everywhere = sorted(set().union(*found.values()))
        for target in given.split(","):
            if target not in everywhere:
                raise unknown("layer for a LoRA", target, everywhere)
        for name, layers in found.items():
            if set(layers).isdisjoint(given.split(",")):
                raise InputError(
                    f"{self.own.said('lora_targets')} is {given}, of which stage {name} has none: leave the "
                    f"stage out, or take some of {', '.join(layers)}"
                )

    def choose_what_learns(self, unet):
        """Freezes what of a UNet is not to learn, and adds a LoRA if one is trained."""
        given, layers = self.own.lora_targets, layers_for_lora(unet)
        targets = given.split(",") if given else LORA_TARGETS
        choose_what_learns(unet, self.own, ATTENTION, [target for target in targets if target in layers])

    def mix_in_prior(self, run):
        """The pictures of `prior_prompt`, drawn by the model before any of its stages has learned."""
        if self.own.prior_prompt is not None and not isinstance(run.dataset, WithPrior):
            prior.mix_in_prior(run, self.own, copied(self.model))

    def crop_of(self, number: int) -> int:
        """Pixels along a side of the patches that a stage learns from; 0 for whole pictures."""
        if number == 0:
            return 0
        return self.preset.stage(number).crop if self.own.crop is None else self.own.crop

    def stages(self, run):
        return [
            each for each in self._all_stages(run) if self.own.stages is None or each.name in self.own.stages
        ]

    def stages_before(self, run):
        chosen = {each.name for each in self.stages(run)}
        return [each for each in self._all_stages(run) if each.name not in chosen]

    def _all_stages(self, run):
        if self.own.finetune == "textual_inversion":
            return [PlannedWord(self, run, 0)]
        return [PlannedPixelStage(self, run, number) for number in range(len(self.model.stages))]


def recipe_of(model, options, folder) -> CascadeRecipe:
    """The recipe of a model's run in that folder; see `CascadeRecipe`."""
    is_new = model.provenance.trains_from_random_weights(folder)
    if is_new:
        options = options.joined_with(model.provenance.beginning.options, MODEL)
    return CascadeRecipe(model, options, folder, is_new)


def _fine_tuning_preset(options):
    """The preset for fine-tuning, with the learning rate for the weights that are trained."""
    preset = preset_named("fine-tuning")

    def with_rate(stage):
        rate = preset.learning_rates.get(options.fine_tuning, stage.training.learning_rate)
        training = dataclasses.replace(stage.training, learning_rate=rate)
        return dataclasses.replace(stage, training=training)

    return dataclasses.replace(preset, stages=tuple(map(with_rate, preset.stages)))


class PlannedPixelStage(PlannedStage):
    """A stage of the cascade. It learns from the data alone: the stages before it need not be trained."""

    def __init__(self, recipe, run, number):
        self.recipe, self.model, self.number = recipe, recipe.model, number
        self.stage = self.model.stages[number]
        self.name = self.result = stage_name(number)
        if recipe.own.finetune == "lora":
            self.result = f"{self.name}/{LORA_FILE}"
        config = recipe.preset.stage(number).training
        self.config, self.share = run.stage_config(config), config.share
        self.batch_size = self.config.batch_size

    def make(self, run, budget):
        recipe, provenance = self.recipe, self.model.provenance
        if not recipe.is_new:
            recipe.unload_lora(run)
            self._remove_lora()  # of a start that was interrupted
            recipe.mix_in_prior(run)
        if recipe.is_new and self.name in provenance.half_trained:  # its random weights again
            self.stage.put(provenance.beginning.networks[self.name])
            provenance.half_trained.remove(self.name)
        with seeded(run.options.seed):
            recipe.choose_what_learns(self.stage.unet)
        if recipe.own.finetune == "lora":
            self.stage.forget_engines()  # compiled without it
        return self._stage(run, self.stage, cached_texts(run, self.model.text_encoder))

    def _remove_lora(self):
        """Of what learns: the UNet is as it was."""
        origin = self.model.origin
        self.model.put(self.number, without_lora(self.stage.unet))
        self.model.origin = origin

    def _stage(self, run, stage, texts):
        preset, own = self.recipe.preset, self.recipe.own
        settings = {
            "min_snr_gamma": preset.min_snr_gamma if own.min_snr_gamma is None else own.min_snr_gamma,
            "timestep_sampling": own.timestep_sampling or preset.timestep_sampling,
            "logit_mean": preset.logit_mean if own.logit_mean is None else own.logit_mean,
            "offset_noise": own.offset_noise,
        }
        dropout = preset.caption_dropout if own.caption_dropout is None else own.caption_dropout
        shared = (self.config, self.name, stage, run.dataset, texts, dropout, run.options.seed)
        if not stage.is_super_resolution:
            return self._base_stage(*shared, self.model, **settings)
        return SuperResolutionStage(
            *shared,
            self.model,
            small=self.model.small_size_of(self.number),
            crop=self.recipe.crop_of(self.number),
            **settings,
        )

    @property
    def _base_stage(self):
        return BaseStage

    def finish(self, run, stage):
        if self.recipe.own.finetune == "lora":
            (run.folder / self.name).mkdir(exist_ok=True)
            changes = learned_changes(self.stage.unet)
            write_lora(run.folder / self.result, changes, dtype=run.options.save_dtype)
            return
        self.recipe.learn_words(run)
        folders.save_stage(self.model, self.number, run.folder / self.name, run.options.save_dtype)

    def restore(self, run):
        if self.recipe.own.finetune == "lora":
            self._remove_lora()
        else:
            self.model.put(self.number, folders.unread_unet(run.folder / self.name, self.model.dtype))

    def stopped(self, run, has_learned):
        if self.recipe.own.finetune == "lora":
            self._remove_lora()
        elif has_learned:
            self.model.origin = None
            self.model.provenance.half_trained.add(self.name)
            has_checkpoint = any((run.folder / "checkpoints" / self.name).glob("step-*"))
            if not self.recipe.is_new and not has_checkpoint:
                self.recipe.forget_base()

    def outline(self, run):
        network = PixelUNet(self.stage.config, dtype=self.model.dtype)
        network.build()
        self.recipe.choose_what_learns(network)
        stage = PixelStage(network, self.stage.schedule, self.stage.noising)
        encoder = self.model.text_encoder
        texts = ShapesOnly(encoder.length, encoder.width)
        frozen = sum(variable.shape.num_elements() for variable in network.non_trainable_variables)
        return self._stage(run, stage, texts), frozen


class PlannedWord(PlannedPixelStage):
    """A new word, learned by the first stage; what is written is a whole model that knows it."""

    def __init__(self, recipe, run, number):
        super().__init__(recipe, run, number)
        self.result, self._before = folders.MODEL_INDEX, None

    def make(self, run, budget):
        own, model = self.recipe.own, self.model
        encoder = model.text_encoder
        if own.new_word not in model.provenance.taught_words:
            self._before = encoder, model.origin
        teach_word(model, encoder.network(), encoder.tokenizer, own.new_word, own.like_word)
        self.recipe.unload_lora(run)
        self.recipe.mix_in_prior(run)
        return self._stage(run, self.stage, TokenIds(model.text_encoder, run.dataset.distinct_captions))

    @property
    def _base_stage(self):
        return functools.partial(TextualInversionStage, token=self.recipe.own.new_word)

    def finish(self, run, stage):
        write_word(run.folder / WORD_FILE, self.recipe.own.new_word, stage.word.write())
        self.recipe.learn_words(run)
        self.model.save(run.folder, run.options.save_dtype)

    def restore(self, run):
        encoder, dtype = self.model.text_encoder, self.model.dtype
        self.model.text_encoder = open_text_encoder(run.folder / self.name, encoder.length)
        for number, name in enumerate(self.recipe.names):
            self.model.put(number, folders.unread_unet(run.folder / name, dtype))

    def stopped(self, run, has_learned):
        if self._before is not None:  # as it was before it was taught the word, which the checkpoint keeps
            self.model.text_encoder, self.model.origin = self._before
            self.model.provenance.taught_words.discard(self.recipe.own.new_word)

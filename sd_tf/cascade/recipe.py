"""How a cascade is trained: each stage by itself, on pictures of its size and the cached states of captions.

base/ sr2/ ...          the stages, each a folder that diffusers' IF pipelines open; base has the text encoder
model_index.json        lists them, once all are there
"""

import contextlib

import numpy as np

from sd_tf.cascade import folder as folders
from sd_tf.cascade.options import MODEL, CascadeOptions
from sd_tf.cascade.presets import preset_named
from sd_tf.cascade.stage import PixelStage, stage_name
from sd_tf.cascade.stages import BaseStage, SuperResolutionStage
from sd_tf.cascade.unet import PixelUNet
from sd_tf.data.text_cache import text_cache
from sd_tf.errors import InputError, unknown
from sd_tf.hashing import fingerprint
from sd_tf.progress import tqdm
from sd_tf.text.known_words import words_of
from sd_tf.training.base_weights import RecipeFromBase
from sd_tf.training.recipe import PlannedStage

ENCODED_AT_ONCE = 64  # captions


class CascadeRecipe(RecipeFromBase):
    """Trains the stages of a new cascade, or trains those of a trained one further.

    Args:
        model: a `CascadedDiffusion`.
        options: `CascadeOptions`.
        folder: run folder.
        is_new: whether all stages are trained, from random weights.

    Raises:
        InputError: an option does not apply to the model.
    """

    family = "cascade"
    results = files = (folders.MODEL_INDEX, *folders.OTHER_FILES)

    def __init__(self, model, options: CascadeOptions, folder, is_new: bool):
        super().__init__(model, folder, is_new)
        self.own = options
        self.names = [stage_name(number) for number in range(len(model.stages))]
        self.stage_names = self.folders = tuple(self.names)
        for name in options.stages or ():
            if name not in self.names:
                raise unknown(options.said("stages"), name, self.names)
        if not is_new and options.stages is not None and len(options.stages) < len(self.names):
            raise InputError(
                f"{options.said('stages')} is for a new model: leave it out, a trained one is trained whole"
            )
        if is_new:
            self.preset = model.provenance.beginning.preset
        else:
            options.check_of_a_trained_model()
            self.preset = preset_named("fine-tuning")
        height, width = model.image_size
        if height != width:
            raise InputError(
                f"the model draws {width} x {height} pixels: only models of square pictures can be trained"
            )
        self.image_size = height
        self.minutes, self.options = self.preset.max_minutes, (options,)

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
        self.model.origin = None
        self.learn_words(run)
        # Here and not when a stage is finished: a run that was ended between the two makes up for it.
        if run.workers.is_chief and all((run.folder / name).is_dir() for name in self.names):
            folders.save_index(self.model, run.folder)
        run.workers.wait()
        self.model.provenance.is_trained = (run.folder / folders.MODEL_INDEX).is_file()

    def learn_words(self, run):
        """The model knows the words of the run's captions."""
        if self.model.known_words is not None:
            self.model.known_words |= words_of(run.dataset.distinct_captions)

    def check(self, run):
        for number, stage in enumerate(self.model.stages):
            crop = self.crop_of(number)
            multiple = stage.config.size_multiple
            if crop and (crop > stage.image_size[0] or crop % multiple):
                raise InputError(
                    f"{self.own.said('crop')} is {crop}: stage {stage_name(number)} draws "
                    f"{stage.image_size[0]} pixels, give as many or fewer, a multiple of {multiple}"
                )

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
        return [PlannedPixelStage(self, run, number) for number in range(len(self.model.stages))]


def recipe_of(model, options, folder) -> CascadeRecipe:
    """The recipe of a model's run in that folder; see `CascadeRecipe`."""
    is_new = model.provenance.trains_from_random_weights(folder)
    if is_new:
        options = options.joined_with(model.provenance.beginning.options, MODEL)
    return CascadeRecipe(model, options, folder, is_new)


class PlannedPixelStage(PlannedStage):
    """A stage of the cascade. It learns from the data alone: the stages before it need not be trained."""

    def __init__(self, recipe, run, number):
        self.recipe, self.model, self.number = recipe, recipe.model, number
        self.stage = self.model.stages[number]
        self.name = self.result = stage_name(number)
        config = recipe.preset.stage(number).training
        self.config, self.share = run.stage_config(config), config.share
        self.batch_size = self.config.batch_size

    def make(self, run, budget):
        recipe, provenance = self.recipe, self.model.provenance
        if recipe.is_new and self.name in provenance.half_trained:  # its random weights again
            self.stage.put(provenance.beginning.networks[self.name])
            provenance.half_trained.remove(self.name)
        return self._stage(run, self.stage, cached_texts(run, self.model.text_encoder))

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
            return BaseStage(*shared, self.model, **settings)
        return SuperResolutionStage(
            *shared,
            self.model,
            small=self.model.small_size_of(self.number),
            crop=self.recipe.crop_of(self.number),
            **settings,
        )

    def finish(self, run, stage):
        self.recipe.learn_words(run)
        folders.save_stage(self.model, self.number, run.folder / self.name, run.options.save_dtype)

    def restore(self, run):
        self.stage.put(folders.unread_unet(run.folder / self.name, self.model.dtype))

    def stopped(self, run, has_learned):
        if has_learned:
            self.model.origin = None
            self.model.provenance.half_trained.add(self.name)
            has_checkpoint = any((run.folder / "checkpoints" / self.name).glob("step-*"))
            if not self.recipe.is_new and not has_checkpoint:
                self.recipe.forget_base()

    def outline(self, run):
        network = PixelUNet(self.stage.config, dtype=self.model.dtype)
        network.build()
        stage = PixelStage(network, self.stage.schedule, self.stage.noising)
        encoder = self.model.text_encoder
        texts = _ShapesOnly(encoder.length, encoder.width)
        return self._stage(run, stage, texts), 0


class _ShapesOnly:
    """A stand-in for a `TextCache`: only its shapes matter."""

    def __init__(self, tokens, width):
        self.states, self.seconds = np.zeros((1, tokens, width), np.float16), 0.0

    def rows_of(self, captions):
        return np.zeros(len(captions), np.int64)


def cached_texts(run, encoder):
    """The `TextCache` of a run's captions; the chief makes it if it is missing.

    Args:
        run: the `Run`.
        encoder: the model's `TextEncoder`.
    """
    captions = run.dataset.distinct_captions
    key = fingerprint("texts", encoder.fingerprint, captions)
    if not run.workers.is_chief:
        run.workers.wait()  # the chief makes it
    with contextlib.closing(
        tqdm(total=len(captions) + 1, desc="captions    ", disable=not run.shows_progress, leave=False)
    ) as bar:

        def encode(texts):
            encoded = encoder.encode(*encoder.tokenize(texts))
            return encoded.states, encoded.mask

        def progress(done, total):
            bar.update(done - bar.n)

        cache = text_cache(run.cache_folder, key, captions, encode, ENCODED_AT_ONCE, progress)
    if run.workers.is_chief:
        run.workers.wait()
    return cache

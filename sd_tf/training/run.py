"""A training run: a folder in which stages follow each other, and which resumes where it was left.

run.json                the configuration and a hash of the captions, to be the same at every start
log.jsonl tensorboard/  losses, pictures per second
samples/                sheets of pictures over time
snapshots/              the UNet at several times, if --snapshots asks for them
checkpoints/            training state of each stage
cache/                  decoded pictures; latents and captions of the last stage
clip/                   the CLIP that the first stage trained, if it was trained here
vae/ unet/ text_encoder/ tokenizer/ scheduler/ model_index.json      the model, once each is ready
prior/                  pictures that --prior-prompt keeps
learned_embeds.safetensors          what --finetune textual_inversion learned, which is in the model as well
pytorch_lora_weights.safetensors    or what --finetune lora learned, to be loaded beside its model
<the folder's name>.safetensors      the same with --lora-layout kohya
"""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import signal
import threading
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sd_tf.checkpoints import clip as clip_folders
from sd_tf.checkpoints.sources import resolve, weights_sha256
from sd_tf.config import NOT_PART_OF_A_RUN, STAGES, RunConfig
from sd_tf.data.by_name import find_dataset
from sd_tf.data.cache import latent_cache
from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.data.pipeline import pictures_at_once, to_unit
from sd_tf.data.sources import folder_source
from sd_tf.data.with_prior import WithPrior
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.errors import InputError, shown, unknown
from sd_tf.files import read_json, write_json
from sd_tf.graphs import compiled
from sd_tf.hashing import fingerprint, weights_fingerprint
from sd_tf.latent import folder as checkpoints
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.finetuning import choose_what_learns, draw_prior, learned_changes
from sd_tf.latent.loading import configs_of, load
from sd_tf.latent.lora_files import FILE as LORA_FILE
from sd_tf.latent.lora_files import write_lora
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.perceptual import load_perceptual
from sd_tf.latent.presets import PRESETS, preset_of
from sd_tf.latent.stages import AutoencoderStage, ClipStage, DiffusionStage
from sd_tf.latent.textual_inversion import TextualInversionStage, with_new_word
from sd_tf.latent.unet import UNet
from sd_tf.latent.word_files import FILE as WORD_FILE
from sd_tf.latent.word_files import write_word
from sd_tf.nn.perceptual import PerceptualNetwork
from sd_tf.text.clip import CLIPModel
from sd_tf.text.tokenizer import Tokenizer
from sd_tf.training import strategy as strategies
from sd_tf.training.callbacks import Log, Previews, ProgressBar, Snapshots, WeightsAndBiases
from sd_tf.training.own_folder import check_own
from sd_tf.training.trainer import Budget, Trainer
from sd_tf.training.workers import Workers, lost_worker_named

OF_STAGES = (  # flags that replace what the preset says of every stage
    "batch_size",
    "optimizer",
    "learning_rate",
    "lr_schedule",
    "warmup_steps",
    "weight_decay",
    "gradient_clip",
    "ema_decay",
)
TEXTUAL_INVERSION = "textual_inversion"
OWN_FILES = ("run.json", "log.jsonl", "model_index.json", WORD_FILE, "wandb-id.txt")
OWN_FOLDERS = (
    *("tensorboard", "samples", "snapshots", "checkpoints", "cache", "clip", "prior", "wandb"),
    *("vae", "unet", "text_encoder", "tokenizer", "scheduler"),
    *(f"{kind}/{stage}" for kind in ("tensorboard", "checkpoints") for stage in STAGES),
)
LONGEST_NAME = 200  # bytes of the folder's that a file is named by; file systems have 255, ending included
CAPTIONS = "captions_fingerprint"  # in run.json; wherever the data lie, and whenever they were written
PRIOR_PICTURES, PRIOR_SHARE = 100, 0.5  # where none are given
CACHE_SHARE = 0.1  # of the last stage's minutes: latents are cached for so long
LEARNING_SHARE = 0.5  # of them, at least, when fine-tuning caches each picture once however long it takes


class Run:
    """A run in its folder, new or resumed.

    Args:
        config: a `RunConfig`.

    Raises:
        InputError: the folder holds a run of another configuration or cannot be written, or the data
            is not there. Nothing is written then.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.preset_name = config.preset or ("fine-tuning" if config.init_from else preset_of(config.dataset))
        if self.preset_name not in PRESETS:
            raise unknown("--preset", self.preset_name, PRESETS)
        self.preset = PRESETS[self.preset_name]
        if config.init_from:
            self.preset = _of_model(self.preset, configs_of(config.init_from), config)
        self.image_size = config.image_size or self.preset.autoencoder.sample_size
        self.schedule = NoiseSchedule(self._schedule())
        self.folder = Path(config.output.replace("{dataset}", re.sub("[:/]", "-", config.dataset)))
        if not _is_utf8(self.folder):
            raise InputError(
                f"--output {self.folder} is no UTF-8, where TensorFlow cannot write: name another"
            )
        self.cache_folder = Path(config.cache_dir or self.folder / "cache")
        check_own(self.folder, (*OWN_FILES, self._result), OWN_FOLDERS)
        before = self._check_resumable()
        if config.dry_run:
            self.strategy, replicas = strategies.make("none", None), config.workers or config.replicas or 1
        else:
            self.strategy = strategies.make(config.strategy, config.replicas)
            replicas = self.strategy.num_replicas_in_sync
        self.workers, self.wandb = Workers(self.strategy), None
        for stage in (self.preset.clip_stage, self.preset.autoencoder_stage, self.preset.diffusion_stage):
            strategies.check_batch_size(self.stage_config(stage).batch_size, replicas, config.accumulate)
        if self.image_size != self.preset.autoencoder.sample_size:
            self.preset = _resized(self.preset, self.image_size)
        self.dataset = find_dataset(config, self.image_size, self.cache_folder, [self.folder])
        self._check_captions(before)
        text_encoder = config.text_encoder or self.preset.text_encoder or "none"
        if config.init_from or config.stage in ("clip", "autoencoder"):
            text_encoder = "none"  # not needed
        self.clip_folder = None if text_encoder == "none" else resolve(text_encoder)
        if config.stage == "diffusion" and not config.init_from and not config.dry_run:
            self._check_earlier_stages()
        if config.dry_run:
            return
        if config.cache_dir:
            with _writing("--cache-dir", self.cache_folder):
                self.cache_folder.mkdir(parents=True, exist_ok=True)
        if self.workers.is_chief:
            with _writing("--output", self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "run.json", self._identity | {CAPTIONS: self._captions})

    @property
    def stages(self) -> list[str]:
        """Names of the stages that this command runs, in order."""
        if self.config.init_from:
            return ["diffusion"]
        if self.config.stage:
            return [self.config.stage]
        return [name for name in STAGES if name != "clip" or self.clip_folder is None]

    def train(self):
        """Runs the stages that are left, in order."""
        all_stages = {"clip": self._clip, "autoencoder": self._autoencoder, "diffusion": self._diffusion}
        stages = {name: all_stages[name] for name in self.stages}
        with contextlib.ExitStack() as stack:
            stack.enter_context(_terminate_like_ctrl_c())
            stack.enter_context(lost_worker_named(self.workers))
            stack.enter_context(_full_disk_named(self.folder))
            stack.enter_context(self._forgotten_where_it_cannot_begin())
            self._check_shared()
            if isinstance(self.dataset, CaptionedPictures):
                self._decode(self.dataset)
            if self.config.wandb and self.workers.is_chief:
                self.wandb = WeightsAndBiases(self.folder, self._identity, stages)
                stack.callback(self.wandb.close)
            for stage in stages.values():
                # Anew for each stage: a resumed run skips the stages, and their draws, before it.
                keras.utils.set_random_seed(self.config.seed)
                if self.config.deterministic:
                    tf.config.experimental.enable_op_determinism()
                stage()
            self.workers.wait()  # for what the chief writes
        if self.workers.is_chief:
            print(f"finished: {self.folder}")

    # -- the stages -----------------------------------------------------------------------------

    def _clip(self):
        if self._is_done("clip"):
            return
        with self.strategy.scope():
            stage = self.clip_stage()
        self._fit(stage)
        if self.workers.is_chief:
            clip_folders.save_clip(
                stage.network, stage.tokenizer, self.folder / "clip", self.config.save_dtype
            )

    def _autoencoder(self):
        if self._is_done("vae"):
            return
        with self.strategy.scope():
            stage = self.autoencoder_stage()
        self._fit(stage)
        if self.workers.is_chief:
            stage.calibrate()
            checkpoints.save_autoencoder(stage.network, self.folder / "vae", self.config.save_dtype)

    def _diffusion(self):
        if self._is_done(self._result):
            return
        with self.strategy.scope():
            model = self._model()
            if self.config.prior_prompt is not None:
                self._mix_in_prior(model)
            choose_what_learns(model.unet, self.config)
        stage_config = self.stage_config(self.preset.diffusion_stage)
        budget = self.budget(stage_config)
        cache = self._cache(model, budget, stage_config.batch_size)
        if budget.seconds is not None:
            seconds = max(1.0, budget.seconds - cache.seconds, LEARNING_SHARE * budget.seconds)
            budget = dataclasses.replace(budget, seconds=seconds)
        with self.strategy.scope():
            stage = self.diffusion_stage(model, cache)
        self._fit(stage, budget)
        if not self.workers.is_chief:
            return
        if self.config.finetune == TEXTUAL_INVERSION:
            write_word(self.folder / WORD_FILE, self.config.new_word, stage.write_word())
        if self.config.finetune == "lora":
            layout, changes = self.config.lora_layout or "diffusers", learned_changes(model.unet)
            write_lora(self.folder / self._result, changes, layout, self.config.save_dtype)
        else:
            model.save(self.folder, self.config.save_dtype)

    def _model(self):
        """That of --init-from, or what earlier stages made and a new UNet."""
        precision = self.config.precision
        if self.config.init_from:
            model = load(self.config.init_from, precision, prediction_type=self.config.prediction_type)
            if self.config.finetune == TEXTUAL_INVERSION:
                model = with_new_word(model, self.config.new_word, self.config.like_word)
            return model
        clip_folder = self.clip_folder or self.folder / "clip"
        autoencoder = checkpoints.load_autoencoder(self.folder / "vae", precision)
        text_encoder = clip_folders.load_text_encoder(clip_folder, precision)
        tokenizer = Tokenizer.load(clip_folder, max_length=text_encoder.config.max_position_embeddings)
        unet = self.unet(text_encoder.config.hidden_size)
        return LatentDiffusion(autoencoder, unet, text_encoder, tokenizer, self.schedule)

    # -- what they train ------------------------------------------------------------------------

    def clip_stage(self):
        """Both towers of the preset's CLIP, with random weights, and a vocabulary of the data's captions."""
        tokenizer = Tokenizer.learn(
            self.dataset.corpus(), self.preset.vocab_size, self.preset.text.max_position_embeddings
        )
        text = dataclasses.replace(
            self.preset.text,
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        clip = CLIPModel(text, self.preset.vision, dtype=self.config.precision)
        clip.build()
        config = self.stage_config(self.preset.clip_stage)
        return ClipStage(config, clip, tokenizer, self.dataset, self.config.seed)

    def autoencoder_stage(self):
        """The preset's autoencoder, with random weights."""
        autoencoder = AutoencoderKL(self.preset.autoencoder, dtype=self.config.precision)
        autoencoder.build()
        config = self.stage_config(self.preset.autoencoder_stage)
        weight = self.config.perceptual_weight
        weight = self.preset.perceptual_weight if weight is None else weight
        perceptual = self._perceptual() if weight else None
        return AutoencoderStage(config, autoencoder, self.dataset, self.config.seed, perceptual, weight)

    def _perceptual(self):
        if not self.config.dry_run:
            return load_perceptual()
        network = PerceptualNetwork(num_classes=1)  # for its memory
        network.build()
        return network

    def unet(self, context_width):
        """The preset's UNet, with random weights, for a text tower of that width."""
        config = dataclasses.replace(self.preset.unet, cross_attention_dim=context_width)
        unet = UNet(config, dtype=self.config.precision)
        unet.build()
        return unet

    def _mix_in_prior(self, model):
        """Has the chief draw what the model makes of --prior-prompt now, and all learn from it too."""
        folder, prompt = self.folder / "prior", self.config.prior_prompt
        if self.workers.is_chief:
            number = self.config.prior_pictures or PRIOR_PICTURES
            draw_prior(model, prompt, number, self.config.seed, folder, self.image_size)
        self.workers.wait()
        source = folder_source(folder, caption=prompt)
        prior = CaptionedPictures(source, self.image_size, self.cache_folder, seed=self.config.seed)
        self._decode(prior)
        self.dataset = WithPrior(self.dataset, prior, self.config.prior_share or PRIOR_SHARE)

    def diffusion_stage(self, model, cache):
        """The model's UNet, or its new word, on cached latents and captions."""
        kind = DiffusionStage
        if self.config.finetune == TEXTUAL_INVERSION:
            kind = functools.partial(TextualInversionStage, token=self.config.new_word)
        return kind(
            self.stage_config(self.preset.diffusion_stage),
            model,
            cache,
            self.config.caption_dropout,
            self.config.seed,
            min_snr_gamma=self.config.min_snr_gamma,
            timestep_sampling=self.config.timestep_sampling or self.preset.timestep_sampling,
            logit_mean=self.preset.logit_mean if self.config.logit_mean is None else self.config.logit_mean,
            offset_noise=self.config.offset_noise,
            preview_prompts=self.dataset.preview_prompts,
        )

    def _decode(self, dataset):
        """Has the chief decode pictures, which all workers then read."""
        if not self.workers.is_chief:
            self.workers.wait()
        dataset.decode(progress=self.workers.is_chief)
        if self.workers.is_chief:
            self.workers.wait()

    @property
    def _result(self):
        """The file that the run ends with."""
        if self.config.finetune != "lora":
            return "model_index.json"
        if self.config.lora_layout == "kohya":
            name = os.fsencode(self.folder.resolve().name)[:LONGEST_NAME]
            return f"{name.decode(errors='ignore')}.safetensors"
        return LORA_FILE

    def _is_done(self, part):
        """Whether the run has that part, as the chief sees it, once all workers are here."""
        return bool(self.workers.gathered((self.folder / part).exists())[0, 0])

    @contextlib.contextmanager
    def _forgotten_where_it_cannot_begin(self):
        """Without run.json, the command with better flags is not taken for another run's."""
        try:
            yield
        except InputError:
            if self.workers.is_chief and not (self.folder / "checkpoints").exists():
                (self.folder / "run.json").unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # something else is in it
                    self.folder.rmdir()
            raise

    def _check_shared(self):
        """Raises `InputError` where a worker does not see what the chief wrote."""
        self.workers.wait()
        if not (self.folder / "run.json").exists():
            raise InputError(
                f"--output {self.folder} is not the folder that worker 0 writes to: name one on a file "
                "system that all workers share"
            )

    def trainer(self, stage, budget):
        """What trains a stage, from its last checkpoint where there is one."""
        return Trainer(
            stage,
            self.strategy,
            budget,
            self.folder / "checkpoints" / stage.name,
            self.config.precision,
            self.config.checkpoint_seconds,
            self.config.checkpoint_every,
            self.config.keep_checkpoints,
            self.config.accumulate,
            self.config.remat,
            self.config.xla,
        )

    def _fit(self, stage, budget=None):
        """Trains one stage; its network then holds the averaged weights."""
        budget = budget or self.budget(stage.config)
        if self.config.overfit:
            batches = stage.batches
            stage.batches = lambda first_step, part=(0, 1): batches(0, part).take(1).cache().repeat()
        trainer = self.trainer(stage, budget)
        losses = {}

        def note(trainer, step, elapsed, means):
            losses.setdefault("first", means["loss"])
            losses["last"] = means["loss"]

        try:
            with contextlib.ExitStack() as stack:
                observers = []
                if self.workers.is_chief:
                    bar = ProgressBar(stage, budget, trainer.progress)
                    stack.callback(bar.close)
                    log = Log(stage, self.folder, int(trainer.step.numpy()), self.wandb)
                    previews = Previews(
                        stage, self.folder / "samples", self.config.previews, budget, trainer.progress
                    )
                    observers = [bar, log, previews, note]
                    if stage.name == "diffusion" and self.config.snapshots:
                        observers.append(
                            self._snapshots(stage.network, budget, trainer.progress, log.first_step)
                        )
                trainer.fit(observers)
        except KeyboardInterrupt:
            steps = trainer.checkpoints.steps
            raise KeyboardInterrupt(
                f"stopped in stage {stage.name}: the same command resumes from "
                + (f"step {steps[-1]}" if steps else "the stage's start")
            ) from None
        trainer.optimizer.copy_averages()
        if self.config.overfit and losses:
            first, last = (float(losses[when]) for when in ("first", "last"))
            print(f"{stage.name}: loss {first:.4f} -> {last:.4f} on the same {self.config.overfit} examples")

    def _snapshots(self, unet, budget, progress, step):
        write = functools.partial(checkpoints.save_unet, unet, dtype=self.config.save_dtype)
        return Snapshots(write, self.folder / "snapshots", self.config.snapshots, budget, progress, step)

    def _cache(self, model, budget, batch_size):
        """The latents and captions of this run's data, autoencoder and tower."""
        epochs = min(self.preset.cached_epochs, self.dataset.distinct_epochs or self.preset.cached_epochs)
        num_examples = epochs * len(self.dataset)
        if self.config.overfit:
            num_examples = self.config.overfit
        elif budget.steps is not None:  # no more than are looked at
            num_examples = min(num_examples, budget.steps * batch_size)
        in_every_step = self.config.finetune == TEXTUAL_INVERSION  # the tower runs, in which the word learns
        encode_captions = model.tokenizer if in_every_step else model.encode_prompts
        max_seconds = None if budget.seconds is None else CACHE_SHARE * budget.seconds
        each_once = bool(self.config.init_from)  # such pictures are few, and none is to be left out
        key = fingerprint(
            self.dataset.fingerprint,
            weights_fingerprint(model.autoencoder),
            model.autoencoder.config,
            weights_fingerprint(model.text_encoder),
            sorted(model.tokenizer.vocab.items()),
            num_examples,
            budget.seconds,
            self.config.precision,
            *(["token ids", self.config.new_word] if encode_captions is model.tokenizer else []),
            *(["each picture once"] if each_once and max_seconds is not None else []),
        )
        if not self.workers.is_chief:
            self.workers.wait()  # the chief makes it
        with tqdm(
            total=100.0,
            desc="caching    ",
            bar_format="{desc} |{bar:24}| {percentage:3.0f}%",
            disable=not self.workers.is_chief,
        ) as bar:

            def progress(done, total):
                bar.n = round(100.0 * done / total, 1)
                bar.refresh()

            cache = latent_cache(
                self.cache_folder,
                key,
                self.dataset,
                _compiled_encoder(model.autoencoder),
                encode_captions,
                num_examples,
                max_seconds,
                pictures_at_once(256, self.image_size),
                progress,
                at_least=len(self.dataset) if each_once else 1,
            )
        if self.workers.is_chief:
            self.workers.wait()
            whole = min(len(self.dataset), num_examples)
            if len(cache) < whole:
                print(
                    f"learning from {len(cache):,} of {whole:,} pictures: caching them took the tenth of the "
                    "time that it may, a longer --max-minutes caches more"
                )
        return cache

    # -- configuration --------------------------------------------------------------------------

    def stage_config(self, config):
        """The preset's, with what the flags say instead."""
        given = {
            name: getattr(self.config, name) for name in OF_STAGES if getattr(self.config, name) is not None
        }
        if self.config.overfit:
            given["batch_size"] = self.config.overfit
        return dataclasses.replace(config, **given)

    def _schedule(self):
        given = {
            name: getattr(self.config, name)
            for name in ("prediction_type", "beta_schedule")
            if getattr(self.config, name) is not None
        }
        if self.config.zero_terminal_snr:
            # Trailing spacing begins drawing at the timestep without signal (Lin et al. 2023, section 3.3).
            given |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return dataclasses.replace(self.preset.schedule, **given)

    def budget(self, config):
        """The stage's part of the run's minutes; one stage alone has all of them."""
        if self.config.max_steps is not None:
            return Budget(None, self.config.max_steps)
        minutes = self.config.max_minutes or self.preset.max_minutes
        shares = sum(getattr(self.preset, f"{name}_stage").share for name in self.stages)
        return Budget(60.0 * minutes * config.share / shares, None)

    @functools.cached_property
    def _identity(self):
        found = dataclasses.asdict(self.config) | {"image_size": self.image_size}
        if self.config.init_from:  # what is frozen of it is in no checkpoint
            found["init_from_sha256"] = weights_sha256(resolve(self.config.init_from))
        return {name: value for name, value in found.items() if name not in NOT_PART_OF_A_RUN}

    def _check_resumable(self):
        """What run.json says of an earlier start, nothing where there was none."""
        file = self.folder / "run.json"
        if not os.path.lexists(file):
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"--output {self.folder} is a file: name a folder")
            for result in ("model_index.json", LORA_FILE, self._result):
                if (self.folder / result).exists():
                    raise InputError(f"--output {self.folder} holds a model of no run: name another folder")
            return {}
        try:
            # What an earlier version had no flag for, it did as the flag's default does.
            before = dataclasses.asdict(RunConfig()) | read_json(file, root=self.folder)
        except InputError as error:
            raise InputError(f"{error}: name another --output") from None
        now = self._identity
        began, begins = before.get("init_from_sha256"), now.get("init_from_sha256")
        if began and begins and began != begins:
            raise InputError(
                f"{self.folder} began from other weights than --init-from {self.config.init_from} has now: "
                "put those back to resume it, or name another --output"
            )
        changed = [name for name in now if before.get(name, now[name]) != now[name]]
        if changed:
            changes = ", ".join(
                f"--{name.replace('_', '-')} {_flag_of(before[name])} -> {now[name]}" for name in changed
            )
            raise InputError(
                f"{self.folder} holds a run of another configuration ({changes}): "
                "use the same flags to resume it, or another --output"
            )
        return before

    def _check_captions(self, before):
        """Other captions would make other words of the tokenizer, and other pictures of the same numbers."""
        self._captions = fingerprint(self.dataset.corpus())  # before decoding leaves out what cannot be read
        has_learned = (self.folder / "checkpoints").exists()
        if has_learned and before.get(CAPTIONS, self._captions) != self._captions:
            raise InputError(
                f"{self.folder} began with other captions than {self.dataset.name} has now: put those back "
                "to resume it, or name another --output"
            )

    def _check_earlier_stages(self):
        clip_folder = self.clip_folder or self.folder / "clip"
        for needed, stage in ((clip_folder, "clip"), (self.folder / "vae", "autoencoder")):
            if not needed.is_dir():
                raise InputError(f"{needed} is missing: run --stage {stage} first, or leave --stage out")


def _is_utf8(path):
    try:
        os.fsencode(path).decode()
    except UnicodeError:
        return False
    return True


def _flag_of(value):
    """A value of run.json, as a flag says it."""
    return value if isinstance(value, str) and len(value) < 200 else shown(value)


def _of_model(preset, model, config):
    """The preset for a model that there is already."""
    height, width = (side * model.autoencoder.downsampling for side in model.unet.latent_size)
    if height != width:
        raise InputError(
            f"--init-from {config.init_from} draws pictures of {width} x {height}: only models of squares "
            "are fine-tuned"
        )
    if config.image_size not in (None, width):
        raise InputError(
            f"--image-size is {config.image_size}: {config.init_from} learns from pictures of its own size, "
            f"{width} x {height}, leave it out"
        )
    kind = config.finetune or "unet"
    if kind == "unet" and config.prior_prompt is not None:
        kind = "dreambooth"
    rate = preset.learning_rates.get(kind, preset.diffusion_stage.learning_rate)
    return dataclasses.replace(
        preset,
        diffusion_stage=dataclasses.replace(preset.diffusion_stage, learning_rate=rate),
        autoencoder=dataclasses.replace(model.autoencoder, sample_size=width),
        unet=model.unet,
        text=model.text,
        schedule=model.schedule,
    )


def _resized(preset, image_size):
    """The preset for pictures of another size: latents grow with them."""
    before = preset.autoencoder.sample_size
    autoencoder = dataclasses.replace(preset.autoencoder, sample_size=image_size)
    least = autoencoder.downsampling * 2 ** (len(preset.unet.block_out_channels) - 1)
    patch_size = preset.vision.patch_size * image_size // before
    if image_size % least or image_size % max(1, patch_size):
        raise InputError(f"--image-size is {image_size}: the preset's networks need a multiple of {least}")
    return dataclasses.replace(
        preset,
        autoencoder=autoencoder,
        unet=dataclasses.replace(preset.unet, sample_size=image_size // autoencoder.downsampling),
        vision=dataclasses.replace(preset.vision, image_size=image_size, patch_size=patch_size),
    )


def _compiled_encoder(autoencoder):
    encode = compiled(autoencoder.encode)

    def encode_images(images):
        mean, std = encode(to_unit(images))
        return np.asarray(mean), np.asarray(std)

    return encode_images


@contextlib.contextmanager
def _writing(flag, folder):
    try:
        yield
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _full_disk_named(folder):
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise InputError(
            f"there is no space left for --output {folder}: make room, then start the same command again to "
            "resume"
        ) from None


@contextlib.contextmanager
def _terminate_like_ctrl_c():
    """SIGTERM, which schedulers send before they kill, stops a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Frozen dataclasses, one for each part.

The fields of the network and schedule configurations carry the names of the `config.json` files
that diffusers and transformers write, so a configuration *is* its file: `to_json` and `from_json`
only add and check the class name.
"""

import dataclasses
import math
import re
from dataclasses import dataclass

from sd_tf.errors import InputError, unknown


def kept():
    """What a checkpoint's file says besides: written back as it was, and part of no comparison."""
    return dataclasses.field(default_factory=dict, compare=False, repr=False)


def _flag(default, text, choices=None):
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


OPTIMIZERS = ("muon", "adamw")
LR_SCHEDULES = ("cosine", "linear", "constant")
TIMESTEP_SAMPLINGS = ("uniform", "logit_normal")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STAGES = ("clip", "autoencoder", "diffusion")
FINETUNINGS = ("unet", "cross_attention", "lora", "textual_inversion")
LORA_LAYOUTS = ("diffusers", "kohya")
OF_NEW_MODELS = ("text_encoder", "beta_schedule", "zero_terminal_snr", "perceptual_weight")
STRATEGIES = ("none", "mirrored", "multiworker", "tpu")
DATASETS = ("fashion_mnist", "garments", "folder", "pokemon", "emoji", "hub:<id>", "tfds:<name>")
GARMENTS = DATASETS[:2]  # the others are captioned pictures, of which these flags are
OF_CAPTIONED_PICTURES = (
    "caption",
    "caption_column",
    "caption_template",
    "shorten_captions",
    "fit",
    "background",
    "flip",
    "jitter",
)
FITS = ("center", "random", "pad")
NOT_PART_OF_A_RUN = (
    "output",
    "data_dir",
    "cache_dir",
    "stage",
    "save_dtype",
    "lora_layout",
    "checkpoint_seconds",
    "checkpoint_every",
    "keep_checkpoints",
    "snapshots",
    "previews",
    "remat",
    "xla",
    "strategy",
    "replicas",
    "workers",
    "wandb",
    "dry_run",
)


@dataclass(frozen=True)
class RunConfig:
    """A training run; each field is a flag of `python -m sd_tf.train`."""

    dataset: str = _flag("fashion_mnist", "what to learn", DATASETS)
    data_dir: str | None = _flag(None, "folder of the data's files (default: $SD_TF_DATA_DIR)")
    caption: str | None = _flag(None, "of every picture of a folder, in place of captions of their own")
    caption_column: str | None = _flag(None, "of a table, that has the captions (default: text or caption)")
    caption_template: str = _flag("{}", "what becomes of a caption, {} itself, such as 'a photo of {}'")
    shorten_captions: float = _flag(
        0.0, "share of captions that end early, so that short prompts are learned"
    )
    fit: str = _flag("center", "of pictures that are not square: crops, or padding on --background", FITS)
    background: str = _flag("ffffff", "red, green and blue as hexadecimals, behind padding and transparency")
    flip: bool = _flag(False, "mirror half of the pictures, anew in each epoch")
    jitter: float = _flag(0.0, "how far brightness, contrast and saturation vary; 0.1 is up to a tenth")
    image_size: int | None = _flag(None, "pixels along a side of what is drawn (default: the preset's)")
    output: str = _flag("runs/{dataset}", "run folder; the same command resumes the run in it")
    preset: str | None = _flag(None, "sizes and budgets (default: the data set's own)")
    init_from: str | None = _flag(None, "fine-tune a model: a bundled name, a folder, a file or a hub id")
    finetune: str | None = _flag(None, "what of its UNet learns (default: unet, which is all)", FINETUNINGS)
    lora_rank: int | None = _flag(None, "of --finetune lora (default: 8)")
    lora_alpha: float | None = _flag(None, "changes are times this / rank (default: the rank)")
    lora_targets: str | None = _flag(
        None, "last parts of layers' names, between commas (default: to_q,to_k,to_v,to_out)"
    )
    lora_layout: str | None = _flag(
        None,
        "of its file, diffusers' or kohya's, which is named as the run folder (default: diffusers)",
        LORA_LAYOUTS,
    )
    new_word: str | None = _flag(
        None, "of --finetune textual_inversion: what captions call it, such as <mine>"
    )
    like_word: str | None = _flag(None, "that it begins as, such as toy")
    prior_prompt: str | None = _flag(
        None, "keep what the model draws of it: 'a toy' beside --caption 'a xyz toy' (DreamBooth)"
    )
    prior_pictures: int | None = _flag(
        None, "so many are drawn of it, before the minutes of training (default: 100)"
    )
    prior_share: float | None = _flag(None, "of examples that are such pictures (default: 0.5)")
    stage: str | None = _flag(None, "run this stage alone (default: all that are needed)", STAGES)
    text_encoder: str | None = _flag(
        None, "frozen CLIP: a bundled name, a folder or a hub id; 'none' trains one (default: the preset's)"
    )
    max_minutes: float | None = _flag(None, "wall-clock budget of the run (default: the preset's)")
    max_steps: int | None = _flag(None, "steps of each stage, instead of a budget in minutes")
    batch_size: int | None = _flag(None, "global batch of every stage (default: the preset's)")
    accumulate: int = _flag(1, "parts of a batch that follow each other in a step, for less memory")
    optimizer: str | None = _flag(None, "of every stage (default: the preset's)", OPTIMIZERS)
    learning_rate: float | None = _flag(None, "peak learning rate of every stage (default: the preset's)")
    lr_schedule: str | None = _flag(
        None, "of the learning rate after the warm-up, to zero or not (default: the preset's)", LR_SCHEDULES
    )
    warmup_steps: int | None = _flag(None, "in which the learning rate rises (default: the preset's)")
    weight_decay: float | None = _flag(None, "of the weights, but biases and norms (default: the preset's)")
    gradient_clip: float | None = _flag(None, "most that gradients' global norm is (default: the preset's)")
    ema_decay: float | None = _flag(None, "of the weights' moving average (default: the preset's)")
    prediction_type: str | None = _flag(
        None, "what the UNet predicts (default: the preset's, or the model's)", ("epsilon", "v_prediction")
    )
    beta_schedule: str | None = _flag(
        None, "noise schedule (default: the preset's)", ("scaled_linear", "squaredcos_cap_v2")
    )
    perceptual_weight: float | None = _flag(
        None, "of how different the autoencoder's pictures look, 0 for none (default: the preset's)"
    )
    caption_dropout: float = _flag(0.1, "share of captions replaced by the empty one, for guidance")
    min_snr_gamma: float | None = _flag(
        None, "most that a signal-to-noise ratio weighs in the loss, 5 in the paper (default: no weights)"
    )
    timestep_sampling: str | None = _flag(
        None, "which timesteps are learned most often (default: the preset's)", TIMESTEP_SAMPLINGS
    )
    logit_mean: float | None = _flag(
        None, "of --timestep-sampling logit_normal, below 0 for less noise (default: the preset's)"
    )
    zero_terminal_snr: bool = _flag(False, "a noise schedule whose last timestep has no signal left")
    offset_noise: float = _flag(0.0, "deviation of noise that is the same all over a channel; 0.1 is usual")
    precision: str = _flag("float32", "of the networks' arithmetic", PRECISIONS)
    remat: bool = _flag(False, "compute the UNet's activations again in the backward pass, for less memory")
    xla: bool = _flag(False, "compile steps by XLA: minutes longer to start, and faster on GPU and TPU")
    strategy: str = _flag("none", "how to use several devices", STRATEGIES)
    replicas: int | None = _flag(None, "of --strategy mirrored (default: all GPUs; on a CPU, 2)")
    workers: int | None = _flag(None, "processes on this machine, of --strategy multiworker")
    seed: int = _flag(0, "of everything random")
    cache_dir: str | None = _flag(None, "folder of cached latents (default: inside the run folder)")
    save_dtype: str = _flag("float32", "of the finished model's files", ("float32", "float16"))
    checkpoint_seconds: float = _flag(60.0, "between two checkpoints")
    checkpoint_every: int | None = _flag(None, "steps between two checkpoints, in place of seconds")
    keep_checkpoints: int = _flag(2, "how many checkpoints of a stage stay")
    snapshots: int = _flag(0, "times at which the UNet is kept, for python -m sd_tf.sweep")
    previews: int = _flag(8, "sheets of pictures drawn on the way, of each stage; 0 for none")
    overfit: int | None = _flag(None, "check a set-up: learn so many examples, the same in every step")
    wandb: bool = _flag(False, "log to Weights & Biases too; WANDB_MODE=offline keeps it in the run folder")
    dry_run: bool = _flag(False, "say what the run would be, its memory and its steps, and write nothing")
    deterministic: bool = _flag(False, "repeatable to the bit; with --max-steps only")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value is not None and not is_choice(value, choices):
                raise unknown(f"--{field.name.replace('_', '-')}", value, choices)
            unused = self.dataset in GARMENTS and field.name in OF_CAPTIONED_PICTURES
            if unused and value != field.default:
                raise InputError(
                    f"--{field.name.replace('_', '-')} is for your own pictures, such as --dataset folder: "
                    f"leave it out with --dataset {self.dataset}"
                )
        for name, least in {
            "max_minutes": 0.01,
            "max_steps": 1,
            "batch_size": 1,
            "learning_rate": 1e-12,
            "replicas": 1,
            "workers": 1,
            "offset_noise": 0,
            "image_size": 8,
            "lora_rank": 1,
            "prior_pictures": 2,
            "lora_alpha": 1e-12,
            "perceptual_weight": 0,
            "warmup_steps": 0,
            "weight_decay": 0,
            "gradient_clip": 1e-12,
            "checkpoint_seconds": 0,
            "checkpoint_every": 1,
            "keep_checkpoints": 1,
            "snapshots": 0,
            "previews": 0,
            "overfit": 2,
            "accumulate": 1,
        }.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"--{name.replace('_', '-')} is {value}: give {least} or more")
        self._check_finetuning()
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay is {self.ema_decay}: give 0 or more, below 1, such as 0.9999")
        if not 0 <= self.caption_dropout < 1:
            raise InputError(f"--caption-dropout is {self.caption_dropout}: give 0 or more, below 1")
        if self.min_snr_gamma is not None and not 0 < self.min_snr_gamma < math.inf:
            raise InputError(f"--min-snr-gamma is {self.min_snr_gamma}: give a number above 0, such as 5")
        if self.logit_mean is not None and not -5 <= self.logit_mean <= 5:
            raise InputError(f"--logit-mean is {self.logit_mean}: give -5 to 5, such as -0.5")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise InputError(
                "--zero-terminal-snr leaves no signal at the last timestep, where --prediction-type epsilon "
                "says nothing of the picture: take --prediction-type v_prediction"
            )
        if self.workers is not None and self.strategy not in ("none", "multiworker"):
            raise InputError(
                f"--workers is {self.workers} with --strategy {self.strategy}: take --strategy multiworker"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is {self.seed}: give 0 to {2**32 - 1}")
        for name in ("caption", "prior_prompt"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise InputError(f"--{name.replace('_', '-')} is empty: say what the pictures show")
        if self.caption is not None and self.caption_column is not None:
            raise InputError("--caption takes the place of captions, which --caption-column names: give one")
        if not re.fullmatch("[0-9a-fA-F]{6}", self.background):
            raise InputError(f"--background is {self.background!r}: give six hexadecimals, such as ffffff")
        if not 0 <= self.shorten_captions <= 1:
            raise InputError(
                f"--shorten-captions is {self.shorten_captions}: give a share from 0 to 1, such as 0.3"
            )
        if not 0 <= self.jitter < 1:
            raise InputError(f"--jitter is {self.jitter}: give 0 or more, below 1, such as 0.1")
        if self.max_minutes is not None and self.max_steps is not None:
            raise InputError("--max-minutes and --max-steps are both given: a run has one budget")
        if self.deterministic and self.max_steps is None:
            raise InputError("--deterministic needs --max-steps: minutes hold more or fewer steps each time")

    def _check_finetuning(self):
        word = "textual_inversion"
        for name in ("lora_rank", "lora_alpha", "lora_targets", "lora_layout"):
            if getattr(self, name) is not None and self.finetune != "lora":
                raise InputError(
                    f"--{name.replace('_', '-')} is of --finetune lora: add it, or leave this out"
                )
        if self.snapshots and self.finetune in ("lora", word):
            raise InputError(f"--snapshots keeps whole UNets: leave it out with --finetune {self.finetune}")
        for name in ("new_word", "like_word"):
            if (getattr(self, name) is None) == (self.finetune == word):
                raise InputError(
                    f"--{name.replace('_', '-')} and --finetune {word} belong together: give both or neither"
                )
        if self.dry_run and self.finetune == word:
            raise InputError(
                f"--dry-run cannot lay out --finetune {word}, which takes less than --finetune unet"
            )
        for name in ("prior_pictures", "prior_share"):
            if getattr(self, name) is not None and self.prior_prompt is None:
                raise InputError(
                    f"--{name.replace('_', '-')} is of --prior-prompt: add it, or leave this out"
                )
        if self.prior_share is not None and not 0 < self.prior_share < 1:
            raise InputError(f"--prior-share is {self.prior_share}: give a number above 0 and below 1")
        if self.init_from is None:
            if self.prior_prompt is not None:
                raise InputError("--prior-prompt needs --init-from: a model that draws it")
            if self.finetune is not None:
                raise InputError(
                    f"--finetune {self.finetune} needs --init-from: name the model to begin with"
                )
            return
        for name in OF_NEW_MODELS:
            if getattr(self, name) not in (None, False):
                raise InputError(
                    f"--{name.replace('_', '-')} is of a new model: leave it out with --init-from, which "
                    "brings its own"
                )
        if self.stage not in (None, "diffusion"):
            raise InputError(f"--stage {self.stage} is of a new model: leave it out with --init-from")


def is_choice(value, choices):
    """Whether it is one of the choices, of which "hub:<id>" is whatever begins with "hub:"."""
    begin = [choice.partition("<")[0] for choice in choices if "<" in choice]
    return value in choices or any(value.startswith(each) and value != each for each in begin)

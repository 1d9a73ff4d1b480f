"""Options of fine-tuning: which weights of a trained model learn, and the arguments of `fit(tune=...)`."""

from dataclasses import dataclass

from sd_tf.commandline import LOADING
from sd_tf.errors import InputError, argument, shown
from sd_tf.options import option
from sd_tf.training.options import DenoisingOptions

FINETUNINGS = ("unet", "cross_attention", "lora", "textual_inversion")
FINE_TUNING = "fine-tuning"
LEARNING_RATES = {  # of diffusers' examples for Stable Diffusion
    "unet": 1e-5,
    "dreambooth": 5e-6,  # the same with --prior-prompt
    "cross_attention": 1e-5,
    "lora": 1e-4,
    "textual_inversion": 5e-4,
}


@dataclass(frozen=True)
class FineTuningOptions(DenoisingOptions):
    """Options of a family whose trained models can be fine-tuned.

    Raises:
        InputError: options contradict each other.
    """

    init_from: str | None = option(
        None,
        "model to fine-tune: a bundled name, a folder, a file or a hub id",
        group=FINE_TUNING,
        identifies=False,
    )
    revision: str | None = option(
        None, LOADING["revision"], needs=("init_from", None), group=FINE_TUNING, identifies=False
    )
    variant: str | None = option(
        None, LOADING["variant"], needs=("init_from", None), group=FINE_TUNING, identifies=False
    )
    finetune: str | None = option(
        None,
        "which weights to train (default: unet, all of it)",
        choices=FINETUNINGS,
        name="tune",
        group=FINE_TUNING,
    )
    lora_rank: int | None = option(
        None, "rank of the LoRA (default: 8)", at_least=1, needs=("finetune", "lora"), group=FINE_TUNING
    )
    lora_alpha: float | None = option(
        None,
        "the LoRA is scaled by alpha / rank (default: the rank)",
        at_least=1e-12,
        needs=("finetune", "lora"),
        group=FINE_TUNING,
    )
    lora_targets: str | None = option(
        None,
        "layers to adapt, by the last part of their names (default: those of attention)",
        needs=("finetune", "lora"),
        group=FINE_TUNING,
    )
    new_word: str | None = option(
        None,
        "placeholder word for the new concept in captions, such as <mine>",
        needs=("finetune", "textual_inversion"),
        group=FINE_TUNING,
    )
    like_word: str | None = option(
        None,
        "existing word whose embedding initialises --new-word, such as toy",
        needs=("finetune", "textual_inversion"),
        group=FINE_TUNING,
    )
    prior_prompt: str | None = option(
        None,
        "prior preservation (DreamBooth): the class prompt, such as 'a toy' for --caption 'a xyz toy'",
        group=FINE_TUNING,
    )
    prior_pictures: int | None = option(
        None,
        "pictures drawn for --prior-prompt before training (default: 100)",
        at_least=2,
        needs=("prior_prompt", None),
        group=FINE_TUNING,
    )
    prior_share: float | None = option(
        None,
        "share of training examples that are such pictures (default: 0.5)",
        above=0,
        below=1,
        needs=("prior_prompt", None),
        group=FINE_TUNING,
    )

    def __post_init__(self):
        super().__post_init__()
        learns_word = self.finetune == "textual_inversion"
        for name in ("new_word", "like_word"):
            if learns_word and getattr(self, name) is None:
                raise InputError(f"{self.said('finetune')} textual_inversion needs {self.said(name)}: add it")
        if self.prior_prompt is not None and not self.prior_prompt.strip():
            raise InputError(f"{self.said('prior_prompt')} is empty: say what the pictures show")

    @property
    def fine_tuning(self) -> str:
        """What is done with a trained model, a key of `LEARNING_RATES`."""
        kind = self.finetune or "unet"
        return "dreambooth" if kind == "unet" and self.prior_prompt is not None else kind

    def check_of_a_new_model(self):
        """Raises `InputError` for options that need a trained model."""
        for name in ("prior_prompt", "finetune"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{self.named_value(name)}, which needs {self.said('init_from')}: name the model to "
                    "fine-tune"
                )


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of some layers (Hu et al. 2021): `model.fit(data, tune=sd_tf.LoRA(rank=8))`.

    Args:
        rank: rank of the update matrices.
        alpha: the update is scaled by alpha / rank; None for the rank.
        targets: layers to adapt, by the last part of their names in diffusers; None for the projections of
            the attention.
        layout: format of the file in the run's folder, "diffusers" or "kohya".
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    layout: str = "diffusers"

    def as_options(self) -> dict:
        """Fields of `FineTuningOptions`."""
        targets = self.targets
        is_list = isinstance(targets, (list, tuple)) and targets
        if targets is not None and (
            not is_list or not all(isinstance(target, str) and target for target in targets)
        ):
            raise InputError(f"targets is {shown(targets)}: give a list of strings, such as ['to_q', 'to_v']")
        return {
            "finetune": "lora",
            "lora_rank": self.rank,
            "lora_alpha": self.alpha,
            "lora_targets": None if targets is None else ",".join(targets),
            "lora_layout": self.layout,
        }


@dataclass(frozen=True)
class CrossAttention:
    """Fine-tuning of the cross-attention layers only (Kumari et al. 2023, "Custom Diffusion")."""

    def as_options(self) -> dict:
        """Fields of `FineTuningOptions`."""
        return {"finetune": "cross_attention"}


@dataclass(frozen=True)
class TextualInversion:
    """Textual inversion: learns the embedding of a new word, and nothing else (Gal et al. 2023).

    Args:
        new_word: placeholder word for the new concept in captions, such as "<mine>".
        like_word: existing word whose embedding initialises it, such as "toy".
    """

    new_word: str
    like_word: str

    def as_options(self) -> dict:
        """Fields of `FineTuningOptions`."""
        return {"finetune": "textual_inversion", "new_word": self.new_word, "like_word": self.like_word}


def options_of_tuning(tune) -> dict:
    """Translates `fit(tune=...)` to fields of `FineTuningOptions`.

    Raises:
        InputError: `tune` is not a fine-tuning method.
    """
    if tune is None:
        return {}
    if isinstance(tune, (LoRA, CrossAttention, TextualInversion)):
        return tune.as_options()
    raise InputError(
        f"{argument('tune', '--finetune')} is {shown(tune)}: give sd_tf.LoRA(rank=8), "
        "sd_tf.CrossAttention(), sd_tf.TextualInversion('<mine>', 'toy') or None for the whole UNet"
    )

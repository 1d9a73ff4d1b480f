"""Options of a latent diffusion model and its training: the flags of `python -m sd_tf.train latent`."""

from dataclasses import dataclass

from sd_tf.commandline import LOADING
from sd_tf.errors import InputError, argument, shown
from sd_tf.options import option
from sd_tf.training.options import DenoisingOptions

STAGES = ("clip", "autoencoder", "diffusion")
FINETUNINGS = ("unet", "cross_attention", "lora", "textual_inversion")
LORA_LAYOUTS = ("diffusers", "kohya")
MODEL, FINE_TUNING = "new model", "fine-tuning"


@dataclass(frozen=True)
class LatentOptions(DenoisingOptions):
    """Options of a `LatentDiffusion` and its training.

    Raises:
        InputError: options contradict each other.
    """

    preset: str | None = option(None, "named set of network sizes and training settings", group=MODEL)
    image_size: int | None = option(
        None, "resolution: pixels along a side", at_least=8, group=MODEL, identifies=False
    )
    text_encoder: str | None = option(
        None,
        "frozen text encoder, a CLIP, T5 or BERT: a bundled name, a folder or a hub id; 'none' trains a CLIP",
        group=MODEL,
    )
    text_length: int | None = option(
        None, "tokens of a caption that it reads, padding included", at_least=4, at_most=512, group=MODEL
    )
    prediction_type: str | None = option(
        None, "what the UNet predicts", choices=("epsilon", "v_prediction"), group=MODEL
    )
    beta_schedule: str | None = option(
        None,
        "noise schedule",
        choices=("scaled_linear", "squaredcos_cap_v2"),
        group=MODEL,
    )
    zero_terminal_snr: bool = option(
        False,
        "rescale the noise schedule so that its last timestep has no signal (Lin et al. 2023)",
        group=MODEL,
    )
    perceptual_weight: float | None = option(
        None,
        "weight of the autoencoder's perceptual loss; 0 for none",
        at_least=0,
        group=MODEL,
    )
    stage: str | None = option(
        None, "train only this stage (default: all that are not finished)", choices=STAGES, identifies=False
    )
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
    tokenizer: str | None = option(
        None, LOADING["tokenizer"], needs=("init_from", None), group=FINE_TUNING, identifies=False
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
        "layers to adapt, by the last part of their names (default: to_q,to_k,to_v,to_out)",
        needs=("finetune", "lora"),
        group=FINE_TUNING,
    )
    lora_layout: str | None = option(
        None,
        "file format of the LoRA; kohya's file has the run folder's name (default: diffusers)",
        choices=LORA_LAYOUTS,
        identifies=False,
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
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            prediction = self.said("prediction_type")
            raise InputError(
                f"{self.said('zero_terminal_snr')} leaves no signal at the last timestep, where {prediction} "
                f"epsilon cannot recover the picture: use {prediction} v_prediction"
            )
        learns_word = self.finetune == "textual_inversion"
        for name in ("new_word", "like_word"):
            if learns_word and getattr(self, name) is None:
                raise InputError(f"{self.said('finetune')} textual_inversion needs {self.said(name)}: add it")
        if self.prior_prompt is not None and not self.prior_prompt.strip():
            raise InputError(f"{self.said('prior_prompt')} is empty: say what the pictures show")

    @property
    def loading(self) -> dict:
        """The arguments of `sd_tf.load` for the model of `init_from`."""
        return {name: getattr(self, name) for name in LOADING}

    def check_of_a_new_model(self):
        """Raises `InputError` for options that need a trained model."""
        for name in ("prior_prompt", "finetune"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{self.named_value(name)}, which needs {self.said('init_from')}: name the model to "
                    "fine-tune"
                )

    def check_of_a_trained_model(self):
        """Raises `InputError` for options of a new model."""
        of_new = ("text_encoder", "text_length", "beta_schedule", "zero_terminal_snr", "perceptual_weight")
        for name in of_new:
            if getattr(self, name) not in (None, False):
                raise InputError(
                    f"{self.said(name)} is only for a new model: leave it out, a trained one brings its own"
                )
        if self.stage not in (None, "diffusion"):
            raise InputError(f"{self.named_value('stage')}, which is only for a new model: leave it out")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation of some layers (Hu et al. 2021): `model.fit(data, tune=sd_tf.LoRA(rank=8))`.

    Args:
        rank: rank of the update matrices.
        alpha: the update is scaled by alpha / rank; None for the rank.
        targets: layers to adapt, by the last part of their names in diffusers.
        layout: format of the file in the run's folder, "diffusers" or "kohya".
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")
    layout: str = "diffusers"

    def as_options(self) -> dict:
        """Fields of `LatentOptions`."""
        targets = self.targets
        is_list = isinstance(targets, (list, tuple)) and targets
        if not is_list or not all(isinstance(target, str) and target for target in targets):
            raise InputError(f"targets is {shown(targets)}: give a list of strings, such as ['to_q', 'to_v']")
        return {
            "finetune": "lora",
            "lora_rank": self.rank,
            "lora_alpha": self.alpha,
            "lora_targets": ",".join(targets),
            "lora_layout": self.layout,
        }


@dataclass(frozen=True)
class CrossAttention:
    """Fine-tuning of the cross-attention layers only (Kumari et al. 2023, "Custom Diffusion")."""

    def as_options(self) -> dict:
        """Fields of `LatentOptions`."""
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
        """Fields of `LatentOptions`."""
        return {"finetune": "textual_inversion", "new_word": self.new_word, "like_word": self.like_word}


def options_of_tuning(tune) -> dict:
    """Translates `fit(tune=...)` to fields of `LatentOptions`.

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

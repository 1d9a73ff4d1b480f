"""Options of a cascade and its training: the flags of `python -m sd_tf.train cascade`."""

from dataclasses import dataclass

from sd_tf.errors import InputError, unknown
from sd_tf.options import option
from sd_tf.text.encoder import CLIPTextEncoder
from sd_tf.training.finetuning_options import FineTuningOptions
from sd_tf.training.options import DENOISING

MODEL, SUPER_RESOLUTION = "new model", "super-resolution"


@dataclass(frozen=True)
class CascadeOptions(FineTuningOptions):
    """Options of a `CascadedDiffusion` and its training.

    Raises:
        InputError: options contradict each other.
    """

    preset: str | None = option(None, "named set of network sizes and training settings", group=MODEL)
    text_encoder: str | None = option(
        None,
        "frozen text encoder, a CLIP, T5 or BERT: a bundled name, a folder or a hub id",
        group=MODEL,
    )
    text_length: int | None = option(
        None, "tokens of a caption that it reads, padding included", at_least=4, at_most=512, group=MODEL
    )
    prediction_type: str | None = option(
        None, "what the UNets predict", choices=("epsilon", "v_prediction", "sample"), group=MODEL
    )
    beta_schedule: str | None = option(
        None,
        "noise schedule",
        choices=("linear", "scaled_linear", "squaredcos_cap_v2"),
        group=MODEL,
    )
    caption_dropout: float | None = option(
        None,
        "share of captions replaced by the empty caption, for classifier-free guidance",
        at_least=0,
        below=1,
        group=DENOISING,
    )
    stages: tuple[str, ...] | None = option(
        None,
        "train only these stages, such as base sr2 (default: all that are not finished)",
        identifies=False,
    )
    crop: int | None = option(
        None,
        "pixels along a side of the patches that super-resolution stages learn from; 0 for whole pictures",
        at_least=0,
        group=SUPER_RESOLUTION,
    )

    @property
    def loading(self) -> dict:
        """The arguments of `sd_tf.load` for the model of `init_from`."""
        return {"revision": self.revision, "variant": self.variant}

    def check_of_a_model(self, names, is_new: bool, text_encoder):
        """Raises `InputError` for options that the model cannot be trained with.

        Args:
            names: of the model's stages.
            is_new: whether it has random weights.
            text_encoder: its `TextEncoder`.
        """
        for name in self.stages or ():
            if name not in names:
                raise unknown(self.said("stages"), name, names)
        if is_new:
            self.check_of_a_new_model()
            return
        self.check_of_a_trained_model()
        if self.stages is not None and set(self.stages) != set(names) and self.finetune != "lora":
            raise InputError(
                f"{self.said('stages')} is for a new model or a LoRA: leave it out, a trained one is trained "
                "whole"
            )
        if self.finetune == "textual_inversion" and not isinstance(text_encoder, CLIPTextEncoder):
            raise InputError(
                f"{self.said('finetune')} textual_inversion teaches a CLIP a word, and this model's text "
                "encoder is a T5 or a BERT: train a LoRA, or a model with another text encoder"
            )

    def check_of_a_trained_model(self):
        """Raises `InputError` for options of a new model."""
        for name in ("preset", "text_encoder", "text_length", "prediction_type", "beta_schedule"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{self.said(name)} is only for a new model: leave it out, a trained one brings its own"
                )

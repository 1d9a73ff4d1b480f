"""Options of a cascade and its training: the flags of `python -m sd_tf.train cascade`."""

from dataclasses import dataclass

from sd_tf.commandline import LOADING
from sd_tf.errors import InputError
from sd_tf.options import option
from sd_tf.training.options import DENOISING, DenoisingOptions

MODEL, SUPER_RESOLUTION, FINE_TUNING = "new model", "super-resolution", "fine-tuning"


@dataclass(frozen=True)
class CascadeOptions(DenoisingOptions):
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
    init_from: str | None = option(
        None,
        "cascade to train further: a bundled name, a folder or a hub id",
        group=FINE_TUNING,
        identifies=False,
    )
    revision: str | None = option(
        None, LOADING["revision"], needs=("init_from", None), group=FINE_TUNING, identifies=False
    )
    variant: str | None = option(
        None, LOADING["variant"], needs=("init_from", None), group=FINE_TUNING, identifies=False
    )

    @property
    def loading(self) -> dict:
        """The arguments of `sd_tf.load` for the model of `init_from`."""
        return {"revision": self.revision, "variant": self.variant}

    def check_of_a_trained_model(self):
        """Raises `InputError` for options of a new model."""
        for name in ("preset", "text_encoder", "text_length", "prediction_type", "beta_schedule"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{self.said(name)} is only for a new model: leave it out, a trained one brings its own"
                )

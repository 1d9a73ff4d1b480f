"""Options of a latent diffusion model and its training: the flags of `python -m sd_tf.train latent`."""

from dataclasses import dataclass

from sd_tf.commandline import LOADING
from sd_tf.errors import InputError
from sd_tf.lora.names import LAYOUTS
from sd_tf.options import option
from sd_tf.training.finetuning_options import FINE_TUNING, FineTuningOptions

STAGES = ("clip", "autoencoder", "diffusion")
MODEL = "new model"


@dataclass(frozen=True)
class LatentOptions(FineTuningOptions):
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
    tokenizer: str | None = option(
        None, LOADING["tokenizer"], needs=("init_from", None), group=FINE_TUNING, identifies=False
    )
    lora_layout: str | None = option(
        None,
        "file format of the LoRA; kohya's file has the run folder's name (default: diffusers)",
        choices=LAYOUTS,
        identifies=False,
        needs=("finetune", "lora"),
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

    @property
    def loading(self) -> dict:
        """The arguments of `sd_tf.load` for the model of `init_from`."""
        return {name: getattr(self, name) for name in LOADING}

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

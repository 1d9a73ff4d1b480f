"""Options of a GAN and its training: the flags of `python -m sd_tf.train gan`."""

from dataclasses import dataclass

from sd_tf.errors import InputError
from sd_tf.gan.config import ADVERSARIAL, CLIP_FEATURES, JUDGES
from sd_tf.options import Options, option

MODEL, LOSSES = "new model", "losses"
SCALES = ("both", "input", "output", "none")


@dataclass(frozen=True)
class GanOptions(Options):
    """Options of a `GigaGAN` and its training.

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
    unconditional: bool = option(False, "draw without a text", group=MODEL)
    enlarge_from: int | None = option(
        None,
        "side in pixels of the pictures that it enlarges, in the place of drawing from text alone",
        at_least=1,
        example="16",
        group=MODEL,
    )
    num_kernels: int | None = option(
        None, "kernels of each filter bank; 1 for plain convolutions", at_least=1, at_most=64, group=MODEL
    )
    multi_scale: str | None = option(
        None,
        "where the discriminator has several scales: in what it sees, in what it says, both or none",
        choices=SCALES,
        group=MODEL,
    )
    judged_by: str | None = option(
        None,
        "what the discriminator judges by: pixels, the maps of a frozen network (vision), or both",
        choices=JUDGES,
        group=MODEL,
    )
    vision: str | None = option(
        None,
        "that frozen network: a bundled name or a folder (default: perceptual-mini)",
        group=MODEL,
    )
    vision_weight: float | None = option(
        None, "of the loss of its judgements, beside that of pixels", at_least=0, group=LOSSES
    )
    vision_gamma: float | None = option(
        None, "of the gradient penalties at its maps", at_least=0, group=LOSSES
    )
    adversarial: str | None = option(
        None, "the players' loss: R3GAN's relativistic one, or GAN's own", choices=ADVERSARIAL, group=LOSSES
    )
    gamma: float | None = option(
        None, "of the gradient penalties R1 and R2", at_least=0, example="1", group=LOSSES
    )
    matching_weight: float | None = option(
        None, "of the loss of pictures with another's text; 0 leaves it out", at_least=0, group=LOSSES
    )
    reconstruction_weight: float | None = option(
        None, "of the loss of pictures that are drawn again; 0 leaves it out", at_least=0, group=LOSSES
    )
    perceptual_weight: float | None = option(
        None,
        "of the distance of pictures that are drawn again in the maps of --vision; 0 leaves it out",
        at_least=0,
        group=LOSSES,
    )
    kl_weight: float | None = option(
        None, "of the divergence of their z from the usual ones", at_least=0, group=LOSSES
    )
    clip_weight: float | None = option(
        None, "of CLIP's contrastive loss; 0 leaves it out", at_least=0, group=LOSSES
    )
    clip: str | None = option(
        None,
        "CLIP of that loss, with both towers: a bundled name, a folder or a hub id (default: clip-mini)",
        group=LOSSES,
    )
    clip_features: str | None = option(
        None,
        "what that loss compares: projected features of length 1, or the towers' pooled states as they are, "
        "which is a mistake to look at",
        choices=CLIP_FEATURES,
        group=LOSSES,
    )
    low_res_weight: float | None = option(
        None,
        "of the loss that keeps an enlarged picture, made small again, to the small one",
        at_least=0,
        group=LOSSES,
    )
    low_res_noise: float | None = option(
        None,
        "the most deviation of noise that is added to small pictures, which go from -1 to 1",
        at_least=0,
        at_most=1,
        group=LOSSES,
    )
    translation: float | None = option(
        None,
        "how far the discriminator's pictures are moved at random, as a share of the side",
        at_least=0,
        at_most=0.5,
        group=LOSSES,
    )
    cutout: float | None = option(
        None,
        "side of the square that is cut out of them, as a share of the side",
        at_least=0,
        at_most=1,
        group=LOSSES,
    )
    init_from: str | None = option(
        None, "model to go on from: a bundled name or a folder", group=MODEL, identifies=False
    )

    def __post_init__(self):
        super().__post_init__()
        if self.enlarge_from and self.reconstruction_weight:
            raise InputError(
                f"{self.named_value('reconstruction_weight')}, and {self.said('enlarge_from')} makes a model "
                "without an encoder, since small pictures lay out what it draws: leave one of them out"
            )
        if self.unconditional:
            for name in ("text_encoder", "text_length", "matching_weight", "clip_weight"):
                if getattr(self, name):
                    raise InputError(
                        f"{self.named_value(name)}, but {self.said('unconditional')} draws without a text: "
                        "leave one of them out"
                    )

    def check_of_a_model(self, enlarges: bool):
        """Raises `InputError` for options of a model that enlarges, where it does not."""
        for name in ("low_res_weight", "low_res_noise"):
            if getattr(self, name) is not None and not enlarges:
                raise InputError(
                    f"{self.said(name)} is only for a model that enlarges pictures: leave it out, or "
                    f"make one with {self.said('enlarge_from')}"
                )

    def check_of_a_trained_model(self):
        """Raises `InputError` for options of a new model."""
        for name in (
            *("preset", "text_encoder", "text_length", "unconditional", "num_kernels", "multi_scale"),
            *("judged_by", "enlarge_from"),
        ):
            if getattr(self, name):
                raise InputError(
                    f"{self.said(name)} is only for a new model: leave it out, a trained one brings its own"
                )

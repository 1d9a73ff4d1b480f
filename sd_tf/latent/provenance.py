"""How a model came to its weights, for the runs that train it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # drawing needs neither
    from sd_tf.latent.options import LatentOptions
    from sd_tf.latent.presets import Preset

RANDOM = "random weights"


class Beginning(NamedTuple):
    """What a new model was made from.

    Attributes:
        preset: with the sizes that the options asked for.
        options: of the model.
        trains_clip: whether its text encoder is trained as well.
    """

    preset: "Preset"
    options: "LatentOptions"
    trains_clip: bool


@dataclass
class Provenance:
    """How a `LatentDiffusion` came to its weights.

    Attributes:
        beginning: of a model that was made with random weights; None for one that was read.
        is_trained: False until every stage of a new model is trained.
        bases: the resolved folder of each run that trained this model -> the hash of the weights that it
            began with, or `RANDOM`. The model has learned since, so that they cannot be hashed any more.
        taught_words: of textual inversion, which may have been stopped.
    """

    beginning: Beginning | None = None
    is_trained: bool = True
    bases: dict[Path, str] = field(default_factory=dict)
    taught_words: set[str] = field(default_factory=set)

    def trains_from_random_weights(self, folder: Path) -> bool:
        """Whether a run in that folder trains the stages of a new model, rather than fine-tunes one."""
        if self.beginning is None:
            return False
        return not self.is_trained or self.bases.get(folder.resolve()) == RANDOM

"""`Provenance`: how a model was made and trained, for later runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # not needed for drawing
    from sd_tf.latent.options import LatentOptions
    from sd_tf.latent.presets import Preset

RANDOM = "random weights"


class Beginning(NamedTuple):
    """What a new model was made from.

    Attributes:
        preset: the `Preset`, with changes by the options.
        options: `LatentOptions`.
        trains_clip: whether its text encoder is to be trained as well.
        networks: name -> `Unread` network with the random weights.
    """

    preset: "Preset"
    options: "LatentOptions"
    trains_clip: bool
    networks: dict


@dataclass
class Provenance:
    """How a `LatentDiffusion` was made and trained.

    Attributes:
        beginning: what a model with random weights was made from; None for a loaded model.
        is_trained: whether all stages of the model are trained.
        bases: resolved folder of each run that trained this model -> hash of the weights that the run started
            from, or `RANDOM`. They have changed since, so they cannot be hashed again.
        taught_words: words that textual inversion has added, finished or not.
        half_trained: names of networks whose training was stopped.
    """

    beginning: Beginning | None = None
    is_trained: bool = True
    bases: dict[Path, str] = field(default_factory=dict)
    taught_words: set[str] = field(default_factory=set)
    half_trained: set[str] = field(default_factory=set)

    def trains_from_random_weights(self, folder: Path) -> bool:
        """Whether a run in that folder trains the stages of a new model, rather than fine-tunes one."""
        if self.beginning is None:
            return False
        return not self.is_trained or self.bases.get(folder.resolve()) == RANDOM

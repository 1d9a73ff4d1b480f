"""`Provenance`: how a model was made and trained, for later runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

RANDOM = "random weights"


class Beginning(NamedTuple):
    """What a new model was made from.

    Attributes:
        preset: the family's preset, with changes by the options.
        options: the family's `Options`.
        networks: name -> `Unread` network with the random weights.
        trains_text_encoder: whether its text encoder is to be trained as well.
    """

    preset: Any
    options: Any
    networks: dict
    trains_text_encoder: bool = False


@dataclass
class Provenance:
    """How a model was made and trained.

    Attributes:
        beginning: what a model with random weights was made from; None for a loaded model.
        is_trained: whether all stages of the model are trained.
        bases: resolved folder of each run that trained this model -> hash of the weights that the run started
            from, or `RANDOM`. They have changed since, so they cannot be hashed again.
        half_trained: names of networks whose training was stopped.
        taught_words: words that textual inversion has added, finished or not.
    """

    beginning: Beginning | None = None
    is_trained: bool = True
    bases: dict[Path, str] = field(default_factory=dict)
    half_trained: set[str] = field(default_factory=set)
    taught_words: set[str] = field(default_factory=set)

    def trains_from_random_weights(self, folder: Path) -> bool:
        """Whether a run in that folder trains the stages of a new model, rather than fine-tunes one."""
        if self.beginning is None:
            return False
        return not self.is_trained or self.bases.get(folder.resolve()) == RANDOM

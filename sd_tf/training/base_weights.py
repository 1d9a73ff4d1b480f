"""A recipe that knows which weights its run began from, so that a run of other weights is not resumed."""

import functools
from pathlib import Path

from sd_tf.errors import InputError
from sd_tf.training.options import FOLDER
from sd_tf.training.provenance import RANDOM
from sd_tf.training.recipe import Recipe


class RecipeFromBase(Recipe):
    """A recipe of a model with a `provenance` and `weights_sha256`.

    Args:
        model: the family's model, an `Adaptable`.
        folder: run folder.
        is_new: whether all stages are trained, from random weights.
    """

    def __init__(self, model, folder: Path, is_new: bool):
        self.model, self.is_new, self._place = model, is_new, folder.resolve()

    @property
    def leaves_weights(self) -> bool:
        """Whether training changes none of the model's own weights, as that of a LoRA."""
        return False

    @property
    def identity(self):
        found = super().identity
        return found if self.is_new else found | {"init_from_sha256": self._base}

    @functools.cached_property
    def _base(self):
        # The hash of the first start here: the weights have changed since if the model was trained. What
        # leaves them as they are belongs to what they are now.
        bases = self.model.provenance.bases
        if self._place not in bases or self.leaves_weights:
            bases[self._place] = self.model.weights_sha256()
        return bases[self._place]

    def forget_base(self):
        """The weights have changed, and no checkpoint has them: what the run began with is gone."""
        self.model.provenance.bases.pop(self._place, None)

    def unload_lora(self, run):
        """Without the LoRA that an earlier start in the same folder has left loaded.

        Nothing remembers the weights of before any more: they may change from now on.
        """
        if run.folder.name in (self.model.adaptations.weights if self.model.has_adaptations else ()):
            self.model.adaptations.remove(run.folder.name)
        self.model.forget_adaptations()

    def check_same_base(self, before, folder):
        began = before.get("init_from_sha256")
        if began is None and not self.is_new:
            raise InputError(f"{folder} holds a run that began from random weights: name another {FOLDER}")
        if self.is_new and began is not None:
            raise InputError(f"{folder} holds a fine-tuning of another model: name another {FOLDER}")
        if began is not None and began != self._base:
            sources = [getattr(options, "init_from", None) for options in self.options]
            source = next(filter(None, sources), "the model")
            raise InputError(
                f"{folder} began from other weights than {source} has now: "
                f"restore those to resume it, or name another {FOLDER}"
            )

    def finished(self, run):
        self.model.read_networks()  # their files may be deleted from now on
        if self.is_new:
            self.model.provenance.bases[self._place] = RANDOM

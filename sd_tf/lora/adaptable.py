"""A model that LoRAs can be loaded into."""

import contextlib

from sd_tf.errors import InputError


class Adaptable:
    """A model with `adaptations`, a `functools.cached_property` of `Adaptations`."""

    @property
    def has_adaptations(self) -> bool:
        """Whether LoRAs are loaded."""
        return "adaptations" in self.__dict__ and bool(self.adaptations.weights)

    def without_adaptations(self):
        """Within the block, the model is without its LoRAs."""
        return self.adaptations.switched_off() if self.has_adaptations else contextlib.nullcontext()

    def forget_adaptations(self):
        """Has no LoRAs any more; the weights stay as they are."""
        self.__dict__.pop("adaptations", None)

    def _weighing(self, loras):
        """Within the block, LoRAs have the weights that prompts give them."""
        if not loras:
            return contextlib.nullcontext()
        for name in loras:
            if name not in self.adaptations.weights:
                raise InputError(
                    f"the prompt names the LoRA {name!r}, which is not loaded: load_lora(file, name={name!r})"
                )
        return self.adaptations.weighing(loras)

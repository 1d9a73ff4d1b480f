"""Pictures of one thing beside pictures of its kind, so that a model that learns the one keeps the other.

The prior preservation of DreamBooth (Ruiz et al. 2023, equation 2). There the losses of both are weighted;
here their pictures come as often as their weights say, which has the same gradient in expectation.
"""

from collections.abc import Sequence

import numpy as np

from sd_tf.data.pipeline import CaptionedImages, Examples
from sd_tf.hashing import fingerprint


class WithPrior:
    """A data set with a second one mixed in; a `CaptionedImages`.

    Args:
        own: what is to be learned, all of it in each epoch.
        prior: what the model should keep; each epoch takes the next few pictures of it.
        share: of `prior` in all examples, above 0 and below 1.

    Attributes:
        epochs_of_all: epochs until each picture of `prior` has come once.
    """

    def __init__(self, own: CaptionedImages, prior: CaptionedImages, share: float):
        self._own, self._prior = own, prior
        self._of_prior = max(1, round(len(own) * share / (1.0 - share)))
        self.name, self.image_size, self.preview_prompts = own.name, own.image_size, own.preview_prompts
        self.epochs_of_all = -(-len(prior) // self._of_prior)
        self.distinct_epochs = own.distinct_epochs and self.epochs_of_all
        self.fingerprint = fingerprint(own.fingerprint, prior.fingerprint, self._of_prior)

    def __len__(self) -> int:
        return len(self._own) + self._of_prior

    def corpus(self) -> tuple[str, ...]:
        """Captions of both."""
        return self._own.corpus() + self._prior.corpus()

    @property
    def distinct_captions(self) -> tuple[str, ...]:
        """Every caption that `examples` can have, sorted."""
        return tuple(sorted({*self._own.distinct_captions, *self._prior.distinct_captions}))

    def examples(self, indices: Sequence[int], epoch: int) -> Examples:
        """Examples by index: the first `len(own)` indices are those of `own`, the others those of `prior`."""
        indices = np.asarray(indices, np.int64)
        is_own = indices < len(self._own)
        of_prior = (indices[~is_own] - len(self._own) + epoch * self._of_prior) % len(self._prior)
        if is_own.all():
            return self._own.examples(indices, epoch)
        images, captions, groups = self._prior.examples(of_prior, epoch)
        groups = groups + np.int32(len(self._own))  # no caption of the one is taken for one of the other
        if is_own.any():
            own = self._own.examples(indices[is_own], epoch)
            images, groups = np.concatenate([own.images, images]), np.concatenate([own.groups, groups])
            captions = [*own.captions, *captions]
        order = np.argsort(np.concatenate([np.flatnonzero(is_own), np.flatnonzero(~is_own)]))
        return Examples(images[order], [captions[i] for i in order], groups[order])

"""The training stage of a GAN that enlarges pictures (GigaGAN, Kang et al. 2023, section 3.4).

The discriminator judges as of other GANs: it does not see what was enlarged.
"""

import warnings

import numpy as np

from sd_tf.data.pipeline import fair_sample
from sd_tf.data.resizing import shrunk
from sd_tf.gan.layers import halved_to
from sd_tf.gan.losses import low_res_loss
from sd_tf.gan.stages import GanStage
from sd_tf.generation.pictures import to_uint8
from sd_tf.images import to_unit
from sd_tf.seeding import normals, uniforms
from sd_tf.text.prompt_syntax import prompt_of

NOISE, LEVELS_AND_CAPTIONS = 6, 7  # keys of random streams; the others are in `gan.stages`
PREVIEWS = 8


class EnlargingStage(GanStage):
    """Both players of a generator that enlarges.

    Small pictures are the means of real ones' pixels, with noise of a deviation that is drawn uniformly
    (noise conditioning augmentation, Ho et al. 2022, section 4.2; the generator is not told the deviation).

    Args:
        others: as of `GanStage`.
        low_res_noise: the largest deviation.
        caption_dropout: share of captions replaced by the empty one, so that no prompt is needed.
    """

    def __init__(self, *others, low_res_noise=0.0, caption_dropout=0.0, **settings):
        super().__init__(*others, **settings)
        self.low_res_noise, self.caption_dropout = low_res_noise, caption_dropout
        self.small = self.generator.config.low_res_size

    def completed(self, found, indices, epoch):
        low_res = shrunk(found["images"], (self.small, self.small))
        levels, captions = uniforms((LEVELS_AND_CAPTIONS, self.seed, epoch), indices, 2).T
        if self.low_res_noise:
            noise = normals((NOISE, self.seed, epoch), indices, low_res.shape[1:])
            low_res = low_res + (self.low_res_noise * levels)[:, None, None, None] * noise
        if "states" in found:
            dropped = captions < self.caption_dropout
            found["states"][dropped] = self.texts.states[-1]
            found["text_mask"][dropped] = self.texts.mask[-1]
        return found | {"low_res": low_res.astype(np.float32)}

    def _generator_losses(self, real, drawn, shown, batch):
        losses = super()._generator_losses(real, drawn, shown, batch)
        if not self.weights.low_res:
            return losses
        difference = low_res_loss(shown, halved_to(batch["images"], self.small))
        loss = losses["loss"] + self.weights.low_res * difference
        return losses | {"loss": loss, "low_res": difference}

    def preview(self):
        """Three rows: pictures to enlarge, what is made of them, and what they were made from."""
        if self.model is None:
            return None
        chosen = fair_sample(self.dataset, PREVIEWS)
        examples = self.dataset.examples(chosen, 0)
        large = to_unit(examples.images)
        small = to_uint8(shrunk(large, (self.small, self.small)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # words that it is learning just now
            prompts = list(map(prompt_of, examples.captions))
            drawn = self.model.upscale(small, prompts, engine="tensorflow", progress=False)
        factor = large.shape[1] // self.small
        coarse = small.repeat(factor, axis=1).repeat(factor, axis=2)
        return np.concatenate([coarse, drawn, to_uint8(large)]), len(chosen)

"""The training stages of a cascade: each UNet on pixels and the cached states of captions."""

import warnings

import numpy as np
import tensorflow as tf

from sd_tf.cascade.drawing import draw_stage
from sd_tf.cascade.folder import save_unet
from sd_tf.cascade.stage import by_condition
from sd_tf.data.pipeline import fair_sample, pictures_at_once, stream
from sd_tf.data.resizing import enlarged, shrunk
from sd_tf.diffusion.conditions import Condition, drop_captions
from sd_tf.diffusion.losses import diffusion_loss
from sd_tf.generation.pictures import to_uint8
from sd_tf.generation.request import Request
from sd_tf.generation.text_conditions import text_conditions
from sd_tf.images import to_unit
from sd_tf.seeding import normals, uniforms
from sd_tf.text.prompt_syntax import prompt_of
from sd_tf.training.denoising import DenoisingStage

AUGMENTATION_NOISE, LEVELS_AND_CROPS = 7, 8  # keys of random streams; the others are in `training.denoising`
PREVIEWS, PREVIEW_STEPS = 8, 16


class BaseStage(DenoisingStage):
    """The UNet that draws from text alone.

    Args:
        config: a `StageConfig`.
        name: of the stage.
        stage: the `PixelStage` whose network learns.
        dataset: `CaptionedImages`, of the stage's size or a multiple of it.
        texts: a `TextCache` of its captions.
        caption_dropout, seed, settings: see `DenoisingStage`.
        model: the `CascadedDiffusion` that draws previews.
    """

    def __init__(self, config, name, stage, dataset, texts, caption_dropout, seed, model, **settings):
        super().__init__(config, stage.unet, stage.schedule, caption_dropout, seed, **settings)
        self.name, self.stage, self.dataset, self.model = name, stage, dataset, model
        self.texts, self.seconds_spent = texts, texts.seconds
        self.empty = np.asarray(texts.states[-1:], np.float32)

    def batches(self, first, part=(0, 1)):
        def fetch(indices, epoch):
            examples = self.dataset.examples(indices, epoch)
            pictures = self.pictures(to_unit(examples.images), indices, epoch)
            shape = pictures["images"].shape[1:]
            captions = self.captions(examples.captions)
            return {**pictures, **captions, **self.drawn(indices, epoch, shape)}

        return stream(fetch, len(self.dataset), self.config.batch_size, self.seed, first, part)

    def pictures(self, images, indices, epoch) -> dict[str, np.ndarray]:
        """What of the pictures, float32 (n, size, size, 3), goes into a batch."""
        return {"images": shrunk(images, self.stage.image_size)}

    def captions(self, captions) -> dict[str, np.ndarray]:
        """What of n captions goes into a batch: their states as "context", (n, tokens, width)."""
        return {"context": self.texts.states[self.texts.rows_of(captions)]}

    def condition(self, batch) -> Condition:
        """What the UNet is told beside the noisy picture."""
        return Condition(tf.cast(batch["context"], tf.float32))

    def loss(self, batch):
        condition = drop_captions(self.condition(batch), Condition(self.empty), batch["dropped"])
        t, network = batch["timesteps"], by_condition(self.stage.unet)
        loss = diffusion_loss(
            network,
            batch["images"],
            condition,
            t,
            batch["noise"],
            self.schedule,
            self.min_snr_gamma,
            self.stage.learns_variance,
        )
        return self.by_timesteps(loss, t)

    def preview(self):
        """Two pictures for each preview prompt."""
        prompts = list(map(prompt_of, self.dataset.preview_prompts))  # as plain text, as it learns them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # words that it is learning just now
            images = self.model.generate(
                prompts,
                num_images=2,
                steps=PREVIEW_STEPS,
                stages=1,
                engine="tensorflow",  # OpenVINO would convert each state of the network, and keep it
                batch_size=pictures_at_once(16, max(self.stage.image_size)),
                progress=False,
            )
        return images, len(prompts)

    def save_snapshot(self, folder, dtype):
        save_unet(self.network, folder, dtype)


class SuperResolutionStage(BaseStage):
    """A UNet that enlarges pictures, with noise conditioning augmentation (Ho et al. 2022, section 4.2).

    The level of the noise on the smaller picture is drawn uniformly (Saharia et al. 2022, section 2.4).

    Args:
        small: (height, width) of the pictures to enlarge.
        crop: pixels along a side of the patches that are learned from; 0 for whole pictures. Whole pictures
            are drawn, which a network of convolutions can (section 2.5).
        others: as of `BaseStage`.
    """

    def __init__(self, *others, small, crop=0, **settings):
        super().__init__(*others, **settings)
        self.small, self.crop = small, crop

    keeps_snapshots = False  # the first stage alone: what guidance does is seen there

    def pictures(self, images, indices, epoch):
        noising = self.stage.noising
        levels, *corner = uniforms((LEVELS_AND_CROPS, self.seed, epoch), indices, 3).T
        images = shrunk(images, self.stage.image_size)
        low_res = enlarged(shrunk(images, self.small), self.stage.image_size)
        if self.crop:
            images, low_res = (self._patches(each, corner) for each in (images, low_res))
        return {
            "images": images,
            "low_res": low_res,
            "low_res_noise": normals((AUGMENTATION_NOISE, self.seed, epoch), indices, images.shape[1:]),
            "low_res_level": (levels * noising.config.num_train_timesteps).astype(np.int32),
        }

    def _patches(self, images, corner):
        tops, lefts = (
            (share * (side - self.crop + 1)).astype(int)
            for share, side in zip(corner, images.shape[1:3], strict=True)
        )
        places = zip(images, tops, lefts, strict=True)
        return np.stack([each[y : y + self.crop, x : x + self.crop] for each, y, x in places])

    def condition(self, batch):
        level = batch["low_res_level"]
        low_res = self.stage.noising.add_noise(batch["low_res"], batch["low_res_noise"], level)
        return super().condition(batch)._replace(low_res=low_res, low_res_level=tf.cast(level, tf.float32))

    def preview(self):
        """Three rows: pictures to enlarge, what is made of them, and what they were made from."""
        chosen = fair_sample(self.dataset, PREVIEWS)
        examples = self.dataset.examples(chosen, 0)
        large = shrunk(to_unit(examples.images), self.stage.image_size)
        small = to_uint8(shrunk(large, self.small))
        context = self.model.encode_prompts(examples.captions).context  # as plain text, as it learns them
        request = Request(prompt_embeds=context, batch_size=pictures_at_once(16, large.shape[1]))
        drawn = draw_stage(
            self.stage,
            1,
            request,
            text_conditions(request, self.model.text_encoder),
            self.stage.recommended.replaced(steps=PREVIEW_STEPS),
            self.stage.thresholding,
            self.stage.image_size,
            smaller=small,
            progress=False,
        )
        factors = [a // b for a, b in zip(self.stage.image_size, self.small, strict=True)]
        coarse = small.repeat(factors[0], axis=1).repeat(factors[1], axis=2)
        return np.concatenate([coarse, drawn, to_uint8(large)]), len(chosen)

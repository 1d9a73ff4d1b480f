"""The training stages of a latent diffusion model: CLIP, the autoencoder, the UNet on cached latents."""

import dataclasses
import warnings

import numpy as np
import tensorflow as tf

from sd_tf.data.pipeline import fair_sample, pictures_at_once, stream, to_uint8
from sd_tf.diffusion.conditions import Condition, drop_captions
from sd_tf.graphs import compiled
from sd_tf.images import to_unit
from sd_tf.latent.folder import save_unet
from sd_tf.seeding import normals
from sd_tf.text.clip import contrastive_loss
from sd_tf.text.prompt_syntax import prompt_of
from sd_tf.training.denoising import DenoisingStage
from sd_tf.training.stage import SinglePlayerStage, gathered_rows, own_rows

LATENT_NOISE = 2  # key of a stream of random numbers; the others are in `training.denoising`


class ClipStage(SinglePlayerStage):
    """Contrastive training of both CLIP towers (Radford et al. 2021).

    Args:
        config: a `StageConfig`.
        clip: a `CLIPModel`.
        tokenizer: its `Tokenizer`.
        dataset: `CaptionedImages`.
        seed: seed of the order of examples.
    """

    name = "clip"
    divisible = False  # an example's loss depends on the whole batch

    def __init__(self, config, clip, tokenizer, dataset, seed):
        super().__init__(config, clip)
        self.tokenizer, self.dataset, self.seed = tokenizer, dataset, seed

    def batches(self, first, part=(0, 1)):
        def fetch(indices, epoch):
            examples = self.dataset.examples(indices, epoch)
            return {
                "images": to_unit(examples.images),
                "token_ids": self.tokenizer(examples.captions),
                "groups": examples.groups,
            }

        return stream(fetch, len(self.dataset), self.config.batch_size, self.seed, first, part)

    def loss(self, batch):
        clip = self.network
        text = clip.text_features(batch["token_ids"])
        image = clip.image_features(clip.preprocess(batch["images"]))
        # The examples of all replicas are negatives for each other.
        text_all, image_all, groups = (
            gathered_rows(text),
            gathered_rows(image),
            gathered_rows(batch["groups"]),
        )
        losses = contrastive_loss(text_all, image_all, clip.logit_scale, groups)
        best = tf.argmax(tf.matmul(image_all, text_all, transpose_b=True), axis=1)
        matched = tf.cast(tf.equal(tf.gather(groups, best), groups), tf.float32)
        return {"loss": own_rows(losses), "matched": own_rows(matched)}


class AutoencoderStage(SinglePlayerStage):
    """The KL autoencoder: mean absolute error, a small KL term, and optionally a perceptual loss.

    Args:
        config: a `StageConfig`.
        autoencoder: an `AutoencoderKL`.
        dataset: `CaptionedImages`.
        seed: seed of the order of examples and of the latents' noise.
        perceptual: a frozen `PerceptualNetwork`, or None.
        perceptual_weight: weight of the perceptual distance between a picture and its reconstruction.
    """

    name = "autoencoder"
    divisible = True
    KL_WEIGHT = 1e-4  # small against errors of about 0.03: latents stay bounded, pictures sharp

    def __init__(self, config, autoencoder, dataset, seed, perceptual=None, perceptual_weight=1.0):
        super().__init__(config, autoencoder)
        self.dataset, self.seed = dataset, seed
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight

    def batches(self, first, part=(0, 1)):
        side = self.dataset.image_size // self.network.config.downsampling
        shape = (side, side, self.network.config.latent_channels)

        def fetch(indices, epoch):
            return {
                "images": to_unit(self.dataset.examples(indices, epoch).images),
                "noise": normals((LATENT_NOISE, self.seed, epoch), indices, shape),
            }

        return stream(fetch, len(self.dataset), self.config.batch_size, self.seed, first, part)

    def loss(self, batch):
        autoencoder, images = self.network, batch["images"]
        mean, log_variance = autoencoder.moments(images)
        latents = mean + tf.exp(0.5 * log_variance) * batch["noise"]
        rebuilt = autoencoder.decode(autoencoder.scaled(latents))
        error = tf.reduce_mean(tf.abs(rebuilt - images), axis=(1, 2, 3))
        kl = 0.5 * tf.reduce_mean(tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance, axis=(1, 2, 3))
        losses = {"loss": error + self.KL_WEIGHT * kl, "error": error, "kl": kl}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual.distance(rebuilt, images)
            losses["loss"] += self.perceptual_weight * losses["perceptual"]
        return losses

    def calibrate(self, num_images=2048):
        """Sets the scaling factor to 1 / (standard deviation of the latents of sampled pictures).

        Var[z] = E[exp(log variance)] + E[mean^2] - E[mean]^2, over all latents of all pictures together.
        """
        chosen, encode = fair_sample(self.dataset, num_images), compiled(self.network.moments)
        at_once = pictures_at_once(256, self.dataset.image_size)
        count, sums = 0, np.zeros(3)  # float64
        for start in range(0, len(chosen), at_once):
            images = self.dataset.examples(chosen[start : start + at_once], 0).images
            mean, log_variance = (np.asarray(each, np.float64) for each in encode(to_unit(images)))
            sums += np.exp(log_variance).sum(), np.square(mean).sum(), mean.sum()
            count += mean.size
        variance, square, mean = sums / count
        deviation = float(np.sqrt(variance + square - mean**2))
        self.network.config = dataclasses.replace(self.network.config, scaling_factor=1.0 / deviation)

    def preview(self):
        """Two rows: pictures, and their reconstructions below."""
        images = self.dataset.examples(np.arange(min(12, len(self.dataset))), 0).images
        rebuilt = to_uint8(np.asarray(self.network(to_unit(images))))
        return np.concatenate([images, rebuilt]), len(images)


class DiffusionStage(DenoisingStage):
    """The UNet on cached latents and captions.

    Args:
        config: a `StageConfig`.
        model: a `LatentDiffusion`.
        cache: a `LatentCache` of latents and captions.
        caption_dropout, seed, settings: see `DenoisingStage`.
        preview_prompts: what the previews show: plain text, as captions are.
    """

    name = "diffusion"

    def __init__(self, config, model, cache, caption_dropout, seed, preview_prompts=(), **settings):
        super().__init__(config, model.unet, model.schedule, caption_dropout, seed, **settings)
        self.model, self.cache, self.seconds_spent = model, cache, cache.seconds
        self.preview_prompts = list(preview_prompts)
        self.empty_context = np.asarray(cache.contexts[-1:], np.float32)

    def batches(self, first, part=(0, 1)):
        cache = self.cache
        latent_shape = cache.mean.shape[1:]

        def fetch(indices, epoch):
            latent_noise = normals((LATENT_NOISE, self.seed, epoch), indices, latent_shape)
            return {
                "latents": cache.mean[indices] + cache.std[indices] * latent_noise,
                **self.captions(indices),
                **self.drawn(indices, epoch, latent_shape),
            }

        return stream(fetch, len(cache), self.config.batch_size, self.seed, first, part)

    def captions(self, indices):
        """The captions of a batch: the text encoder's output as "context", float32 (n, tokens, width)."""
        return {"context": self.cache.contexts[self.cache.caption[indices]].astype(np.float32)}

    def context(self, batch):
        """The UNet's context for a batch, float32 (n, tokens, width)."""
        return batch["context"]

    def loss(self, batch):
        condition, empty = Condition(self.context(batch)), Condition(self.empty_context)
        context = drop_captions(condition, empty, batch["dropped"]).context
        t = batch["timesteps"]
        loss = self.model.loss(batch["latents"], context, t, batch["noise"], self.min_snr_gamma)
        return self.by_timesteps(loss, t)

    def preview(self):
        """Two pictures for each preview prompt."""
        if not self.preview_prompts:
            return None
        autoencoder, prompts = self.model.autoencoder.config, list(map(prompt_of, self.preview_prompts))
        side = max(self.model.unet.config.latent_size) * autoencoder.downsampling
        settings = {"steps": 20, "engine": "tensorflow", "progress": False}
        batch_size = pictures_at_once(64, side)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # words that it is learning just now
            images = self.model.generate(prompts, num_images=2, batch_size=batch_size, **settings)
        return images, len(prompts)

    def save_snapshot(self, folder, dtype):
        save_unet(self.network, folder, dtype)

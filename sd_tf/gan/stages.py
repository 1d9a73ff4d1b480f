"""The training stage of a GAN: the discriminator's move, then the generator's."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sd_tf.data.pipeline import stream
from sd_tf.errors import argument
from sd_tf.gan.augmentation import NUMBERS, augmented
from sd_tf.gan.config import GanLosses
from sd_tf.gan.folder import save_network
from sd_tf.gan.losses import (
    clip_loss,
    discriminator_loss,
    divergence,
    generator_loss,
    matching_loss,
    reconstruction_loss,
)
from sd_tf.graphs import sliced
from sd_tf.images import to_unit
from sd_tf.seeding import normals, uniforms
from sd_tf.text.prompt_syntax import prompt_of
from sd_tf.training.gradient_penalty import gradient_penalty
from sd_tf.training.options import FOLDER, StageConfig
from sd_tf.training.stage import Player, Stage, gathered_rows, mean_of_some, own_rows
from sd_tf.training.workers import slices_on_cores

# Keys of independent streams of random numbers (`sd_tf.seeding`); 1 is `generate`'s.
LATENTS, AUGMENTATIONS, MISMATCHES, POSTERIORS = 2, 3, 4, 5
GENERATOR, DISCRIMINATOR = "generator", "discriminator"
RIGHT, SPREAD = "real above drawn", "spread of drawn to real"  # in the log
# Running means over about so many steps say that a player has won, or that all pictures are the same.
PATIENCE = 1000
WON, LOST, COLLAPSED = 0.998, 0.02, 0.05


class Judge(NamedTuple):
    """A way of judging pictures.

    Attributes:
        prefix: of its losses' names in the log.
        weight: of its losses.
        gamma: of its gradient penalties.
        made_of: pictures -> what the gradient is taken at.
        see: that -> what can be judged with several texts.
        judge: that, the texts' codes and `again`, see `Discriminator.judged`, -> logits.
    """

    prefix: str
    weight: float
    gamma: float
    made_of: Callable
    see: Callable
    judge: Callable

    def __call__(self, pictures, code):
        return self.judge(self.see(self.made_of(pictures)), code)

    def penalised(self, pictures, code, again):
        """Logits, and the gradient penalty of each picture, (batch,)."""

        def judged(inputs):
            return self.judge(self.see(inputs), code, again)

        inputs = self.made_of(pictures)
        if not self.gamma:
            return judged(inputs), tf.zeros_like(pictures[-1][:, 0, 0, 0], tf.float32)
        return gradient_penalty(judged, inputs)


class GanStage(Stage):
    """Both players in turn, each on a batch of its own.

    Args:
        generator, discriminator: the networks, of one `sample_size` and one text.
        configs: their `StageConfig`s, by name, of one batch size: a multiple of the discriminator's
            `minibatch_groups`.
        dataset: `CaptionedImages` of the networks' size.
        texts: a `TextCache` of its captions; None for networks without a text.
        losses: a `GanLosses`.
        augmentation: an `Augmentation`, or None.
        seed: of the order of examples and of everything that is drawn for them.
        clip: a frozen `CLIPModel` and its tokenizer, for the loss of that name.
        model: the `GigaGAN` that draws previews; None for no previews.
        vision: a frozen network whose `maps` the discriminator judges by, too; None for none.
    """

    name = "gan"

    def __init__(
        self,
        generator,
        discriminator,
        configs: dict[str, StageConfig],
        dataset,
        texts=None,
        losses=GanLosses(),
        augmentation=None,
        seed=0,
        clip=None,
        model=None,
        vision=None,
    ):
        self.vision = vision
        self.generator, self.discriminator = generator, discriminator
        self.batch_size = configs[GENERATOR].batch_size
        self.dataset, self.texts, self.seed, self.model = dataset, texts, seed, model
        self.weights, self.clip = losses, clip
        self.augmentation = augmentation if augmentation and any(augmentation) else None
        self.seconds_spent = 0.0 if texts is None else texts.seconds
        self.unit = discriminator.config.minibatch_groups
        self._running = {RIGHT: _kept_mean(0.5), SPREAD: _kept_mean(1.0)}
        self.players = {
            DISCRIMINATOR: Player(discriminator, configs[DISCRIMINATOR]),
            GENERATOR: Player(generator, configs[GENERATOR]),
        }

    @property
    def divisible(self):
        """CLIP's loss compares all examples of a batch."""
        return not self.weights.clip

    def divides(self, player):
        return player == DISCRIMINATOR or self.divisible

    @property
    def state(self):
        return {"right": self._running[RIGHT], "spread": self._running[SPREAD]}

    def batches(self, first, part=(0, 1)):
        def fetch(indices, epoch):
            examples = self.dataset.examples(indices, epoch)
            found = {
                "images": to_unit(examples.images),
                "z": normals((LATENTS, self.seed, epoch), indices, (self.generator.config.latent_dim,)),
                "groups": examples.groups,
            }
            if self.generator.encoder is not None:
                noise = normals((POSTERIORS, self.seed, epoch), indices, (self.generator.config.latent_dim,))
                found["posterior noise"] = noise
            if self.augmentation is not None:
                numbers = uniforms((AUGMENTATIONS, self.seed, epoch), indices, 2 * NUMBERS)
                found["numbers"] = numbers.astype(np.float32)
            if self.texts is not None:
                found |= self._texts("", examples.captions)
                if self.weights.matching:
                    found |= self._of_others(indices, epoch, examples.groups)
            if self.clip is not None:
                found["token_ids"] = self.clip[1](examples.captions)
            return self.completed(found, indices, epoch)

        return stream(fetch, len(self.dataset), self.batch_size, self.seed, first, part)

    def completed(self, found, indices, epoch) -> dict[str, np.ndarray]:
        """A batch with what else a kind of generator reads."""
        return found

    def _texts(self, prefix, captions):
        rows = self.texts.rows_of(captions)
        states = self.texts.states[rows].astype(np.float32)
        return {f"{prefix}states": states, f"{prefix}text_mask": self.texts.mask[rows]}

    def _of_others(self, indices, epoch, groups):
        """The texts of other examples, and whether they say something else."""
        draws = uniforms((MISMATCHES, self.seed, epoch), indices, 1)[:, 0]
        others = (indices + 1 + (draws * (len(self.dataset) - 1)).astype(np.int64)) % len(self.dataset)
        examples = self.dataset.examples(others, epoch)
        return self._texts("other_", examples.captions) | {"mismatched": examples.groups != groups}

    def losses(self, batch, player, averages):
        if player == DISCRIMINATOR or not self.weights.clip:
            return self._losses(batch, player)[0]
        # CLIP's loss compares all pictures of the batch, which are drawn and judged on all cores before.
        number = slices_on_cores(self.batch_size, tf.distribute.get_strategy(), self.unit)
        parts = [self._losses(part, player) for part in sliced(batch, number, self.unit)]
        found = {name: tf.concat([losses[name] for losses, _ in parts], axis=0) for name in parts[0][0]}
        found["clip"] = self._clip_loss(tf.concat([shown for _, shown in parts], axis=0), batch)
        found["loss"] += self.weights.clip * found["clip"]
        return found

    def _losses(self, batch, player):
        """A player's losses but CLIP's, and the drawn pictures."""
        tokens, code = self.generator.read(*text_of(batch))
        z, posterior = self._latents(batch, code)
        styles = self.generator.styles(z, code)
        drawn = self.generator.synthesize(styles, tokens, batch.get("text_mask"), batch.get("low_res"))
        drawn, real = tuple(map(cut_off, drawn)), (batch["images"],)
        if self.discriminator.config.judges_pixels:  # of every size that is judged, as those that are drawn
            real = tuple(self.discriminator.pyramid_of(batch["images"])[::-1])
        shown = drawn[-1]
        # Of the same sizes; the discriminator halves the smallest itself.
        real, drawn = real[-len(drawn) :], drawn[-len(real) :]
        real, drawn = self._augmented(real, drawn, batch)
        if player == GENERATOR:
            found = self._generator_losses(real, drawn, shown, batch)
            if posterior is not None:
                found = self._with_reconstruction(found, shown, posterior, batch)
            return found, shown
        return self._discriminator_losses(real, tuple(map(tf.stop_gradient, drawn)), batch), shown

    def _latents(self, batch, code):
        """z of the drawn pictures, and what the encoder says of the real ones.

        With an encoder the first half of the batch is drawn again, with z of their distributions. These are
        judged as the others are (CVAE-GAN, Bao et al. 2017), so that the half costs an encoder and no more.
        """
        if self.generator.encoder is None:
            return batch["z"], None
        half = (tf.shape(batch["z"])[0] + 1) // 2
        code = None if code is None else code[:half]
        mean, log_variance = self.generator.encoder(batch["images"][:half], code)
        again = mean + tf.exp(0.5 * log_variance) * batch["posterior noise"][:half]
        return tf.concat([again, batch["z"][half:]], axis=0), (mean, log_variance)

    def _with_reconstruction(self, found, shown, posterior, batch):
        """The losses with those of the half that was drawn again."""
        images, weights = batch["images"], self.weights
        half, number = tf.shape(posterior[0])[0], tf.shape(images)[0]
        difference = reconstruction_loss(shown[:half], images[:half])
        of_encoder, perceptual = divergence(*posterior), []
        if weights.perceptual:
            apart = self.vision.distance(shown[:half], images[:half])
            perceptual = [("perceptual", weights.perceptual, apart)]
        is_again, others = tf.range(number) < half, tf.zeros([number - half])
        share = tf.cast(half, tf.float32) / tf.cast(number, tf.float32)
        for name, weight, values in (
            ("reconstruction", weights.reconstruction, difference),
            *perceptual,
            ("divergence", weights.kl, of_encoder),
        ):
            values = tf.concat([values, others], axis=0)
            found |= mean_of_some(name, values, is_again)
            found["loss"] += weight / share * values  # of the mean over the half
        return found

    def _discriminator_losses(self, real, drawn, batch):
        weights, number = self.weights, tf.shape(real[-1])[0]
        code, again = self._codes(batch), number if "mismatched" in batch else 0
        # Both kinds in one pass: half the operations, which a small network's time mostly goes to.
        pictures = tuple(tf.concat(pair, axis=0) for pair in zip(real, drawn, strict=True))
        loss, found, judgements = 0.0, {}, []
        for judge in self._judges():
            of_all, penalties = judge.penalised(pictures, code, again)
            logits, drawn_logits, other = of_all[:number], of_all[number : 2 * number], of_all[2 * number :]
            penalty, drawn_penalty = penalties[:number], penalties[number:]
            adversarial = discriminator_loss(logits, drawn_logits, weights.kind)
            name = judge.prefix
            found |= {f"{name}adversarial": adversarial, f"{name}r1": penalty, f"{name}r2": drawn_penalty}
            total = adversarial + 0.5 * judge.gamma * (penalty + drawn_penalty)
            if "mismatched" in batch:
                matching = matching_loss(other, logits, weights.kind)
                found[f"{name}matching"] = tf.cast(batch["mismatched"], tf.float32) * matching
                total += weights.matching * found[f"{name}matching"]
            loss += judge.weight * total
            judgements.append((logits, drawn_logits, other))
        logits, drawn_logits, others = zip(*judgements, strict=True)
        logits, drawn_logits = (tf.concat(each, axis=1) for each in (logits, drawn_logits))
        between = self._between(logits, drawn_logits)
        found |= {
            "loss ratio/sum": generator_loss(logits, drawn_logits, weights.kind),
            "loss ratio/count": discriminator_loss(logits, drawn_logits, weights.kind),
            RIGHT: _share_above(logits, drawn_logits),
            "accuracy on real": _share_above(logits, between),
            "accuracy on drawn": _share_above(between, drawn_logits),
            SPREAD: _spread(drawn[-1], real[-1]),
        }
        if "mismatched" in batch:
            other = tf.concat(others, axis=1)
            for name, share in (
                ("accuracy on mismatched", _share_above(between, other)),
                ("own text above another's", _share_above(logits, other)),
            ):
                found |= mean_of_some(name, share, batch["mismatched"])
        return {"loss": loss, **found}

    def _codes(self, batch):
        """The codes of the texts of real, of drawn, and of real pictures once more with another's text."""
        text = text_of(batch)
        if "mismatched" not in batch:
            own = self.discriminator.code_of(*text)
            return None if own is None else tf.concat([own, own], axis=0)
        others = batch["other_states"], batch["other_text_mask"]
        codes = self.discriminator.code_of(
            *(tf.concat(pair, axis=0) for pair in zip(text, others, strict=True))
        )
        own, other = tf.split(codes, 2)
        return tf.concat([own, own, other], axis=0)

    def _judges(self):
        """The discriminator's ways of judging: by pixels, by a frozen network, or both."""
        judge, weights = self.discriminator, self.weights
        if judge.config.judges_pixels:
            yield Judge("", 1.0, weights.gamma, lambda pictures: pictures, judge.seen, judge.judged)
        if judge.config.vision_channels:
            yield Judge(
                "vision ", weights.vision, weights.vision_gamma, self._maps, tuple, judge.judged_by_vision
            )

    def _maps(self, pictures):
        """What the frozen network sees: a tuple of maps, each (batch, side, side, channels)."""
        return tuple(self.vision.maps(pictures[-1]))

    def _between(self, real, drawn):
        """What parts real from drawn judgements, (1, judgements): relativistic ones mean nothing alone."""
        if self.weights.kind == "non_saturating":
            return tf.zeros_like(real[:1])
        return tf.reduce_mean(tf.concat([real, drawn], axis=0), axis=0, keepdims=True)

    def _generator_losses(self, real, drawn, shown, batch):
        weights, code = self.weights, self.discriminator.code_of(*text_of(batch))
        loss, found = 0.0, {}
        for judge in self._judges():
            logits = judge(drawn, code)
            real_logits = judge(real, code) if weights.kind == "relativistic" else None
            adversarial = generator_loss(real_logits, logits, weights.kind)
            loss += judge.weight * adversarial
            found[f"{judge.prefix}adversarial"] = adversarial
        return {"loss": loss, **found}

    def _clip_loss(self, pictures, batch):
        """CLIP's loss of pictures as they are shown, not as they are augmented, over the global batch."""
        clip, ids = self.clip[0], batch["token_ids"]
        seen = clip.preprocess(pictures)
        if self.weights.clip_features == "token_states":
            features, of_texts = clip.vision_model(seen).pooled, clip.text_model(ids).pooled
            logit_scale = 0.0  # the logarithm of 1
        else:
            features, of_texts = clip.image_features(seen), clip.text_features(ids)
            logit_scale = clip.logit_scale
        losses = clip_loss(
            gathered_rows(features),
            gathered_rows(tf.stop_gradient(of_texts)),
            logit_scale,
            gathered_rows(batch["groups"]),
        )
        return own_rows(losses)

    def _augmented(self, real, drawn, batch):
        if self.augmentation is None:
            return real, drawn
        numbers = batch["numbers"]
        return (
            augmented(real, numbers[:, :NUMBERS], self.augmentation),
            augmented(drawn, numbers[:, NUMBERS:], self.augmentation),
        )

    def reason_to_stop(self, means):
        """Where a player has won for long, or all drawn pictures look alike."""
        for name, running in self._running.items():
            new = float(means[f"{DISCRIMINATOR}/{name}"])
            if np.isfinite(new):
                running.assign_add((new - running) / PATIENCE)
        right, spread = (float(self._running[name]) for name in (RIGHT, SPREAD))
        if right > WON:
            return (
                "the discriminator has won, it tells every drawn picture from real ones, and the generator "
                "learns no more",
                f"Start in another {FOLDER} with a larger {argument('gamma')}",
            )
        if right < LOST:
            return (
                "the generator has won, the discriminator takes drawn pictures for more real than real ones",
                f"Start in another {FOLDER} with a smaller {argument('gamma')}",
            )
        if spread < COLLAPSED:
            return (
                "it has collapsed, all drawn pictures look alike",
                f"Start in another {FOLDER} with a larger {argument('gamma')}, or another {argument('seed')}",
            )
        return None

    def preview(self):
        """Two pictures for each preview prompt."""
        if self.model is None:
            return None
        prompts = list(map(prompt_of, self.dataset.preview_prompts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # words that it is learning just now
            images = self.model.generate(prompts, num_images=2, engine="tensorflow", progress=False)
        return images, len(prompts)

    def save_snapshot(self, folder, dtype):
        save_network(self.generator, folder, dtype)


@tf.custom_gradient
def cut_off(pictures):
    """What is beyond black and white cut off, as where pictures are shown: there are whole grounds of black.

    A gradient that brings such a pixel back goes on to it, and one that takes it further out does not.
    """

    def gradient(upstream):
        is_inside = tf.abs(pictures) <= 1.0
        return tf.where(is_inside | (upstream * pictures > 0.0), upstream, tf.zeros_like(upstream))

    return tf.clip_by_value(pictures, -1.0, 1.0), gradient


def _kept_mean(value):
    """A running mean that checkpoints keep; every worker has its own."""
    return tf.Variable(value, dtype=tf.float64, trainable=False)


def text_of(batch):
    """States and mask of a batch's texts, or nothing."""
    return (batch["states"], batch["text_mask"]) if "states" in batch else ()


def _spread(drawn, real):
    """The deviation of drawn pictures over a batch, by that of real ones, float32 (batch,) of one number."""
    deviations = [
        tf.reduce_mean(tf.math.reduce_std(tf.cast(pictures, tf.float32), axis=0))
        for pictures in (drawn, real)
    ]
    return tf.fill([tf.shape(drawn)[0]], deviations[0] / tf.maximum(deviations[1], 1e-6))


def _share_above(logits, others):
    """Of each example, of how many judgements the one is above the other, float32 (batch,)."""
    return tf.reduce_mean(tf.cast(logits > others, tf.float32), axis=1)

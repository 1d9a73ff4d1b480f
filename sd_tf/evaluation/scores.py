"""What a set of drawn pictures scores, each score with its protocol and what real pictures score.

A judge is made once with the real pictures, and called with those of each model: it gives scores by name.
Distances are to half of Fashion-MNIST's test pictures, which no stage of training sees; the other half
is the set of real pictures that the same protocol is tried on.
"""

import functools
from typing import NamedTuple

import numpy as np

from sd_tf.data.captions import CLASS_NAMES, PALETTE
from sd_tf.evaluation.alignment import nearest_colour, prompt_for
from sd_tf.evaluation.classifier import brightness, classify
from sd_tf.evaluation.diversity import pairs_of
from sd_tf.evaluation.protocol import Score
from sd_tf.evaluation.statistics import (
    Manifold,
    frechet_distance,
    frechet_estimate,
    kernel_distance,
    kernel_estimate,
    mean_estimate,
    nearest,
    quantiles,
    share_estimate,
)
from sd_tf.graphs import compiled

CLASS_PROMPTS = [prompt_for(label, None) for label in range(len(CLASS_NAMES))]
PAIRS = np.array([(label, colour) for label in range(len(CLASS_NAMES)) for colour in range(len(PALETTE))])
TINTED_PROMPTS = [prompt_for(*pair) for pair in PAIRS]
NEIGHBOURS = 3
OTHERS = "of even number in the test set"
DIVERSITY_PAIRS = 50  # of each prompt
NARROW, RESAMPLES, WIDE_RESAMPLES = 512, 50, 20  # of more features each time takes seconds
TAUGHT = "its extractor has taught the model"
KERNEL_SUBSET = 1000  # pictures
NOT_A_RACE = "near is a copy and far is no garment: as real pictures is best"


class Drawn(NamedTuple):
    """Pictures of one model, uint8 (n, 32, 32, 3)."""

    grey: np.ndarray  # of CLASS_PROMPTS, prompt by prompt
    tinted: np.ndarray  # of TINTED_PROMPTS, prompt by prompt
    rebuilt: np.ndarray | None  # what the autoencoder makes of `RealPictures.others`


class RealPictures:
    """Those that drawn ones are held against.

    Attributes:
        reference, others: uint8 (5000, 32, 32, 3), grey: the test pictures of odd and of even number.
        other_labels: of `others`.
        train: uint8 (60000, 32, 32), all that training sees.
        tinted: `Examples` of `others` in the colours of the palette.
        tinted_reference: the same of `reference`.
    """

    def __init__(self, train, test):
        grey = np.repeat(test.grey[..., None], 3, axis=-1)
        self.reference, self.others = grey[1::2], grey[::2]
        self.other_labels, self.train = test.labels[::2], train.grey
        self.tinted, self.tinted_reference = (_tinted(test, first) for first in (0, 1))


def _tinted(test, first):
    """`Examples` of every other test picture from `first` on, those with a colour."""
    examples = test.examples(np.arange(first, len(test), 2), 0)
    chosen = examples.groups % (1 + len(PALETTE)) > 0
    return type(examples)(
        examples.images[chosen],
        [text for text, tinted in zip(examples.captions, chosen, strict=True) if tinted],
        examples.groups[chosen],
    )


class ClassifierFeatures:
    """What `Fidelity` asks of an extractor, of our own classifier."""

    resize = "none: the brightest channel, 28 x 28"

    def __init__(self, classifier, name):
        self.name, self.sha256 = name, classifier.sha256
        self._features = compiled(classifier.features)

    def features(self, images):
        """uint8 (n, 32, 32, 3) -> float32 (n, 128)."""
        parts = [brightness(images[i : i + 500]) for i in range(0, len(images), 500)]
        return np.concatenate([np.asarray(self._features(part)) for part in parts])


class Fidelity:
    """Frechet and kernel distance, precision and recall of the grey pictures, in an extractor's features;
    the Frechet distance of those in colours; and the autoencoder's part of the distance, which is the least
    that its model can reach.

    Args:
        extractor: has `name`, `sha256`, `resize` and `features(images)`.
        real: `RealPictures`.
        prefix: of the scores' names.
    """

    def __init__(self, extractor, real, prefix=""):
        self.extractor, self.real, self.prefix = extractor, real, prefix
        self.reference, self.others = (extractor.features(each) for each in (real.reference, real.others))
        self.tinted_reference, self.tinted_others = (
            extractor.features(each.images) for each in (real.tinted_reference, real.tinted)
        )
        self.tinted_others = self.tinted_others[_in_turns(real.tinted.groups)]
        self._manifold = Manifold(self.reference, NEIGHBOURS)
        self.resamples = RESAMPLES if self.reference.shape[1] <= NARROW else WIDE_RESAMPLES
        self.protocol = {
            "extractor": extractor.name,
            "sha256": extractor.sha256,
            "resize": extractor.resize,
            "reference": f"the {len(real.reference)} test pictures of odd number, grey",
        }

    def __call__(self, drawn, drawing):
        """Scores of `Drawn` by name; `drawing` is what is to be said of how they were drawn."""
        found, protocol = self.extractor.features(drawn.grey), self._of(len(drawn.grey)) | drawing
        floor = self._floor(len(found))
        frechet = protocol | {"resamples": self.resamples}
        kernel = protocol | {"subsets": f"100 of {min(KERNEL_SUBSET, len(found))}"}
        manifold = protocol | {"neighbours": NEIGHBOURS}
        precision, recall = self._manifold.holds(found), Manifold(found, NEIGHBOURS).holds(self.reference)
        few = too_few_for_frechet(*found.shape), too_few_for_kernel(len(found))
        distances = self._distance(found), kernel_estimate(found, self.reference)
        scores = {
            "frechet_distance": scored(distances[0], "lower", frechet, floor[0], few[0]),
            "kernel_distance": scored(distances[1], "lower", kernel, floor[1], few[1]),
            "precision": scored(share_estimate(precision), "higher", manifold, floor[2]),
            "recall": scored(share_estimate(recall), "higher", manifold, floor[3]),
        }
        scores["tinted_frechet_distance"] = self._tinted(drawn.tinted, drawing)
        if drawn.rebuilt is not None:
            scores["reconstruction_distance"] = self._reconstruction(drawn.rebuilt)
        return {self.prefix + name: score for name, score in scores.items()}

    def _tinted(self, tinted, drawing):
        number = len(self.tinted_reference)
        reference = {"reference": f"the {number} test pictures of odd number that have a colour"}
        protocol = self._of(len(tinted)) | reference | {"resamples": self.resamples} | drawing
        found = self.extractor.features(tinted)
        estimate = frechet_estimate(found, self.tinted_reference, self.resamples)
        floor = frechet_distance(self.tinted_others[: len(tinted)], self.tinted_reference)
        return scored(estimate, "lower", protocol, floor, too_few_for_frechet(*found.shape))

    def _reconstruction(self, rebuilt):
        of = {"pictures": OTHERS, "resamples": self.resamples}
        protocol = self._of(len(rebuilt)) | of
        estimate = self._distance(self.extractor.features(rebuilt))
        return scored(estimate, "lower", protocol, self._floor(len(rebuilt))[0])

    def _distance(self, features):
        return frechet_estimate(features, self.reference, self.resamples)

    def _of(self, samples):
        return self.protocol | {"samples": samples}

    @functools.cache  # noqa: B019  (a judge lives as long as its process)
    def _floor(self, samples):
        """What so many real pictures score: both distances, precision, recall."""
        others = self.others[:samples]
        distances = (measure(others, self.reference) for measure in (frechet_distance, kernel_distance))
        hits = self._manifold.holds(others), Manifold(others, NEIGHBOURS).holds(self.reference)
        return *distances, *(float(np.mean(each)) for each in hits)


def _in_turns(groups):
    """The order in which all groups take turns: its first n are as many of each, as drawn ones are."""
    ranks = np.zeros(len(groups), int)
    for group in np.unique(groups):
        ranks[groups == group] = np.arange((groups == group).sum())
    return np.argsort(ranks, kind="stable")


class Reconstruction:
    """The autoencoder's peak signal-to-noise ratio in dB: a mean over pictures."""

    def __init__(self, real):
        self.real = real

    def __call__(self, drawn, drawing):
        """As that of `Fidelity`; nothing where no picture was rebuilt."""
        if drawn.rebuilt is None:
            return {}
        ratios = signal_to_noise(drawn.rebuilt, self.real.others)
        protocol = {"samples": len(ratios), "pictures": OTHERS}
        return {"reconstruction_psnr": scored(mean_estimate(ratios), "higher", protocol, None)}


class Alignment:
    """How often the garment that was asked for is recognised, and its colour is the nearest."""

    def __init__(self, classifier, extractor, real):
        self.classifier = classifier
        of_real = {"reference": f"the test pictures {OTHERS}"}
        self.of_classes = {
            "extractor": extractor.name,
            "sha256": extractor.sha256,
            "resize": extractor.resize,
        } | of_real
        self.of_colours = {"extractor": "the palette's nearest to the mean colour"} | of_real
        labels, colours = np.divmod(real.tinted.groups, 1 + len(PALETTE))
        right = classify(classifier, real.others) == real.other_labels
        tinted, coloured = self._right(real.tinted.images, labels, colours - 1)
        self.of_real = [float(each.mean()) for each in (right, tinted, coloured)]

    def __call__(self, drawn, drawing):
        """As that of `Fidelity`."""
        labels = np.repeat(np.arange(len(CLASS_NAMES)), len(drawn.grey) // len(CLASS_NAMES))
        right = classify(self.classifier, drawn.grey) == labels
        tinted_labels, colours = np.repeat(PAIRS, len(drawn.tinted) // len(PAIRS), axis=0).T
        right_tinted, right_colour = self._right(drawn.tinted, tinted_labels, colours)

        def score(hits, prompts, protocol, real):
            of_prompts = np.split(hits, len(prompts))
            details = {prompt: float(each.mean()) for prompt, each in zip(prompts, of_prompts, strict=True)}
            protocol = protocol | {"samples": len(hits), "prompts": len(prompts)} | drawing
            return scored(share_estimate(hits), "higher", protocol, real, details=details)

        return {
            "class_accuracy": score(right, CLASS_PROMPTS, self.of_classes, self.of_real[0]),
            "tinted_class_accuracy": score(right_tinted, TINTED_PROMPTS, self.of_classes, self.of_real[1]),
            "colour_accuracy": score(right_colour, TINTED_PROMPTS, self.of_colours, self.of_real[2]),
        }

    def _right(self, images, labels, colours):
        """Whether garment and colour are; a tint's own brightness is taken off for the garment."""
        full_scale = np.array(PALETTE).max(axis=1)[colours]
        return classify(self.classifier, images, full_scale) == labels, nearest_colour(images) == colours


class Diversity:
    """The mean perceptual distance of two pictures of one prompt, seeds apart.

    Without `distances` as LPIPS (Zhang et al. 2018, equation 1) without its learned weights: squared
    differences of the classifier's activations, each of unit length over its channels, meaned over places
    and summed over levels. Real pictures of one class stand for those of one prompt.

    Args:
        classifier, extractor: the `Classifier` and its `ClassifierFeatures`.
        real: `RealPictures`.
        distances: `PairDistances` to use in the place of the classifier's.
    """

    def __init__(self, classifier, extractor, real, distances=None):
        self.maps, self.distances = compiled(classifier.maps), distances
        about = {"extractor": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize}
        self.protocol = (about if distances is None else distances.about) | {
            "reference": f"pairs of one class, of the test pictures {OTHERS}",
        }
        of_classes = [real.others[real.other_labels == label] for label in range(len(CLASS_NAMES))]
        self.of_real = float(self._distances(of_classes).mean())

    def __call__(self, drawn, drawing):
        """As that of `Fidelity`."""
        found = self._distances(np.split(drawn.grey, len(CLASS_NAMES)))
        protocol = self.protocol | {"samples": 2 * len(found), "pairs": len(found)} | drawing
        return {"diversity": scored(mean_estimate(found), "higher", protocol, self.of_real)}

    def _distances(self, groups):
        first, second = pairs_of(groups, DIVERSITY_PAIRS)
        if self.distances is not None:
            return self.distances(first, second)
        total = 0.0
        for a, b in zip(self.maps(brightness(first)), self.maps(brightness(second)), strict=True):
            a, b = (np.asarray(each) for each in (a, b))
            a, b = (each / (np.linalg.norm(each, axis=-1, keepdims=True) + 1e-10) for each in (a, b))
            total = total + np.square(a - b).sum(axis=-1).mean(axis=(1, 2))
        return total


class Memorisation:
    """How near the grey pictures come to training pictures, against how near unseen real ones come.

    `copies` is the share nearer than the nearest hundredth of the test set's pictures: 0.01 is no
    memory, more is.
    """

    def __init__(self, real):
        self.train = _flat(real.train[..., None])
        self.of_real, _ = nearest(_flat(real.reference), self.train)

    def __call__(self, drawn, drawing):
        """As that of `Fidelity`."""
        found, numbers = self.nearest(drawn.grey)
        protocol = {
            "distance": "Euclidean, of brightness in [0, 1], 28 x 28, of grey pictures",
            "samples": len(found),
            "reference": f"the {len(self.train)} training pictures",
        }
        details = {"drawn": quantiles(found), "real": quantiles(self.of_real)}
        details["training pictures"], details["distances"] = numbers.tolist(), found.round(3).tolist()
        distance, expected = mean_estimate(found), float(self.of_real.mean())
        copies = share_estimate(found < np.quantile(self.of_real, 0.01))
        protocol |= drawing
        return {
            "nearest_training_distance": scored(distance, "higher", protocol, expected, NOT_A_RACE, details),
            "copies": scored(copies, "lower", protocol, 0.01),
        }

    def nearest(self, grey):
        """Of uint8 (n, 32, 32, 3): distances to the nearest training pictures, and their numbers; (n,)."""
        return nearest(_flat(grey), self.train)


class ClipScore:
    """The mean cosine of pictures and their prompts, both by the same CLIP, projected, times 100.

    As `torchmetrics.multimodal.CLIPScore` has it (Hessel et al. 2021, without their factor 2.5 / 100).

    Args:
        clip, tokenizer: a `CLIPModel` and its `Tokenizer`.
        name, sha256: of the CLIP.
        real: `RealPictures`.
    """

    def __init__(self, clip, tokenizer, name, sha256, real):
        self.clip, self.tokenizer = clip, tokenizer
        size = clip.vision_config.image_size
        self.protocol = {
            "extractor": name,
            "sha256": sha256,
            "resize": f"the CLIP's own: bicubic, to {size} x {size}",
            "reference": f"the coloured test pictures {OTHERS}",
        }
        self._features = compiled(lambda images: clip.image_features(clip.preprocess(images)))
        self.of_prompts = self.text_features(CLASS_PROMPTS + TINTED_PROMPTS)
        cosines = self.cosines(real.tinted.images, self.text_features(real.tinted.captions))
        self.of_real = float(100.0 * cosines.mean())

    def __call__(self, drawn, drawing, taught=False):
        """As that of `Fidelity`; `taught` says that the model learned from this CLIP: it is no headline."""
        numbers = [len(drawn.grey) // len(CLASS_PROMPTS)] * len(CLASS_PROMPTS)
        numbers += [len(drawn.tinted) // len(TINTED_PROMPTS)] * len(TINTED_PROMPTS)
        images = np.concatenate([drawn.grey, drawn.tinted])
        cosines = self.cosines(images, np.repeat(self.of_prompts, numbers, axis=0))
        protocol = self.protocol | {"samples": len(images)} | drawing
        estimate = mean_estimate(100.0 * cosines)
        return {"clip_score": scored(estimate, "higher", protocol, self.of_real, TAUGHT if taught else "")}

    def text_features(self, texts):
        """Unit features of texts, float32 (n, width)."""
        return np.asarray(self.clip.text_features(self.tokenizer(texts)))

    def cosines(self, images, text_features):
        """The cosine of each of uint8 (n, h, w, 3) with its row of unit features, float32 (n,)."""
        parts = (images[i : i + 250] for i in range(0, len(images), 250))
        found = [np.asarray(self._features(part.astype("float32") / 127.5 - 1.0)) for part in parts]
        return (np.concatenate(found) * text_features).sum(axis=1)


def too_few_for_frechet(samples: int, width: int) -> str:
    """Why so many pictures are too few for a Fréchet distance in features of that width, or ""."""
    if samples >= 2 * width:
        return ""
    return (
        f"{samples} pictures are too few for a covariance of {width} features, and the distance is too high: "
        f"draw {2 * width} or more"
    )


def too_few_for_kernel(samples: int) -> str:
    """Why so many pictures are too few for a kernel distance, or ""."""
    if samples >= KERNEL_SUBSET:
        return ""
    return (
        f"{samples} pictures are fewer than a subset's {KERNEL_SUBSET}, and the distance so uncertain that "
        f"it can be below 0: draw {KERNEL_SUBSET} or more"
    )


def signal_to_noise(rebuilt, images):
    """Peak signal-to-noise ratios in dB of uint8 pictures (n, h, w, 3) that were rebuilt, (n,)."""
    error = np.square(rebuilt.astype("float32") - images).mean(axis=(1, 2, 3))
    return 10.0 * np.log10(255.0**2 / np.maximum(error, 1e-6))


def _flat(images):
    """The brightness of uint8 pictures, float32 (n, 784)."""
    return brightness(images).reshape(len(images), -1)


def scored(estimate, better, protocol, real, reservation="", details=None) -> Score:
    """A `Score` of an `Estimate`; the rest are its fields."""
    interval = estimate.low, estimate.high
    return Score(estimate.value, better, protocol, *interval, real, reservation, details or {})

"""What a model of one's own captioned pictures scores: its colours, its autoencoder, and whether it copies.

There is no classifier and no test set of such pictures. So this says what can be said without: how far drawn
pictures are from the training pictures, in the features of a network that has learned others; whether
prompts with a colour get pictures of that colour, pictures come back from latents as they were, and drawn
pictures are no nearer to training pictures than those are to one another.
"""

from typing import NamedTuple

import keras
import numpy as np

from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.evaluation.diversity import PairDistances, pairs_of
from sd_tf.evaluation.dominant_colour import COLOURS, dominant_colour
from sd_tf.evaluation.inception import Inception
from sd_tf.evaluation.judging import prompts_for, reads_text, rebuilt_by
from sd_tf.evaluation.perceptual_features import PerceptualFeatures
from sd_tf.evaluation.protocol import Score
from sd_tf.evaluation.scores import (
    NARROW,
    RESAMPLES,
    WIDE_RESAMPLES,
    scored,
    signal_to_noise,
    too_few_for_frechet,
    too_few_for_kernel,
)
from sd_tf.evaluation.statistics import (
    frechet_estimate,
    kernel_estimate,
    mean_estimate,
    nearest,
    quantiles,
    share_estimate,
)
from sd_tf.images import sheet, to_unit
from sd_tf.text.prompt_syntax import prompt_of

MOST = 5000  # training pictures that are looked at
SIDE = 32  # pixels at which pictures are held against each other
COLUMNS = 20
EACH = 4  # pictures of a caption
MOST_PAIRS = 200  # of real pictures, that are held against each other
COPY = 0.01  # the share of training pictures, none twice, that are nearer to another than a copy is
NOT_A_RACE = "near is a copy: as training pictures are to one another is best"
SEVERAL_SIZES = "the models draw pictures of several sizes"


class Drawn(NamedTuple):
    """Pictures of one model, uint8 (n, h, w, 3)."""

    captioned: np.ndarray  # of the data set's own captions
    coloured: np.ndarray | None  # of `PictureJudges.colour_prompts`, prompt by prompt
    rebuilt: np.ndarray | None  # what the autoencoder makes of `PictureJudges.images`, if there is one


class PictureJudges:
    """All that scores pictures of a captioned data set.

    Args:
        dataset: `CaptionedPictures`, decoded.
        colour_prompt: a prompt with {} where one of `COLOURS` goes, whose pictures should have it; None for
            none. Captions that begin so, up to their colour, say which real pictures have which.
        is_one_of_several: whether pictures of other sizes, judged by others, are compared with these.
        lpips: files of LPIPS' weights; None for a stand-in.
        inception: the file of Inception's graph, for distances in its features; None for a stand-in.

    Attributes:
        images: uint8 (n, size, size, 3), the training pictures, without flips or jitter.
        skipped: what is left out -> why.
    """

    def __init__(
        self,
        dataset: CaptionedPictures,
        colour_prompt: str | None = None,
        is_one_of_several: bool = False,
        lpips=None,
        inception=None,
    ):
        self.is_one_of_several = is_one_of_several
        number = min(MOST, len(dataset))
        examples = dataset.examples(np.linspace(0, len(dataset) - 1, number).astype(int), 0)
        self.images, self.captions = examples.images, examples.captions
        self.name, self.prompts = dataset.name, sorted(set(self.captions))
        self.colour_prompts = [colour_prompt.replace("{}", name) for name in COLOURS] if colour_prompt else []
        side = self.images.shape[1]
        self.about = {"pictures": f"{number} training pictures, scaled to {side} x {side} as drawn"}
        self.skipped = {}
        self.extractor = PerceptualFeatures() if inception is None else Inception(inception)
        self.features_of_real = self.extractor.features(self.images)
        self.references = [_small(self.images), _small(self.images[:, :, ::-1])]
        self.of_real, _ = self._nearest(self.images, itself=True)
        self.pair_distances = PairDistances(lpips)
        some = self.images[np.random.default_rng(0).permutation(number)][: 2 * MOST_PAIRS]
        self.diversity_of_real = float(np.mean(self.pair_distances(*pairs_of([some]))))
        self.colour_of_real = self._colour_of_real(colour_prompt)

    def draw(self, model, samples, coloured_samples, settings) -> Drawn:
        """A model's pictures: four of each of some captions from all over the list, and those of colours."""
        settings = settings | {"engine": "tensorflow"}
        chosen = np.linspace(0, len(self.prompts) - 1, min(samples // EACH, len(self.prompts))).astype(int)
        captions = [prompt_of(self.prompts[i]) for i in chosen]  # plain text, as the model has learned them
        captioned = model.generate(prompts_for(model, captions), EACH, **settings)
        coloured = None
        if self.colour_prompts and reads_text(model):
            coloured = model.generate(self.colour_prompts, coloured_samples // len(COLOURS), **settings)
        return Drawn(captioned, coloured, rebuilt_by(model, self.images))

    def scores(self, drawn: Drawn, drawing, text_encoder=None) -> dict[str, Score]:
        """Every score; `drawing` is what is to be said of how the pictures were drawn."""
        training = f"{len(self.images)} training pictures"
        found, numbers = self._nearest(drawn.captioned)
        protocol = {
            "distance": f"Euclidean, pixels in [0, 1], {SIDE} x {SIDE}, mirrored or not, whichever is nearer",
            "samples": len(found),
            "reference": f"the {training}, for real ones the others",
        } | drawing
        details = {"drawn": quantiles(found), "real": quantiles(self.of_real)}
        details |= {"training pictures": numbers.tolist(), "distances": found.round(3).tolist()}
        distance, expected = mean_estimate(found), float(self.of_real.mean())
        apart = self.of_real[
            self.of_real > 0
        ]  # others are there twice, which makes no model's picture a copy
        near = np.quantile(apart, COPY) if len(apart) else 0.0
        copies = share_estimate(found < near)
        scores = self._distances(drawn.captioned, training, drawing)
        if drawn.rebuilt is not None:
            scores["reconstruction_psnr"] = self._reconstruction(drawn.rebuilt, training)
        scores |= {
            "nearest_training_distance": scored(distance, "higher", protocol, expected, NOT_A_RACE, details),
            "copies": scored(copies, "lower", protocol, float(np.mean(self.of_real < near))),
        }
        scores["diversity"] = self._diversity(drawn.captioned, drawing)
        if drawn.coloured is not None:
            scores["colour_accuracy"] = self._colours(drawn.coloured, drawing)
        return scores

    def sheets(self, drawn: Drawn) -> dict[str, tuple[np.ndarray, str]]:
        """Name -> (uint8 (height, width, 3), a note): what a reader wants to see behind the numbers."""
        some = drawn.captioned[:: max(1, len(drawn.captioned) // COLUMNS)][:COLUMNS]
        distances, numbers = self._nearest(some)
        beside = self.images[numbers]
        found = {
            "Pictures of the data set's captions": (_page(drawn.captioned[: 5 * COLUMNS]), ""),
            "Drawn, and below each its nearest training picture": (
                _page(np.concatenate([some, beside]), len(some)),
                "Distances: " + " ".join(f"{distance:.1f}" for distance in distances),
            ),
        }
        if drawn.rebuilt is not None:
            both = np.concatenate([self.images[:COLUMNS], drawn.rebuilt[:COLUMNS]])
            columns = min(COLUMNS, len(self.images))
            found["Real, and below each what the autoencoder makes of it"] = (_page(both, columns), "")
        if drawn.coloured is not None:
            of_each = len(drawn.coloured) // len(COLOURS)
            note = f"Rows: {', '.join(COLOURS)}."
            found["Prompts with a colour"] = (_page(drawn.coloured, of_each), note)
        return found

    def _nearest(self, images, itself=False):
        """Distances to the nearest training pictures, mirrored or not, and their numbers."""
        small = _small(images)
        found = [nearest(small, references, itself) for references in self.references]
        distances, numbers = (np.stack(each) for each in zip(*found, strict=True))
        nearer, row = distances.argmin(axis=0), np.arange(len(small))
        return distances[nearer, row], numbers[nearer, row]

    def _distances(self, images, training, drawing):
        """Fréchet and kernel distance; real pictures score nothing, as there is no test set."""
        found = self.extractor.features(images)
        protocol = {
            "extractor": self.extractor.name,
            "sha256": self.extractor.sha256,
            "resize": self.extractor.resize,
            "samples": len(found),
            "reference": f"the {training}",
            "size": images.shape[1],
        } | drawing
        always = SEVERAL_SIZES if self.is_one_of_several else getattr(self.extractor, "reservation", "")
        few = too_few_for_frechet(*found.shape), too_few_for_kernel(len(found))
        reservations = ["; ".join(filter(None, (always, each))) for each in few]
        resamples = RESAMPLES if found.shape[1] <= NARROW else WIDE_RESAMPLES
        frechet = frechet_estimate(found, self.features_of_real, resamples)
        kernel = kernel_estimate(found, self.features_of_real)
        of_frechet = protocol | {"resamples": resamples}
        return {
            "frechet_distance": scored(frechet, "lower", of_frechet, None, reservations[0]),
            "kernel_distance": scored(kernel, "lower", protocol, None, reservations[1]),
        }

    def _reconstruction(self, images, training):
        ratios = signal_to_noise(images, self.images)
        protocol = {
            "samples": len(ratios),
            "pictures": f"the {training}, which it has learned from",
            "size": self.images.shape[1],
        }
        reservation = SEVERAL_SIZES if self.is_one_of_several else ""
        return scored(mean_estimate(ratios), "higher", protocol, None, reservation)

    def _diversity(self, images, drawing):
        """How much pictures of one caption differ; of the real ones, how much those of any two do."""
        groups = [images[i : i + EACH] for i in range(0, len(images), EACH)]
        found = self.pair_distances(*pairs_of(groups))
        protocol = {
            **self.pair_distances.about,
            "pairs": len(found),
            "reference": "pairs of training pictures, whatever their captions",
            "size": images.shape[1],
        } | drawing
        reservation = SEVERAL_SIZES if self.is_one_of_several else ""
        return scored(mean_estimate(found), "higher", protocol, self.diversity_of_real, reservation)

    def _colours(self, images, drawing):
        right = dominant_colour(images) == np.repeat(np.arange(len(COLOURS)), len(images) // len(COLOURS))
        details = {
            name: float(each.mean())
            for name, each in zip(COLOURS, np.split(right, len(COLOURS)), strict=True)
        }
        protocol = {
            "extractor": "shades in CIELAB, weighed: sd_tf.evaluation.dominant_colour",
            "samples": len(right),
            "prompts": self.colour_prompts[0].replace(COLOURS[0], "{}"),
            "reference": "training pictures whose captions begin so",
        } | drawing
        return scored(share_estimate(right), "higher", protocol, self.colour_of_real, details=details)

    def _colour_of_real(self, colour_prompt):
        if not colour_prompt:
            return None
        begin = colour_prompt.partition("{}")[0]
        words = [caption.removeprefix(begin).partition(" ")[0] for caption in self.captions]
        named = [
            i for i, caption in enumerate(self.captions) if caption.startswith(begin) and words[i] in COLOURS
        ]
        if not named:
            return None
        right = dominant_colour(self.images[named]) == [COLOURS.index(words[i]) for i in named]
        return float(np.mean(right))


def _small(images):
    """Of uint8 (n, h, w, 3), what is held against others: float32 (n, 3 SIDE^2)."""
    size = (SIDE, SIDE)
    parts = [
        keras.ops.image.resize(to_unit(images[i : i + 500]), size, antialias=True)
        for i in range(0, len(images), 500)
    ]
    return np.concatenate([np.asarray(part) for part in parts]).reshape(len(images), -1) / 2.0


def _page(images, columns=COLUMNS):
    return sheet(images, columns, scale=max(1, 64 // images.shape[1]))

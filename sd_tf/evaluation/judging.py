"""From a model to its report: draws what is scored, and has it scored by every judge at hand."""

import dataclasses

import numpy as np

from sd_tf.checkpoints.clip import load_clip
from sd_tf.checkpoints.sources import resolve, weights_sha256
from sd_tf.data.captions import CLASS_NAMES, COLOUR_NAMES
from sd_tf.data.pipeline import to_uint8
from sd_tf.errors import InputError, naming
from sd_tf.evaluation import scores
from sd_tf.evaluation.classifier import load_classifier
from sd_tf.evaluation.diversity import PairDistances
from sd_tf.evaluation.inception import Inception
from sd_tf.evaluation.protocol import Score
from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS, Drawn
from sd_tf.graphs import compiled
from sd_tf.images import sheet, to_unit
from sd_tf.text.clip import CLIPModel, CLIPTextModel
from sd_tf.text.encoder import CLIPTextEncoder
from sd_tf.text.new_words import token_embeddings
from sd_tf.text.tokenizer import Tokenizer

NO_AUTOENCODER = {"the autoencoder's scores": "the model draws pixels, without one"}
NO_TEXT = {"agreement with prompts": "the model draws without a text"}
OF_TEXTS = (
    *("class_accuracy", "tinted_class_accuracy", "colour_accuracy", "clip_score", "tinted_frechet_distance"),
    "inception_tinted_frechet_distance",
)
OF_NO_PROMPT = "the model draws without a text, and these are not pictures of the prompts that others get"


class Judges:
    """All that scores pictures of garments.

    Args:
        train, test: `FashionMNIST` of either split.
        classifier: a bundled name or a folder.
        clip: likewise, or a hub id.
        inception: the file of its graph; None looks for it and downloads it; "none" leaves it out.
        lpips: files of LPIPS' weights; without them diversity is measured by the classifier.

    Attributes:
        real: `RealPictures`.
        skipped: what is left out -> why.
        about: what else a report says of them.

    Raises:
        InputError: the classifier, the CLIP or a file that was named cannot be had.
    """

    def __init__(
        self,
        train,
        test,
        classifier="fashion-mnist-classifier",
        clip="clip-mini",
        inception=None,
        lpips=None,
    ):
        self.real, self.skipped = scores.RealPictures(train, test), {}
        self.classifier = load_classifier(classifier)
        self.about = {"classifier_test_accuracy": self.classifier.accuracy}
        features = scores.ClassifierFeatures(self.classifier, classifier)
        self.clip, clip_folder = load_clip(clip), resolve(clip, kind="CLIP")
        tokenizer = Tokenizer.load(clip_folder, self.clip.text_config.max_position_embeddings)
        with naming(clip_folder):
            tokenizer.check_fits(self.clip.text_config)
        self.clip_score = scores.ClipScore(
            self.clip, tokenizer, str(clip), weights_sha256(clip_folder), self.real
        )
        self.memorisation = scores.Memorisation(self.real)
        self.judges = [
            scores.Fidelity(features, self.real),
            scores.Reconstruction(self.real),
            scores.Alignment(self.classifier, features, self.real),
            scores.Diversity(self.classifier, features, self.real, PairDistances(lpips) if lpips else None),
            self.memorisation,
        ]
        try:
            if inception == "none":
                raise InputError("it was asked to be")
            self.judges.append(scores.Fidelity(Inception(inception), self.real, "inception_"))
        except InputError as error:
            if inception not in (None, "none"):
                raise
            self.skipped["scores by Inception"] = str(error.with_flags())

    def scores(self, drawn, drawing, text_encoder=None) -> dict[str, Score]:
        """Every score of some pictures.

        Args:
            drawn: `scores.Drawn`.
            drawing: what is to be said of how they were drawn: name -> value.
            text_encoder: the model's own, which tells whether the CLIP has taught it.
        """
        found = {}
        for judge in self.judges:
            found |= judge(drawn, drawing)
        return found | self.clip_score(drawn, drawing, taught=self._taught(text_encoder))

    def draw(self, model, samples, tinted_samples, settings, rebuild=True) -> Drawn:
        """A model's pictures, as many as can be had by equal numbers of each prompt.

        Args:
            model: of any family.
            samples: grey ones, of the ten prompts without a colour.
            tinted_samples: of the eighty with one.
            settings: of its `generate`.
            rebuild: whether to have real pictures rebuilt by its autoencoder, too, if it has one.
        """
        settings = settings | {"engine": "tensorflow"}  # of which the pictures are, to the last bit
        of_each = [
            model.generate(prompts_for(model, prompts), number // len(prompts), **settings)
            for prompts, number in ((CLASS_PROMPTS, samples), (TINTED_PROMPTS, tinted_samples))
        ]
        return Drawn(*of_each, rebuilt_by(model, self.real.others) if rebuild else None)

    def sheets(self, drawn) -> dict[str, tuple[np.ndarray, str]]:
        """Name -> (uint8 (height, width, 3), a note): what a reader wants to see behind the numbers."""
        of_classes = drawn.grey.reshape(len(CLASS_NAMES), -1, *drawn.grey.shape[1:])
        of_pairs = drawn.tinted.reshape(len(CLASS_NAMES), len(COLOUR_NAMES), -1, *drawn.tinted.shape[1:])
        some = np.concatenate([row[:2] for row in of_classes])
        distances, _, beside = self.nearest_training_pictures(some)
        coloured = np.concatenate([row[:, :2].reshape(-1, *row.shape[2:]) for row in of_pairs])
        found = {
            "Garments, a row for each": (sheet(np.concatenate([row[:20] for row in of_classes]), 20), ""),
            "Colours, a row for each garment, two of each colour": (sheet(coloured, 16), ""),
            "Drawn, and below each its nearest training picture": (
                sheet(np.concatenate([some, beside]), 20),
                "Distances: " + " ".join(f"{distance:.1f}" for distance in distances),
            ),
        }
        if drawn.rebuilt is not None:
            rebuilt = np.concatenate([self.real.others[:20], drawn.rebuilt[:20]])
            found["Real, and below each what the autoencoder makes of it"] = (sheet(rebuilt, 20), "")
        return found

    def nearest_training_pictures(self, grey):
        """Those of uint8 (n, 32, 32, 3): distances (n,), numbers (n,), and pictures as `grey`."""
        distances, numbers = self.memorisation.nearest(grey)
        return distances, numbers, np.repeat(self.real.train[numbers][..., None], 3, axis=-1)

    def _taught(self, text_encoder):
        """Whether that is the CLIP's own text tower, but for the rounding of its file."""
        if isinstance(text_encoder, CLIPTextEncoder):
            text_encoder = text_encoder.network()
        if not isinstance(text_encoder, (CLIPModel, CLIPTextModel)):  # another kind of network, or none
            return False
        own, judge = (
            np.asarray(token_embeddings(tower).value) for tower in (text_encoder, self.clip.text_model)
        )
        return own.shape == judge.shape and np.allclose(own, judge, atol=1e-2)


def reads_text(model) -> bool:
    """Whether a model's pictures depend on a prompt."""
    return getattr(model, "text_encoder", True) is not None


def prompts_for(model, prompts) -> list[str]:
    """The prompts to draw by; if the model reads none, as many of the first: each gets seeds of its own."""
    return list(prompts) if reads_text(model) else [prompts[0]] * len(prompts)


def without_agreement(scores) -> dict[str, Score]:
    """The scores, by name, that can be told of a model without a text; none of them ranks it with others."""
    return {
        name: dataclasses.replace(score, reservation=score.reservation or OF_NO_PROMPT)
        for name, score in scores.items()
        if name not in OF_TEXTS
    }


def rebuilt_by(model, images):
    """What a model's autoencoder makes of uint8 pictures; None where it has none, as it draws pixels."""
    return rebuilt(model.autoencoder, images) if has_autoencoder(model) else None


def has_autoencoder(model) -> bool:
    """Whether a model draws in the latents of an autoencoder."""
    return hasattr(type(model), "autoencoder")


def rebuilt(autoencoder, images, batch_size=250):
    """What is left of uint8 pictures once they have been latents."""
    through = compiled(autoencoder)
    parts = [
        to_uint8(np.asarray(through(to_unit(images[i : i + batch_size]))))
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)

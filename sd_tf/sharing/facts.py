"""What a model's folder says of its training and its scores, for the model card.

The files may come from a stranger, and the card is public: only names and numbers of known kinds are taken,
and no path of this machine.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.sources import weights_sha256
from sd_tf.data.options import GARMENTS
from sd_tf.errors import InputError
from sd_tf.files import is_regular, read_json
from sd_tf.training.history import History

LARGEST_REPORT = 5_000_000  # bytes of report.json
LONGEST_TEXT = 200  # characters of a setting's value
HUB_OF_DATASET = {"fashion_mnist": "zalando-datasets/fashion_mnist"}
SETTINGS = {  # entries of run.json -> their names in the card
    "preset": "preset",
    "finetune": "fine-tuned weights",
    "image_size": "image size",
    "caption": "caption of every picture",
    "caption_template": "caption template",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "optimizer": "optimizer",
    "precision": "precision",
    "prediction_type": "prediction type",
    "lora_rank": "LoRA rank",
    "new_word": "new word",
    "prior_prompt": "prior prompt",
    "init_from_sha256": "SHA-256 of the weights it began from",
}


class Stage(NamedTuple):
    """A trained stage: its name, its steps, and the minutes they took."""

    name: str
    steps: int
    minutes: float


class Facts(NamedTuple):
    """What is known of a model.

    Attributes:
        dataset: name of the data set that it was trained on; None if unknown.
        settings: (name, value) of the training's settings.
        stages: a `Stage` for each that was trained.
        scores: name -> a score of report.json: "value", "low", "high", "real" and "protocol".
    """

    dataset: str | None = None
    settings: tuple = ()
    stages: tuple = ()
    scores: dict = {}

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub; None if it is not there."""
        if self.dataset is not None and self.dataset.startswith("hub:"):
            return self.dataset.removeprefix("hub:")
        return HUB_OF_DATASET.get(self.dataset)

    @property
    def draws_garments(self) -> bool:
        """Whether it was trained on garments with captions made by sd_tf."""
        return self.dataset in GARMENTS


def folder_of(model) -> Path | None:
    """The folder that a model was read from, or trained in; None if there is none."""
    if model.origin is not None:
        return model.origin.source if model.origin.source.is_dir() else None
    runs = [folder for folder in model.provenance.bases if folder.is_dir()]
    return runs[-1] if runs else None


def facts_of(model) -> Facts:
    """What the folder of a model says: run.json, log.jsonl, and report.json if it is of these weights.

    Raises:
        InputError: one of the files is damaged.

    Warns:
        UserWarning: report.json is of other weights; it is left out.
    """
    folder = folder_of(model)
    if folder is None:
        return Facts()
    run = read_json(folder / "run.json", root=folder) if is_regular(folder / "run.json") else {}
    dataset = run.get("dataset")
    settings = [(said, run[name]) for name, said in SETTINGS.items() if _is_telling(run.get(name))]
    return Facts(
        dataset if _is_telling(dataset) and isinstance(dataset, str) else None,
        tuple(settings),
        _stages(History.of_folder(folder)),
        _scores(folder, model),
    )


def _is_telling(value):
    """Whether a value of run.json belongs in a card: a number or a short text, but no switched-off option."""
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST_TEXT and value != "{}"
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0


def _stages(history):
    last = {
        name: Stage(name, step, seconds / 60)
        for name, step, seconds in zip(history.stage, history.step, history.elapsed, strict=True)
    }
    return tuple(last.values())


def _scores(folder, model):
    """The scores in report.json, beside the model or in evaluation/, whose weights are the model's."""
    places = [folder / "report.json", folder / "evaluation" / "report.json"]
    file = next(filter(is_regular, places), None)
    if file is None:
        return {}
    whole = read_json(file, root=folder, most=LARGEST_REPORT)
    reports = whole.get("reports", [whole])
    reports = [report for report in reports if isinstance(report, dict)] if isinstance(reports, list) else []
    weights = _weights_of(model)
    report = next((each for each in reports if each.get("weights") == weights), None)
    if report is None:
        warnings.warn(
            f"{file} scores other weights than the model's: it is left out of the card", stacklevel=4
        )
        return {}
    scores = report.get("scores")
    if not isinstance(scores, dict) or not all(map(_is_score, scores.values())):
        raise InputError(f"{file} is no report of sd_tf.evaluate: evaluate the model again, or remove it")
    return scores


def _weights_of(model):
    """The hash that a report has: of the files that the model is from; of its values if it has changed."""
    if model.origin is not None and model.origin.is_unchanged:
        return weights_sha256(model.origin.source, model.origin.variant)
    return model.weights_sha256()


def _is_score(score):
    if not isinstance(score, dict) or not isinstance(score.get("protocol"), dict):
        return False
    optional = [score.get(name) for name in ("low", "high", "real")]
    return _is_number(score.get("value")) and all(each is None or _is_number(each) for each in optional)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)

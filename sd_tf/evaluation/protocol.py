"""A score, and all that must be the same before it may stand beside another."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sd_tf.errors import InputError, argument, shown
from sd_tf.files import read_json

LARGEST_REPORT = 5_000_000  # bytes; a thousand settings' report has one million
# What protocols say of the models of some families: of a cascade's stages, and of pictures of several sizes.
OF_FAMILIES = ("sizes", "thresholding", "super_resolution", "size")
UNSAID = ("size",)  # what older reports do not say
BY_PROMPT = ("class_accuracy", "tinted_class_accuracy", "colour_accuracy")  # whose details are shares

UNITS = {True: (10, 80), False: (4, 10)}  # the least of which numbers of pictures are multiples


@dataclass(frozen=True)
class Score:
    """A number with its confidence and its protocol.

    Attributes:
        value: the number.
        better: "lower" or "higher".
        protocol: what was measured on what and how; a value for each of whatever matters.
        low, high: its 95 % confidence interval, None where there is none.
        real: what real pictures score in place of the drawn ones: the floor of a distance.
        reservation: why it may not say which model is better; empty for a headline.
        details: numbers behind it, such as those of each class.
    """

    value: float
    better: str
    protocol: dict[str, Any]
    low: float | None = None
    high: float | None = None
    real: float | None = None
    reservation: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its fields, as JSON has them."""
        return dataclasses.asdict(self)


def check_samples(of_garments: bool, samples: int | None, tinted_samples: int | None):
    """Raises `InputError` for numbers of pictures that prompts cannot share equally; None is the usual one.

    Args:
        of_garments: whether Fashion-MNIST's garments are judged, and not captioned pictures.
        samples, tinted_samples: of `python -m sd_tf.evaluate`.
    """
    numbers = {"samples": samples, "tinted_samples": tinted_samples}
    for (name, value), unit in zip(numbers.items(), UNITS[of_garments], strict=True):
        if value is not None and (value < 2 * unit or value % unit):
            raise InputError(f"{argument(name)} is {value}: give a multiple of {unit}, from {2 * unit}")


def read_reports(file):
    """The reports in an earlier report.json.

    Raises:
        InputError: the file is missing, damaged or no such report.
    """
    try:
        whole = read_json(file, most=LARGEST_REPORT)
        found = whole.get("reports", [whole])
        if not isinstance(found, list) or not found:
            raise ValueError("it has none")
        for report in found:
            check_report(report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no report of this command ({error}): evaluate the model again") from None
    return found


def check_report(report):
    """Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` where that is none of report.json.

    All is of the type that a page shows it as, so that it shows, or is refused before anything is drawn.
    """
    for name in ("model", "label", "command"):
        _check(name, report[name], str)
    for name, why in report["skipped"].items():
        _check(name, why, str)
    _check("pictures", report.get("pictures", ""), str)
    if not report["scores"]:
        raise ValueError("it has no scores")
    for name, score in report["scores"].items():
        lacking = [field.name for field in dataclasses.fields(Score) if field.name not in score]
        if lacking:
            raise ValueError(f"{shown(name)} has no {', '.join(lacking)}")
        score = Score(**score)
        if score.better not in ("lower", "higher"):
            raise ValueError(f"better is {shown(score.better)}")
        _check(name, score.value, float)
        for each in (score.low, score.high, score.real):
            if each is not None:
                _check(name, each, float)
        if (score.low is None) != (score.high is None):
            raise ValueError(f"{shown(name)} has half an interval")
        _check(name, score.reservation, str)
        _check(name, score.protocol, dict)
        _check_details(name, score.details)


def _check_details(name, details):
    """Numbers, by names; of `nearest_training_distance`, by names of quantiles in those of two kinds."""
    _check(name, details, dict)
    if name == "nearest_training_distance" and details:
        for kind in ("real", "drawn"):
            for quantile in details[kind].values():
                _check(name, quantile, float)
        if details["real"].keys() != details["drawn"].keys():
            raise ValueError(f"{shown(name)} has two kinds of quantiles")
    elif name in BY_PROMPT:
        for number in details.values():
            _check(name, number, float)


def _check(name, value, kind):
    if kind is float:
        if type(value) is not float and not (type(value) is int and abs(value) < 2**53):
            raise ValueError(f"{shown(name)} is {shown(value)}, which is no number")
    elif not isinstance(value, kind):
        raise ValueError(f"{shown(name)} is {shown(value)}, expected a {kind.__name__}")


def check_comparable(reports, varied=()):
    """Raises `InputError` where scores of the same name were measured differently.

    Args:
        reports: dictionaries of `report.json`, each with "model" and "scores".
        varied: names in protocols that may differ, since the comparison is of them.
    """
    firsts = {}  # name of a score -> the first report that has it, which need not be the first of all
    for other in reports:
        for name, score in other["scores"].items():
            first = firsts.setdefault(name, other)
            protocol, reference = score["protocol"], first["scores"][name]["protocol"]
            for key in sorted(protocol.keys() | reference.keys()):
                is_unsaid = key in UNSAID and None in (protocol.get(key), reference.get(key))
                if key not in varied and not is_unsaid and protocol.get(key) != reference.get(key):
                    raise InputError(
                        f"{name} of {first['model']} and of {other['model']} cannot be compared: {key} is "
                        f"{reference.get(key)!r} and {protocol.get(key)!r}. Score both by one command, with "
                        "--compare"
                    )

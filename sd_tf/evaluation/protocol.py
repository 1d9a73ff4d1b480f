"""A score, and all that must be the same before it may stand beside another."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sd_tf.errors import InputError


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


def check_report(report):
    """Raises `ValueError`, `KeyError` or `TypeError` where that is no dictionary of a report.json."""
    str(report["model"]), str(report["label"]), str(report["command"]), dict(report["skipped"])
    if not report["scores"]:
        raise ValueError("it has no scores")
    for score in report["scores"].values():
        score = Score(**score)
        float(score.value), dict(score.protocol), dict(score.details)
        if score.better not in ("lower", "higher"):
            raise ValueError(f"better is {score.better!r}")


def check_comparable(reports, varied=()):
    """Raises `InputError` where scores of the same name were measured differently.

    Args:
        reports: dictionaries of `report.json`, each with "model" and "scores".
        varied: names in protocols that may differ, since the comparison is of them.
    """
    for first, other in ((reports[0], other) for other in reports[1:]):
        for name, score in other["scores"].items():
            if name not in first["scores"]:
                continue
            protocol, reference = score["protocol"], first["scores"][name]["protocol"]
            for key in sorted(protocol.keys() | reference.keys()):
                if key not in varied and protocol.get(key) != reference.get(key):
                    raise InputError(
                        f"{name} of {first['model']} and of {other['model']} cannot be compared: {key} is "
                        f"{reference.get(key)!r} and {protocol.get(key)!r}. Score both by one command, with "
                        "--compare"
                    )

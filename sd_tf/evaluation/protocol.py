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
        headline: whether it may say which model is better: False where its extractor has taught one.
        details: numbers behind it, such as those of each class.
    """

    value: float
    better: str
    protocol: dict[str, Any]
    low: float | None = None
    high: float | None = None
    real: float | None = None
    headline: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its fields, as JSON has them."""
        return dataclasses.asdict(self)


def check_comparable(reports, varied=()):
    """Raises `InputError` where scores of the same name were measured differently.

    Args:
        reports: dictionaries of `report.json`, each with "model" and "scores".
        varied: names in protocols that may differ, since the comparison is of them.
    """
    first, *others = reports
    for other in others:
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

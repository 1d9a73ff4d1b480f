"""How a GAN draws, and what a GAN's folder recommends; as `sd_tf.generation.settings` has it of diffusion."""

import dataclasses
import os
from pathlib import Path

from sd_tf.errors import argument, naming, unknown
from sd_tf.files import read_json
from sd_tf.generation.checks import check_number
from sd_tf.generation.settings import ABOUT, FILE


@dataclasses.dataclass(frozen=True)
class GanSettings:
    """Settings of one pass, checked when they are made.

    Attributes:
        truncation: 0 to 1, how far styles are from their mean for the prompt (Karras et al. 2019, section
            2.1); less is more usual and less varied.

    Raises:
        InputError: a setting has the wrong type or is out of range.
    """

    truncation: float = 1.0

    def __post_init__(self):
        check_number(argument("truncation"), self.truncation, 0, 1)

    def replaced(self, **given) -> "GanSettings":
        """These settings with those that a caller gave in their place; None is not given."""
        return dataclasses.replace(
            self, **{name: value for name, value in given.items() if value is not None}
        )

    def to_json(self) -> dict:
        """As `FILE` has them."""
        return dict(vars(self))


def read_settings(folder: Path) -> GanSettings:
    """The settings that a model's folder recommends.

    Raises:
        InputError: the file is damaged, names an unknown setting, or a value is out of range.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        return GanSettings()
    values = {name: value for name, value in read_json(file, root=folder).items() if name not in ABOUT}
    with naming(file):
        return settings_of(values)


def settings_of(values: dict) -> GanSettings:
    """Settings of a JSON object.

    Raises:
        InputError: it has an unknown setting, or a value is out of range.
    """
    for name in values:
        if name not in vars(GanSettings()):
            raise unknown("setting", name, vars(GanSettings()))
    return GanSettings(**values)

"""Options: frozen dataclasses whose fields declare their help text and valid values.

    @dataclass(frozen=True)
    class LossOptions(Options):
        caption_dropout: float = option(0.1, "share of captions replaced by the empty one", at_least=0,
            below=1)

Values are checked when an instance is made. The same fields become command-line flags
(`sd_tf.commandline.add_flags`), so that checks and help texts are written once.
"""

import dataclasses
import math
import numbers
import types
import typing
from dataclasses import dataclass

from sd_tf.errors import InputError, argument, shown, unknown

SWITCHED_OFF = (None, False, 0)  # values that turn an option off


@dataclass(frozen=True)
class Meaning:
    """An option's help text and valid values; see `option`."""

    help: str
    choices: tuple[str, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    example: str | None = None
    needs: tuple[str, str | None] | None = None
    name: str | None = None
    identifies: bool = True
    group: str | None = None


def option(default, help: str, **meaning):
    """A field of an `Options` dataclass.

    Args:
        default: default value. None if something else decides the default, usually a preset.
        help: text in `--help`, without the default.
        choices: valid values; "hub:<id>" stands for all that begin with "hub:".
        at_least, above, at_most, below: bounds of a number.
        example: a value that error messages suggest.
        needs: (name of another option, its value) that this option requires; the value None stands for any.
        name: name of the argument in Python, if it differs from the field's.
        identifies: whether runs that differ in it are different runs, which cannot resume each other.
        group: heading in `--help`.
    """
    return dataclasses.field(default=default, metadata={"option": Meaning(help, **meaning)})


def meaning_of(field: dataclasses.Field) -> Meaning:
    """The `Meaning` that a field of an `Options` dataclass was declared with."""
    return field.metadata["option"]


def name_of(field: dataclasses.Field) -> str:
    """A field's name in error messages: the argument in Python, the flag on the command line."""
    return argument(meaning_of(field).name or field.name, f"--{field.name.replace('_', '-')}")


@dataclass(frozen=True)
class Options:
    """Base class that checks each field against its declaration.

    Raises:
        InputError: a value has the wrong type, is out of range or not a valid choice, or an option was given
            without the one that it needs.
    """

    def __post_init__(self):
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field, getattr(self, field.name), kinds[field.name])
            object.__setattr__(self, field.name, value)
        for field in dataclasses.fields(self):
            self._check_needs(field)

    def _check_needs(self, field):
        needs = meaning_of(field).needs
        if needs is None or getattr(self, field.name) == field.default:
            return
        other, wanted = next(f for f in dataclasses.fields(self) if f.name == needs[0]), needs[1]
        value = getattr(self, other.name)
        if value in SWITCHED_OFF or (wanted is not None and value != wanted):
            wanted = "" if wanted is None else f" {wanted}"
            raise InputError(
                f"{name_of(field)} needs {name_of(other)}{wanted}: add it, or leave {name_of(field)} out"
            )

    @classmethod
    def of(cls, **values) -> "Options":
        """Makes an instance from field values.

        Raises:
            InputError: there is no such field.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("option", name, names)
        return cls(**values)

    @classmethod
    def named(cls, name: str) -> dataclasses.Field:
        """The field of that name."""
        return next(field for field in dataclasses.fields(cls) if field.name == name)

    @classmethod
    def said(cls, name: str) -> str:
        """The name in error messages of the field with this name; see `name_of`."""
        return name_of(cls.named(name))

    def named_value(self, name: str) -> str:
        """A field's name and value for error messages, such as "seed is 3"."""
        return f"{self.said(name)} is {shown(getattr(self, name))}"

    @property
    def given(self) -> dict:
        """Name -> value of the fields that differ from their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def joined_with(self, made_with: "Options", group: str) -> "Options":
        """The options that a new model was made with, updated by these of its training.

        Args:
            made_with: likewise an instance of this class.
            group: that of the options of a new model.

        Raises:
            InputError: one of that group differs from what the model was made with.
        """
        for field in dataclasses.fields(self):
            value = self.given.get(field.name, field.default)
            made = getattr(made_with, field.name)
            if meaning_of(field).group == group and value not in (field.default, made):
                raise InputError(
                    f"{self.named_value(field.name)}, but the model is made already: give it to from_preset"
                )
        return dataclasses.replace(made_with, **self.given)

    @property
    def identity(self) -> dict:
        """Name -> value of the fields that distinguish runs (`identifies`)."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if meaning_of(field).identifies
        }


def _checked(field, value, kind):
    """The value as one of Python's own types, which JSON has; `InputError` if the field cannot have it."""
    meaning, options = meaning_of(field), typing.get_args(kind) if _is_union(kind) else (kind,)
    if value is None and type(None) in options:
        return value
    kind = next(each for each in options if each is not type(None))
    if typing.get_origin(kind) is tuple:
        return _checked_strings(field, value)
    if not _has_type(value, kind):
        raise InputError(f"{name_of(field)} is {shown(value)}: give {_NOUNS[kind]}")
    if meaning.choices is not None and not is_choice(value, meaning.choices):
        raise unknown(name_of(field), value, meaning.choices)
    if kind in (int, float) and not _is_within(value, meaning):
        raise InputError(f"{name_of(field)} is {shown(value)}: give {_range(meaning)}")
    return value if type(value) in (bool, int, float, str) else kind(value)  # of numpy, or a fraction


def _checked_strings(field, values):
    """A tuple of distinct strings, each of the field's choices."""
    choices, several = meaning_of(field).choices, [values] if isinstance(values, str) else values
    is_list = isinstance(several, (list, tuple)) and several
    if not is_list or not all(isinstance(each, str) for each in several):
        raise InputError(f"{name_of(field)} is {shown(values)}: give a list of strings")
    for each in several:
        if choices is not None and not is_choice(each, choices):
            raise unknown(name_of(field), each, choices)
        if several.count(each) > 1:
            raise InputError(f"{name_of(field)} has {each!r} twice: give it once")
    return tuple(several)


_NOUNS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}


def _is_union(kind):
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _has_type(value, kind):
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, {int: numbers.Integral, float: numbers.Real, str: str}[kind])


def _is_within(value, meaning):
    low = -math.inf if meaning.at_least is None else meaning.at_least
    high = math.inf if meaning.at_most is None else meaning.at_most
    over = meaning.above is None or value > meaning.above
    under = meaning.below is None or value < meaning.below
    return -math.inf < value < math.inf and low <= value <= high and over and under


def _range(meaning):
    """A field's bounds in words, such as "1 or more", and its example."""
    low, high = meaning.at_least, meaning.at_most
    if low is not None and high is not None:
        text = f"{low} to {high}"
    elif low is not None:
        text = f"{low} or more" + ("" if meaning.below is None else f", below {meaning.below}")
    else:
        text = f"a number above {meaning.above}" + (
            "" if meaning.below is None else f" and below {meaning.below}"
        )
    return text if meaning.example is None else f"{text}, such as {meaning.example}"


def is_choice(value, choices) -> bool:
    """Whether a value is one of the choices, where "hub:<id>" stands for all that begin with "hub:"."""
    prefixes = [choice.partition("<")[0] for choice in choices if "<" in choice]
    return value in choices or any(value.startswith(each) and value != each for each in prefixes)


def check_of_new_model(kind: type, group: str, given: dict):
    """Raises `InputError` for what a new model is not made with.

    Args:
        kind: the family's `Options`, which have `preset`, and `init_from` for a trained model.
        group: that of the options of a new model.
        given: name -> value of the options besides `preset`.
    """
    fields = {field.name: meaning_of(field) for field in dataclasses.fields(kind)}
    of_model = [name for name, meaning in fields.items() if meaning.group == group and name != "preset"]
    for name in given:
        if name in fields and name not in of_model:
            way_out = "give it once" if name == "preset" else "give it to fit"
            if name == "init_from":
                way_out = "sd_tf.load reads a trained model"
            raise InputError(f"{kind.said(name)} is no option of a new model: {way_out}")
        if name not in fields:
            raise unknown("option", name, of_model)

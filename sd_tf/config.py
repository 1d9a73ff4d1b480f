"""What configurations share: each is a frozen dataclass, with the field names of its `config.json`."""

import dataclasses


def kept():
    """What a checkpoint's file says besides: written back as it was, and part of no comparison."""
    return dataclasses.field(default_factory=dict, compare=False, repr=False)


def as_config(kind: type, config):
    """A configuration of that class, of itself or of its fields as JSON has them, with lists for tuples."""
    if isinstance(config, kind):
        return config
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in config.items()})

"""What configurations share: each is a frozen dataclass, with the field names of its `config.json`."""

import dataclasses


def kept():
    """What a checkpoint's file says besides: written back as it was, and part of no comparison."""
    return dataclasses.field(default_factory=dict, compare=False, repr=False)

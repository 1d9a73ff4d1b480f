"""MinImagen, imagen-pytorch and gigagan-pytorch as installed, without what only their imports need."""

import contextlib
import importlib
import importlib.util
import sys
import types
from unittest import mock

TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.utils")


def minimagen():
    """The modules `minimagen.Imagen` and `minimagen.Unet`."""
    with _without(*TORCHVISION):
        return importlib.import_module("minimagen.Imagen"), importlib.import_module("minimagen.Unet")


def imagen_pytorch():
    """The package."""
    from transformers import T5Config

    # Its import asks the hub how wide the states of its usual text encoder, google/t5-v1_1-base, are.
    width = mock.patch.object(T5Config, "from_pretrained", return_value=T5Config(d_model=768))
    with _without(*TORCHVISION), width:
        return importlib.import_module("imagen_pytorch")


def gigagan_pytorch():
    """The module `gigagan_pytorch.gigagan_pytorch`, which has all layers."""
    with _without(*TORCHVISION, "open_clip", "numerize", "numerize.numerize"):
        found = importlib.import_module("gigagan_pytorch.gigagan_pytorch")
    vars(found.numerize).setdefault("numerize", str)  # by which it prints how large its networks are
    return found


@contextlib.contextmanager
def _without(*modules):
    """Within it, those of the modules are empty whose package is missing.

    The peers import torchvision for PIL pictures, which nothing here asks for. It is not among our libraries:
    the one on the package index does not go with a torch for CPUs.
    """
    import datasets  # noqa: F401, which looks for torchvision when it is imported, as transformers does
    import transformers  # noqa: F401

    missing = [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]

"""MinImagen and imagen-pytorch as they are installed, without what only their imports ask for."""

import contextlib
import importlib
import importlib.util
import sys
import types
from unittest import mock


def minimagen():
    """The modules `minimagen.Imagen` and `minimagen.Unet`."""
    with _without_torchvision():
        return importlib.import_module("minimagen.Imagen"), importlib.import_module("minimagen.Unet")


def imagen_pytorch():
    """The package."""
    from transformers import T5Config

    # Its import asks the hub how wide the states of its usual text encoder, google/t5-v1_1-base, are.
    width = mock.patch.object(T5Config, "from_pretrained", return_value=T5Config(d_model=768))
    with _without_torchvision(), width:
        return importlib.import_module("imagen_pytorch")


@contextlib.contextmanager
def _without_torchvision():
    """Within it, `torchvision.transforms` is empty where torchvision is missing.

    Both packages import it for PIL pictures, which nothing here asks for. It is not among our libraries: the
    one on the package index does not go with a torch for CPUs.
    """
    import datasets  # noqa: F401, which looks for torchvision when it is imported, as transformers does
    import transformers  # noqa: F401

    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    parent, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    parent.transforms = transforms
    sys.modules |= {"torchvision": parent, "torchvision.transforms": transforms}
    try:
        yield
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.transforms"]

"""LPIPS against the package `lpips`, with its published heads on backbones of random weights.

The package takes the backbones' layers from torchvision, which has no build for each torch; where it cannot
be imported, the same layers stand in for it.
"""

import re
import sys
import types

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.evaluation.lpips import load_lpips

torch = pytest.importorskip("torch", reason="the extra test has torch")

from safetensors.torch import save_file  # noqa: E402

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0 is a maximum


def alexnet(**_):
    from torch import nn

    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return types.SimpleNamespace(features=nn.Sequential(*layers, nn.MaxPool2d(3, 2)))


def vgg16(**_):
    from torch import nn

    layers, before = [], 3
    for after in VGG:
        if after:
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            before = after
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return types.SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture(scope="module")
def package():
    with pytest.MonkeyPatch.context() as patch:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                patch.delitem(sys.modules, name)
            stand_in = types.ModuleType("torchvision")
            stand_in.models = types.SimpleNamespace(alexnet=alexnet, vgg16=vgg16)
            patch.setitem(sys.modules, "torchvision", stand_in)
        yield pytest.importorskip("lpips", reason="the extra test has lpips")


@pytest.fixture(scope="module", params=["alex", "vgg"])
def theirs(request, package):
    torch.manual_seed(0)
    return package.LPIPS(net=request.param, pnet_rand=True, verbose=False)


def tensors_of(network):
    """As torchvision names those of a backbone, and the package those of its heads."""
    found = {}
    for name, value in network.state_dict().items():
        place = re.fullmatch(r"net\.slice\d\.(\d+)\.(weight|bias)", name)
        if place:
            found[f"features.{place[1]}.{place[2]}"] = value.contiguous()
        elif re.fullmatch(r"lin\d\.model\.1\.weight", name):
            found[name] = value.contiguous()
    return found


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    first = rng.uniform(-1, 1, (4, 64, 80, 3)).astype(np.float32)
    second = np.clip(first + rng.normal(0, 0.2, first.shape), -1, 1).astype(np.float32)
    return first, second


def test_distances_are_the_packages(theirs, pictures, tmp_path):
    tensors = tensors_of(theirs)
    backbone = {name: value for name, value in tensors.items() if name.startswith("features")}
    save_file(backbone | {"classifier.1.bias": torch.zeros(3)}, tmp_path / "backbone.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name.startswith("lin")},
        tmp_path / "heads.safetensors",
    )
    ours = load_lpips([tmp_path / "backbone.safetensors", tmp_path / "heads.safetensors"])
    found = np.asarray(ours(*pictures))
    with torch.no_grad():
        first, second = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in pictures)
        expected = theirs(first, second).numpy().ravel()
    assert expected.min() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(ours(pictures[0], pictures[0])), 0.0)


def test_what_is_missing_is_named(theirs, tmp_path):
    tensors = tensors_of(theirs)
    save_file({"lin0.model.1.weight": tensors["lin0.model.1.weight"]}, tmp_path / "heads.safetensors")
    with pytest.raises(InputError, match="no features.10.weight .AlexNet. and no features.28.weight"):
        load_lpips([tmp_path / "heads.safetensors"])
    backbone = {name: value for name, value in tensors.items() if name.startswith("features")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    with pytest.raises(InputError, match="missing 5 tensors: lin0.model.1.weight"):
        load_lpips([tmp_path / "backbone.safetensors"])

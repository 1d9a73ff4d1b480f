"""The finder of the first layer that differs, on mistakes planted in a UNet that equals diffusers'."""

import keras
import numpy as np
import pytest

from sd_tf.latent.config import UNetConfig
from sd_tf.latent.unet import UNet
from tests.parity import first_divergence, record, record_torch, recording

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

OPTIONS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "use_linear_projection": True,
    "norm_num_groups": 4,
}
RNG = np.random.default_rng(0)
INPUTS = (
    RNG.standard_normal((2, 8, 6, 4)).astype("float32"),
    np.array([5, 700]),
    RNG.standard_normal((2, 5, 12)).astype("float32"),
)
LAST_TRANSFORMER = "up_blocks.1.attentions.1.transformer_blocks.0"


@pytest.fixture(scope="module")
def reference(copied):
    """diffusers' UNet, a UNet of ours with its weights, and what all layers of diffusers' say."""
    torch.manual_seed(0)
    theirs, ours = diffusers.UNet2DConditionModel(**OPTIONS), UNet(UNetConfig(**OPTIONS))
    ours.build()
    copied(theirs, ours)
    latents, timesteps, context = (torch.from_numpy(array) for array in INPUTS)
    return theirs, ours, record_torch(theirs, latents.permute(0, 3, 1, 2), timesteps, context)


@pytest.fixture
def unet(reference):
    """A UNet of ours with the reference's weights, free to be spoilt."""
    unet = UNet(UNetConfig(**OPTIONS))
    unet.build()
    unet.set_weights(reference[1].get_weights())
    return unet


def layer_of(model, name):
    return next(layer for layer in model._flatten_layers() if layer.path.replace("/", ".") == f"unet.{name}")


def nudge(variable):
    """Changes one number of it."""
    value = np.asarray(variable.value).copy()
    value.flat[-1] += 0.5
    variable.assign(value)


def test_equal_models_diverge_nowhere_and_nearly_every_layer_is_compared(reference, unet):
    theirs, _, expected = reference
    found = record(unet, *INPUTS)
    assert first_divergence(found, expected, tolerance=2e-5) is None
    with_weights = {name.rpartition(".")[0] for name, _ in theirs.named_parameters()}
    assert with_weights <= found.keys() & expected.keys()


# The layer spoilt, how, and the layer that must be named.
PLANTED = {
    "a weight of the first layer": ("conv_in", lambda layer: nudge(layer.kernel), "conv_in"),
    "a weight of a deep convolution": (
        "down_blocks.1.resnets.0.conv2",
        lambda layer: nudge(layer.kernel),
        "down_blocks.1.resnets.0.conv2",
    ),
    "a weight of a deep projection": (
        f"{LAST_TRANSFORMER}.attn2.to_v",
        lambda layer: nudge(layer.kernel),
        f"{LAST_TRANSFORMER}.attn2.to_v",
    ),
    "a bias of a norm": (
        "up_blocks.0.resnets.1.norm2",
        lambda layer: nudge(layer.beta),
        "up_blocks.0.resnets.1.norm2",
    ),
    "the epsilon of a group norm": (
        "up_blocks.1.resnets.0.norm1",
        lambda layer: setattr(layer, "epsilon", 1e-2),
        "up_blocks.1.resnets.0.norm1",
    ),
    "the epsilon of a layer norm": (
        f"{LAST_TRANSFORMER}.norm3",
        lambda layer: setattr(layer, "epsilon", 1e-2),
        f"{LAST_TRANSFORMER}.norm3",
    ),
    "heads, which no layer's own result shows": (
        "mid_block.attentions.0.transformer_blocks.0.attn1",
        lambda layer: setattr(layer, "num_heads", 4),
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    ),
    "a residual left out": (
        "down_blocks.0.resnets.0",
        lambda layer: setattr(layer, "conv_shortcut", lambda x: 0 * x),
        "down_blocks.0.resnets.0",
    ),
}


@pytest.mark.parametrize(("spoilt", "spoil", "named"), PLANTED.values(), ids=PLANTED)
def test_a_planted_mistake_is_named(reference, unet, spoilt, spoil, named):
    spoil(layer_of(unet, spoilt))
    found = record(unet, *INPUTS)
    divergence = first_divergence(found, reference[2])
    assert divergence.name == named
    assert divergence.difference > 1e-4
    before = list(found)[: list(found).index(named)]
    assert list(divergence.agreed) == [name for name in before if name in reference[2]]
    assert str(divergence).startswith(f"{named} differs by {divergence.difference:.2g} standard deviations")


def test_numbers_that_are_none_diverge(reference, unet):
    layer_of(unet, "mid_block.resnets.0.conv1").bias.assign(np.full(16, np.nan))
    divergence = first_divergence(record(unet, *INPUTS), reference[2])
    assert (divergence.name, divergence.difference) == ("mid_block.resnets.0.conv1", np.inf)


def test_other_shapes_are_refused(reference, unet):
    latents, timesteps, context = INPUTS
    found = record(unet, latents.transpose(0, 2, 1, 3), timesteps, context)
    with pytest.raises(ValueError, match=r"conv_in: ours has shape \(2, 6, 8, 8\), theirs \(2, 8, 6, 8\)"):
        first_divergence(found, reference[2])
    with pytest.raises(ValueError, match=r"no layer in common: ours are \['a'\]…, theirs \['b'\]"):
        first_divergence({"a": np.zeros(2)}, {"b": np.zeros(2)})


def test_a_layer_called_twice_is_recorded_twice():
    model = keras.Sequential([keras.layers.Dense(2, name="dense")])
    model.build((None, 2))
    with recording(model) as activations:
        first, second = model.layers[0](np.eye(2)), model.layers[0](2 * np.eye(2))
    assert list(activations) == ["dense", "dense#2"]
    np.testing.assert_array_equal(activations["dense"], first)
    np.testing.assert_array_equal(activations["dense#2"], second)


def test_a_model_is_left_as_it_was(unet):
    before = np.asarray(unet(*INPUTS))
    with pytest.raises(ZeroDivisionError), recording(unet) as activations:
        unet(*INPUTS)
        raise ZeroDivisionError
    recorded = len(activations)
    np.testing.assert_array_equal(unet(*INPUTS), before)
    assert len(activations) == recorded
    assert not [layer for layer in unet._flatten_layers() if "call" in vars(layer)]

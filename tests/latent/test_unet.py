"""The UNet against diffusers' UNet2DConditionModel: the same weights, the same numbers."""

import dataclasses

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.latent.config import UNetConfig
from sd_tf.latent.unet import UNet

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def config(levels, **changes):
    """A small `UNetConfig` whose levels, highest resolution first, attend (CROSS) or do not (PLAIN)."""
    fields = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16)[: len(levels)],
        "layers_per_block": 1,
        "down_block_types": tuple(down for down, _ in levels),
        "up_block_types": tuple(up for _, up in levels[::-1]),
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
    }
    return UNetConfig(**(fields | changes))


SMALL = config([CROSS, PLAIN])
CONFIGS = {
    "Stable Diffusion's order, attention above": SMALL,
    "one level": config([CROSS], layers_per_block=2),
    "no attention outside the middle": config([PLAIN, PLAIN], layers_per_block=2),
    "three levels, heads for each, linear projections": config(
        [PLAIN, CROSS, CROSS], attention_head_dim=(1, 2, 4), use_linear_projection=True
    ),
    "sines first, shifted, coarse norms, other channels": config(
        [CROSS, CROSS],
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-3,
        in_channels=5,
        out_channels=3,
        block_out_channels=(16, 8),
    ),
}


def inputs(config, height=8, width=8, batch=3, tokens=5):
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((batch, height, width, config.in_channels)).astype("float32"),
        np.array([0, 421, 999][:batch]),
        rng.standard_normal((batch, tokens, config.cross_attention_dim)).astype("float32"),
    )


def theirs_on(reference, latents, timesteps, context):
    with torch.no_grad():
        output = reference(
            torch.from_numpy(np.array(latents.transpose(0, 3, 1, 2))),
            torch.from_numpy(timesteps),
            torch.from_numpy(context),
        ).sample
    return output.numpy().transpose(0, 2, 3, 1)


def reference(config):
    options = dataclasses.asdict(config)
    del options["kept"]
    return diffusers.UNet2DConditionModel(**options)


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request, copied):
    """diffusers' UNet and ours, with the same random weights."""
    config = CONFIGS[request.param]
    torch.manual_seed(0)
    theirs, ours = reference(config), UNet(config)
    ours.build()
    copied(theirs, ours)
    return ours, theirs


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (7, 5)], ids=str)
def test_agrees_with_diffusers_at_square_oblong_and_odd_sizes(pair, size, distance):
    ours, theirs = pair
    arrays = inputs(ours.config, *size)
    assert distance(ours(*arrays), theirs_on(theirs, *arrays)) < 2e-5


def test_small_activations_show_the_same_epsilons_as_diffusers(copied, distance):
    config = CONFIGS["three levels, heads for each, linear projections"]
    torch.manual_seed(0)
    theirs, ours = reference(config), UNet(config)
    ours.build()
    copied(theirs, ours, scale=0.02)
    arrays = inputs(config)
    assert distance(ours(*arrays), theirs_on(theirs, *arrays)) < 1e-4


def filled(config=SMALL, **options):
    unet = UNet(config, **options)
    unet.build()
    rng = np.random.default_rng(0)
    for variable in unet.variables:
        variable.assign(variable + 0.1 * rng.standard_normal(variable.shape))
    return unet


def test_compiled_equals_eager(distance):
    unet, arrays = filled(), inputs(SMALL)
    assert distance(compiled(unet)(*arrays), unet(*arrays)) < 1e-5


def test_timestep_and_context_both_reach_the_output():
    unet, (latents, timesteps, context) = filled(), inputs(SMALL)
    output = np.asarray(unet(latents, timesteps, context))
    assert np.abs(unet(latents, timesteps + 50, context) - output).max() > 1e-2 * output.std()
    assert np.abs(unet(latents, timesteps, context[:, ::-1] * 2) - output).max() > 1e-2 * output.std()


def test_an_example_does_not_depend_on_its_batch():
    unet, arrays = filled(), inputs(SMALL)
    together = np.asarray(unet(*arrays))
    for i in range(3):
        alone = unet(*(array[i : i + 1] for array in arrays))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_is_made_again_from_its_config():
    unet = filled(CONFIGS["three levels, heads for each, linear projections"])
    arrays = inputs(unet.config)
    twin = UNet.from_config(unet.get_config())
    twin.build()
    twin.set_weights(unet.get_weights())
    assert twin.config == unet.config
    np.testing.assert_allclose(twin(*arrays), unet(*arrays), atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_returns_float32_near_the_exact_result(precision):
    unet, arrays = filled(), inputs(SMALL)
    mixed = UNet(SMALL, dtype=precision)
    mixed.build()
    mixed.set_weights(unet.get_weights())
    output, exact = mixed(*arrays), np.asarray(unet(*arrays))
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    assert all(variable.dtype == "float32" for variable in mixed.variables)
    assert 0 < np.abs(output - exact).max() / exact.std() < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": ("CrossAttnDownBlock2D",)},
            "down_block_types has 1 entries for 2 block_out_chan",
        ),
        ({"up_block_types": ("UpBlock2D",) * 3}, "up_block_types has 3 entries for 2 block_out_channels"),
        ({"attention_head_dim": (2, 2, 2)}, "attention_head_dim has 3 entries for 2 block_out_channels"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "down_block_types 'AttnDownBlock2D'"),
        ({"up_block_types": ("UpBlock2D", "AttnUpBlock2D")}, "up_block_types 'AttnUpBlock2D'"),
        ({"norm_num_groups": 3}, "8 channels do not divide into 3 groups"),
        ({"attention_head_dim": 3}, "8 channels do not divide into 3 heads"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        UNet(dataclasses.replace(SMALL, **changes)).build()


def test_stable_diffusion_1_has_859520964_parameters(shapes_alone):
    unet = UNet()
    unet.build()
    assert unet.count_params() == 859_520_964

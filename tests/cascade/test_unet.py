"""The cascade's UNet against diffusers' of DeepFloyd IF: the same weights, the same numbers."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.cascade.config_files import PIXEL_UNET
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.names import shapes
from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.nn.fused import fusing
from sd_tf.nn.remat import rematerialising
from sd_tf.skeleton import skeleton
from tests.cascade.small import (
    SUPER_RESOLUTION,
    efficient_config,
    inputs,
    reference,
    small_config,
    theirs_on,
)
from tests.conftest import shake_variables

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4  # of the largest difference, in standard deviations of the reference
NO_PROJECTION = {"encoder_hid_dim": None, "encoder_hid_dim_type": None}

# Attention at the levels with an x, a picture's height and width, and what else is not as in `small_config`.
GRID = {
    "one level": ("x", (5, 7), {}),
    "one level, no attention above": (".", (4, 3), {"layers_per_block": 2}),
    "DeepFloyd's base": (".xxx", (16, 8), {}),
    "its super-resolution": ("..x", (12, 8), SUPER_RESOLUTION | {"layers_per_block": (1, 2, 3)}),
    "silu, added embedding": ("x.", (6, 10), {"act_fn": "silu", "resnet_time_scale_shift": "default"}),
    "silu, scaled and shifted": (".x", (8, 8), {"act_fn": "silu", "layers_per_block": 2}),
    "gelu, added embedding": ("xx", (2, 6), {"resnet_time_scale_shift": "default"}),
    "no learned variance": (".x", (8, 4), {"out_channels": 3}),
    "no norm of the text": ("xx", (4, 4), {"cross_attention_norm": None, "layers_per_block": 3}),
    "layer norm of the text": (
        ".x",
        (6, 6),
        {"cross_attention_norm": "layer_norm", "cross_attention_dim": 16},
    ),
    "the text alone, at one level": ("xx", (4, 8), {"only_cross_attention": (False, True)}),
    "the text alone, in the middle": (".x", (4, 8), {"mid_block_only_cross_attention": True}),
    "the text alone, but in the middle": (
        "xx",
        (4, 4),
        {"only_cross_attention": True, "mid_block_only_cross_attention": False},
    ),
    "neither projection nor pooling": (".x", (6, 4), NO_PROJECTION | {"addition_embed_type": None}),
    "pooling without projection": (".x", (6, 4), NO_PROJECTION),
    "silu on each embedding": (
        ".x",
        (4, 4),
        {"timestep_post_act": "silu", "time_embedding_act_fn": "silu", "resnet_skip_time_act": True},
    ),
    "gelu after the timestep": ("x.", (4, 4), {"timestep_post_act": "gelu", "class_embed_type": "timestep"}),
    "sines first, shifted, coarse": (
        ".x",
        (4, 6),
        {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-2},
    ),
    "a head's width for each block": (
        "xxx",
        (8, 4),
        {"attention_head_dim": (8, 2, 4), "resnet_out_scale_factor": 2**0.5},
    ),
    "four levels without attention": (
        "....",
        (8, 16),
        {"layers_per_block": (2, 1, 1, 2), "act_fn": "silu", "mid_block_scale_factor": 3},
    ),
    "silu's super-resolution": (
        ".x",
        (6, 10),
        SUPER_RESOLUTION | {"act_fn": "silu", "time_embedding_act_fn": "silu", "only_cross_attention": False},
    ),
}


def pair(config, copied, scale=1.0):
    """diffusers' UNet and ours, with the same random weights."""
    theirs = reference(config)
    with skeleton():  # no random values, which are replaced at once
        ours = PixelUNet(config)
        ours.build()
    assert shapes(ours) == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    copied(theirs, ours, scale)
    return ours, theirs


# What these show, others show together with something else.
SLOW = {
    "silu, scaled and shifted",
    "gelu after the timestep",
    "pooling without projection",
    "silu's super-resolution",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in GRID]
)
def test_agrees_with_diffusers_key_for_key_and_number_for_number(name, copied, distance):
    attends, size, changes = GRID[name]
    config = small_config(attends, **changes)
    ours, theirs = pair(config, copied)
    images, timesteps, context, mask, labels = inputs(config, *size)
    expected = theirs_on(theirs, images, timesteps, context, class_labels=labels)
    result = ours(images, timesteps, context, class_labels=labels)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert distance(result, expected) < TOLERANCE
    if not any((config.middle_only_cross_attention, *config.of_levels("only_cross_attention"))):
        expected = theirs_on(theirs, images, timesteps, context, mask, labels)
        masked = ours(images, timesteps, context, mask, labels)
        assert distance(masked, expected) < TOLERANCE
        assert np.abs(masked - result).max() > 1e-3


@pytest.mark.parametrize("only_text", [False, True])
def test_a_hidden_token_is_as_good_as_none(only_text, copied, distance):
    # diffusers has no mask where positions attend on the text alone, so the reference is a shorter text.
    # Without what sees all tokens: the pooling and the text's group norm.
    config = small_config(
        "xx",
        block_out_channels=(16, 16),
        cross_attention_dim=16,
        cross_attention_norm="layer_norm",
        only_cross_attention=only_text,
        addition_embed_type=None,
    )
    ours, theirs = pair(config, copied)
    images, timesteps, context, _, _ = inputs(config, 8, 8)
    mask = np.broadcast_to(np.arange(7) < 4, (3, 7))
    expected = theirs_on(theirs, images, timesteps, context[:, :4])
    assert distance(ours(images, timesteps, context, mask), expected) < TOLERANCE


def test_small_activations_show_the_same_epsilons_as_diffusers(copied, distance):
    config = small_config(".x", norm_eps=1e-3)
    ours, theirs = pair(config, copied, scale=0.02)
    images, timesteps, context, _, _ = inputs(config, 8, 8)
    expected = theirs_on(theirs, images, timesteps, context)
    assert distance(ours(images, timesteps, context), expected) < TOLERANCE


BASE = small_config(".x")
STAGES = {
    "base": BASE,
    "super-resolution": small_config(".x", **SUPER_RESOLUTION),
    "efficient": efficient_config(".x", layers_per_block=(1, 2), **SUPER_RESOLUTION),
}


def shaken(config, **options):
    unet = PixelUNet(config, **options)
    unet.build()
    return shake_variables(unet, scale=0.1)


@pytest.fixture(params=STAGES, scope="module")
def stage(request):
    """A UNet of random weights, and inputs for it."""
    config = STAGES[request.param]
    return shaken(config), inputs(config)


def test_compiled_equals_eager(stage, distance):
    unet, arrays = stage
    given = [array for array in arrays if array is not None]
    assert distance(compiled(unet)(*given), unet(*given)) < 1e-5


def test_all_that_it_is_called_with_reaches_the_output(stage):
    unet, (images, timesteps, context, mask, labels) = stage
    output = np.asarray(unet(images, timesteps, context, mask, labels))
    others = [
        unet(images + 0.5, timesteps, context, mask, labels),
        unet(images, timesteps + 50, context, mask, labels),
        unet(images, timesteps, 2 * context[:, ::-1], mask, labels),
        unet(images, timesteps, context, ~mask, labels),
    ]
    if labels is not None:
        others.append(unet(images, timesteps, context, mask, labels + 100))
    for other in others:
        assert np.abs(other - output).max() > 1e-2 * output.std()


@pytest.mark.filterwarnings("error")
def test_mask_and_labels_may_be_given_by_name(stage):
    unet, (images, timesteps, context, mask, labels) = stage
    named = unet(images, timesteps, context, text_mask=mask, class_labels=labels)
    np.testing.assert_array_equal(named, unet(images, timesteps, context, mask, labels))
    assert getattr(named, "_keras_mask", None) is None


def test_an_example_does_not_depend_on_its_batch(stage):
    unet, arrays = stage
    together = np.asarray(unet(*arrays))
    for i in range(3):
        alone = unet(*(None if array is None else array[i : i + 1] for array in arrays))
        np.testing.assert_allclose(alone[0], together[i], atol=2e-5)


def test_a_twin_from_the_configuration_has_the_same_variables(stage):
    unet, arrays = stage
    twin = PixelUNet.from_config(json.loads(json.dumps(unet.get_config())))
    twin.build()
    assert twin.config == unet.config
    twin.set_weights(unet.get_weights())
    np.testing.assert_allclose(twin(*arrays), unet(*arrays), atol=1e-5)


@pytest.mark.parametrize(
    "precision", ["mixed_bfloat16", "mixed_float16", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_lower_precision_returns_float32_near_the_exact_result(stage, precision):
    unet, arrays = stage
    mixed = PixelUNet(unet.config, dtype=precision)
    mixed.build()
    mixed.set_weights(unet.get_weights())
    output, exact = mixed(*arrays), np.asarray(unet(*arrays))
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    assert 0 < np.abs(output - exact).max() / exact.std() < 0.3


def test_a_new_network_predicts_zero_and_its_branches_return_their_input(stage):
    config = stage[0].config
    unet = PixelUNet(config)
    unet.build()
    assert not np.asarray(unet(*stage[1])).any()
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        assert all(not np.asarray(resnet.conv2.kernel).any() for resnet in block.resnets)
        assert all(not np.asarray(attention.to_out.kernel).any() for attention in block.attentions)


def gradients(unet, arrays, remat=False, fused=False):
    """The loss and the gradient of each variable."""
    given = [tf.constant(array) for array in arrays if array is not None]
    with tf.GradientTape() as tape, rematerialising(unet.trainable_variables, remat), fusing(fused):
        loss = tf.reduce_mean(tf.square(unet(*given) - 1.0))
    return loss, tape.gradient(loss, [variable.value for variable in unet.trainable_variables])


def test_gradients_reach_every_variable_and_are_the_same_when_activations_are_computed_again(stage):
    unet, arrays = stage
    loss, plain = gradients(unet, arrays)
    for variable, gradient in zip(unet.trainable_variables, plain, strict=True):
        assert gradient is not None, variable.path
        # A softmax does not see what all of its logits have in common.
        if not variable.path.endswith(("k_proj/bias", "to_k/bias")):
            assert np.asarray(gradient).any(), variable.path
    again, repeated = gradients(unet, arrays, remat=True)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    largest = max(np.abs(gradient).max() for gradient in plain)
    for ours, theirs in zip(repeated, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 3e-2)])
def test_fused_gradients_are_those_of_the_plain_functions_in_float32(precision, tolerance):
    config = small_config(".x")
    unet, arrays = shaken(config), inputs(config)
    _, exact = gradients(unet, arrays)
    other = PixelUNet(config, dtype=precision)
    other.build()
    other.set_weights(unet.get_weights())
    # In a graph, as the training step is: there the second computation could be merged with the first.
    graph = tf.function(lambda: gradients(other, arrays, remat=True, fused=True), autograph=False)
    ours, theirs = (np.concatenate([np.ravel(each) for each in found]) for found in (graph()[1], exact))
    assert np.linalg.norm(ours - theirs) < tolerance * np.linalg.norm(theirs)


def test_efficient_levels_compute_at_a_quarter_of_the_pixels():
    config = efficient_config("..x")
    unet = shaken(config)
    sizes = []
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for resnet in block.resnets:
            original = resnet.call
            object.__setattr__(
                resnet, "call", lambda x, time, call=original: (sizes.append(x.shape[1]), call(x, time))[1]
            )
    assert unet(*inputs(config, 16, 24)).shape == (3, 16, 24, 6)
    assert sizes == [8, 4, 2, 2, 2, 2, 4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ("ResnetDownsampleBlock2D",)}, "down_block_types has 1 entries for 2 block_o"),
        ({"up_block_types": ("ResnetUpsampleBlock2D",) * 3}, "up_block_types has 3 entries for 2 block_out"),
        ({"attention_head_dim": (2, 2, 2)}, "attention_head_dim has 3 entries for 2 block_out_channels"),
        ({"layers_per_block": (1,)}, "layers_per_block has 1 entries for 2 block_out_channels"),
        ({"only_cross_attention": (True,)}, "only_cross_attention has 1 entries for 2 block_out_channels"),
        ({"block_out_channels": ()}, "block_out_channels is empty"),
        (
            {"down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D")},
            "down_block_types 'DownBlock2D'",
        ),
        ({"up_block_types": ("EfficientUpBlock2D",) * 2}, "all levels have to be, or none"),
        ({"act_fn": "mish"}, "unknown act_fn 'mish'"),
        ({"time_embedding_act_fn": "mish"}, "unknown time_embedding_act_fn 'mish'"),
        ({"timestep_post_act": "mish"}, "unknown timestep_post_act 'mish'"),
        ({"resnet_time_scale_shift": "ada_group"}, "unknown resnet_time_scale_shift 'ada_group'"),
        ({"cross_attention_norm": "batch_norm"}, "unknown cross_attention_norm 'batch_norm'"),
        ({"class_embed_type": "projection"}, "unknown class_embed_type 'projection'"),
        ({"addition_embed_type": "text_image"}, "unknown addition_embed_type 'text_image'"),
        ({"encoder_hid_dim_type": "image_proj"}, "unknown encoder_hid_dim_type 'image_proj'"),
        ({"encoder_hid_dim": None}, "encoder_hid_dim_type is 'text_proj', encoder_hid_dim None"),
        ({"norm_num_groups": 3}, "8 channels do not divide into 3 groups"),
        ({"attention_head_dim": 3}, "16 channels do not divide into heads of 3"),
        ({"attention_head_dim": 32}, "16 channels do not divide into heads of 32"),
        ({"block_out_channels": (8, 4096), "attention_head_dim": 1}, "4096 heads of 4096 channels"),
        ({"addition_embed_type_num_heads": 5}, "a text 24 wide does not divide into 5 heads"),
        ({"cross_attention_dim": 20}, "20 channels do not divide into 32 groups"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(changes, message):
    with pytest.raises(InputError, match=message), skeleton():
        PixelUNet(dataclasses.replace(BASE, **changes)).build()


def test_a_call_that_does_not_fit_is_refused_in_one_line():
    base, larger = shaken(BASE), shaken(STAGES["super-resolution"])
    images, timesteps, context, mask, _ = inputs(BASE)
    with pytest.raises(InputError, match="class_labels are given, class_embed_type is None"):
        base(images, timesteps, context, mask, timesteps)
    with pytest.raises(InputError, match="class_labels are missing, class_embed_type is 'timestep'"):
        larger(np.concatenate([images, images], -1), timesteps, context, mask)
    with pytest.raises(InputError, match="pictures are 16 x 15: 2 levels of this UNet need multiples of 2"):
        base(images[:, :, :15], timesteps, context)
    with pytest.raises(RuntimeError):  # nor can diffusers
        theirs_on(reference(BASE), images[:, :, :15], timesteps, context)


def deepfloyd(widths, **changes):
    """The configuration of one of DeepFloyd's bases, IF-I-M, -L or -XL."""
    return PixelUNetConfig(block_out_channels=widths, cross_attention_dim=widths[-1], **changes)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (deepfloyd((192, 384, 576, 768)), 372),  # IF-I-M
        (deepfloyd((320, 640, 960, 1280)), 935),  # IF-I-L, "0.9B"
        (deepfloyd((704, 1408, 2112, 2816)), 4305),  # IF-I-XL, "4.3B"
    ],
    ids=["IF-I-M", "IF-I-L", "IF-I-XL"],
)
def test_deepfloyds_bases_have_the_parameters_that_it_publishes(config, millions):
    with skeleton():
        ours = PixelUNet(config)
        ours.build()
    with torch.device("meta"):
        theirs = reference(config)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert shapes(ours) == expected
    count = sum(np.prod(shape, dtype=int) for shape in expected.values())
    assert round(count / 1e6) == millions


# Its files of the second stage were not at hand. These are of their sizes, 450 million and 1.2 billion, with
# the options that diffusers' `scripts/convert_if.py` gives them.
@pytest.mark.parametrize(
    ("widths", "layers", "millions"),
    [((160, 320, 640, 640), (2, 4, 6, 6), 450), ((160, 320, 640, 1280), (2, 4, 6, 8), 1194)],
)
def test_super_resolution_of_deepfloyds_sizes_is_laid_out_as_by_diffusers(widths, layers, millions):
    attends = (False, False, widths[-1] == widths[-2], True)
    config = deepfloyd(
        widths,
        **SUPER_RESOLUTION | {"time_embedding_dim": widths[-1]},
        layers_per_block=layers,
        down_block_types=tuple(
            "SimpleCrossAttnDownBlock2D" if x else "ResnetDownsampleBlock2D" for x in attends
        ),
        up_block_types=tuple(
            "SimpleCrossAttnUpBlock2D" if x else "ResnetUpsampleBlock2D" for x in attends[::-1]
        ),
    )
    with skeleton():
        ours = PixelUNet(config)
        ours.build()
    with torch.device("meta"):
        theirs = reference(config)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert shapes(ours) == expected
    assert round(sum(np.prod(shape, dtype=int) for shape in expected.values()) / 1e6) == millions


# What a file of DeepFloyd's says, besides what its sizes differ in.
IF_FILE = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.17.0.dev0",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "block_out_channels": [704, 1408, 2112, 2816],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": 4096,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 6,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "upcast_attention": False,
    "use_linear_projection": False,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "in_channels": 6,
            "class_embed_type": "timestep",
            "layers_per_block": [2, 4, 6, 6],
            "only_cross_attention": True,
            "resnet_out_scale_factor": 1.4142271248762552,
            "mid_block_scale_factor": 1.4142271248762552,
            "resnet_skip_time_act": True,
            "sample_size": 256,
            "time_embedding_act_fn": "gelu",
            "time_embedding_dim": 1280,
        },
    ],
    ids=["base", "super-resolution"],
)
def test_a_file_like_deepfloyds_is_read_and_written_back_as_it_was(changes):
    values = IF_FILE | changes
    config = PIXEL_UNET.from_json(values, "config.json")
    with skeleton():
        unet = PixelUNet(config)
        unet.build()
    assert unet.encoder_hid_proj is not None  # although old files do not say of which type it is
    written = json.loads(json.dumps(PIXEL_UNET.to_json(config)))
    assert {name: written[name] for name in values if name != "_diffusers_version"} == {
        name: value for name, value in values.items() if name != "_diffusers_version"
    }
    assert PIXEL_UNET.from_json(written, "config.json") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type is 'UNetMidBlock2DCrossAttn', only"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', only 'positional'"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat is True, only False"),
        ({"num_class_embeds": 10}, "num_class_embeds is 10, only None"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256, only None"),
        ({"conv_in_kernel": 5}, "conv_in_kernel is 5, only 3"),
        ({"cross_attention_dim": [4, 4]}, "cross_attention_dim is .*, expected something like 768"),
        ({"resnet_out_scale_factor": 0}, "resnet_out_scale_factor is 0, expected 0.001 to 1000"),
        ({"mid_block_scale_factor": 1e-9}, "mid_block_scale_factor is 1e-09, expected 0.001 to 1000"),
        ({"addition_embed_type_num_heads": 0}, "addition_embed_type_num_heads is 0, expected 1 to 1024"),
        ({"encoder_hid_dim": 0}, "encoder_hid_dim is 0, expected 1 to"),
        ({"time_embedding_dim": 2**40}, "time_embedding_dim is .*, expected 1 to"),
        ({"layers_per_block": [1] * 101}, "layers_per_block has 101 entries, 100 are the most"),
        ({"attention_head_dim": [0, 1]}, "attention_head_dim is .*, expected 1 to 1024"),
        ({"freq_shift": 1, "block_out_channels": [2, 4]}, "freq_shift is 1, as many as the 1 frequencies"),
        ({"sample_size": [1, 2, 3]}, "sample_size has 3 numbers"),
        ({"only_cross_attention": "yes"}, "only_cross_attention is 'yes', expected something like False"),
    ],
)
def test_a_file_of_another_network_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=f"^config.json: {message}"):
        PIXEL_UNET.from_json(IF_FILE | changes, "config.json")

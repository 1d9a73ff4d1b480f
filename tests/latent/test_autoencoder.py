"""The autoencoder against diffusers' AutoencoderKL: the same weights, the same numbers."""

import dataclasses
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.graphs import compiled
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.config import AutoencoderConfig
from sd_tf.latent.folder import load_autoencoder, save_autoencoder
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.stages import AutoencoderStage

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SMALL = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16)
CONFIGS = {
    "two levels": SMALL,
    "one level": dataclasses.replace(SMALL, block_out_channels=(12,)),
    "three levels of two blocks": dataclasses.replace(
        SMALL, block_out_channels=(4, 8, 8), layers_per_block=2, norm_num_groups=2
    ),
    "widths that fall, other channels": dataclasses.replace(
        SMALL, block_out_channels=(16, 8), in_channels=1, out_channels=2, latent_channels=3
    ),
    "no convolutions of latents, a shift": dataclasses.replace(
        SMALL, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305
    ),
    "one convolution of latents": dataclasses.replace(SMALL, use_quant_conv=False),
    "no attention": dataclasses.replace(SMALL, mid_block_add_attention=False),
}


def reference(config):
    levels, options = len(config.block_out_channels), dataclasses.asdict(config)
    del options["kept"]
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        **options,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


def pictures(config, height, width, batch=2):
    shape = (batch, height, width, config.in_channels)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


def channels_last(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request, copied):
    """diffusers' autoencoder and ours, with the same random weights."""
    config = CONFIGS[request.param]
    ours, theirs = AutoencoderKL(config), reference(config)
    ours.build()
    copied(theirs, ours)
    return ours, theirs


@pytest.mark.parametrize("size", [(16, 16), (8, 20)], ids=str)
def test_moments_agree_with_diffusers(pair, size, distance):
    ours, theirs = pair
    images = pictures(ours.config, *size)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
    mean, log_variance = ours.moments(images)
    assert distance(mean, channels_last(posterior.mean)) < 1e-5
    assert distance(log_variance, channels_last(posterior.logvar)) < 1e-5


@pytest.mark.parametrize("size", [(4, 4), (3, 5)], ids=str)
def test_pictures_agree_with_diffusers(pair, size, distance):
    ours, theirs = pair
    scale, shift = ours.config.scaling_factor, ours.config.shift_factor or 0
    shape = (2, *size, ours.config.latent_channels)
    latents = np.random.default_rng(1).standard_normal(shape).astype("float32")
    with torch.no_grad():
        images = theirs.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2)) / scale + shift).sample
    assert distance(ours.decode(latents), channels_last(images)) < 1e-5
    assert distance(compiled(ours.decode)(latents), channels_last(images)) < 1e-5


def test_latents_are_those_that_the_pipelines_of_diffusers_have(pair, distance):
    """As the VAE's image processor in diffusers' pipelines: (z - shift) * scale."""
    ours, theirs = pair
    images = pictures(ours.config, 8, 8)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
    mean, deviation = ours.encode(images)
    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0
    assert distance(mean, scale * (channels_last(posterior.mean) - shift)) < 1e-5
    assert distance(deviation, scale * channels_last(posterior.std)) < 1e-5
    np.testing.assert_allclose(ours.unscaled(ours.scaled(mean)), mean, atol=1e-5)


def test_a_folder_goes_to_diffusers_and_back(pair, tmp_path, distance):
    ours, theirs = pair
    save_autoencoder(ours, tmp_path / "ours")
    opened, report = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in dataclasses.asdict(ours.config).items():
        if name != "kept":
            assert opened.config[name] == (list(value) if isinstance(value, tuple) else value), name
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_autoencoder(tmp_path / "theirs")
    images = pictures(ours.config, 8, 8)
    assert distance(again.encode(images)[0], ours.encode(images)[0]) < 1e-5


@pytest.mark.parametrize("values", [[0.0] * 4, [1.0, 2.0, 3.0, 4.0]])
@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
def test_means_and_deviations_of_each_channel_are_refused(name, values, tmp_path):
    reference(SMALL).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: values}))
    with pytest.raises(InputError, match=rf"config.json: {name} is \[.*\], only None is supported"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("name", ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"])
def test_a_part_that_the_file_lacks_is_named(name, tmp_path):
    reference(dataclasses.replace(SMALL, **{name: False})).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: True}))
    with pytest.raises(InputError, match="missing [0-9]+ tensors: .*the file belongs to another config"):
        load_autoencoder(tmp_path)


def test_training_decodes_latents_that_are_shifted():
    """Of the loss, the pictures are those of the unscaled latents themselves."""
    autoencoder = filled(scaling_factor=0.5, shift_factor=3.0)
    images = pictures(SMALL, 8, 8)
    stage = SimpleNamespace(network=autoencoder, perceptual=None, KL_WEIGHT=0.0)
    noise = np.zeros((2, 4, 4, SMALL.latent_channels), "float32")
    losses = AutoencoderStage.loss(stage, {"images": images, "noise": noise})
    expected = np.abs(np.asarray(autoencoder(images)) - images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-4)


def test_openvino_decodes_latents_that_are_shifted(tiny_model):
    pytest.importorskip("openvino")
    config = dataclasses.replace(
        tiny_model.autoencoder.config, shift_factor=0.5, use_quant_conv=False, use_post_quant_conv=False
    )
    keras.utils.set_random_seed(0)
    autoencoder = AutoencoderKL(config)
    autoencoder.build()
    parts = autoencoder, tiny_model.unet, tiny_model.text_encoder, tiny_model.tokenizer, tiny_model.schedule
    model = LatentDiffusion(*parts)
    images = {name: model.generate("a dress", steps=2, engine=name) for name in ("tensorflow", "openvino")}
    assert np.abs(images["tensorflow"].astype(int) - images["openvino"]).max() <= 2


def test_small_activations_show_the_same_epsilons_as_diffusers(copied, distance):
    ours, theirs = AutoencoderKL(SMALL), reference(SMALL)
    ours.build()
    copied(theirs, ours, scale=0.02)
    images = pictures(SMALL, 8, 8)
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    mean, _ = ours.encode(images)
    assert distance(mean / SMALL.scaling_factor, channels_last(posterior.mean)) < 1e-4
    assert distance(ours.decode(mean), channels_last(decoded)) < 1e-4


def test_sizes_follow_the_number_of_levels(pair):
    ours, _ = pair
    factor = ours.config.downsampling
    assert factor == 2 ** (len(ours.config.block_out_channels) - 1)
    mean, deviation = ours.encode(pictures(ours.config, 3 * factor, 2 * factor))
    assert mean.shape == deviation.shape == (2, 3, 2, ours.config.latent_channels)
    assert ours.decode(mean).shape == (2, 3 * factor, 2 * factor, ours.config.out_channels)


def filled(seed=0, **changes):
    keras.utils.set_random_seed(seed)  # Keras draws the kernels
    autoencoder = AutoencoderKL(dataclasses.replace(SMALL, **changes))
    autoencoder.build()
    rng = np.random.default_rng(seed)
    for variable in autoencoder.variables:
        variable.assign(variable + 0.1 * rng.standard_normal(variable.shape))
    return autoencoder


def test_latents_are_scaled_outside_and_unscaled_inside():
    plain, scaled = filled(scaling_factor=1.0), filled(scaling_factor=0.25)
    scaled.set_weights(plain.get_weights())
    images = pictures(SMALL, 8, 8)
    mean, deviation = plain.encode(images)
    np.testing.assert_allclose(scaled.encode(images)[0], 0.25 * mean, rtol=1e-6)
    np.testing.assert_allclose(scaled.encode(images)[1], 0.25 * deviation, rtol=1e-6)
    np.testing.assert_allclose(scaled.decode(0.25 * mean), plain.decode(mean), atol=1e-5)
    np.testing.assert_allclose(deviation, np.exp(0.5 * np.asarray(plain.moments(images)[1])), rtol=1e-5)


def test_a_wild_log_variance_is_clipped_as_in_diffusers():
    autoencoder = filled(scaling_factor=1.0)
    bias = np.zeros(8, "float32")
    bias[4:] = [1000, -1000, 0, 0]
    autoencoder.quant_conv.set_weights([autoencoder.quant_conv.get_weights()[0], bias])
    _, deviation = autoencoder.encode(pictures(SMALL, 8, 8))
    np.testing.assert_allclose(deviation[..., 0], np.exp(10), rtol=1e-5)
    np.testing.assert_allclose(deviation[..., 1], np.exp(-15), rtol=1e-5)


def test_a_call_decodes_the_mean():
    autoencoder, images = filled(), pictures(SMALL, 8, 8)
    np.testing.assert_allclose(
        autoencoder(images), autoencoder.decode(autoencoder.encode(images)[0]), atol=1e-6
    )


def test_is_made_again_from_its_config():
    autoencoder, images = filled(layers_per_block=2), pictures(SMALL, 8, 8)
    twin = AutoencoderKL.from_config(autoencoder.get_config())
    twin.build()
    twin.set_weights(autoencoder.get_weights())
    assert twin.config == autoencoder.config
    np.testing.assert_allclose(twin(images), autoencoder(images), atol=1e-6)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_returns_float32_near_the_exact_result(precision):
    autoencoder, images = filled(), pictures(SMALL, 8, 8)
    mixed = AutoencoderKL(SMALL, dtype=precision)
    mixed.build()
    mixed.set_weights(autoencoder.get_weights())
    for ours, exact in zip(
        (*mixed.encode(images), mixed(images)),
        (*autoencoder.encode(images), autoencoder(images)),
        strict=True,
    ):
        assert keras.backend.standardize_dtype(ours.dtype) == "float32"
        assert 0 < np.abs(ours - np.asarray(exact)).max() / np.std(exact) < 0.2


def test_groups_that_do_not_divide_the_widths_are_refused():
    with pytest.raises(InputError, match="8 channels do not divide into 3 groups"):
        AutoencoderKL(dataclasses.replace(SMALL, norm_num_groups=3)).build()


def test_stable_diffusion_1_has_83653863_parameters(shapes_alone):
    autoencoder = AutoencoderKL()
    autoencoder.build()
    assert autoencoder.encoder.count_params() == 34_163_592
    assert autoencoder.decoder.count_params() == 49_490_179
    assert autoencoder.quant_conv.count_params() + autoencoder.post_quant_conv.count_params() == 92
    assert autoencoder.count_params() == 83_653_863

"""Numbers of configurations: real ones pass, and those that would draw NaN or take gigabytes are refused."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import typing

import numpy as np
import pytest

import sd_tf
from sd_tf import families
from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.checkpoints import config_files as files
from sd_tf.checkpoints.bounds import BOUNDS, check_schedule
from sd_tf.checkpoints.schedulers import SCHEDULE
from sd_tf.checkpoints.sources import bundled_names, resolve
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.gan.config import DiscriminatorConfig, GeneratorConfig
from sd_tf.gan.config_files import GENERATOR
from sd_tf.latent import config_files as latent_files
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.latent.loading import load_lazily
from sd_tf.latent.memory import check_memory
from sd_tf.latent.presets import PRESETS
from sd_tf.text.config import BertConfig, CLIPTextConfig, CLIPVisionConfig, T5Config

CROSS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
}
CONFIGURATIONS = (
    *(AutoencoderConfig, UNetConfig, PixelUNetConfig),
    *(CLIPTextConfig, CLIPVisionConfig, T5Config, BertConfig, ScheduleConfig),
    *(GeneratorConfig, DiscriminatorConfig),
)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
REAL = {  # what published files say
    "UNet of 1.x": (
        latent_files.UNET,
        {"sample_size": 64, "attention_head_dim": 8, "norm_eps": 1e-5, **CROSS},
    ),
    "UNet of 2.x": (
        latent_files.UNET,
        {"sample_size": 96, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, **CROSS},
    ),
    "UNet of 2.x for 512": (latent_files.UNET, {"sample_size": 64, "freq_shift": 0, **CROSS}),
    "UNet for tall pictures": (latent_files.UNET, {"sample_size": [128, 96], **CROSS}),
    "autoencoder of 1.x": (latent_files.AUTOENCODER, {"sample_size": 512, "scaling_factor": 0.18215}),
    "autoencoder of 2.x": (latent_files.AUTOENCODER, {"sample_size": 768}),
    "autoencoder of MSE": (latent_files.AUTOENCODER, {"sample_size": 256, "scaling_factor": 0.13025}),
    "ViT-L/14": (files.CLIP_TEXT, {"hidden_size": 768, "num_attention_heads": 12, "pad_token_id": 1}),
    "ViT-H/14": (
        files.CLIP_TEXT,
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512},
    ),
    "a tower of long prompts": (files.CLIP_TEXT, {"max_position_embeddings": 248}),
    "ViT-B/32": (files.CLIP_VISION, {}),
    "ViT-L/14 at 336": (files.CLIP_VISION, {"image_size": 336, "patch_size": 14}),
    "ViT-bigG/14": (
        files.CLIP_VISION,
        {"hidden_size": 1664, "patch_size": 14, "projection_dim": 1280},
    ),
    "T5-small": (files.T5, {"d_model": 512, "relative_attention_num_buckets": 32}),
    "T5-XXL": (
        files.T5,
        {
            "d_model": 4096,
            "d_ff": 10240,
            "num_heads": 64,
            "num_layers": 24,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "MiniLM": (
        files.BERT,
        {"hidden_size": 384, "num_hidden_layers": 6, "max_position_embeddings": 512, "layer_norm_eps": 1e-12},
    ),
    "schedule of 1.x": (SCHEDULE, {**BETAS, "steps_offset": 1}),
    "schedule of 2.x": (SCHEDULE, {**BETAS, "prediction_type": "v_prediction"}),
    "schedule of DDPM": (
        SCHEDULE,
        {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    ),
    "schedule of cosines": (SCHEDULE, {"beta_schedule": "squaredcos_cap_v2"}),
    "without signal at the end": (
        SCHEDULE,
        {**BETAS, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ),
}


@pytest.mark.parametrize(("kind", "values"), REAL.values(), ids=REAL)
def test_what_real_files_say_is_read(kind, values):
    config = kind.from_json(values, "config.json")
    for name, value in values.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
    if isinstance(config, ScheduleConfig):
        check_schedule(NoiseSchedule(config))


@pytest.mark.parametrize("name", [name for name in bundled_names() if "mini" not in name])
def test_what_is_bundled_is_read(name):
    if (resolve(name) / "model_index.json").exists():
        assert families.load_lazily(name).image_size


@pytest.mark.parametrize("name", PRESETS)
def test_what_presets_train_can_be_read_back(name):
    preset = PRESETS[name]
    for kind, config in [
        (latent_files.UNET, preset.unet),
        (latent_files.AUTOENCODER, preset.autoencoder),
        (files.CLIP_TEXT, preset.text),
        (files.CLIP_VISION, preset.vision),
        (SCHEDULE, preset.schedule),
    ]:
        assert kind.from_json(json.loads(json.dumps(kind.to_json(config))), "config.json") == config
    check_memory(preset.autoencoder, preset.unet, 0, "a run")
    larger = dataclasses.replace(preset.unet, sample_size=512 // preset.autoencoder.downsampling)
    check_memory(preset.autoencoder, larger, 0, "a run of 512 x 512")


@pytest.mark.parametrize(
    ("unet", "size"),
    [
        ({}, 1_700_000_000),
        ({"sample_size": 96}, 1_700_000_000),
        ({"sample_size": 96, "attention_head_dim": (5, 10, 20, 20)}, 1_700_000_000),
        ({"sample_size": 128, "attention_head_dim": (5, 10, 20, 20)}, 1_700_000_000),
    ],
)
def test_sizes_of_stable_diffusion_are_drawn_by_it(unet, size):
    check_memory(AutoencoderConfig(), UNetConfig(**unet), size, "model")


def test_every_number_of_every_configuration_has_bounds_and_a_reason():
    numbers = set()
    for kind in CONFIGURATIONS:
        for name, of in typing.get_type_hints(kind).items():
            if "int" in str(of) or "float" in str(of):
                numbers.add(name)
    assert numbers == BOUNDS.keys()
    assert all(bound.least <= bound.most and bound.why for bound in BOUNDS.values())


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds") / "model"
    tiny_model.save(folder)
    return folder


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (UNET, {"sample_size": 8192}, "sample_size is 8192, expected 1 to 4096"),
        (UNET, {"sample_size": 2**31}, "sample_size is 2147483648, expected 1 to 4096"),
        (UNET, {"sample_size": 4096}, "sample_size is 4096, which is 8192 pixels along a side: 4096"),
        (UNET, {"sample_size": 512}, "at which a layer takes .* GB for one picture: 4 GB is the most"),
        (VAE, {"sample_size": 8192}, "sample_size is 8192, expected 1 to 4096"),
        (VAE, {"scaling_factor": 0}, "scaling_factor is 0, expected 0.0001 to 10000: latents are divided"),
        (VAE, {"scaling_factor": 1e-30}, "scaling_factor is 1e-30, expected 0.0001 to 10000"),
        (VAE, {"scaling_factor": 1e30}, r"scaling_factor is 1e\+30, expected 0.0001 to 10000"),
        (UNET, {"freq_shift": 8}, "freq_shift is 8, expected 0 to 1: the embedding's frequencies"),
        (UNET, {"norm_eps": 0}, "norm_eps is 0, expected 1e-12 to 1: with 0, what does not vary"),
        (TEXT, {"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0, expected 1e-12 to 1"),
        (TEXT, {"max_position_embeddings": 65536}, "max_position_embeddings is 65536, expected 1 to 1024"),
        (UNET, {"attention_head_dim": 2**20}, "attention_head_dim is 1048576, expected 1 to 1024"),
        (SCHEDULER, {"beta_start": 0}, "beta_start is 0, expected 1e-08 to 0.9999: a share of a variance"),
        (SCHEDULER, {"beta_end": 1}, "beta_end is 1, expected 1e-08 to 0.9999"),
        (
            SCHEDULER,
            {"beta_start": 0.9, "beta_end": 0.9},
            "no signal is left that later timesteps could lose",
        ),
        (
            SCHEDULER,
            {"num_train_timesteps": 10**9},
            "num_train_timesteps is 1000000000, expected 1 to 100000",
        ),
        (SCHEDULER, {"steps_offset": 10**9}, "steps_offset is 1000000000, expected 0 to 100000"),
    ],
)
def test_numbers_out_of_bounds_are_refused_when_the_model_is_read(saved, tmp_path, file, changes, message):
    for name in ("unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        (tmp_path / name).mkdir()
        for each in (saved / name).iterdir():
            (tmp_path / name / each.name).write_bytes(each.read_bytes())
    (tmp_path / "model_index.json").write_bytes((saved / "model_index.json").read_bytes())
    sd_tf.load(tmp_path)
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(values | changes))
    for read in (sd_tf.load, load_lazily):
        with pytest.raises(InputError, match=message) as refused:
            read(tmp_path)
        assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (
            2**31,
            "low_res_size is 2147483648, expected 1 to 4096: the size of the pictures that a model enlarges",
        ),
        (0, "low_res_size is 0, expected 1 to 4096"),
        (-8, "low_res_size is -8, expected 1 to 4096"),
        (12, "config.json: low_res_size is 12: a model that draws 32 pixels enlarges 4 or 8 or 16"),
        (32, "config.json: low_res_size is 32: a model that draws 32 pixels enlarges"),
        ("8", "low_res_size is '8', expected something like None"),
    ],
)
def test_a_generator_enlarges_no_pictures_of_sizes_that_it_has_no_level_for(side, message):
    values = GENERATOR.to_json(GeneratorConfig(low_res_size=8, cross_attention=(False,) * 4))
    assert GENERATOR.from_json(values, "config.json").low_res_size == 8
    with pytest.raises(InputError, match=message):
        GENERATOR.from_json(values | {"low_res_size": side}, "config.json")


def test_half_of_the_width_is_no_shift_of_frequencies():
    with pytest.raises(InputError, match="freq_shift is 1, as many as the 1 frequencies"):
        latent_files.UNET.from_json({"freq_shift": 1, "block_out_channels": [2, 4, 4, 4]}, "config.json")


def test_patches_are_neither_none_nor_millions():
    for size, patch in ((224, 225), (4096, 1)):
        with pytest.raises(InputError, match="patches along a side, 1 to 64 are expected"):
            files.CLIP_VISION.from_json({"image_size": size, "patch_size": patch}, "config.json")


def test_a_schedule_that_ends_without_signal_says_nothing_by_epsilon():
    config = ScheduleConfig(beta_start=0.02, beta_end=0.03, num_train_timesteps=1000)
    assert NoiseSchedule(config).alphas_cumprod[-1] < 1e-10
    with pytest.raises(InputError, match="no signal is left"):
        check_schedule(NoiseSchedule(config))
    cosine = ScheduleConfig(beta_schedule="squaredcos_cap_v2")
    assert (np.diff(NoiseSchedule(cosine).sigmas) > 0).all()
    check_schedule(NoiseSchedule(cosine))


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_schedules_of_few_timesteps_have_levels_or_say_why_not(total):
    for offset, spacing in itertools.product(range(total), ("leading", "trailing", "linspace")):
        schedule = NoiseSchedule(
            ScheduleConfig(num_train_timesteps=total, steps_offset=offset, timestep_spacing=spacing)
        )
        for sampler, steps, karras in itertools.product(SAMPLERS.values(), (1, 2, 3, 5), (False, True)):
            with contextlib.suppress(InputError):
                levels = sampler.levels(schedule, steps, karras)
                assert all(np.isfinite(level).all() for level in levels)


@pytest.mark.parametrize("text_config", [[1], "a", None, 3])
def test_a_part_of_a_configuration_that_is_no_object_is_refused(saved, tmp_path, text_config):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "text_encoder" / "config.json").write_text(
        json.dumps({"text_config": text_config, "vision_config": {}})
    )
    for read in (sd_tf.load, load_lazily):
        with pytest.raises(InputError, match="config.json"):
            read(tmp_path / "model")

"""New GANs: a preset, a frozen text encoder, and two networks with random weights."""

import dataclasses

from sd_tf.checkpoints.sources import resolve
from sd_tf.checkpoints.text_encoders import open_for_preset
from sd_tf.data.open import open_data
from sd_tf.errors import InputError
from sd_tf.gan.model import GigaGAN
from sd_tf.gan.options import GanOptions
from sd_tf.gan.presets import WIDTHS, Preset, preset_named, preset_of
from sd_tf.generation.checks import check_whole
from sd_tf.text.known_words import read_words
from sd_tf.training.options import check_dtype
from sd_tf.training.provenance import Beginning, Provenance
from sd_tf.unread import random_network


def new_model(options: GanOptions, data, dtype=None, seed=0) -> GigaGAN:
    """A GAN with random weights; its networks are made when they are first used.

    Args:
        options: preset, text encoder and parts.
        data: a data set of `sd_tf.open_data`, whose name selects the preset if none is given.
        dtype: a Keras precision policy; None for Keras' global one.
        seed: seed of the weights.

    Raises:
        InputError: there is no such preset or text encoder, or the options do not fit together.
    """
    from sd_tf.gan.discriminator import Discriminator  # only here: they import Keras
    from sd_tf.gan.generator import Generator

    check_dtype(dtype)
    check_whole("seed", seed, 0, 2**32 - 1)
    name = options.preset or preset_of(open_data(data).name)
    preset = changed(preset_named(name), options)
    text_encoder, words = None, None
    if not options.unconditional:
        folder = preset.text_encoder
        text_encoder = open_for_preset(folder, options.text_length, preset.text_length)
        words = read_words(resolve(folder, kind="text encoder", parts=("text_encoder",)))
    width = None if text_encoder is None else text_encoder.width
    networks = {
        kind.__name__.lower(): random_network(kind, dataclasses.replace(config, text_dim=width), dtype, seed)
        for kind, config in ((Generator, preset.generator), (Discriminator, preset.discriminator))
    }
    model = GigaGAN(networks["generator"], networks["discriminator"], text_encoder, preset.recommended)
    model.dtype, model.known_words = dtype, words
    options = dataclasses.replace(options, preset=name)
    model.provenance = Provenance(Beginning(preset, options, networks), is_trained=False)
    return model


def changed(preset: Preset, options: GanOptions) -> Preset:
    """The preset with what the options change of it."""
    draws, judges = preset.generator, preset.discriminator
    if options.num_kernels is not None:
        draws = dataclasses.replace(draws, num_kernels=options.num_kernels)
    if options.unconditional:
        draws = dataclasses.replace(draws, cross_attention=(False,) * len(draws.block_out_channels))
    if options.reconstruction_weight == 0:
        draws = dataclasses.replace(draws, encoder_channels=())
    if options.enlarge_from is not None:
        if options.enlarge_from not in draws.low_res_sizes:
            sizes = " or ".join(map(str, draws.low_res_sizes))
            raise InputError(
                f"{options.named_value('enlarge_from')}: a model that draws {draws.sample_size} pixels "
                f"enlarges {sizes}, give one of these or another {options.said('preset')}"
            )
        # What it draws is laid out by the small picture; z is for what that leaves open.
        draws = dataclasses.replace(
            draws, low_res_size=options.enlarge_from, starts_from_style=False, encoder_channels=()
        )
    if options.multi_scale is not None:
        judges = dataclasses.replace(
            judges,
            multi_scale_input=options.multi_scale in ("both", "input"),
            multi_scale_output=options.multi_scale in ("both", "output"),
        )
    if options.judged_by is not None:
        judges = dataclasses.replace(
            judges,
            judges_pixels=options.judged_by != "vision",
            vision_channels=() if options.judged_by == "pixels" else WIDTHS,
        )
    # Without a text there is nothing to compare, and a model that enlarges is not told some of the captions.
    leaves_clip_out = options.unconditional or (options.enlarge_from and options.clip_weight is None)
    given = {
        "kind": options.adversarial,
        "gamma": options.gamma,
        "matching": 0.0 if options.unconditional else options.matching_weight,
        "reconstruction": options.reconstruction_weight,
        "perceptual": options.perceptual_weight,
        "kl": options.kl_weight,
        "clip": 0.0 if leaves_clip_out else options.clip_weight,
        "clip_features": options.clip_features,
        "vision": options.vision_weight,
        "vision_gamma": options.vision_gamma,
        "low_res": options.low_res_weight,
    }
    losses = preset.losses._replace(**{name: value for name, value in given.items() if value is not None})
    given = {"translation": options.translation, "cutout": options.cutout}
    augmentation = preset.augmentation._replace(
        **{name: value for name, value in given.items() if value is not None}
    )
    return dataclasses.replace(
        preset,
        generator=draws,
        discriminator=judges,
        losses=losses,
        augmentation=augmentation,
        text_encoder=options.text_encoder or preset.text_encoder,
        vision=options.vision or preset.vision,
        low_res_noise=preset.low_res_noise if options.low_res_noise is None else options.low_res_noise,
    )

"""New cascades: a preset, a frozen text encoder, and UNets with random weights."""

import dataclasses

from sd_tf.cascade.model import CascadedDiffusion
from sd_tf.cascade.options import MODEL, CascadeOptions
from sd_tf.cascade.presets import preset_named, preset_of
from sd_tf.cascade.stage import PixelStage, stage_name
from sd_tf.cascade.unet import PixelUNet
from sd_tf.checkpoints.sources import resolve
from sd_tf.checkpoints.text_encoders import open_for_preset
from sd_tf.data.open import open_data
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.generation.checks import check_whole
from sd_tf.options import check_of_new_model
from sd_tf.text.known_words import read_words
from sd_tf.training.options import check_dtype
from sd_tf.training.provenance import Beginning, Provenance
from sd_tf.unread import random_network


def new_model(options: CascadeOptions, data, dtype=None, seed=0) -> CascadedDiffusion:
    """A cascade with random weights; its networks are made when they are first used.

    Args:
        options: preset, text encoder and noise schedule.
        data: a data set of `sd_tf.open_data`, whose name selects the preset if none is given.
        dtype: a Keras precision policy; None for Keras' global one.
        seed: seed of the weights.

    Raises:
        InputError: there is no such preset or text encoder, or the options do not fit together.
    """
    check_dtype(dtype)
    check_whole("seed", seed, 0, 2**32 - 1)
    name = options.preset or preset_of(open_data(data).name)
    preset = preset_named(name)
    folder = options.text_encoder or preset.text_encoder
    text_encoder = open_for_preset(folder, options.text_length, preset.text_length)
    stages, networks = [], {}
    given = {
        field: getattr(options, field)
        for field in ("prediction_type", "beta_schedule")
        if getattr(options, field) is not None
    }
    for number, own in enumerate(preset.stages):
        config = dataclasses.replace(own.unet, encoder_hid_dim=text_encoder.width)
        network = networks[stage_name(number)] = random_network(PixelUNet, config, dtype, seed)
        schedule = NoiseSchedule(dataclasses.replace(own.schedule, **given))
        noising = NoiseSchedule(own.noising) if own.noising is not None else None
        stages.append(PixelStage(network, schedule, noising, own.recommended, own.augment_level))
    model = CascadedDiffusion(stages, text_encoder)
    options = dataclasses.replace(options, preset=name)
    model.dtype = dtype
    model.provenance = Provenance(Beginning(preset, options, networks), is_trained=False)
    model.known_words = read_words(resolve(folder, kind="text encoder", parts=("text_encoder",)))
    return model


def options_of_new_model(preset, options) -> CascadeOptions:
    """What `CascadedDiffusion.from_preset` was given.

    Raises:
        InputError: there is no such option, or it is of training.
    """
    check_of_new_model(CascadeOptions, MODEL, options)
    return CascadeOptions(preset=preset, **options)


def copied(model: CascadedDiffusion) -> CascadedDiffusion:
    """A model of the same networks, which compiles them by itself."""
    stages = [
        PixelStage(stage.unet, stage.schedule, stage.noising, stage.recommended, stage.augment_level)
        for stage in model.stages
    ]
    return CascadedDiffusion(stages, model.text_encoder)

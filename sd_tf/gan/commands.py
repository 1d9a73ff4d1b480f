"""What `python -m sd_tf.train` needs of this family."""

from sd_tf.checkpoints.sources import resolve
from sd_tf.gan import loading
from sd_tf.gan.options import GanOptions
from sd_tf.gan.presets import preset_named, preset_of

Options = GanOptions


def check(options: GanOptions):
    """Raises `InputError` for options of no model that can be trained; imports neither Keras nor TensorFlow.

    Args:
        options: the parsed `GanOptions`.
    """
    if options.preset is not None:
        preset_named(options.preset)
    if options.init_from is not None:
        options.check_of_a_trained_model()
        loading.check(options.init_from)
    elif options.text_encoder is not None:
        resolve(options.text_encoder, kind="text encoder", parts=("text_encoder",))


def model_for_training(options: GanOptions, data, dtype: str, seed: int):
    """A new model, or the one that `--init-from` names; networks are made or read when first used.

    Args:
        options: the parsed `GanOptions`.
        data: a `Data`.
        dtype: a Keras precision policy.
        seed: seed of a new model's weights.

    Raises:
        InputError: options contradict each other or the model.
    """
    if options.init_from is None:
        from sd_tf.gan.new_model import new_model

        return new_model(options, data, dtype, seed)
    options.check_of_a_trained_model()
    return loading.load_lazily(options.init_from, dtype)


def recipe(model, options: GanOptions, folder):
    """The `Recipe` of a model from `model_for_training`, for a run in that folder."""
    from sd_tf.gan.recipe import recipe_of

    return recipe_of(model, options, folder)


def stage_configs(dataset: str, options: GanOptions) -> list:
    """The preset's `StageConfig`s of both players; arguments as of `defaults`."""
    preset = preset_named(options.preset or preset_of(dataset))
    return [preset.generator_training, preset.discriminator_training]


def defaults(dataset: str, options: GanOptions) -> dict:
    """Name of an option -> its default for `--help`, as text.

    Args:
        dataset: name of the data set.
        options: the options that are given, which select the preset.
    """
    name = options.preset or preset_of(dataset)
    preset = preset_named(name)
    losses, judges = preset.losses, preset.discriminator
    scales = {
        (True, True): "both",
        (True, False): "input",
        (False, True): "output",
        (False, False): "none",
    }
    return {
        "preset": name,
        "max_minutes": f"{preset.max_minutes:g}",
        **{
            field: f"{value:g}" if isinstance(value, float) else str(value)
            for field, value in vars(preset.generator_training).items()
            if field != "share"
        },
        "text_encoder": preset.text_encoder,
        "text_length": preset.text_length,
        "num_kernels": str(preset.generator.num_kernels),
        "multi_scale": scales[judges.multi_scale_input, judges.multi_scale_output],
        "judged_by": {(True, True): "both", (True, False): "pixels", (False, True): "vision"}[
            judges.judges_pixels, bool(judges.vision_channels)
        ],
        "vision": preset.vision,
        "vision_weight": f"{losses.vision:g}",
        "vision_gamma": f"{losses.vision_gamma:g}",
        "adversarial": losses.kind,
        "gamma": f"{losses.gamma:g}",
        "matching_weight": f"{losses.matching:g}",
        "reconstruction_weight": f"{losses.reconstruction:g}",
        "perceptual_weight": f"{losses.perceptual:g}",
        "kl_weight": f"{losses.kl:g}",
        "clip_weight": f"{losses.clip:g}",
        "clip_features": losses.clip_features,
        "low_res_weight": f"{losses.low_res:g}",
        "low_res_noise": f"{preset.low_res_noise:g}",
        "translation": f"{preset.augmentation.translation:g}",
        "cutout": f"{preset.augmentation.cutout:g}",
    }

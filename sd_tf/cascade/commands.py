"""What `python -m sd_tf.train` needs of this family."""

import dataclasses

from sd_tf.cascade import loading
from sd_tf.cascade.options import CascadeOptions
from sd_tf.cascade.presets import preset_named, preset_of
from sd_tf.cascade.stage import stage_name
from sd_tf.checkpoints.sources import resolve

Options = CascadeOptions


def check(options: CascadeOptions):
    """Raises `InputError` for options of no model that can be trained; imports neither Keras nor TensorFlow.

    Args:
        options: the parsed `CascadeOptions`.
    """
    if options.preset is not None:
        preset_named(options.preset)
    if options.init_from is not None:
        options.check_of_a_trained_model()
        model = loading.load_lazily(options.init_from, **options.loading)
        options.check_of_a_model(model.stage_names, False, model.text_encoder)
        return
    options.check_of_a_new_model()
    if options.text_encoder is not None:
        resolve(options.text_encoder, kind="text encoder", parts=("text_encoder",))


def model_for_training(options: CascadeOptions, data, dtype: str, seed: int):
    """A new model, or the one that `--init-from` names; networks are made or read when first used.

    Args:
        options: the parsed `CascadeOptions`.
        data: a `Data`.
        dtype: a Keras precision policy.
        seed: seed of a new model's weights.

    Raises:
        InputError: options contradict each other or the model.
    """
    if options.init_from is None:
        from sd_tf.cascade.new_model import new_model

        return new_model(options, data, dtype, seed)
    options.check_of_a_trained_model()
    return loading.load_lazily(options.init_from, dtype, **options.loading)


def recipe(model, options: CascadeOptions, folder):
    """The `Recipe` of a model from `model_for_training`, for a run in that folder."""
    from sd_tf.cascade.recipe import recipe_of

    return recipe_of(model, options, folder)


def _preset(dataset, options):
    """Name and preset that the options select."""
    name = options.preset or ("fine-tuning" if options.init_from else preset_of(dataset))
    return name, preset_named(name)


def stage_configs(dataset: str, options: CascadeOptions) -> list:
    """The preset's `StageConfig` of each stage that `options` name; arguments as of `defaults`."""
    configs = [stage.training for stage in _preset(dataset, options)[1].stages]
    names = (stage_name(0),) if options.finetune == "textual_inversion" else options.stages
    named = [config for i, config in enumerate(configs) if names is None or stage_name(i) in names]
    return named or configs[-1:]  # which is that of stages behind the last, too


def defaults(dataset: str, options: CascadeOptions) -> dict:
    """Name of an option -> its default for `--help`, as text.

    Args:
        dataset: name of the data set.
        options: the options that are given, which select the preset.
    """
    name, preset = _preset(dataset, options)
    found = {"preset": name, "max_minutes": f"{preset.max_minutes:g}"}
    for field in dataclasses.fields(preset.stage(0).training):
        if field.name != "share":
            value = getattr(preset.stage(0).training, field.name)
            found[field.name] = f"{value:g}" if isinstance(value, float) else str(value)
    found |= {
        "caption_dropout": f"{preset.caption_dropout:g}",
        "timestep_sampling": preset.timestep_sampling,
        "logit_mean": f"{preset.logit_mean:g}",
        "min_snr_gamma": "none" if preset.min_snr_gamma is None else f"{preset.min_snr_gamma:g}",
        "stages": "all that are not finished",
    }
    if options.init_from:
        rate = preset.learning_rates.get(options.fine_tuning, preset.stage(0).training.learning_rate)
        return found | {"learning_rate": f"{rate:g}"}
    schedule = preset.stages[0].schedule
    return found | {
        "text_encoder": preset.text_encoder,
        "text_length": preset.text_length,
        "prediction_type": schedule.prediction_type,
        "beta_schedule": schedule.beta_schedule,
    }

"""What `python -m sd_tf.train` needs of this family."""

import dataclasses

from sd_tf.latent import loading
from sd_tf.latent.options import LatentOptions
from sd_tf.latent.presets import preset_named, preset_of
from sd_tf.latent.text_encoders import given_text_encoder
from sd_tf.text.subword_tokenizer import BERT_LENGTH, T5_LENGTH

Options = LatentOptions


def check(options: LatentOptions):
    """Raises `InputError` for options of no model that can be trained; imports neither Keras nor TensorFlow.

    Args:
        options: the parsed `LatentOptions`.
    """
    if options.init_from is not None:
        options.check_of_a_trained_model()
        loading.check(options.init_from, **options.loading)
        return
    options.check_of_a_new_model()
    if options.text_encoder not in (None, "none"):
        given_text_encoder(options.text_encoder, options.text_length)


def model_for_training(options: LatentOptions, data, dtype: str, seed: int):
    """A new model, or the one that `--init-from` names; networks are made or read when first used.

    Args:
        options: the parsed `LatentOptions`.
        data: a `Data`.
        dtype: a Keras precision policy.
        seed: seed of a new model's weights.

    Raises:
        InputError: options contradict each other or the model.
    """
    if options.init_from is None:
        options.check_of_a_new_model()
        from sd_tf.latent.new_model import new_model

        return new_model(options, data, dtype, seed)
    options.check_of_a_trained_model()
    return loading.load_lazily(options.init_from, dtype, **options.loading)


def recipe(model, options: LatentOptions, folder):
    """The `Recipe` of a model from `model_for_training`, for a run in that folder."""
    from sd_tf.latent.recipe import recipe_of

    return recipe_of(model, options, folder)


def _preset(dataset, options):
    """Name and preset that the options select."""
    name = options.preset or ("fine-tuning" if options.init_from else preset_of(dataset))
    return name, preset_named(name)


def _stages(preset, options):
    """Name -> `StageConfig` of each stage of a run."""
    if options.init_from:
        return {"diffusion": preset.diffusion_stage}
    stages = {"autoencoder": preset.autoencoder_stage, "diffusion": preset.diffusion_stage}
    if (options.text_encoder or preset.text_encoder or "none") == "none":
        stages = {"clip": preset.clip_stage} | stages
    return stages


def stage_configs(dataset: str, options: LatentOptions) -> list:
    """The preset's `StageConfig` of each stage of a run; arguments as of `defaults`."""
    found = _stages(_preset(dataset, options)[1], options)
    return [found[options.stage]] if options.stage in found else list(found.values())


def defaults(dataset: str, options: LatentOptions) -> dict:
    """Name of an option -> its default for `--help`, as text.

    Args:
        dataset: name of the data set.
        options: the options that are given, which select the preset.
    """
    name, preset = _preset(dataset, options)
    stages = _stages(preset, options)
    found = {"preset": name, "max_minutes": f"{preset.max_minutes:g}"}
    for field in dataclasses.fields(preset.diffusion_stage):
        if field.name != "share":
            found[field.name] = _for_all_stages(
                {n: getattr(stage, field.name) for n, stage in stages.items()}
            )
    if options.init_from:
        rate = preset.learning_rates.get(options.finetune or "unet", preset.diffusion_stage.learning_rate)
        found["learning_rate"] = f"{rate:g}"
        return found | {"prediction_type": "the model's", "image_size": "the model's"}
    trained = preset.text.max_position_embeddings
    return found | {
        "text_length": f"{trained} of a CLIP that is trained, {T5_LENGTH} of a T5, {BERT_LENGTH} of a BERT",
        "image_size": preset.autoencoder.sample_size,
        "text_encoder": preset.text_encoder or "none",
        "prediction_type": preset.schedule.prediction_type,
        "beta_schedule": preset.schedule.beta_schedule,
        "perceptual_weight": f"{preset.perceptual_weight:g}",
        "timestep_sampling": preset.timestep_sampling,
        "logit_mean": f"{preset.logit_mean:g}",
    }


def _for_all_stages(values):
    """The value that all stages share, or each stage's name and value."""
    plain = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in values.items()}
    if len(set(plain.values())) == 1:
        return next(iter(plain.values()))
    return ", ".join(f"{name} {value}" for name, value in plain.items())

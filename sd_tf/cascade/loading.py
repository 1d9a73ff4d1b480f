"""`sd_tf.load` of cascades: those of `CascadedDiffusion.save`, and the stages of DeepFloyd IF."""

from pathlib import Path

from sd_tf.cascade.folder import (
    BASE_PIPELINE,
    MODEL_INDEX,
    PIPELINE,
    SUPER_RESOLUTION_PIPELINE,
    load_unet,
    unread_unet,
)
from sd_tf.cascade.memory import check_memory
from sd_tf.cascade.model import CascadedDiffusion
from sd_tf.cascade.stage import MOST_STAGES, PixelStage, stage_name
from sd_tf.checkpoints.bounds import check_schedule
from sd_tf.checkpoints.schedulers import SCHEDULE, check_scheduler, recommended, warn_of_differences
from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.checkpoints.tokenizers import text_length
from sd_tf.checkpoints.weight_files import STEMS, weight_files
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.errors import InputError, argument, naming, shown
from sd_tf.files import is_regular, read_json
from sd_tf.generation.conversions import Origin
from sd_tf.generation.settings import Settings, read_settings
from sd_tf.quiet import import_tensorflow
from sd_tf.text.known_words import read_words

USUAL_STEPS, USUAL_GUIDANCE = {False: 100, True: 50}, {False: 7.0, True: 4.0}  # of diffusers' IF pipelines
USUAL_AUGMENT_LEVEL = 250  # likewise
UNETS = ("unet", *(f"{stage_name(number)}/unet" for number in range(MOST_STAGES)))  # of a stage, of a cascade
OF_UPSAMPLERS = ("generator", "discriminator")
PARTS = (  # whose weights are downloaded
    *(*UNETS, *(name.replace("unet", "text_encoder") for name in UNETS)),
    *(f"{stage_name(number)}/{part}" for number in range(1, MOST_STAGES) for part in OF_UPSAMPLERS),
)


def load(
    name_or_folder,
    dtype=None,
    revision=None,
    variant=None,
    tokenizer=None,
    prediction_type=None,
    followed_by=(),
    open_enlarger=None,
) -> CascadedDiffusion:
    """Reads a cascade: one that was trained here, or stages of DeepFloyd IF.

    Networks are read when they are first used.

    Args:
        name_or_folder: a bundled name, a folder of `CascadedDiffusion.save` or of one of diffusers' IF
            pipelines, or a hub id such as "DeepFloyd/IF-I-M-v1.0".
        dtype: a Keras precision policy for the UNets; None for Keras' global one.
        revision: branch, tag or commit of a hub id.
        variant: variant of the files, such as "fp16".
        tokenizer: a folder or hub id of a tokenizer to use instead of the model's.
        prediction_type: not of cascades, whose files always say it.
        followed_by: models whose stages enlarge what those before have drawn, such as
            ["DeepFloyd/IF-II-M-v1.0"]. The first model's text encoder is read once, and no other downloaded.
            The last one may be a model of another family that enlarges in one pass.
        open_enlarger: opens such a model, see `sd_tf.families.open_enlarger`; None refuses it.

    Raises:
        InputError: there is no such model, it is of another kind, or a file is missing or damaged.
    """
    model = load_lazily(
        name_or_folder, dtype, revision, variant, tokenizer, prediction_type, followed_by, open_enlarger
    )
    import_tensorflow()
    return model


def load_lazily(
    name_or_folder,
    dtype=None,
    revision=None,
    variant=None,
    tokenizer=None,
    prediction_type=None,
    followed_by=(),
    open_enlarger=None,
) -> CascadedDiffusion:
    """As `load`; TensorFlow is not imported yet."""
    if prediction_type is not None:
        raise InputError(
            f"{argument('prediction_type')} is {shown(prediction_type)}, but a cascade's files say what it "
            "predicts: leave it out"
        )
    source, folders, levels = _found(name_or_folder, revision, variant, PARTS)
    reading = _with_text_encoder(folders, source)
    text = open_text_encoder(reading, text_length(folders[0]), None, None, variant, tokenizer)
    upsampler = _upsampler(folders[-1], source, dtype, variant, open_enlarger) if len(folders) > 1 else None
    networks = [reading / "text_encoder", *(folder / "unet" for folder in folders)]
    if upsampler is not None:
        folder = folders.pop()
        networks[-1:] = sorted(file.parent for file in folder.glob("*/config.json"))
    stages = [_stage(folder, dtype, variant, levels.get(folder.name)) for folder in folders]
    for name in _checked_names(followed_by):
        if upsampler is not None:
            raise InputError(
                f"{argument('followed_by')} has {name} behind a model that enlarges in one pass: such a one "
                "is the last"
            )
        if open_enlarger is not None:
            upsampler = open_enlarger(name, dtype=dtype, variant=variant)
            if upsampler is not None:
                continue
        _, folders, levels = _found(name, None, variant, UNETS)
        later = [_stage(folder, dtype, variant, levels.get(folder.name)) for folder in folders]
        if not later[0].is_super_resolution:
            raise InputError(f"{name} draws from text: {argument('followed_by')} is for models that enlarge")
        stages += later
    if len(stages) > MOST_STAGES:
        raise InputError(
            f"{argument('followed_by')} makes {len(stages)} stages, of which {MOST_STAGES} are the most"
        )
    with naming(source):
        model = CascadedDiffusion(stages, text, upsampler)
    model.dtype, model.known_words = dtype, read_words(source)
    if not followed_by:
        parts = tuple(network.relative_to(source).as_posix() for network in networks)
        model.origin = Origin(source, parts, variant)
    return model


def _upsampler(folder, source, dtype, variant, open_enlarger):
    """The last stage's model where it enlarges in one pass; None where it is a diffusion model."""
    pipeline = read_json(folder / MODEL_INDEX, root=folder).get("_class_name")
    if pipeline in (BASE_PIPELINE, SUPER_RESOLUTION_PIPELINE):
        return None
    if open_enlarger is None:
        raise InputError(
            f"{folder} is a {shown(pipeline)}, which enlarges what the stages before it draw and is trained "
            f"by itself: name a stage alone, such as {source / stage_name(0)}"
        )
    return open_enlarger(folder, dtype=dtype, variant=variant)


def _checked_names(followed_by):
    if isinstance(followed_by, (str, Path)):
        return [followed_by]
    if not isinstance(followed_by, (list, tuple)) or not all(
        isinstance(each, (str, Path)) for each in followed_by
    ):
        raise InputError(
            f"{argument('followed_by')} is {shown(followed_by)}: give a list of names, folders or hub ids"
        )
    return followed_by


def _found(name_or_folder, revision, variant, parts):
    """The folder of a model, those of its stages, and name of a stage -> augmentation level."""
    source = resolve(name_or_folder, revision, variant, parts=parts)
    if not source.is_dir():
        raise InputError(f"{source} is a file: a cascade is a folder")
    refuse_links_out(source)
    index = read_json(source / MODEL_INDEX, root=source)
    if index.get("_class_name") == PIPELINE:
        return source, *_stages_of(index, source)
    return source, [source], {}


def only_enlarges(
    name_or_folder,
    revision=None,
    variant=None,
    tokenizer=None,
    prediction_type=None,
    followed_by=(),
    open_enlarger=None,
) -> bool:
    """Whether the model is a super-resolution stage alone, which does not draw from text."""
    model = load_lazily(
        name_or_folder, None, revision, variant, tokenizer, prediction_type, followed_by, open_enlarger
    )
    return model.stages[0].is_super_resolution


def settings_folder(folder: Path) -> Path:
    """Where the settings of its first stage are: those are the model's."""
    if read_json(folder / MODEL_INDEX, root=folder).get("_class_name") != PIPELINE:
        return folder
    refuse_links_out(folder)
    return folder / stage_name(0)


def with_snapshot(model: CascadedDiffusion, snapshot: Path, variant=None) -> CascadedDiffusion:
    """The cascade with the first stage's network of a snapshot; see `sd_tf.families.with_snapshot`."""
    first, *later = model.stages
    unet = load_unet(snapshot, variant=variant)
    if unet.config != first.config:
        raise InputError(
            f"{snapshot / 'config.json'} is not that of the run's model: it is no snapshot of this run"
        )
    first = PixelStage(unet, first.schedule, first.noising, first.recommended, first.augment_level)
    found = CascadedDiffusion([first, *later], model.text_encoder, model.upsampler)
    found.dtype, found.known_words = model.dtype, model.known_words
    return found


def check(
    name_or_folder,
    revision=None,
    variant=None,
    tokenizer=None,
    prediction_type=None,
    followed_by=(),
    open_enlarger=None,
):
    """Raises `InputError` where `load` would, for all but the weights; imports no Keras and no TensorFlow."""
    load_lazily(
        name_or_folder, None, revision, variant, tokenizer, prediction_type, followed_by, open_enlarger
    )


def _stages_of(index, source):
    """The folders of the stages, and name -> augmentation level."""
    file, names = source / MODEL_INDEX, index.get("stages")
    most = [stage_name(number) for number in range(MOST_STAGES)]
    if not isinstance(names, list) or not names or names != most[: len(names)]:
        raise InputError(f"{file}: stages is {shown(names)}, expected base, sr2 and so on")
    levels = index.get("augment_levels", {})
    if not isinstance(levels, dict):
        raise InputError(f"{file}: augment_levels is {shown(levels)}, expected an object")
    for name, level in levels.items():
        if type(level) is not int or level < 0:
            raise InputError(f"{file}: the augmentation level of {name} is {shown(level)}, not a timestep")
    for name in names:
        refuse_links_out(source / name)
    return [source / name for name in names], levels


def _with_text_encoder(folders, source):
    for folder in folders:
        if (folder / "text_encoder").is_dir():
            return folder
    raise InputError(
        f"{source} has no text encoder: it is the stage of a cascade, load the whole model, or copy "
        "text_encoder and tokenizer from its first stage"
    )


def _stage(folder, dtype, variant, augment_level):
    index = read_json(folder / MODEL_INDEX, root=folder)
    pipeline = index.get("_class_name")
    if pipeline not in (BASE_PIPELINE, SUPER_RESOLUTION_PIPELINE):
        raise InputError(
            f"{folder / MODEL_INDEX}: a {shown(pipeline)} is no stage of a cascade, only {BASE_PIPELINE} and "
            f"{SUPER_RESOLUTION_PIPELINE} are"
        )
    unet, schedule = unread_unet(folder, dtype, variant), _schedule(folder, "scheduler")
    found = weight_files(folder / "unet", STEMS["unet"], variant)
    files = found.files if found is not None else ()
    check_memory(unet.config, sum(each.stat().st_size for each in files if is_regular(each)), str(folder))
    enlarges = pipeline == SUPER_RESOLUTION_PIPELINE
    noising = _schedule(folder, "image_noising_scheduler") if enlarges else None
    if augment_level is None:
        augment_level = USUAL_AUGMENT_LEVEL if enlarges else 0
    if noising is not None and augment_level >= noising.config.num_train_timesteps:
        raise InputError(
            f"{folder}: the augmentation level is {augment_level}, but its schedule has "
            f"{noising.config.num_train_timesteps} timesteps"
        )
    named = recommended(schedule.config)
    usual = Settings(**named, steps=USUAL_STEPS[enlarges], guidance_scale=USUAL_GUIDANCE[enlarges])
    origin = Origin(folder, ("unet",), variant)
    with naming(folder):
        return PixelStage(unet, schedule, noising, read_settings(folder, usual), augment_level, origin)


def _schedule(folder, name):
    file = folder / name / "scheduler_config.json"
    refuse_links_out(folder / name)
    values = read_json(file, root=folder)
    if "_class_name" in values:
        check_scheduler("_class_name", values["_class_name"], str(file))
    config = SCHEDULE.from_json(values, str(file))
    if name == "scheduler":
        warn_of_differences(config, str(file), known=("thresholding", "variance_type"))
    with naming(file):
        schedule = NoiseSchedule(config)
        check_schedule(schedule)
    return schedule

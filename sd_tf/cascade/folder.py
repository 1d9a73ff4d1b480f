"""Reads and writes cascades as folders: one folder for each stage, in the format of diffusers' IF pipelines.

`model_index.json` of the whole lists the stages. `IFPipeline` opens `base`, and `IFSuperResolutionPipeline`
`sr2` and what follows. The text encoder is in `base` alone. An upsampler is the last of the folders, a whole
model of its own.
"""

from pathlib import Path

from sd_tf.cascade.config_files import PIXEL_UNET
from sd_tf.cascade.stage import stage_name
from sd_tf.checkpoints.config_files import of_diffusers
from sd_tf.checkpoints.networks import SHARD, config_of, filled
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.schedulers import SCHEDULE
from sd_tf.checkpoints.sources import refuse_links_out
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.text_encoders import TOKENIZERS, save_text_encoder_folders
from sd_tf.checkpoints.weight_files import DIFFUSERS
from sd_tf.files import read_json, write_json
from sd_tf.generation.settings import write_settings
from sd_tf.text.known_words import FILE as WORDS_FILE
from sd_tf.text.known_words import write_words
from sd_tf.unread import Unread

MODEL_INDEX = "model_index.json"
OTHER_FILES = (WORDS_FILE,)
PIPELINE = "CascadedDiffusionPipeline"
BASE_PIPELINE, SUPER_RESOLUTION_PIPELINE = "IFPipeline", "IFSuperResolutionPipeline"
SCHEDULER = "DDPMScheduler"  # the one that IF's pipelines expect


def save(model, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a whole cascade, which `sd_tf.load` opens.

    An existing model in the folder stays intact until the new one replaces it in one rename. Otherwise
    `model_index.json` is written last.

    Args:
        model: a `CascadedDiffusion`.
        folder: made if it is missing; other files in it are left alone.
        dtype: dtype of the tensors in the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of one file, a whole number or a string such as "5GB".

    Raises:
        InputError: the folder cannot be written, or the dtype or the size is invalid.
    """
    folder = Path(folder)
    if folder.is_symlink() and folder.is_dir():  # the link stays, and its target is written to
        folder = folder.resolve()
    if (folder / MODEL_INDEX).is_file():
        with replacing(folder, keep_others=True) as new:
            _save_parts(model, new, dtype, max_shard_size)
    else:
        _save_parts(model, folder, dtype, max_shard_size)


def _save_parts(model, folder, dtype, max_shard_size):
    for number in range(len(model.stages)):
        save_stage(model, number, folder / stage_name(number), dtype, max_shard_size)
    if model.upsampler is not None:
        model.upsampler.save(folder / model.upsampler_name, dtype, max_shard_size)
    save_index(model, folder)


def save_index(model, folder, number=None):
    """Writes what makes one model of the folders of its stages.

    Args:
        model: a `CascadedDiffusion`.
        folder: where they are.
        number: how many there are; None for all.
    """
    if model.known_words is not None:
        write_words(folder, model.known_words)
    stages = model.stages[:number]
    names = [stage_name(number) for number in range(len(stages))]
    levels = {
        name: stage.augment_level
        for name, stage in zip(names, stages, strict=True)
        if stage.is_super_resolution
    }
    if number is None and model.upsampler is not None:
        names.append(model.upsampler_name)
    write_json(Path(folder) / MODEL_INDEX, of_diffusers(PIPELINE, stages=names, augment_levels=levels))


def save_stage(model, number, folder, dtype="float32", max_shard_size=SHARD):
    """Writes one stage as a folder that diffusers' IF pipelines open; see `save` for the arguments."""
    stage, folder = model.stages[number], Path(folder)
    with replacing(folder) as new:
        save_unet(stage.unet, new / "unet", dtype, max_shard_size)
        _save_schedule(stage.schedule, new / "scheduler")
        if stage.noising is not None:
            _save_schedule(stage.noising, new / "image_noising_scheduler")
        has_text_encoder = number == 0
        if has_text_encoder:
            save_text_encoder_folders(model.text_encoder, new, dtype, max_shard_size)
        write_settings(new, stage.recommended)
        if model.known_words is not None:
            write_words(new, model.known_words)
        write_json(new / MODEL_INDEX, _stage_index(stage, model.text_encoder if has_text_encoder else None))


def save_unet(unet, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a folder that `diffusers.UNet2DConditionModel.from_pretrained` opens; see `save`.

    With efficient blocks, which diffusers has not, only `load_unet` does.
    """
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", PIXEL_UNET.to_json(unet.config))
        write(new, DIFFUSERS, unet, dtype, max_shard_size)


def _save_schedule(schedule, folder):
    with replacing(folder) as new:
        write_json(new / "scheduler_config.json", SCHEDULE.to_json(schedule.config))


def _stage_index(stage, text_encoder):
    """`model_index.json` of a stage: which class of which library opens each folder."""
    kind = type(text_encoder.network()).__name__ if text_encoder is not None else None
    nothing = [None, None]
    index = {
        "feature_extractor": nothing,
        "requires_safety_checker": False,
        "safety_checker": nothing,
        "scheduler": ["diffusers", SCHEDULER],
        "text_encoder": ["transformers", kind] if kind else nothing,
        "tokenizer": ["transformers", TOKENIZERS[kind]] if kind else nothing,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "watermarker": nothing,
    }
    if not stage.is_super_resolution:
        return of_diffusers(BASE_PIPELINE, **index)
    noising = {"image_noising_scheduler": ["diffusers", SCHEDULER]}
    return of_diffusers(SUPER_RESOLUTION_PIPELINE, **index | noising)


# -- reading ----------------------------------------------------------------------------------------


def unread_unet(folder, dtype=None, variant=None) -> Unread:
    """The UNet of a stage's folder: its configuration is read now, its weights when they are needed."""
    folder = Path(folder)
    refuse_links_out(folder / "unet")
    file = folder / "unet" / "config.json"
    config = PIXEL_UNET.from_json(read_json(file, root=folder), str(file))
    return Unread(config, lambda: load_unet(folder / "unet", dtype, variant))


def load_unet(folder, dtype=None, variant=None):
    """Reads the `PixelUNet` that `save_unet` or diffusers wrote; see `loading.load` for the arguments."""
    from sd_tf.cascade.unet import PixelUNet  # only here: it imports Keras

    values, source = config_of(folder)
    config = PIXEL_UNET.from_json(values, source)
    tensors = find(Path(folder), DIFFUSERS, variant)
    return filled(lambda: PixelUNet(config, dtype=dtype), config, tensors, Path(folder))

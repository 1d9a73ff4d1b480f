"""Models as folders: what diffusers' `StableDiffusionPipeline` and transformers write and read.

Every part is a folder with a configuration and its weights in safetensors files. What is written is
written beside its place and then renamed into it, so a killed save leaves the old one whole.
"""

import contextlib
import dataclasses
import shutil
from pathlib import Path

from safetensors import SafetensorError

from sd_tf.checkpoints import configs, original
from sd_tf.checkpoints.json_files import read_json, write_json
from sd_tf.checkpoints.names import assign, check, current_names, shapes
from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.checkpoints.tensors import find, has_variant, write
from sd_tf.diffusion.schedules import PREDICTION_TYPES, NoiseSchedule
from sd_tf.errors import InputError, shown, unknown
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.engines import place_of_conversions
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.unet import UNet
from sd_tf.skeleton import skeleton
from sd_tf.text.clip import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from sd_tf.text.tokenizer import Tokenizer

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # how each library names weights
STEMS = {"vae": DIFFUSERS, "unet": DIFFUSERS, "text_encoder": TRANSFORMERS}
SHARD = "10GB"  # diffusers' own
TENSORS_OF_A_LAYER = 8  # at least: a residual block has that many
MOST_LAYERS = 200  # in one direction of a network; Stable Diffusion has 8, its towers up to 24

# -- writing ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(folder: Path, keep_others=False):
    """A new, empty folder that takes the place of `folder` when the block ends well.

    With `keep_others`, what the old folder has and the new one lacks moves over. A process killed
    between the two renames leaves `.name.old`, which `_recover` puts back.
    """
    new, old = _beside(folder, "new"), _beside(folder, "old")
    try:
        _recover(folder, keep_others)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        _recover(folder, keep_others)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write {folder}: {reason}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(folder, state):
    return folder.with_name(f".{folder.name}.{state}")


def _recover(folder, keep_others):
    """Finishes, or undoes, a replacement that was killed half-way."""
    old = _beside(folder, "old")
    if not old.exists():
        return
    if not folder.exists():
        old.rename(folder)
        return
    for path in old.iterdir() if keep_others else ():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(old)


def save_autoencoder(autoencoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `diffusers.AutoencoderKL.from_pretrained` opens."""
    with _replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.autoencoder_json(autoencoder.config))
        write(new, DIFFUSERS, autoencoder, dtype, max_shard_size)


def save_unet(unet, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `diffusers.UNet2DConditionModel.from_pretrained` opens."""
    with _replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.UNET.to_json(unet.config))
        write(new, DIFFUSERS, unet, dtype, max_shard_size)


def save_text_encoder(text_encoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `transformers.CLIPTextModel.from_pretrained`, or `...WithProjection`, opens."""
    with _replacing(Path(folder)) as new:
        architecture = {"architectures": [type(text_encoder).__name__]}
        write_json(new / "config.json", configs.CLIP_TEXT.to_json(text_encoder.config, architecture))
        write(new, TRANSFORMERS, text_encoder, dtype, max_shard_size)


def save_clip(clip, tokenizer, folder, dtype="float32", max_shard_size=SHARD):
    """Writes both towers as what `transformers.CLIPModel.from_pretrained` opens, with the tokenizer."""
    with _replacing(Path(folder)) as new:
        values = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": clip.text_config.projection_dim,
            "text_config": configs.CLIP_TEXT.to_json(clip.text_config),
            "vision_config": configs.CLIP_VISION.to_json(clip.vision_config),
        }
        write_json(new / "config.json", values)
        write(new, TRANSFORMERS, clip, dtype, max_shard_size)
        tokenizer.save(new)


def save(model: LatentDiffusion, folder, dtype="float32", max_shard_size=SHARD):
    """Writes a whole model as what `diffusers.StableDiffusionPipeline.from_pretrained` opens.

    A folder that holds a model keeps it, whole, until the new one takes its place in one rename. In a
    folder that holds none yet, a run's, `model_index.json` comes last.

    Args:
        model: the model.
        folder: made if it is not there; other things in it are left alone.
        dtype: of the tensors in the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of one file, a whole number or a text such as "5GB".

    Raises:
        InputError: the folder cannot be written, or the dtype or the size makes no sense.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        with _replacing(folder, keep_others=True) as new:
            _save_parts(model, new, dtype, max_shard_size)
    else:
        _save_parts(model, folder, dtype, max_shard_size)


def _save_parts(model, folder, dtype, max_shard_size):
    save_autoencoder(model.autoencoder, folder / "vae", dtype, max_shard_size)
    save_unet(model.unet, folder / "unet", dtype, max_shard_size)
    save_text_encoder(model.text_encoder, folder / "text_encoder", dtype, max_shard_size)
    with _replacing(folder / "tokenizer") as new:
        model.tokenizer.save(new)
    with _replacing(folder / "scheduler") as new:
        write_json(new / "scheduler_config.json", configs.SCHEDULE.to_json(model.schedule.config))
    write_json(folder / "model_index.json", configs.model_index(model.schedule.config))


# -- reading ----------------------------------------------------------------------------------------


def load_autoencoder(folder, dtype=None, variant=None) -> AutoencoderKL:
    """Reads what `save_autoencoder` or diffusers wrote."""
    values, source = _config_of(folder)
    config = configs.AUTOENCODER.from_json(values, source)
    tensors = current_names(find(Path(folder), DIFFUSERS, variant))
    return _filled(lambda: AutoencoderKL(config, dtype=dtype), config, tensors, Path(folder))


def load_unet(folder, dtype=None, variant=None) -> UNet:
    """Reads what `save_unet` or diffusers wrote."""
    values, source = _config_of(folder)
    config = configs.UNET.from_json(values, source)
    tensors = find(Path(folder), DIFFUSERS, variant)
    return _filled(lambda: UNet(config, dtype=dtype), config, tensors, Path(folder))


def load_text_encoder(folder, dtype=None, variant=None) -> CLIPTextModel:
    """Reads the text tower from a folder of transformers' `CLIPTextModel`, with or without projection,
    or of a whole `CLIPModel`."""
    values, source = _config_of(folder)
    if "text_config" in values:
        clip = load_clip(folder, dtype, variant)
        return _tower(CLIPTextModel(clip.text_config, dtype=clip.dtype_policy), clip.text_model)
    config = configs.CLIP_TEXT.from_json(values, source)
    tensors = current_names(find(Path(folder), TRANSFORMERS, variant), "text_model.")
    kind = CLIPTextModelWithProjection if "text_projection.weight" in tensors else CLIPTextModel
    return _filled(lambda: kind(config, dtype=dtype), config, tensors, Path(folder))


def load_image_encoder(folder, dtype=None, variant=None) -> CLIPVisionModel:
    """Reads the image tower from a folder of transformers' `CLIPVisionModel`, with or without projection,
    or of a whole `CLIPModel`."""
    values, source = _config_of(folder)
    if "vision_config" in values:
        clip = load_clip(folder, dtype, variant)
        return _tower(CLIPVisionModel(clip.vision_config, dtype=clip.dtype_policy), clip.vision_model)
    config = configs.CLIP_VISION.from_json(values, source)
    tensors = current_names(find(Path(folder), TRANSFORMERS, variant), "vision_model.")
    kind = CLIPVisionModelWithProjection if "visual_projection.weight" in tensors else CLIPVisionModel
    return _filled(lambda: kind(config, dtype=dtype), config, tensors, Path(folder))


def load_clip(folder, dtype=None, variant=None) -> CLIPModel:
    """Reads both towers from what `save_clip` or transformers wrote."""
    folder = resolve(folder, variant=variant)
    values, source = _config_of(folder)
    for part in ("text_config", "vision_config"):
        if not isinstance(values.get(part), dict):
            raise InputError(f"{source}: no {part}: this is no CLIP with both towers")
    projection = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
    text = configs.CLIP_TEXT.from_json(values["text_config"] | projection, source)
    vision = configs.CLIP_VISION.from_json(values["vision_config"] | projection, source)
    tensors = find(folder, TRANSFORMERS, variant)
    _check_counts(vision, tensors, folder)
    return _filled(lambda: CLIPModel(text, vision, dtype=dtype), text, tensors, folder)


def load(
    name_or_folder, dtype=None, revision=None, variant=None, tokenizer=None, prediction_type=None
) -> LatentDiffusion:
    """Reads a whole model: Stable Diffusion 1.x, 2.x or one trained here.

    Args:
        name_or_folder: a bundled name such as "fashion-mnist"; a folder that `LatentDiffusion.save`,
            `sd_tf.train` or diffusers wrote; a hub id such as "organisation/model", downloaded to the
            hub's cache (its environment variables hold, `HF_TOKEN` and `HF_HUB_OFFLINE` among them);
            or a `.safetensors` file in the original layout of CompVis, as community sites share it.
        dtype: a Keras precision policy for all networks, such as "mixed_bfloat16"; None for Keras' own.
        revision: branch, tag or commit of a hub id.
        variant: of the files, such as "fp16"; parts that lack it are read from their plain files.
        tokenizer: a folder or hub id whose tokenizer takes the place of the model's. A single file
            brings none: its default is that of OpenAI's ViT-L/14, from the hub.
        prediction_type: "epsilon" or "v_prediction", where the model does not say or says it wrongly.
            A single file does not: its default is "epsilon" for 1.x and "v_prediction" for 2.x.

    Raises:
        InputError: no such model, one of another kind (SDXL, SD 3, Flux), a file is missing, damaged,
            a pickle or a link out of the folder, or a tensor is missing, left over or of the wrong shape.

    Warns:
        UserWarning: tensors hold NaN or infinite values.
    """
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise unknown("prediction_type", prediction_type, PREDICTION_TYPES)
    path = Path(str(name_or_folder)).expanduser()
    if not path.exists():
        _recover(path, keep_others=True)  # a save was killed between its renames
    source = resolve(name_or_folder, revision, variant)
    if source.is_file():
        parts, schedule, pad_token = _load_original(source, dtype)
        tokenizer = tokenizer or original.TOKENIZER
    else:
        parts, schedule = _load_folder(source, dtype, variant)
        tokenizer, pad_token = tokenizer or source, None
    if prediction_type is not None:
        schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
    tokenizer = _load_tokenizer(tokenizer, parts["text_encoder"].config.max_position_embeddings, pad_token)
    with _naming(source):
        model = LatentDiffusion(**parts, tokenizer=tokenizer, schedule=NoiseSchedule(schedule))
    model.engines.folder = place_of_conversions(source, own=path.exists())
    return model


def _load_folder(folder, dtype, variant):
    index = folder / "model_index.json"
    refuse_links_out(folder, ("model_index.json", "scheduler", "tokenizer", *STEMS))
    if not index.is_file():
        unfinished = (folder / "run.json").is_file()
        way_out = "this run is not finished: start it again to resume" if unfinished else "is it a model?"
        raise InputError(f"{folder} has no model_index.json: {way_out}")
    configs.check_model_index(read_json(index), str(index))
    if variant is not None and not any(has_variant(folder / part, STEMS[part], variant) for part in STEMS):
        raise InputError(f"{folder}: no part has files of the variant {variant!r}: leave variant out")
    refuse_links_out(folder / "scheduler")
    file = folder / "scheduler" / "scheduler_config.json"
    schedule = configs.SCHEDULE.from_json(read_json(file), str(file))
    with _naming(file):
        NoiseSchedule(schedule)  # refuses what it cannot be before gigabytes are read
    return {
        "text_encoder": load_text_encoder(folder / "text_encoder", dtype, variant),
        "autoencoder": load_autoencoder(folder / "vae", dtype, variant),
        "unet": load_unet(folder / "unet", dtype, variant),
    }, schedule


def _load_original(file, dtype):
    found = original.read(file)
    networks = {
        "text_encoder": (found.text, lambda: CLIPTextModel(found.text, dtype=dtype)),
        "autoencoder": (found.autoencoder, lambda: AutoencoderKL(found.autoencoder, dtype=dtype)),
        "unet": (found.unet, lambda: UNet(found.unet, dtype=dtype)),
    }
    return (
        {part: _filled(make, config, found.tensors[part], file) for part, (config, make) in networks.items()},
        found.schedule,
        found.pad_token,
    )


def _load_tokenizer(source, max_length, pad_token=None):
    folder = resolve(source)
    if (folder / "tokenizer").is_dir():  # of a whole model
        folder = folder / "tokenizer"
    refuse_links_out(folder)
    tokenizer = Tokenizer.load(folder, max_length=max_length)
    if pad_token is None:
        return tokenizer
    special_tokens = tokenizer.special_tokens | {"pad_token": pad_token}
    with _naming(folder):
        return Tokenizer(tokenizer.vocab, tokenizer.merges, max_length, special_tokens)


@contextlib.contextmanager
def _naming(source):
    """What is refused inside is said of that file or folder."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _config_of(folder):
    folder = Path(folder)
    refuse_links_out(folder)
    return read_json(folder / "config.json"), str(folder / "config.json")


def _filled(make, config, tensors, source):
    """The network that `make` makes, with the tensors of `source` in it."""
    _check_counts(config, tensors, source)
    try:
        with skeleton(), _naming(source):
            model = make()
            model.build()
            expected = shapes(model)
    except InputError:
        raise
    except Exception as error:  # whatever Keras and TensorFlow say of sizes that make no sense
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source}: its configuration makes no network: {reason[:200]}") from None
    files = {tensor.file for tensor in tensors.values()}
    source = files.pop() if len(files) == 1 else source
    check(expected, tensors, source)
    assign(model, tensors, source)
    return model


def _check_counts(config, tensors, source):
    """A network of many layers would take for ever to lay out, only to find that its file has others."""
    most = min(len(tensors) // TENSORS_OF_A_LAYER, MOST_LAYERS)
    levels = len(getattr(config, "block_out_channels", "1"))
    for name in ("block_out_channels", "layers_per_block", "num_hidden_layers"):
        value = getattr(config, name, 1)
        layers = levels * (1 if isinstance(value, tuple) else value)
        if not 0 < layers <= most:
            raise InputError(
                f"{source}: {name} is {shown(value)}, but {len(tensors)} tensors make at most {most} layers: "
                "another model's?"
            )


def _tower(model, trained):
    """One tower of a CLIP, on its own."""
    model.build()
    for variable, value in zip(model.variables, trained.variables, strict=True):
        variable.assign(value)
    return model

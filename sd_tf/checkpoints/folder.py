"""Networks in folders: what diffusers' `StableDiffusionPipeline` and transformers write and read.

Every part of a model is a folder with a configuration and its weights in safetensors files.
"""

from pathlib import Path

from sd_tf.checkpoints import configs, original
from sd_tf.checkpoints.names import assign, check, current_names, shapes
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.checkpoints.tensors import find, has_variant, write
from sd_tf.checkpoints.weight_files import DIFFUSERS, STEMS, TRANSFORMERS
from sd_tf.config import CLIPTextConfig
from sd_tf.errors import InputError, naming, shown
from sd_tf.files import read_json, write_json
from sd_tf.latent.autoencoder import AutoencoderKL
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

SHARD = "10GB"  # diffusers' own
TENSORS_OF_A_LAYER = 8  # at least: a residual block has that many
MOST_LAYERS = 200  # in one direction of a network; Stable Diffusion has 8, its towers up to 24

# -- writing ----------------------------------------------------------------------------------------


def save_autoencoder(autoencoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `diffusers.AutoencoderKL.from_pretrained` opens."""
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.autoencoder_json(autoencoder.config))
        write(new, DIFFUSERS, autoencoder, dtype, max_shard_size)


def save_unet(unet, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `diffusers.UNet2DConditionModel.from_pretrained` opens."""
    with replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.UNET.to_json(unet.config))
        write(new, DIFFUSERS, unet, dtype, max_shard_size)


def save_text_encoder(text_encoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `transformers.CLIPTextModel.from_pretrained`, or `...WithProjection`, opens."""
    with replacing(Path(folder)) as new:
        architecture = {"architectures": [type(text_encoder).__name__]}
        write_json(new / "config.json", configs.CLIP_TEXT.to_json(text_encoder.config, architecture))
        write(new, TRANSFORMERS, text_encoder, dtype, max_shard_size)


def save_clip(clip, tokenizer, folder, dtype="float32", max_shard_size=SHARD):
    """Writes both towers as what `transformers.CLIPModel.from_pretrained` opens, with the tokenizer."""
    with replacing(Path(folder)) as new:
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


def save_alone(network, folder, values):
    """Writes a network that is part of no model, in half precision, with `values` as its config.json."""
    with replacing(Path(folder), keep_others=True) as new:
        write_json(new / "config.json", values)
        write(new, TRANSFORMERS, network, "float16", SHARD)


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
    if (
        folder.is_symlink() and folder.is_dir()
    ):  # named by the user: it stays, and what it points to is written
        folder = folder.resolve()
    if (folder / "model_index.json").is_file():
        with replacing(folder, keep_others=True) as new:
            _save_parts(model, new, dtype, max_shard_size)
    else:
        _save_parts(model, folder, dtype, max_shard_size)


def _save_parts(model, folder, dtype, max_shard_size):
    save_autoencoder(model.autoencoder, folder / "vae", dtype, max_shard_size)
    save_unet(model.unet, folder / "unet", dtype, max_shard_size)
    save_text_encoder(model.text_encoder, folder / "text_encoder", dtype, max_shard_size)
    with replacing(folder / "tokenizer") as new:
        model.tokenizer.save(new)
    with replacing(folder / "scheduler") as new:
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


def text_config(folder) -> CLIPTextConfig:
    """That of the text tower which `load_text_encoder` reads."""
    values, source = _config_of(folder)
    if isinstance(values.get("text_config"), dict):
        projection = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
        values = values["text_config"] | projection
    return configs.CLIP_TEXT.from_json(values, source)


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
    text = text_config(folder)
    vision = configs.CLIP_VISION.from_json(values["vision_config"] | projection, source)
    tensors = find(folder, TRANSFORMERS, variant)
    _check_counts(vision, tensors, folder)
    return _filled(lambda: CLIPModel(text, vision, dtype=dtype), text, tensors, folder)


def load_alone(network, folder):
    """Builds a network and fills it with what `save_alone` wrote."""
    network.build()
    tensors = find(Path(folder), TRANSFORMERS)
    check(shapes(network), tensors, folder)
    assign(network, tensors, folder)
    return network


def load_parts(folder, dtype, variant):
    """The networks of a whole model, by the names that `LatentDiffusion` gives them."""
    if variant is not None and not any(has_variant(folder / part, STEMS[part], variant) for part in STEMS):
        raise InputError(f"{folder}: no part has files of the variant {variant!r}: leave variant out")
    return {
        "text_encoder": load_text_encoder(folder / "text_encoder", dtype, variant),
        "autoencoder": load_autoencoder(folder / "vae", dtype, variant),
        "unet": load_unet(folder / "unet", dtype, variant),
    }


def load_original(file, dtype):
    """The networks of a single file in CompVis' layout, their schedule and the tokenizer's padding token."""
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


def _config_of(folder):
    folder = Path(folder)
    refuse_links_out(folder)
    return read_json(folder / "config.json", root=folder), str(folder / "config.json")


def _filled(make, config, tensors, source):
    """The network that `make` makes, with the tensors of `source` in it."""
    _check_counts(config, tensors, source)
    try:
        with skeleton(), naming(source):
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

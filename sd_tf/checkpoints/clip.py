"""CLIP's towers in folders, as transformers writes and reads them."""

from pathlib import Path

from sd_tf.checkpoints.config_files import CLIP_TEXT, CLIP_VISION
from sd_tf.checkpoints.names import current_names
from sd_tf.checkpoints.networks import SHARD, check_counts, config_of, filled
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.sources import resolve
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.weight_files import TRANSFORMERS
from sd_tf.errors import InputError
from sd_tf.files import write_json
from sd_tf.text.clip import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from sd_tf.text.config import CLIPTextConfig


def save_text_encoder(text_encoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes what `transformers.CLIPTextModel.from_pretrained`, or `...WithProjection`, opens."""
    with replacing(Path(folder)) as new:
        architecture = {"architectures": [type(text_encoder).__name__]}
        write_json(new / "config.json", CLIP_TEXT.to_json(text_encoder.config, architecture))
        write(new, TRANSFORMERS, text_encoder, dtype, max_shard_size)


def save_clip(clip, tokenizer, folder, dtype="float32", max_shard_size=SHARD):
    """Writes both towers as what `transformers.CLIPModel.from_pretrained` opens, with the tokenizer."""
    with replacing(Path(folder)) as new:
        values = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": clip.text_config.projection_dim,
            "text_config": CLIP_TEXT.to_json(clip.text_config),
            "vision_config": CLIP_VISION.to_json(clip.vision_config),
        }
        write_json(new / "config.json", values)
        write(new, TRANSFORMERS, clip, dtype, max_shard_size)
        tokenizer.save(new)


def load_text_encoder(folder, dtype=None, variant=None) -> CLIPTextModel:
    """Reads the text tower from a folder of transformers' `CLIPTextModel`, with or without projection,
    or of a whole `CLIPModel`."""
    values, source = config_of(folder)
    if "text_config" in values:
        clip = load_clip(folder, dtype, variant)
        return _tower(CLIPTextModel(clip.text_config, dtype=clip.dtype_policy), clip.text_model)
    config = CLIP_TEXT.from_json(values, source)
    tensors = current_names(find(Path(folder), TRANSFORMERS, variant), "text_model.")
    kind = CLIPTextModelWithProjection if "text_projection.weight" in tensors else CLIPTextModel
    return filled(lambda: kind(config, dtype=dtype), config, tensors, Path(folder))


def text_config(folder) -> CLIPTextConfig:
    """That of the text tower which `load_text_encoder` reads."""
    values, source = config_of(folder)
    if isinstance(values.get("text_config"), dict):
        projection = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
        values = values["text_config"] | projection
    return CLIP_TEXT.from_json(values, source)


def load_image_encoder(folder, dtype=None, variant=None) -> CLIPVisionModel:
    """Reads the image tower from a folder of transformers' `CLIPVisionModel`, with or without projection,
    or of a whole `CLIPModel`."""
    values, source = config_of(folder)
    if "vision_config" in values:
        clip = load_clip(folder, dtype, variant)
        return _tower(CLIPVisionModel(clip.vision_config, dtype=clip.dtype_policy), clip.vision_model)
    config = CLIP_VISION.from_json(values, source)
    tensors = current_names(find(Path(folder), TRANSFORMERS, variant), "vision_model.")
    kind = CLIPVisionModelWithProjection if "visual_projection.weight" in tensors else CLIPVisionModel
    return filled(lambda: kind(config, dtype=dtype), config, tensors, Path(folder))


def load_clip(folder, dtype=None, variant=None) -> CLIPModel:
    """Reads both towers from what `save_clip` or transformers wrote."""
    folder = resolve(folder, variant=variant, kind="CLIP")
    values, source = config_of(folder)
    for part in ("text_config", "vision_config"):
        if not isinstance(values.get(part), dict):
            raise InputError(f"{source}: no {part}: this is no CLIP with both towers")
    projection = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
    text = text_config(folder)
    vision = CLIP_VISION.from_json(values["vision_config"] | projection, source)
    tensors = find(folder, TRANSFORMERS, variant)
    check_counts(vision, tensors, folder)
    return filled(lambda: CLIPModel(text, vision, dtype=dtype), text, tensors, folder)


def _tower(model, trained):
    """One tower of a CLIP, on its own."""
    model.build()
    for variable, value in zip(model.variables, trained.variables, strict=True):
        variable.assign(value)
    return model

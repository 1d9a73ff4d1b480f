"""`sd_tf.load`: whole models, by name, folder, hub id or single file.

Nothing here needs Keras, which is imported where networks are: a model that an engine can draw with
as it was kept is ready in a fifth of the time.
"""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.bounds import check_schedule
from sd_tf.checkpoints.config_files import CLIP_TEXT
from sd_tf.checkpoints.replacing import recover
from sd_tf.checkpoints.sources import bundled_names, refuse_links_out, resolve
from sd_tf.checkpoints.tokenizers import load_tokenizer
from sd_tf.checkpoints.weight_files import STEMS, weight_files
from sd_tf.diffusion.schedules import PREDICTION_TYPES, NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError, naming, unknown
from sd_tf.files import is_regular, read_json
from sd_tf.generation.conversions import Origin
from sd_tf.generation.engines import kept_conversion
from sd_tf.latent import config_files
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.latent.memory import check_memory
from sd_tf.latent.model import LatentDiffusion, Unread
from sd_tf.text.config import CLIPTextConfig

PARTS = ("vae", "unet", "text_encoder")


def load(
    name_or_folder, dtype=None, revision=None, variant=None, tokenizer=None, prediction_type=None
) -> LatentDiffusion:
    """Reads a whole model: Stable Diffusion 1.x, 2.x or one trained here.

    Where Keras has not been imported yet and OpenVINO has drawn with the same files before, the networks
    are read when something else than drawing first asks for them.

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
    path = Path(os.path.expanduser(str(name_or_folder)))
    if not os.path.lexists(path):
        with contextlib.suppress(OSError, ValueError):  # then there is nothing to read, which is said below
            recover(path, keep_others=True)  # a save was killed between its renames
    source = resolve(name_or_folder, revision, variant)
    origin = Origin(source, PARTS, variant)
    if source.is_file():
        from sd_tf.latent import folder, original

        parts, schedule, pad_token = folder.load_original(source, dtype)
        if prediction_type is not None:
            schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
        kept, tokenizer = None, tokenizer or original.TOKENIZER
    else:
        refuse_links_out(source, ("model_index.json", "scheduler", "tokenizer", *PARTS))
        schedule, pad_token = _schedule(source, prediction_type), None
        parts = _unread(source, dtype)
        _check_memory(parts, source, variant)
        kept = _kept(origin, dtype)
        if kept is None:
            from sd_tf.latent import folder

            parts = folder.load_parts(source, dtype, variant)
        tokenizer = tokenizer or source
    tokenizer = load_tokenizer(tokenizer, parts["text_encoder"].config.max_position_embeddings, pad_token)
    with naming(source):
        model = LatentDiffusion(**parts, tokenizer=tokenizer, schedule=NoiseSchedule(schedule))
    model.engines.came_from(origin, kept)
    return model


class ModelConfigs(NamedTuple):
    """What a model is, but for its weights and words."""

    autoencoder: AutoencoderConfig
    unet: UNetConfig
    text: CLIPTextConfig
    schedule: ScheduleConfig


def configs_of(name_or_folder) -> ModelConfigs:
    """What `load` would read, without its weights."""
    source = resolve(name_or_folder)
    if source.is_file():
        from sd_tf.latent import original

        found = original.read(source)
        return ModelConfigs(found.autoencoder, found.unet, found.text, found.schedule)
    schedule = _schedule(source, None)
    unread = _unread(source, None)
    _check_memory(unread, source)
    parts = (unread[name].config for name in ("autoencoder", "unet", "text_encoder"))
    return ModelConfigs(*parts, schedule)


def needs_networks(name_or_folder, dtype=None) -> bool:
    """Whether `load` would read networks, and so import Keras and TensorFlow."""
    name = str(name_or_folder)
    path = os.path.expanduser(name)
    if name not in bundled_names() and not os.path.isdir(path):
        return True
    return _kept(Origin(resolve(name), PARTS), dtype) is None


def _kept(origin, dtype):
    if origin.variant is not None or dtype not in (None, "float32") or "keras" in sys.modules:
        return None
    return kept_conversion(origin)


def _schedule(source, prediction_type):
    index = source / "model_index.json"
    if not index.is_file():
        from sd_tf.latent.lora_files import FILE as LORA_FILE

        run = read_json(source / "run.json", root=source) if (source / "run.json").is_file() else {}
        of_kohya = run.get("finetune") == "lora" and any(source.glob("*.safetensors"))
        if (source / LORA_FILE).is_file() or of_kohya:
            raise InputError(
                f"{source} holds a LoRA, no model: load its model, and then it by model.load_lora"
            )
        way_out = "this run is not finished: start it again to resume" if run else "is it a model?"
        raise InputError(f"{source} has no model_index.json: {way_out}")
    config_files.check_model_index(read_json(index, root=source), str(index))
    refuse_links_out(source / "scheduler")
    file = source / "scheduler" / "scheduler_config.json"
    schedule = config_files.read_schedule(read_json(file, root=source), str(file))
    if prediction_type is not None:
        schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
    with naming(file):
        check_schedule(NoiseSchedule(schedule))  # refuses what it cannot be before gigabytes are read
    return schedule


def _unread(source, dtype):
    """The parts of a model that has been read before, and not changed since."""

    def part(folder, config, name):
        def read():
            from sd_tf.latent import folder as folders

            return getattr(folders, f"load_{name}")(source / folder, dtype)

        file = source / folder / "config.json"
        values = read_json(file, root=source)
        return Unread(config.from_json(values.get("text_config", values), str(file)), read)  # of a whole CLIP

    return {
        "autoencoder": part("vae", config_files.AUTOENCODER, "autoencoder"),
        "unet": part("unet", config_files.UNET, "unet"),
        "text_encoder": part("text_encoder", CLIP_TEXT, "text_encoder"),
    }


def _check_memory(unread, source, variant=None):
    found = [weight_files(source / part, STEMS[part], variant) for part in ("vae", "unet")]
    size = sum(
        file.stat().st_size for each in found if each is not None for file in each.files if is_regular(file)
    )
    check_memory(unread["autoencoder"].config, unread["unet"].config, size, str(source))

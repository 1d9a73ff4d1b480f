"""Models as folders: what diffusers' `StableDiffusionPipeline` and transformers write and read.

Every part is a folder with a configuration and one safetensors file. A part is written beside its
place and then renamed into it, so a killed save leaves the old part whole.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sd_tf.checkpoints import configs
from sd_tf.checkpoints.names import assign, keyed_variables, to_torch
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.errors import InputError, unknown
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.unet import UNet
from sd_tf.text.clip import CLIPModel, CLIPTextModel
from sd_tf.text.tokenizer import Tokenizer

PACKAGE = Path(__file__).parent.parent
INSTALLED, CHECKOUT = PACKAGE / "weights", PACKAGE.parent / "weights"
BUNDLED = INSTALLED if INSTALLED.is_dir() else CHECKOUT
DTYPES = ("float16", "float32")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def bundled_names() -> list[str]:
    """The names that `load` and `load_clip` know without a path."""
    return sorted({path.parent.name for path in BUNDLED.glob("*/*.json")})


def resolve(name_or_folder) -> Path:
    """A bundled name, a path or a hub id -> the folder.

    Raises:
        InputError: it is none of these, or the hub cannot be reached.
    """
    name = str(name_or_folder)
    if name in bundled_names():
        return BUNDLED / name
    if Path(name).is_dir():
        return Path(name)
    if HUB_ID.fullmatch(name):
        return _downloaded(name)
    if os.sep in name or name.startswith("."):
        raise InputError(f"no folder {name!r}: train one with python -m sd_tf.train")
    raise unknown("model", name, [*bundled_names(), "a folder that holds one"])


def _downloaded(hub_id):
    import huggingface_hub  # only here: it is slow to import, and most models are on disk

    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=["*.json", "*.txt", "*.safetensors"], ignore_patterns=["*.fp16.*"]
            )
        )
    except Exception as error:  # whatever goes wrong between here and the hub has one way out
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"no folder {hub_id!r}, and the hub's model of that name cannot be had ({reason}): "
            "check the name and the network, or download the folder and name its path"
        ) from None


class Tensors:
    """One safetensors file, read tensor by tensor.

    `tower` is a name that all keys begin with, or that all leave out: a text tower stands alone in
    its file, and transformers 5 then writes no `text_model.` before its keys, as earlier ones did.
    `position_ids`, in files older than transformers 4.31, count 0, 1, 2 … and are no weights.
    """

    def __init__(self, file: Path, tower: str = ""):
        if not file.is_file():
            raise InputError(f"{file} is missing")
        try:
            self._file = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is no readable safetensors file: {error}") from None
        keys = self._file.keys()
        keys = [key for key in keys if not key.endswith("embeddings.position_ids")]
        left_out = "" if any(key.startswith(tower) for key in keys) else tower
        self._keys = {left_out + key: key for key in keys}

    def keys(self):
        return self._keys.keys()

    def shape(self, key):
        return self._file.get_slice(self._keys[key]).get_shape()

    def __getitem__(self, key):
        return self._file.get_tensor(self._keys[key])


@contextlib.contextmanager
def _replacing(folder: Path):
    """A new, empty folder that takes the place of `folder` when the block ends well."""
    new, old = (folder.with_name(f".{folder.name}.{state}-{os.getpid()}") for state in ("new", "old"))
    try:
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
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(file: Path, values: dict):
    """Writes the file whole or, where the process is killed, not at all."""
    new = file.with_name(f".{file.name}.new-{os.getpid()}")
    try:
        new.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _write_tensors(file: Path, model, dtype: str):
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    tensors = {
        key: to_torch(variable).astype(dtype, order="C") for key, variable in keyed_variables(model).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def save_autoencoder(autoencoder, folder, dtype="float32"):
    """Writes what `diffusers.AutoencoderKL.from_pretrained` opens."""
    with _replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.autoencoder_json(autoencoder.config))
        _write_tensors(new / "diffusion_pytorch_model.safetensors", autoencoder, dtype)


def load_autoencoder(folder, dtype=None) -> AutoencoderKL:
    """Reads what `save_autoencoder` or diffusers wrote."""
    folder = Path(folder)
    config = configs.AUTOENCODER.from_json(
        configs.read_json(folder / "config.json"), str(folder / "config.json")
    )
    return _filled(AutoencoderKL(config, dtype=dtype), folder / "diffusion_pytorch_model.safetensors")


def save_unet(unet, folder, dtype="float32"):
    """Writes what `diffusers.UNet2DConditionModel.from_pretrained` opens."""
    with _replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.UNET.to_json(unet.config))
        _write_tensors(new / "diffusion_pytorch_model.safetensors", unet, dtype)


def load_unet(folder, dtype=None) -> UNet:
    """Reads what `save_unet` or diffusers wrote."""
    folder = Path(folder)
    config = configs.UNET.from_json(configs.read_json(folder / "config.json"), str(folder / "config.json"))
    return _filled(UNet(config, dtype=dtype), folder / "diffusion_pytorch_model.safetensors")


def save_text_encoder(text_encoder, folder, dtype="float32"):
    """Writes what `transformers.CLIPTextModel.from_pretrained` opens."""
    with _replacing(Path(folder)) as new:
        write_json(new / "config.json", configs.CLIP_TEXT.to_json(text_encoder.config))
        _write_tensors(new / "model.safetensors", text_encoder, dtype)


def load_text_encoder(folder, dtype=None) -> CLIPTextModel:
    """Reads the text tower from a folder of a `CLIPTextModel`, or of a whole `CLIPModel`."""
    folder = Path(folder)
    values, source = configs.read_json(folder / "config.json"), str(folder / "config.json")
    if "text_config" in values:
        return clip_text_encoder(load_clip(folder, dtype))
    config = configs.CLIP_TEXT.from_json(values, source)
    return _filled(CLIPTextModel(config, dtype=dtype), folder / "model.safetensors", "text_model.")


def clip_text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The text tower of a CLIP, on its own."""
    text_encoder = CLIPTextModel(clip.text_config, dtype=clip.dtype_policy)
    text_encoder.build()
    for variable, source in zip(text_encoder.variables, clip.text_model.variables, strict=True):
        variable.assign(source)
    return text_encoder


def save_clip(clip, tokenizer, folder, dtype="float32"):
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
        _write_tensors(new / "model.safetensors", clip, dtype)
        tokenizer.save(new)


def load_clip(folder, dtype=None) -> CLIPModel:
    """Reads both towers from what `save_clip` or transformers wrote."""
    folder = resolve(folder)
    values, source = configs.read_json(folder / "config.json"), str(folder / "config.json")
    for part in ("text_config", "vision_config"):
        if not isinstance(values.get(part), dict):
            raise InputError(f"{source}: no {part}: this is no CLIP with both towers")
    projection = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
    clip = CLIPModel(
        configs.CLIP_TEXT.from_json(values["text_config"] | projection, source),
        configs.CLIP_VISION.from_json(values["vision_config"] | projection, source),
        dtype=dtype,
    )
    return _filled(clip, folder / "model.safetensors")


def _filled(model, file: Path, tower: str = ""):
    model.build()
    assign(model, Tensors(file, tower), str(file))
    return model


def save(model: LatentDiffusion, folder, dtype="float32"):
    """Writes a whole model as what `diffusers.StableDiffusionPipeline.from_pretrained` opens.

    Args:
        model: the model.
        folder: made if it is not there; other things in it are left alone.
        dtype: of the tensors in the files, "float32" or "float16".

    Raises:
        InputError: the folder cannot be written, or the dtype is unknown.
    """
    folder = Path(folder)
    save_autoencoder(model.autoencoder, folder / "vae", dtype)
    save_unet(model.unet, folder / "unet", dtype)
    save_text_encoder(model.text_encoder, folder / "text_encoder", dtype)
    with _replacing(folder / "tokenizer") as new:
        model.tokenizer.save(new)
    with _replacing(folder / "scheduler") as new:
        write_json(new / "scheduler_config.json", configs.SCHEDULE.to_json(model.schedule.config))
    write_json(folder / "model_index.json", configs.model_index())


def load(name_or_folder, dtype=None) -> LatentDiffusion:
    """Reads a whole model.

    Args:
        name_or_folder: a bundled name such as "fashion-mnist", or a folder that `LatentDiffusion.save`,
            `sd_tf.train` or diffusers wrote.
        dtype: a Keras precision policy for all networks, such as "mixed_bfloat16"; None for Keras' own.

    Raises:
        InputError: no such model, a file is missing or damaged, or a tensor is missing, left over or
            of the wrong shape.
    """
    folder = resolve(name_or_folder)
    if not (folder / "model_index.json").is_file():
        unfinished = (folder / "run.json").is_file()
        way_out = "this run is not finished: start it again to resume" if unfinished else "is it a model?"
        raise InputError(f"{folder} has no model_index.json: {way_out}")
    pipeline = configs.read_json(folder / "model_index.json").get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        raise InputError(f"{folder} holds a {pipeline}, only StableDiffusionPipeline is supported")
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    schedule = configs.SCHEDULE.from_json(configs.read_json(scheduler_file), str(scheduler_file))
    text_encoder = load_text_encoder(folder / "text_encoder", dtype)
    return LatentDiffusion(
        autoencoder=load_autoencoder(folder / "vae", dtype),
        unet=load_unet(folder / "unet", dtype),
        text_encoder=text_encoder,
        tokenizer=Tokenizer.load(
            folder / "tokenizer", max_length=text_encoder.config.max_position_embeddings
        ),
        schedule=NoiseSchedule(schedule),
    )

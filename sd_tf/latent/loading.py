"""`sd_tf.load`: whole models, by name, folder, hub id or single file.

Keras is imported only when networks are read: a model that draws from a cached OpenVINO conversion is ready
in a fifth of the time.
"""

import contextlib
import dataclasses
import os
import sys
import warnings
from pathlib import Path

from sd_tf.checkpoints.bounds import check_schedule
from sd_tf.checkpoints.replacing import recover
from sd_tf.checkpoints.schedulers import recommended as recommended_settings
from sd_tf.checkpoints.sources import bundled_names, is_on_disk, refuse_links_out, resolve
from sd_tf.checkpoints.text_encoders import tokenizer_of_model, unread_text_encoder
from sd_tf.checkpoints.weight_files import STEMS, weight_files
from sd_tf.diffusion.schedules import PREDICTION_TYPES, NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError, argument, naming, shown, unknown
from sd_tf.files import is_regular, read_json
from sd_tf.generation.conversions import Origin
from sd_tf.generation.engines import kept_conversion
from sd_tf.generation.settings import Settings, read_settings
from sd_tf.latent import config_files
from sd_tf.latent.memory import check_memory
from sd_tf.latent.model import LatentDiffusion
from sd_tf.quiet import import_tensorflow
from sd_tf.text.config import CLIPTextConfig
from sd_tf.text.known_words import read_words
from sd_tf.unread import Unread

PARTS = ("vae", "unet", "text_encoder")


def load(
    name_or_folder, dtype=None, revision=None, variant=None, tokenizer=None, prediction_type=None
) -> LatentDiffusion:
    """Reads a whole model: Stable Diffusion 1.x, 2.x or one trained with sd_tf.

    If Keras has not been imported yet and OpenVINO has converted the same files before, the networks are
    read only when something other than drawing needs them.

    Args:
        name_or_folder: a bundled name such as "fashion-mnist"; a folder that `LatentDiffusion.save`,
            `sd_tf.train` or diffusers wrote; a hub id such as "organisation/model", downloaded to the
            hub's cache (its environment variables apply, such as `HF_TOKEN` and `HF_HUB_OFFLINE`);
            or a `.safetensors` file in the original layout of CompVis, as shared on community sites.
        dtype: a Keras precision policy for all networks, such as "mixed_bfloat16"; None for
            Keras' global one.
        revision: branch, tag or commit of a hub id.
        variant: variant of the files, such as "fp16"; parts without it are read from their default files.
        tokenizer: a folder or hub id of a tokenizer to use instead of the model's. A single file has none:
            its default is that of OpenAI's ViT-L/14, from the hub.
        prediction_type: "epsilon" or "v_prediction", if the model's configuration lacks it or is wrong.
            A single file lacks it: its default is "epsilon" for 1.x and "v_prediction" for 2.x.

    Raises:
        InputError: there is no such model, or it is of another kind (SDXL, SD 3, Flux); a file is missing,
            damaged, a pickle or a link out of the folder; or a tensor is missing, unexpected or of the wrong
            shape.

    Warns:
        UserWarning: tensors hold NaN or infinite values.
    """
    found = _find(name_or_folder, dtype, revision, variant, prediction_type)
    # The conversion of a T5 or BERT is made with the model's own tokenizer, see `_converted_parts`.
    is_of_files = tokenizer is None or isinstance(found.parts["text_encoder"].config, CLIPTextConfig)
    kept = _kept(found.origin, dtype) if is_of_files and not found.source.is_file() else None
    parts = found.parts if kept is not None else {name: part.read() for name, part in found.parts.items()}
    model = found.model(parts, tokenizer)
    if is_of_files:
        model.engines.came_from(found.origin, kept)
    return model


def load_lazily(
    name_or_folder, dtype=None, revision=None, variant=None, tokenizer=None, prediction_type=None
) -> LatentDiffusion:
    """As `load`, with networks that are read when they are first used, such as under a strategy's scope."""
    found = _find(name_or_folder, dtype, revision, variant, prediction_type)
    return found.model(found.parts, tokenizer)


def check(name_or_folder, revision=None, variant=None, tokenizer=None, prediction_type=None):
    """Raises `InputError` where `load` would, for all but the weights; imports neither Keras nor TensorFlow.

    A model of the hub is downloaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load` says it
        load_lazily(name_or_folder, None, revision, variant, tokenizer, prediction_type)


def settings_folder(folder: Path) -> Path:
    """Where a model's settings are: in its own folder."""
    return folder


def with_snapshot(model: LatentDiffusion, snapshot: Path, variant=None) -> LatentDiffusion:
    """The model with the UNet of a snapshot; see `sd_tf.families.with_snapshot`."""
    from sd_tf.latent.folder import load_unet

    unet = load_unet(snapshot, variant=variant)
    if unet.config != model.config_of("unet"):  # whose sizes fit into memory, as the load has checked
        raise InputError(
            f"{snapshot / 'config.json'} is not that of the run's model: it is no snapshot of this run"
        )
    parts = model.autoencoder, unet, model.text_encoder
    found = LatentDiffusion(*parts, model.tokenizer, model.schedule)
    found.dtype, found.recommended, found.known_words = model.dtype, model.recommended, model.known_words
    return found


@dataclasses.dataclass(frozen=True)
class _Found:
    """A model before its networks are read.

    Attributes:
        source: its folder or file.
        origin: the files of its networks and their current state.
        parts: "autoencoder", "unet" and "text_encoder" -> `Unread`.
        schedule: a `ScheduleConfig`.
        tokenizer: a folder or hub id.
        pad_token: padding token to use instead of the tokenizer's, or None.
        dtype: precision policy of the networks.
        recommended: `Settings` to draw with.
        known_words: see `LatentDiffusion`.
    """

    source: Path
    origin: Origin
    parts: dict
    schedule: ScheduleConfig
    tokenizer: str | Path
    pad_token: str | None
    dtype: str | None
    recommended: Settings = Settings()
    known_words: frozenset | None = None

    def model(self, parts, tokenizer=None) -> LatentDiffusion:
        """The model with these networks."""
        config = parts["text_encoder"].config
        tokenizer = tokenizer_of_model(config, self.tokenizer, tokenizer, self.pad_token)
        with naming(self.source):
            model = LatentDiffusion(**parts, tokenizer=tokenizer, schedule=NoiseSchedule(self.schedule))
        model.dtype, model.origin = self.dtype, self.origin
        model.recommended, model.known_words = self.recommended, self.known_words
        return model


def _find(name_or_folder, dtype, revision=None, variant=None, prediction_type=None) -> _Found:
    """Finds a model and checks everything but its weights."""
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise unknown(argument("prediction_type"), prediction_type, PREDICTION_TYPES)
    path = Path(os.path.expanduser(str(name_or_folder)))
    if not os.path.lexists(path):
        with contextlib.suppress(OSError, ValueError):  # `resolve` reports it
            recover(path, keep_others=True)  # from a save that was killed between its renames
    _check_choice(name_or_folder, revision, variant)
    source = resolve(name_or_folder, revision, variant)
    if source.is_file():
        return _find_in_file(source, Origin(source, PARTS, variant), dtype, prediction_type)
    refuse_links_out(source, ("model_index.json", "scheduler", "tokenizer", *PARTS))
    origin = Origin(source, _converted_parts(source), variant)
    schedule = _schedule(source, prediction_type)
    recommended, known_words = read_settings(source, _usual_settings(schedule)), read_words(source)
    parts = {name: unread(source, name, dtype, variant) for name in ("text_encoder", "autoencoder", "unet")}
    _check_memory(parts, source, variant)
    _check_variant(source, variant)
    return _Found(source, origin, parts, schedule, source, None, dtype, recommended, known_words)


def _check_choice(name_or_folder, revision, variant):
    """Refuses a revision of what is not on the hub, and a variant of a single file."""
    path = os.path.expanduser(str(name_or_folder))
    if revision is not None and is_on_disk(name_or_folder):
        raise InputError(
            f"{argument('revision')} is {shown(revision)}, but {name_or_folder} is on this machine: it is "
            "for a hub id, leave it out"
        )
    if variant is not None and os.path.isfile(path):
        raise InputError(
            f"{argument('variant')} is {shown(variant)}, but {name_or_folder} is a single file: it is for a "
            "folder or a hub id, leave it out"
        )


def _find_in_file(file, origin, dtype, prediction_type):
    """A single file in CompVis' layout."""
    from sd_tf.latent import original

    found = original.read(file)
    configs = {"text_encoder": found.text, "autoencoder": found.autoencoder, "unet": found.unet}

    def part(name):
        def read():
            import_tensorflow()
            from sd_tf.checkpoints.networks import filled
            from sd_tf.latent.autoencoder import AutoencoderKL
            from sd_tf.latent.unet import UNet
            from sd_tf.text.clip import CLIPTextModel

            kind = {"text_encoder": CLIPTextModel, "autoencoder": AutoencoderKL, "unet": UNet}[name]
            config = configs[name]
            return filled(lambda: kind(config, dtype=dtype), config, found.tensors[name], file)

        return Unread(configs[name], read)

    parts, schedule = {name: part(name) for name in configs}, found.schedule
    if prediction_type is not None:
        schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
    return _Found(file, origin, parts, schedule, original.TOKENIZER, found.pad_token, dtype)


def needs_networks(name_or_folder, dtype=None, variant=None) -> bool:
    """Whether `load` would read networks, and so import Keras and TensorFlow."""
    name = str(name_or_folder)
    path = os.path.expanduser(name)
    if name not in bundled_names() and not os.path.isdir(path):
        return True
    source = resolve(name)
    try:
        parts = _converted_parts(source)
    except InputError:  # which `load` says
        return True
    return _kept(Origin(source, parts, variant), dtype) is None


def _converted_parts(source):
    """The subfolders that OpenVINO's conversion is made of.

    Of a T5 or BERT also the tokenizer's, which says how long rows are and which token is padding.
    """
    index = source / "model_index.json"
    if not index.is_file() or not (source / "tokenizer").is_dir():
        return PARTS
    kind = config_files.text_encoder_of(read_json(index, root=source))
    return PARTS if str(kind).startswith("CLIP") else (*PARTS, "tokenizer")


def _kept(origin, dtype):
    if origin.variant is not None or dtype not in (None, "float32") or "keras" in sys.modules:
        return None
    return kept_conversion(origin)


def _schedule(source, prediction_type):
    index = source / "model_index.json"
    if not index.is_file():
        from sd_tf.lora.files import FILE as LORA_FILE

        run = read_json(source / "run.json", root=source) if (source / "run.json").is_file() else {}
        is_kohya_lora = run.get("finetune") == "lora" and any(source.glob("*.safetensors"))
        of_stages = any(source.glob(f"*/{LORA_FILE}"))  # of a cascade
        if (source / LORA_FILE).is_file() or is_kohya_lora or of_stages:
            raise InputError(
                f"{source} holds a LoRA, not a model: load its base model, then call model.load_lora"
            )
        way_out = "the run there is not finished: run it again to resume" if run else "is it a model?"
        raise InputError(f"{source} has no model_index.json: {way_out}")
    scheduler = config_files.scheduler_of(read_json(index, root=source), str(index))
    refuse_links_out(source / "scheduler")
    file = source / "scheduler" / "scheduler_config.json"
    schedule = config_files.read_schedule(read_json(file, root=source), str(file), scheduler)
    if prediction_type is not None:
        schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
    with naming(file):
        check_schedule(NoiseSchedule(schedule))  # before gigabytes are read
    return schedule


def _usual_settings(schedule):
    """Those of the scheduler that the folder names."""
    named = recommended_settings(schedule)
    if named["timestep_spacing"] == schedule.timestep_spacing:
        named["timestep_spacing"] = None  # the schedule's own
    return Settings(**named)


def _check_variant(source, variant):
    from sd_tf.checkpoints.tensors import has_variant

    if variant is not None and not any(has_variant(source / part, STEMS[part], variant) for part in STEMS):
        raise InputError(
            f"{source}: no part has files of the variant {variant!r}: leave {argument('variant')} out"
        )


def unread(source: Path, name: str, dtype=None, variant=None) -> Unread:
    """A network of a model's folder: its configuration is read now, its weights later.

    Args:
        source: the model's folder.
        name: "autoencoder", "unet" or "text_encoder".
        dtype, variant: see `load`.
    """
    if name == "text_encoder":
        index = read_json(source / "model_index.json", root=source)
        return unread_text_encoder(source / name, dtype, variant, config_files.text_encoder_of(index))
    folder, kind = {
        "autoencoder": ("vae", config_files.AUTOENCODER),
        "unet": ("unet", config_files.UNET),
    }[name]

    def read():
        import_tensorflow()
        from sd_tf.latent.folder import load_autoencoder, load_unet

        load = {"autoencoder": load_autoencoder, "unet": load_unet}[name]
        return load(source / folder, dtype, variant)

    file = source / folder / "config.json"
    return Unread(kind.from_json(read_json(file, root=source), str(file)), read)


def _check_memory(unread, source, variant=None):
    found = [weight_files(source / part, STEMS[part], variant) for part in ("vae", "unet")]
    size = sum(
        file.stat().st_size for each in found if each is not None for file in each.files if is_regular(file)
    )
    check_memory(unread["autoencoder"].config, unread["unet"].config, size, str(source))

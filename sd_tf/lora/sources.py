"""Where adaptations come from: a file, a folder, or the hub."""

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sd_tf.checkpoints.sources import HUB_ID, hub_info, one_line_hub_errors
from sd_tf.errors import InputError, shown
from sd_tf.lora.files import FILE, PEFT_FILE, STAGE, several
from sd_tf.lora.strengths import CONFIG


class Source(NamedTuple):
    """An adaptation on disk.

    Attributes:
        path: a file, or a folder for `read_lora`.
        name: what it is called if nobody says.
    """

    path: Path
    name: str


def find_lora(file_or_id, weight_name: str | None = None, revision: str | None = None) -> Source:
    """Finds an adaptation, and downloads it into the hub's cache if it is not on disk.

    Args:
        file_or_id: a file or a folder; or, if there is none, a hub id such as "organisation/name".
        weight_name: the file in the folder or on the hub, if there are several.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: there is no such file, there are several, or the hub cannot be reached.
    """
    for name, value in (("file", file_or_id), ("weight_name", weight_name), ("revision", revision)):
        if not isinstance(value, (str, os.PathLike) if name == "file" else (str, type(None))):
            raise InputError(f"{name} is {shown(value)}: give a text")
    path, hub_id = Path(os.path.expanduser(file_or_id)), str(file_or_id)
    if not is_hub_id(file_or_id):
        return _on_disk(path, weight_name)
    path = _download(hub_id, weight_name, revision)
    own_name = path.is_file() and path.name not in (FILE, PEFT_FILE)
    return Source(path, path.stem if own_name else hub_id.partition("/")[2])


def is_hub_id(file_or_id) -> bool:
    """Whether there is no such file, but the hub may have an adaptation of that name."""
    path = Path(os.path.expanduser(file_or_id))
    on_disk = os.path.exists(path) or path.suffix == ".safetensors"
    return not on_disk and bool(HUB_ID.fullmatch(str(file_or_id)))


def _on_disk(path, weight_name):
    if weight_name is not None:
        if path.is_file():
            raise InputError(
                f"weight_name is {shown(weight_name)}, which is for a folder or a hub id: {path} is a file"
            )
        path = path / weight_name
    whole = Path(os.path.abspath(path))  # "." has a name then, and a link keeps its own
    if whole.is_dir():
        return Source(path, whole.name)
    return Source(path, whole.parent.name if whole.name in (FILE, PEFT_FILE) else whole.stem)


def _download(hub_id, weight_name, revision):
    """The adaptation's file in the hub's cache, beside it peft's configuration if there is one; or the folder
    with those of a cascade's stages."""
    import huggingface_hub  # only here: it is slow to import

    def fetch(file):
        return Path(huggingface_hub.hf_hub_download(hub_id, file, revision=revision))

    with one_line_hub_errors(hub_id):
        files = _files_of(hub_id, revision)
    of_stages = [] if weight_name else _of_stages(files)
    if of_stages:
        with one_line_hub_errors(hub_id):
            return [fetch(file) for file in of_stages][0].parents[1]
    file = weight_name or _chosen(hub_id, files)
    with one_line_hub_errors(hub_id):
        config = str(PurePosixPath(file).with_name(CONFIG))
        if config in files:
            fetch(config)
        return fetch(file)


def _files_of(hub_id, revision):
    """Names of the files of a repository; without network, of those that are in the cache."""
    import huggingface_hub

    try:
        return [sibling.rfilename for sibling in hub_info(hub_id, revision).siblings]
    except Exception as error:
        try:
            folder = huggingface_hub.snapshot_download(hub_id, revision=revision, local_files_only=True)
        except Exception:
            raise error from None
        return [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]


def _of_stages(files):
    """The files of the LoRAs of a cascade's stages, if a repository has several and no others."""
    found = sorted(PurePosixPath(file) for file in files if file.endswith(".safetensors"))
    each_in_its_folder = all(
        file.name == FILE and len(file.parts) == 2 and STAGE.fullmatch(file.parts[0]) for file in found
    )
    return [str(file) for file in found] if len(found) > 1 and each_in_its_folder else []


def _chosen(hub_id, files):
    """The file that is meant where none is named."""
    found = sorted(file for file in files if file.endswith(".safetensors"))
    known = [name for name in (FILE, PEFT_FILE) if name in found]
    if not found:
        raise InputError(f"the hub's {hub_id} has no safetensors file: is it a LoRA?")
    if len(found) > 1 and not known:
        raise several(f"the hub's {hub_id}", found)
    return (known or found)[0]

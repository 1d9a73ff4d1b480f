"""Where adaptations come from: a file, a folder, or the hub."""

import os
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.sources import HUB_ID, one_line_hub_errors
from sd_tf.errors import InputError, shown
from sd_tf.latent.lora_files import FILE, PEFT_FILE, several
from sd_tf.latent.lora_strengths import CONFIG


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
    path, hub_id = Path(os.path.expanduser(file_or_id)), str(file_or_id)
    if os.path.exists(path) or not HUB_ID.fullmatch(hub_id) or path.suffix == ".safetensors":
        return _on_disk(path, weight_name)
    path = _download(hub_id, weight_name, revision)
    own_name = path.is_file() and path.name not in (FILE, PEFT_FILE)
    return Source(path, path.stem if own_name else hub_id.partition("/")[2])


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
    """The adaptation's file in the hub's cache, beside it peft's configuration if there is one."""
    import huggingface_hub  # only here: it is slow to import

    def fetch(patterns):
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns))

    with one_line_hub_errors(hub_id):
        if weight_name is not None:
            fetch([CONFIG, f"*/{CONFIG}"])
            return Path(huggingface_hub.hf_hub_download(hub_id, weight_name, revision=revision))
        folder = fetch([FILE, PEFT_FILE, CONFIG])
        for name in (FILE, PEFT_FILE):
            if (folder / name).is_file():
                return folder / name
        files = huggingface_hub.list_repo_files(hub_id, revision=revision)
    found = sorted(file for file in files if file.endswith(".safetensors"))
    if not found:
        raise InputError(f"the hub's {hub_id} has no safetensors file: is it a LoRA?")
    if len(found) > 1:
        raise several(f"the hub's {hub_id}", found)
    return _download(hub_id, found[0], revision)

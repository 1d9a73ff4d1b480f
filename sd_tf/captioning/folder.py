"""Describes the pictures of a folder that have no caption, batch by batch."""

from pathlib import Path
from typing import NamedTuple

from sd_tf.captioning.describing import BLIP_BASE, Describer, check_installed
from sd_tf.captioning.table import add_captions, find_work, only_one_writer
from sd_tf.data.opening import open_picture
from sd_tf.errors import InputError, argument, shown
from sd_tf.progress import tqdm

LARGEST_BATCH = 1024
LONGEST_PREFIX = 200  # characters
LARGEST_SIDE = 1024  # pixels that a picture is scaled down to while its batch waits; BLIP sees 384


class Captioned(NamedTuple):
    """Numbers of pictures that were described and that had a caption; a line for each that is damaged."""

    written: int
    kept: int
    problems: list[str]


def caption_folder(
    folder, model: str = BLIP_BASE, prefix: str = "", batch_size: int = 8, progress: bool = True
) -> Captioned:
    """Writes a caption for each picture that has none into the folder's `metadata.jsonl`.

    Captions that are there are kept, in metadata or in text files beside pictures; the latter are copied into
    `metadata.jsonl`, since text files are not read where a table is. Called again, it goes on where it was
    stopped, even by a kill: at most one batch is lost.

    Args:
        folder: with pictures, in folders below it as well.
        model: hub id or folder of a BLIP.
        prefix: what every caption begins with, such as "a photo of".
        batch_size: pictures that are described at once.
        progress: shows a progress bar with the time left.

    Raises:
        InputError: an argument is invalid, the folder has no picture or cannot be written, torch is not
            installed, or the model cannot be read.
    """
    folder = Path(folder).expanduser()
    _check(folder, prefix, batch_size)
    with only_one_writer(folder):
        work = find_work(folder)
        if not work.left:
            return Captioned(0, work.kept, work.problems)
        check_installed()
        describer = Describer(model, prefix)
        if work.beside:
            add_captions(work.table, work.column, work.beside)
        written, problems = 0, list(work.problems)
        with tqdm(total=len(work.left), unit="pictures", disable=not progress) as bar:
            for batch in _batches(work.left, batch_size):
                captions, damaged = _described(describer, batch, folder)
                if captions:
                    add_captions(work.table, work.column, captions)
                written, problems = written + len(captions), problems + damaged
                bar.update(len(batch))
    return Captioned(written, work.kept, problems)


def _check(folder, prefix, batch_size):
    if not folder.is_dir():
        raise InputError(f"{argument('folder', '--data-dir')} {folder} is not a folder: name one of pictures")
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int)
        or not 1 <= batch_size <= LARGEST_BATCH
    ):
        raise InputError(f"{argument('batch_size')} is {shown(batch_size)}: give 1 to {LARGEST_BATCH}")
    if not isinstance(prefix, str) or len(prefix) > LONGEST_PREFIX:
        raise InputError(
            f"{argument('prefix')} is {shown(prefix)}: give a string of at most {LONGEST_PREFIX} characters"
        )


def _batches(pictures, size):
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def _described(describer, files, folder):
    """File -> caption of the pictures that can be read, and a line for each other one."""
    opened, problems = {}, []
    for file in files:
        try:
            opened[file] = open_picture(file, use=_scaled_down, root=folder)
        except InputError as error:
            problems.append(f"{file}: {error}")
    captions = describer.captions(list(opened.values())) if opened else []
    found = dict(zip(opened, captions, strict=True))
    problems += [f"{file}: the model found no words for it" for file, caption in found.items() if not caption]
    return {file: caption for file, caption in found.items() if caption}, problems


def _scaled_down(picture):
    """A copy that takes little memory."""
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture

"""A folder of pictures with captions: which pictures it holds, and what is said of each.

Read in this order, the first that is there:

1. `metadata.jsonl`, `.csv`, `.parquet` or `.json`, as Hugging Face's image folders have it: a row for each
   picture, or for each caption of one, whose `file_name` is relative to the metadata file. Folders below may
   have one each, which says nothing of pictures elsewhere.
2. a text file beside each picture: `cat.png`, `cat.txt` or kohya's `cat.caption`.
3. a folder for each class, whose name is the caption: `red_dress/1.png` is "red dress".

In layouts 2 and 3, a folder named as kohya's trainers have it, `10_sks dog`, counts ten times.

As Hugging Face does, hidden files and folders are passed over, and folders like `__MACOSX`; where `train/`
stands beside `validation/` or `test/`, it alone is read.
"""

import difflib
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from sd_tf.data.opening import HEIC, SUFFIXES
from sd_tf.data.tables import READERS
from sd_tf.errors import InputError, argument, install_extra, printable, shown, unknown
from sd_tf.files import is_inside, is_regular, read_beginning

CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first that a table has is used
METADATA = tuple(f"metadata{suffix}" for suffix in READERS)  # the first that a folder has is used
# Pictures that are not read: each is reported, though no caption may lie beside it.
OTHER_PICTURES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".cr2", ".nef", ".dng")
BESIDE = (".txt", ".caption")  # a text file beside a picture; the first that is there is read
REPEATED = re.compile(r"(\d{1,4})_(.+)")  # a folder's name in kohya's trainers
DRAWN_BY_A_RUN = ("samples", "prior")  # folders in a run's folder that hold pictures
FOLDERS_OF_A_RUN = ("samples", "checkpoints")  # a folder with run.json and one of these is a run's
HELD_OUT = ("validation", "valid", "val", "test")  # folders beside train/
LONGEST_CAPTION = 10_000  # characters; a file of more is no caption
LONGEST_NAME = 255  # characters of a file's name in a line about it
MOST_TEXT = 200_000_000  # bytes of memory for all different captions and names
MOST_PROBLEMS = 100_000  # rows that cannot be used


class Captioned(NamedTuple):
    """A picture's file and its caption, or several, of which each epoch draws one."""

    file: Path
    caption: str | tuple[str, ...]


class Contents(NamedTuple):
    """Pictures and metadata files below `top`, sorted, and a line for each picture that cannot be read."""

    top: Path
    pictures: list[Path]
    metadata: list[Path]
    problems: list[str]


class Listing(NamedTuple):
    """What a folder holds, sorted by file, and a line for each picture that cannot be used."""

    pictures: list[Captioned]
    problems: list[str]


def list_folder(
    folder: Path,
    caption_column: str | None = None,
    caption: str | None = None,
    outputs: Sequence[Path] = (),
) -> Listing:
    """Finds the pictures and captions of a folder; opens no picture.

    A warning says what is left out: pictures without a row in metadata, folders beside `train/`, and
    `outputs`.

    Args:
        folder: with pictures in one of the three layouts.
        caption_column: of the metadata; None for the first of `CAPTION_COLUMNS` that is there.
        caption: of every picture, in place of the folder's own, which are not looked for then.
        outputs: folders that the run writes to: what it draws does not become what it learns from.

    Raises:
        InputError: there is no such folder, no picture or no caption in it; metadata are damaged, have no
            such column, lie outside the folder or name a file there; the folder is one of `outputs`.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: name one with pictures and captions")
    top = _training_part(folder)
    outputs = _outputs_below(folder, outputs)
    pictures, metadata, problems = _files(top, folder, outputs)
    if not pictures and (caption is not None or not metadata):
        raise InputError(
            f"{folder} holds no picture{_first(problems)}: name a folder of {', '.join(SUFFIXES)} files"
        )
    if caption is not None:
        return Listing([Captioned(picture, caption) for picture in pictures], problems)
    if caption_column is not None and not metadata:
        raise InputError(f"{folder} has no {' or '.join(METADATA)} with a column {caption_column!r}")
    if metadata:
        listing, named = _listed_by_metadata(folder, metadata, caption_column, outputs)
        beside = _listed_by_text_files(
            _pictures_without_metadata(metadata, [each for each in pictures if each not in named], folder),
            folder,
        )
        pictures = sorted(listing.pictures + beside.pictures, key=lambda each: (each.file, str(each.caption)))
        listing = Listing(pictures, listing.problems + beside.problems)
    else:
        if any(map(text_beside, pictures)):
            listing = _listed_by_text_files(pictures, folder)
        else:
            listing = _listed_by_class_folders(top, pictures)
        listing = Listing(_repeated(listing.pictures, top), problems + listing.problems)
    if not listing.pictures:
        reasons = listing.problems or [f"{file} has no row" for file in metadata]
        raise InputError(
            f"{folder} has no picture with a caption{_first(reasons)}: give a metadata.jsonl with lines "
            '{"file_name": "1.png", "text": "a red dress"}, a .txt file beside each picture, or a folder for '
            "each class"
        )
    return listing


def contents_of(folder: Path) -> Contents:
    """The pictures of a folder, with or without captions; see `list_folder`.

    Raises:
        InputError: there is no such folder, or metadata are a link out of it.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: name one with pictures")
    top = _training_part(folder)
    return Contents(top, *_files(top, folder, []))


def holds_pictures(folder: Path) -> bool:
    """Whether pictures or metadata lie in a folder itself, not below it."""
    try:
        return any(
            file.suffix.lower() in SUFFIXES or file.name in METADATA
            for file in folder.iterdir()
            if not file.name.startswith(".")
        )
    except OSError:
        return False


def _training_part(folder):
    """The folder; or its `train/`, if that lies beside `test/` or the like, without metadata above them."""
    train, held_out = folder / "train", [name for name in HELD_OUT if os.path.isdir(folder / name)]
    if not held_out or not os.path.isdir(train) or not is_inside(folder, train):
        return folder
    if any(os.path.isfile(folder / name) for name in METADATA):
        return folder
    _warn(f"{folder}: train/ alone is read, not what lies beside it, like {held_out[0]}/")
    return train


def _outputs_below(folder, outputs):
    """The folders that a run writes to and that lie inside `folder`, with links followed."""
    try:
        top, outputs = folder.resolve(), [Path(output).resolve() for output in outputs]
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError(f"{folder} cannot be compared with where the run writes: {error}") from None
    for output in outputs:
        if output == top or any(top.is_relative_to(output / name) for name in DRAWN_BY_A_RUN):
            raise InputError(
                f"{folder} is also where the run writes, so that it would learn from its own pictures: name "
                "another folder for one of them"
            )
    return [output for output in outputs if output.is_relative_to(top)]


def _files(top, folder, outputs):
    """Pictures and metadata below `top`, sorted, and a line for each picture or folder that is not read."""
    pictures, metadata, problems = [], [], []

    def not_listed(error):
        problems.append(f"{error.filename}: cannot be listed ({error.strerror})")

    for place, folders, files in _walked(top, not_listed):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in [name for name in folders if _is_of_a_run(Path(place, name), outputs)]:
            folders.remove(name)
            _warn(
                f"{Path(place, name)} is left out: it is the folder of a run, not of pictures to learn from"
            )
        stems = {Path(name).stem for name in files if Path(name).suffix.lower() in SUFFIXES}
        for file in (Path(place, name) for name in sorted(folders + files) if not name.startswith(".")):
            is_picture = file.suffix.lower() in SUFFIXES
            if is_picture and is_regular(file) and is_inside(folder, file):
                if not _is_inside_any(outputs, file):
                    pictures.append(file)
            elif file.is_symlink() and (is_picture or os.path.isdir(file) and not is_inside(folder, file)):
                problems.append(f"{file}: is a link that leads out of {folder}, or nowhere")
            elif is_picture and file.name in files:
                problems.append(f"{file}: is no regular file")
            elif file.name in files and _is_picture_of_others(file, stems):
                problems.append(f"{file}: is no picture of a kind that is read ({_kinds()})")
        metadata += [Path(place, name) for name in METADATA if name in files][:1]
        if not any(name in files for name in METADATA):
            _warn_of_near_misses(Path(place), files)
    for file in metadata:
        if not is_inside(folder, file):
            raise InputError(f"{file} is a link that leads out of {folder}, or nowhere: put the file there")
    return sorted(pictures), sorted(metadata), problems


def _is_picture_of_others(file, stems):
    """Whether it is a picture that is not read; or has a caption beside it that is of none of `stems`."""
    suffix = file.suffix.lower()
    if suffix in OTHER_PICTURES:
        return True
    return suffix not in BESIDE and file.stem not in stems and text_beside(file) is not None


def _kinds():
    return ", ".join(SUFFIXES) + ("" if HEIC else f"; .heic after {install_extra('heic')}")


def _warn_of_near_misses(folder, files):
    for name in files:
        if Path(name).suffix.lower() in SUFFIXES:
            continue
        near = difflib.get_close_matches(name.lower().removesuffix(".txt"), METADATA, n=1, cutoff=0.85)
        if near:
            _warn(f"{folder / name} is not read: if it has the captions, name it {near[0]}")


def _is_of_a_run(folder, outputs):
    """Whether it is the folder of a run, this one or another."""
    if (folder / "run.json").is_file() and any((folder / name).is_dir() for name in FOLDERS_OF_A_RUN):
        return True
    # Links are followed only for the right names: in deep folders that takes long.
    return any(folder.name == output.name and is_inside(output, folder) for output in outputs)


def _walked(top, onerror):
    try:
        yield from os.walk(top, onerror=onerror)
    except RecursionError:
        raise InputError(f"{top} has folders nested too deeply: name one of them") from None


def _listed_by_metadata(folder, files, caption_column, outputs):
    """A listing, and all files that have a row."""
    captioned, problems, seen, places, texts = [], [], set(), {}, _Texts()
    columns = (caption_column,) if caption_column else CAPTION_COLUMNS
    for file in files:
        for number, row in READERS[file.suffix](file, folder, columns):
            place = f"{file}, row {number}"
            column = _column_of(row, caption_column, place)
            name, caption = row["file_name"], row[column]
            if (key := (file.parent, name) if isinstance(name, str) else None) not in places:
                picture = _inside(file.parent, name, folder, place)
                texts.kept(name, folder)
                places[key] = picture, _why_no_picture(picture, outputs)
            (picture, wrong), name = places[key], name[:LONGEST_NAME]
            if not (caption := captions_of(caption)):
                problems.append(f"{place}: {name} has no caption")
            elif wrong:
                problems.append(f"{place}: {name} {wrong}")
            elif (entry := Captioned(picture, texts.kept(caption, folder))) in seen:
                problems.append(f"{place}: {name} is there twice")
            else:
                captioned.append(entry)
                seen.add(entry)
            if len(problems) > MOST_PROBLEMS:
                raise InputError(
                    f"{file}: more than {MOST_PROBLEMS:,} rows cannot be used ({problems[0]}): mend or "
                    "remove them"
                )
    return Listing(captioned, problems), {picture for picture, _ in places.values()}


def _column_of(row, caption_column, place):
    """The name of the column of captions; a row that has none, or no `file_name`, is refused."""
    if "file_name" not in row:
        raise InputError(f"{place} has no file_name, but {shown(sorted(map(str, row)))}")
    column = caption_column or next((name for name in CAPTION_COLUMNS if name in row), None)
    if column is None:
        raise InputError(
            f"{place} has no column {' or '.join(CAPTION_COLUMNS)}, but "
            f"{shown(sorted(map(str, row)))}: name one with {argument('caption_column')}"
        )
    if column not in row:
        raise unknown(f"caption column in {place}:", column, row)
    return column


def _why_no_picture(picture, outputs):
    if not is_regular(picture):  # nor is a name that no file can have
        return "is no regular file" if os.path.lexists(picture) else "is missing"
    return "is of the run itself" if _is_inside_any(outputs, picture) else None


def _is_inside_any(outputs, picture):
    return any(is_inside(output, picture) for output in outputs)


class _Texts:
    """Texts of a folder, each kept once: a text that is in all rows takes the memory of one."""

    def __init__(self):
        self._kept, self._size = {}, 0

    def kept(self, caption, folder):
        """The same text.

        Raises:
            InputError: all together take too much memory.
        """
        if caption not in self._kept:
            parts = caption if isinstance(caption, tuple) else ()
            self._size += sum(map(sys.getsizeof, (caption, *parts)))
            if self._size > MOST_TEXT:
                raise InputError(
                    f"{folder} has names and captions of more than {MOST_TEXT:,} bytes: divide it"
                )
            self._kept[caption] = caption
        return self._kept[caption]


def _pictures_without_metadata(metadata, pictures, folder):
    """Of pictures without a row, those in folders without metadata, if one of these has a text file."""
    described = {file.parent for file in metadata}
    apart = [picture for picture in pictures if described.isdisjoint(picture.parents)]
    if not any(map(text_beside, apart)):
        apart = []
    if left_out := len(pictures) - len(apart):
        others = " or other metadata" if len(metadata) > 1 else ""
        _warn(f"{folder}: pictures left out, without a row in {metadata[0]}{others}: {left_out}")
    return apart


def text_beside(picture: Path) -> Path | None:
    """The text file beside a picture, or None."""
    return next(filter(is_regular, map(picture.with_suffix, BESIDE)), None)


def _listed_by_text_files(pictures, folder):
    captioned, problems, texts = [], [], _Texts()
    for picture in pictures:
        file = text_beside(picture) or picture.with_suffix(".txt")
        try:
            caption = tidy(read_beginning(file, LONGEST_CAPTION, folder))
        except InputError as error:
            said = str(error).replace(printable(str(file)), printable(file.name))
            problems.append(f"{picture}: {said}")
            continue
        caption = texts.kept(caption, folder)
        if caption:
            captioned.append(Captioned(picture, caption))
        else:
            problems.append(f"{picture}: {file.name} is empty")
    return Listing(captioned, problems)


def _listed_by_class_folders(top, pictures):
    captioned = [
        Captioned(picture, _caption_of_class(picture.parent.name))
        for picture in pictures
        if picture.parent != top
    ]
    return Listing(captioned, [f"{each}: has no caption" for each in pictures if each.parent == top])


def _caption_of_class(name):
    repeated = REPEATED.fullmatch(name)
    return tidy((repeated[2] if repeated else name).replace("_", " ").replace("-", " "))


def _repeated(pictures, top):
    """Pictures, each as often as the name of its folder says in proportion to the others."""
    found = {picture.file.parent: 1 for picture in pictures}
    for folder in found:
        if folder != top and (repeated := REPEATED.fullmatch(folder.name)) and int(repeated[1]):
            found[folder] = int(repeated[1])
            _warn(f"{folder}: its pictures count {found[folder]} times, as its name says")
    least = math.gcd(*found.values())
    return [picture for picture in pictures for _ in range(found[picture.file.parent] // least)]


def captions_of(cell):
    """The caption of a table's cell; a tuple if it lists several; None if it has none."""
    texts = cell if isinstance(cell, list | tuple) else [cell]
    texts = [tidy(text) for text in texts if isinstance(text, str) and text.strip()]
    return tuple(texts) if len(texts) > 1 else next(iter(texts), None)


def tidy(caption):
    """A caption on one line, without lone surrogates, which JSON can hold but no tokenizer takes."""
    return " ".join(caption[:LONGEST_CAPTION].encode(errors="replace").decode().split())


def _first(problems):
    return f" ({problems[0]})" if problems else ""


def _inside(base, name, folder, place):
    """The file that metadata name, as a path below the folder: it may lie nowhere else."""
    if not _is_file_name(name):
        raise InputError(f"{place}: the file_name is {shown(name)}: give a file's name")
    file = base / name
    if "\\" in name and not os.path.lexists(file):  # written on Windows
        name = PureWindowsPath(name).as_posix()
        file = base / name
    if not is_inside(folder, file):
        raise InputError(f"{place}: {shown(name)} lies outside {folder}: put the picture into the folder")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        try:
            return folder / file.resolve().relative_to(folder.resolve())
        except (OSError, RuntimeError, ValueError):  # it has changed since
            raise InputError(f"{place}: {shown(name)} changes while it is read: try again") from None
    return file


def _is_file_name(name):
    try:
        return isinstance(name, str) and name != "" and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half a character
        return False


def _warn(text):
    warnings.warn(printable(text), stacklevel=4)

"""A cache of OpenVINO's conversions in the user's cache folder, so that later processes need not convert.

Nothing is cached beside a model, and no conversion that comes with a model is used: an untrusted folder could
hold the conversion of other weights. A conversion is a folder in the cache, named by a hash of the *content*
of the weights. Its `conversion.json` (the mark) has the SHA-256 of each of its other files. A conversion is
used only if all of them match, and only folders with a mark are ever deleted.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sd_tf
from sd_tf.errors import InputError
from sd_tf.files import open_file, read_json, write_json

MARK = "conversion.json"
MADE_BY = "sd_tf"
ARGUMENTS = "float timesteps, contexts of any length"  # part of the key: change it when signatures change
MOST_BYTES = 16_000_000_000  # of all conversions; beyond it the least recently used are deleted
KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
NAME = re.compile(r"[a-z]{1,40}\.(xml|bin)", re.ASCII)  # file name in a conversion
UNFINISHED = ".new-"  # prefix of the folder of a conversion that is being written or deleted
UNFINISHED_SECONDS = 86_400.0  # after which its process is assumed to be dead


@dataclasses.dataclass(frozen=True)
class Origin:
    """The files of a model's networks, and their state. Make it before reading them.

    Vocabularies (`.model` and `.txt`) count where a part has them.

    Args:
        source: the model's folder, or its single file.
        parts: its subfolders with networks, and others that a conversion depends on.
        variant: variant of the files, see `sd_tf.load`.

    Attributes:
        state: (name, size, modification and change time, inode) of each file; None if they cannot be read.
    """

    source: Path
    parts: tuple[str, ...]
    variant: str | None = None
    state: tuple | None = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "state", self._state())

    def _files(self):
        """(name, file) of each, sorted."""
        if self.source.is_file():
            return [("", self.source)]
        return sorted(
            (f"{part}/{file.name}", file)
            for part in self.parts
            for file in (self.source / part).iterdir()
            if file.name.endswith((".json", ".safetensors", ".model", ".txt"))
        )

    def _state(self):
        try:
            return tuple((name, *_state(file)) for name, file in self._files())
        except OSError:
            return None

    @property
    def is_unchanged(self) -> bool:
        """Whether no file has been written since, even if its size and modification time are the same."""
        return self.state is not None and self.state == self._state()

    @property
    def sizes(self) -> list:
        """[name, bytes] of each file."""
        return [[name, size] for name, size, *_ in self.state or ()]

    @functools.cached_property
    def key(self) -> str | None:
        """The cache key of these files' conversion, a hash of their content; None if they have changed."""
        root = None if self.source.is_file() else self.source
        try:
            names, files = zip(*self._files(), strict=True)
            digests = _sha256_of_all(files, root)
        except (OSError, ValueError, InputError):
            return None
        return key_of("files", self.variant, names, digests) if self.is_unchanged else None


def key_of(*parts) -> str:
    """A cache key: a hash of `parts` and the versions of sd_tf and OpenVINO."""
    versions = (ARGUMENTS, sd_tf.__version__, importlib.metadata.version("openvino"))
    return hashlib.sha256(repr((*versions, *parts)).encode()).hexdigest()


def find(key: str | None) -> Path | None:
    """The folder of the conversion with that key, None if there is none or it is damaged."""
    place = _place()
    if place is None or key is None or not _is_whole(place / key):
        return None
    with contextlib.suppress(OSError):
        os.utime(place / key / MARK)  # marks it as recently used
    return place / key


def find_of(origin: Origin) -> Path | None:
    """The conversion of exactly these files, None if there is none or it is damaged.

    Files are hashed only if there is a conversion of files with the same names and sizes.
    """
    if not origin.sizes or not any(mark.get("origin") == origin.sizes for _, mark in _marked()):
        return None
    return find(origin.key)


def keep(files: Path, key: str, origin: Origin | None):
    """Copies a conversion's files into the cache, if there is a cache folder with enough space.

    Args:
        files: a folder with these files and no others.
        key: the cache key.
        origin: the model's files, so that `find_of` finds it; None if the weights have changed since.
    """
    place = _place(make=True)
    if place is None:
        return
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=place, ignore_cleanup_errors=True) as new:
            new = Path(new)
            mark = {"made_by": MADE_BY, "files": {}, "origin": origin and origin.sizes}
            write_json(new / MARK, mark)
            for file in sorted(files.iterdir()):
                mark["files"][file.name] = _copy(file, new / file.name)
            write_json(new / MARK, mark)
            discard(place / key)  # a damaged one
            new.rename(place / key)
    except (OSError, InputError):  # the disk is full, or another process was first
        return
    _trim(place, key)


def discard(folder: Path):
    """Deletes a conversion: the files that its mark names, and the folder if nothing else is in it.

    The folder is renamed first, so that only one of several processes deletes it, and none deletes what
    another has just written in its place.
    """
    if _mark(folder) is None:
        return
    doomed = folder.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        folder.rename(doomed)
        mark = _mark(doomed)
        for name in (*mark["files"], MARK) if mark is not None else ():
            (doomed / name).unlink(missing_ok=True)
        doomed.rmdir()


def place_of_all() -> Path:
    """The cache folder, whether it is there or not; raises `RuntimeError` if there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd_tf" / "conversions"


def _place(make=False) -> Path | None:
    """The cache folder; None if it is missing or others can write to it."""
    try:
        place = place_of_all()
        if make:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return place if _is_private(place) else None
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return None


def _is_private(folder):
    """Whether it is a folder, not a link, that belongs to this user and is not writable by everybody."""
    found = os.lstat(folder)
    is_ours = not hasattr(os, "geteuid") or (
        found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH
    )
    return stat.S_ISDIR(found.st_mode) and is_ours


def _marked() -> Iterator[tuple[Path, dict]]:
    """(folder, its mark) of every conversion, also of damaged ones."""
    place = _place()
    try:
        folders = [] if place is None else sorted(place.iterdir())
    except OSError:
        return
    for folder in folders:
        mark = _mark(folder)
        if mark is not None:
            yield folder, mark


def _mark(folder):
    """The content of a conversion's mark; None if the folder is not a conversion."""
    try:
        if not _is_private(folder):
            return None
        mark = read_json(folder / MARK, root=folder)
    except (OSError, InputError):
        return None
    files = mark.get("files")
    is_conversion = mark.get("made_by") == MADE_BY and isinstance(files, dict)
    return mark if is_conversion and all(map(NAME.fullmatch, files)) else None


def _is_whole(folder):
    mark = _mark(folder)
    if mark is None or not mark["files"]:
        return False
    files = tuple(folder / name for name in mark["files"])
    try:
        found = _sha256_of_kept(folder, files, tuple(map(_state, files)))
    except (OSError, InputError):
        return False
    return found == list(mark["files"].values())


def _trim(place, used):
    """Deletes the least recently used conversions above `MOST_BYTES`, and leftovers of killed processes."""
    found = []
    for folder, mark in _marked():
        with contextlib.suppress(OSError):
            state = os.stat(folder / MARK)
            if folder.name.startswith(UNFINISHED):
                _delete_leftover(folder, state.st_mtime)
            elif KEY.fullmatch(folder.name):
                size = sum(os.stat(folder / name).st_size for name in mark["files"])
                found.append((folder.name == used, state.st_mtime, size, folder))
    total = 0
    for _, _, size, folder in sorted(found, reverse=True):
        total += size
        if total > MOST_BYTES and folder.name != used:
            discard(folder)


def _delete_leftover(folder, started):
    if time.time() - started > UNFINISHED_SECONDS:
        for file in folder.iterdir():  # never deletes other files
            if NAME.fullmatch(file.name) or file.name == MARK:
                file.unlink(missing_ok=True)
        folder.rmdir()


def _copy(file, target):
    """Copies a file and returns its SHA-256."""
    digest = hashlib.sha256()
    with open(file, "rb") as reading, open(target, "xb") as writing:
        while part := reading.read(2**20):
            digest.update(part)
            writing.write(part)
    return digest.hexdigest()


def _state(file):
    """(size, modification time, change time, inode), which change when a file is written."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@functools.lru_cache(maxsize=4)
def _sha256_of_kept(folder, files, states):
    """The SHA-256 of a conversion's files, computed once per process while their states stay the same."""
    return _sha256_of_all(files, folder)


def _sha256_of_all(files, root):
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing releases the GIL
        return list(threads.map(lambda file: _sha256(file, root), files))


def _sha256(file, root):
    with open_file(file, root) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

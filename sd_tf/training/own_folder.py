"""Keeps what a run reads, writes and deletes inside its own folder, which may be untrusted.

A symbolic link in place of the log would make a run write to another file, and one in place of the
checkpoints would make it delete in another folder. So no run starts in a folder with such links.
"""

import contextlib
import itertools
import os
import re
import shutil
import stat
import warnings
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where two processes can train in one folder
    fcntl = None

from sd_tf.errors import InputError
from sd_tf.files import is_inside, is_regular, parse_json, read_lines, read_text, reason, replacing_file
from sd_tf.training.options import FOLDER

MOST_ENTRIES = 200_000  # files and folders; a run of weeks has thousands
_WAY_OUT = f"Or name another {FOLDER}"
STEP = re.compile(r"step-([0-9]{7,12})")


def check_own(folder: Path, files, folders):
    """Raises `InputError` if a run's files lead out of its folder, or are not regular files or folders.

    Args:
        folder: run folder; it may itself be a link, since the user has named it.
        files, folders: names in it, which need not exist; the contents of folders are checked as well.
    """
    left, places = MOST_ENTRIES, [str(folder / name) for name in (*files, *folders)]
    while places:
        place = places.pop()
        left -= 1
        if left < 0:
            raise InputError(f"{folder} has more than {MOST_ENTRIES:,} files: is it a run? {_WAY_OUT}")
        try:
            mode = os.lstat(place).st_mode
            if stat.S_ISDIR(mode):
                places += [entry.path for entry in itertools.islice(os.scandir(place), left + 1)]
        except (FileNotFoundError, NotADirectoryError):
            continue  # missing, or just removed by another worker
        except (OSError, ValueError) as error:
            raise InputError(f"{place} cannot be read: {reason(error)}. {_WAY_OUT}") from None
        if stat.S_ISLNK(mode) and not (is_inside(folder, place) and os.path.exists(place)):
            raise InputError(
                f"{place} is a link out of the run's folder, or to nothing: copy what it points to. "
                f"{_WAY_OUT}"
            )
        if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{place} is neither a file nor a folder: delete it. {_WAY_OUT}")
    for names, kind, is_wrong in ((files, "file", os.path.isdir), (folders, "folder", os.path.isfile)):
        for name in names:
            if is_wrong(folder / name):
                raise InputError(f"{folder / name} is not a {kind}: move it away. {_WAY_OUT}")


def steps_in(folder: Path) -> dict[int, Path]:
    """Step -> path, such as "step-0000120", of all steps in a folder, ascending; other names are ignored."""
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    found = {int(match[1]): folder / name for name in names if (match := STEP.fullmatch(name))}
    return {step: path for step, path in sorted(found.items()) if path.name == name_of(step)}


def name_of(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:07d}"


def remove(path: Path):
    """Deletes a file, a folder or a link; what a link points to stays.

    Raises:
        OSError: it cannot be deleted.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def locked(file: Path, name: str):
    """Holds a lock file during the block; the system releases the lock if the process is killed.

    Args:
        file: path of the lock file, in an existing folder; removed at the end.
        name: what is locked, for the error message.

    Raises:
        InputError: another process holds it.

    Warns:
        UserWarning: the file system has no locks.
    """
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{name} is being trained by another process: wait for it, or stop it") from None
        except OSError as error:  # some network file systems and mounted drives have no locks
            said = f"{name} cannot be locked ({reason(error)}): do not train in it twice at the same time"
            warnings.warn(str(InputError(said)), stacklevel=3)
        if _is_still(descriptor, file):
            break
        os.close(descriptor)  # of a process that has just ended and removed it
    try:
        yield
    finally:
        if _is_still(descriptor, file):  # and not that of a process that came after this one removed its own
            with contextlib.suppress(OSError):
                file.unlink()
        os.close(descriptor)


def _is_still(descriptor, file):
    """Whether what was opened has that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except OSError:
        return False


def append(file: Path, text: str):
    """Appends to a regular file, which is made if it is missing.

    Raises:
        InputError: it is a link, or not a regular file.
    """
    flags = (
        os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    if os.path.lexists(file) and (file.is_symlink() or not is_regular(file)):
        raise InputError(f"{file} is not a file that a run wrote: delete it. {_WAY_OUT}")
    with os.fdopen(os.open(file, flags, 0o666), "a", encoding="utf-8") as opened:
        opened.write(text)


def keep_lines(file: Path, is_kept):
    """Rewrites a file of JSON lines with only those objects for which `is_kept(object)` is true.

    Lines that are not JSON objects, such as one cut off by a kill, are dropped. A process that is killed
    here leaves the file as it was.

    Raises:
        InputError: it is not a regular file, or not UTF-8 text.
    """
    if not os.path.lexists(file):
        return
    try:
        with replacing_file(file) as new, new.open("w", encoding="utf-8") as kept:
            for line in read_lines(file, root=file.parent):
                try:
                    entry = parse_json(line, file)
                except InputError:
                    continue
                if isinstance(entry, dict) and is_kept(entry):
                    kept.write(line.rstrip("\n") + "\n")
    except InputError as error:
        raise InputError(f"{error}. Repair it, or delete it to begin a new log") from None


def written_once(file: Path, pattern: str, make) -> str:
    """The word that a file holds; if the file is missing, writes what `make` returns.

    Args:
        file: path in the run's folder.
        pattern: regular expression that the word must match.
        make: function that returns the word.

    Raises:
        InputError: the file holds something else.
    """
    if not os.path.lexists(file):
        word = make()
        with replacing_file(file) as new:
            new.write_text(word, encoding="utf-8")
    word = read_text(file, most=1000, root=file.parent).strip()
    if not re.fullmatch(pattern, word):
        raise InputError(f"{file} holds something that no run wrote: delete it")
    return word

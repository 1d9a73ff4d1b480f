"""Shared by all command lines: flags from dataclasses, quiet libraries, one-line error messages."""

import argparse
import contextlib
import dataclasses
import errno
import os
import signal
import stat
import sys
import threading
import typing
import warnings
from pathlib import Path

from sd_tf.errors import InputError, printable
from sd_tf.files import reason
from sd_tf.options import meaning_of
from sd_tf.quiet import import_tensorflow

LOADING = {  # arguments of `sd_tf.load` that every command has as flags -> their help
    "revision": "branch, tag or commit of a model on the hub",
    "variant": "variant of the weight files, such as fp16",
    "tokenizer": "folder or hub id of a tokenizer to use instead of the model's",
    "prediction_type": "what the UNet predicts: epsilon, v_prediction or sample (default: the model's)",
}
LONGEST_SHOWN = 300  # characters of a path in a message


class Parser(argparse.ArgumentParser):
    """Reports a bad flag like other bad input: in one line, without the usage."""

    def error(self, message):
        raise InputError(f"{message}; {self.prog} --help lists the flags")


def add_flags(parser: argparse.ArgumentParser, options: type, defaults: dict | None = None):
    """Adds a flag for each field of an `Options` dataclass, with its name, type, default and help.

    The flag of a boolean takes no value and sets it to True.

    Args:
        parser: gets the flags, in an argument group for each `group` of fields.
        options: the dataclass.
        defaults: name of a field -> default to show in `--help` if the field's own is None, such as a
            preset's.
    """
    types, groups = typing.get_type_hints(options), {None: parser}
    for field in dataclasses.fields(options):
        meaning = meaning_of(field)
        if meaning.group not in groups:
            groups[meaning.group] = parser.add_argument_group(meaning.group)
        kinds = [kind for kind in typing.get_args(types[field.name]) if kind is not type(None)]
        kind = kinds[0] if kinds else types[field.name]
        flag, add = f"--{field.name.replace('_', '-')}", groups[meaning.group].add_argument
        text = meaning.help.replace("%", "%%")
        if kind is bool:
            add(flag, action="store_true", help=text)
            continue
        if typing.get_origin(kind) is tuple:
            metavar = "|".join(meaning.choices) if meaning.choices else "NAME"
            add(flag, nargs="+", default=field.default, metavar=metavar, help=text)
            continue
        default = (defaults or {}).get(field.name) if field.default is None else field.default
        add(
            flag,
            type=kind,
            default=field.default,
            metavar="|".join(meaning.choices) if meaning.choices else kind.__name__.upper(),
            help=text if default in (None, "") else f"{text} (default: {_shown(default)})",
        )


def _shown(default):
    return f"{default:g}" if isinstance(default, float) else str(default).replace("%", "%%")


def add_guidance_interval(parser: argparse.ArgumentParser):
    """Adds --guidance-interval, see `LatentDiffusion.generate`."""
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("START", "STOP"),
        help="part of the steps that is guided, as shares of all steps (default: the model's, or 0 1)",
    )


def add_levels(parser: argparse.ArgumentParser):
    """Adds --timestep-spacing and --karras, see `LatentDiffusion.generate`."""
    parser.add_argument("--timestep-spacing", help="leading, trailing or linspace (default: the model's)")
    parser.add_argument(
        "--karras",
        action=argparse.BooleanOptionalAction,
        help="noise levels of Karras et al. 2022, not for ddim, ddpm, pndm (default: the model's)",
    )


def add_loading(parser):
    """Adds the flags of `LOADING` to a parser or an argument group."""
    for name, text in LOADING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=text)


def loading(flags: argparse.Namespace) -> dict:
    """The arguments of `sd_tf.load` and `sd_tf.families.check` that `add_loading` has added."""
    return {name: getattr(flags, name) for name in LOADING}


def check_there(flag: str, files):
    """Raises `InputError` if one of the files or folders that a flag names is missing."""
    for file in files:
        if not os.path.exists(os.path.expanduser(file)):
            raise InputError(f"{flag} {file[:LONGEST_SHOWN]} is missing: name a file or a folder")


def from_flags(arguments: argparse.Namespace, options: type):
    """The instance of an `Options` dataclass with the values of the parsed flags."""
    return options(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(options)})


@contextlib.contextmanager
def naming_flags():
    """Within the block, `InputError`s name flags instead of Python arguments."""
    try:
        yield
    except InputError as error:
        raise error.with_flags() from None


def make_deterministic():
    """Makes all TensorFlow operations of this process deterministic, bit for bit."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def load_tensorflow():
    """Imports TensorFlow and Keras, without log messages of theirs, now and later."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def terminating_like_ctrl_c():
    """Within the block, SIGTERM, which schedulers send before they kill, acts like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_writable(folder: Path):
    """Raises `InputError` if an output folder cannot be made. Call it before the work, not after."""
    why_not = _why_not_writable(folder)
    if why_not is not None:
        raise InputError(f"--output {str(folder)[:LONGEST_SHOWN]} cannot be written: {why_not}")


def _why_not_writable(folder):
    found, parent = None, folder
    while found is None:
        try:
            found = os.stat(parent)
        except FileNotFoundError:
            if os.path.islink(parent):
                return f"{parent} is a link to nothing"
            parent = parent.parent
        except (OSError, ValueError) as error:  # a link to itself, a name too long, a folder of another user
            return reason(error)
    if not stat.S_ISDIR(found.st_mode) or not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is not a folder that you may write to"
    longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in folder.relative_to(parent).parts:
        if len(os.fsencode(name)) > longest:
            return f"a name has {len(os.fsencode(name))} bytes, at most {longest} are allowed"
    return None


def check_no_folder(file: Path):
    """Raises `InputError` if a folder has the name of a file to be written."""
    if file.is_dir():
        raise InputError(
            f"{file} is a folder, but a file is to be written there: remove it, or name another file"
        )


def run(main: typing.Callable[[], None]):
    """Runs a command line: exit status 2 and one line for bad input or a full disk, 130 for Ctrl-C."""
    if sys.getfilesystemencoding() != "utf-8":  # a locale of bytes: no prompt, caption or file name would fit
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    warnings.showwarning = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # prints a path that is not UTF-8 as its bytes
            stream.reconfigure(errors="surrogateescape" if _is_utf8(stream) else "backslashreplace")
    try:
        main()
    except InputError as error:
        print(f"error: {error.with_flags()}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(141) from None
    except Exception as error:  # libraries raise their own for a full disk
        if not any(os.strerror(full) in str(error) for full in (errno.ENOSPC, errno.EDQUOT)):
            raise
        place = f" for {printable(str(error.filename))}" if getattr(error, "filename", None) else ""
        print(f"error: there is no space left on the disk{place}: make room", file=sys.stderr)
        raise SystemExit(2) from None


def _is_utf8(stream):
    return (stream.encoding or "").replace("-", "").lower() == "utf8"

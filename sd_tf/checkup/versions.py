"""Versions: of Python, of the system, of the packages that are needed and of those of the extras."""

import configparser
import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import sd_tf
from sd_tf.checkup.findings import Finding
from sd_tf.errors import install_extra
from sd_tf.files import read_text

CHECKOUT = Path(sd_tf.__file__).parent.parent
FOR_DEVELOPERS = ("test", "bench", "notebooks")  # extras that are named last


def system() -> list[Finding]:
    """Python, the operating system and sd_tf."""
    return [
        Finding("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        Finding("executable", sys.executable),
        Finding("system", platform.platform()),
        Finding("sd_tf", f"{sd_tf.__version__} in {Path(sd_tf.__file__).parent}"),
    ]


def needed() -> list[Finding]:
    """The packages that sd_tf needs, and whether their versions are among those it is made for."""
    return [_needed(requirement) for requirement, extra in _requirements() if extra is None]


def optional() -> list[Finding]:
    """The packages of the extras; of what is not installed, how to install it."""
    extra_of = {}
    for requirement, extra in _requirements():
        if extra is not None:
            extra_of.setdefault(_name(requirement), []).append(extra)
    findings = []
    for name, extras in sorted(extra_of.items()):
        extra = min(extras, key=lambda each: each in FOR_DEVELOPERS)
        version = _version(name)
        findings.append(Finding(name, version or f"not installed: {install_extra(extra)}"))
    return findings


def _needed(requirement):
    name, version = _name(requirement), _version(_name(requirement))
    if version is None:
        return Finding(name, f'not installed: pip install "{requirement}"', is_missing=True)
    from packaging.requirements import Requirement  # which Keras needs

    if version not in Requirement(requirement).specifier:
        return Finding(name, f'{version}, sd_tf needs another: pip install "{requirement}"', is_missing=True)
    return Finding(name, version)


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _name(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def _requirements():
    """(requirement, its extra or None), of a checkout, or else of what is installed."""
    if (CHECKOUT / "setup.cfg").is_file() and (CHECKOUT / "requirements.txt").is_file():
        return _of_checkout()
    found = []
    for line in importlib.metadata.requires("sd_tf") or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](.+?)['\"]", marker)
        found.append((requirement.strip(), extra[1] if extra else None))
    return found


def _of_checkout():
    found = [(line, None) for line in _lines(read_text(CHECKOUT / "requirements.txt"))]
    parser = configparser.ConfigParser()
    parser.read_string(read_text(CHECKOUT / "setup.cfg"))
    for extra, text in parser["options.extras_require"].items():
        found += [(line, extra) for line in _lines(text)]
    return found


def _lines(text):
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]

"""Says what this installation and machine are, in a form for a report: `python -m sd_tf.doctor`.

Tokens are not shown, and the home folder is shown as ~. The exit status is 1 if something that sd_tf needs is
missing or broken, otherwise 0.
"""

import json
import re
from pathlib import Path

from sd_tf import commandline
from sd_tf.checkup import machine, places, versions
from sd_tf.checkup.findings import found_by
from sd_tf.errors import printable

CHECKS = {  # title of a section -> its checks
    "Versions": (versions.system, versions.needed),
    "Extras": (versions.optional,),
    "Machine": (machine.processor,),
    "Engines": (machine.tensorflow, machine.openvino),
    "Caches": (places.caches, places.hub_cache),
    "Bundled models": (places.models,),
    "Data": (places.data,),
    "Environment": (places.environment,),
    "Language": (places.language,),
}


def main(arguments=None):
    """Parses flags, checks, prints; raises `SystemExit` with status 1 if something needed is missing."""
    parser = commandline.Parser("python -m sd_tf.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(arguments)
    sections = examine()
    print(as_json(sections) if flags.json else as_text(sections))
    if missing_in(sections):
        raise SystemExit(1)


def examine() -> dict:
    """Title of a section -> its `Finding`s. A check that fails is a finding."""
    sections = {
        title: [finding for check in checks for finding in found_by(check, check.__name__)]
        for title, checks in CHECKS.items()
    }
    return {
        title: [finding._replace(value=_without_home(finding.value)) for finding in findings]
        for title, findings in sections.items()
    }


def missing_in(sections: dict) -> list[str]:
    """The names of what is needed and missing or broken."""
    return [finding.name for findings in sections.values() for finding in findings if finding.is_missing]


def as_text(sections: dict) -> str:
    """Sections of aligned lines."""
    width = max(len(finding.name) for findings in sections.values() for finding in findings)
    lines = []
    for title, findings in sections.items():
        lines += [title, *(f"  {name:{width}}  {printable(value)}" for name, value, _ in findings), ""]
    missing = missing_in(sections)
    lines.append(
        f"Missing or broken: {', '.join(missing)}" if missing else "Nothing that is needed is missing."
    )
    return "\n".join(lines)


def as_json(sections: dict) -> str:
    """An object of objects, and the list "missing"."""
    found = {title: {name: value for name, value, _ in findings} for title, findings in sections.items()}
    return json.dumps(found | {"missing": missing_in(sections)}, indent=2)


def _without_home(text):
    """The text with the home folder as ~."""
    try:
        home = str(Path.home()).rstrip("/")
    except RuntimeError:  # there is none
        return text
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home else text


if __name__ == "__main__":
    commandline.run(main)

"""Chooses a model's settings: `python -m sd_tf.recommend --model runs/mine --report evaluation/report.json`.

Of the settings that `sd_tf.evaluate` has tried, it takes those whose Fréchet distances, of grey pictures and
of pictures in colours, are nearest to the least of each. It writes them into the model's folder, where
`model.generate`, `sd_tf.generate` and the web page find them. A bundled model and one of the hub are shared
by all that is installed and stay as they are: copy the folder first, or name another one by `--output`.
"""

import dataclasses
import os
from pathlib import Path

from sd_tf import commandline, families
from sd_tf.checkpoints.sources import bundled_names, resolve, weights_sha256
from sd_tf.errors import InputError, naming, printable
from sd_tf.evaluation.protocol import check_comparable, read_reports
from sd_tf.gan.settings import settings_of as settings_of_gan
from sd_tf.generation.settings import FILE, Settings, read_settings, settings_of, write_settings

DISTANCE = "frechet_distance"  # how the names of scores end that are looked at
SETTINGS = (
    "sampler",
    "steps",
    "guidance_scale",
    "guidance_interval",
    "karras",
    "timestep_spacing",
    "seed",
    "truncation",
)


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, chooses, prints how the settings compare and writes the best."""
    flags = _parser().parse_args(arguments)
    folder = resolve(flags.model)
    if not folder.is_dir():
        raise InputError(f"--model {flags.model} is a file: save it as a folder first, by model.save")
    own = families.settings_folder(folder)  # a cascade's are those of its first stage
    output = _output(folder, own, flags.model, flags.output)
    resamples = _resamples(own)
    reports = [report for file in flags.report for report in read_reports(Path(file))]
    _check(reports, flags.model, weights_sha256(folder))
    distances = [_distances(report) for report in reports]
    excesses = excess_over_best(distances)
    best = min(range(len(reports)), key=lambda i: excesses[i])
    for i in sorted(range(len(reports)), key=lambda i: excesses[i]):
        found = ", ".join(f"{value:.3g}" for value in distances[i].values())
        print(printable(f"{excesses[i]:5.2f} times the best: {found}   {_described(reports[i]['settings'])}"))
    settings = _settings(reports[best], resamples)
    write_settings(output, settings, _about(reports[best], distances[best]))
    print(f"written: {output / FILE}")


def excess_over_best(distances: list[dict[str, float]]) -> list[float]:
    """How many times the least distance each is: for each entry, of the name where that is the most.

    Args:
        distances: name -> distance, the same names for each of several settings.
    """
    least = {name: min(each[name] for each in distances) for name in distances[0]}
    floor = 1e-9  # of pictures that are the reference itself
    return [max(max(each[name], floor) / max(least[name], floor) for name in least) for each in distances]


def _parser():
    parser = commandline.Parser("python -m sd_tf.recommend", description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the model that was evaluated")
    parser.add_argument(
        "--report",
        nargs="+",
        default=["evaluation/report.json"],
        help="report.json of sd_tf.evaluate, one or more (default: evaluation/report.json)",
    )
    parser.add_argument("--output", help=f"folder to write {FILE} into (default: the model's)")
    return parser


def _output(folder, own, model, output):
    """The folder to write into: the one that is named, or the model's if that is the user's own."""
    if output is not None:
        output = Path(os.path.expanduser(output))
        if not output.is_dir():
            raise InputError(f"--output {output} is no folder: make it first")
        return output
    if model in bundled_names() or not os.path.exists(os.path.expanduser(model)):
        raise InputError(
            f"--model {model} is not your own folder, and stays as it is: copy {folder} and name the copy, "
            "or give --output"
        )
    return own


def _check(reports, model, weights):
    for report in reports:
        if report.get("weights") != weights:
            raise InputError(
                f"the report of {report['model']} is of other weights than those of --model {model}: "
                "evaluate it again"
            )
        if not isinstance(report.get("settings"), dict):
            raise InputError(f"the report of {report['model']} names no settings: evaluate it again")
        if not _distances(report):
            raise InputError(
                f"the report of {report['model']} has no Fréchet distance to choose by: write {FILE} into "
                'the model\'s folder by hand, such as {"guidance_scale": 2.0}'
            )
    if len(reports) < 2:
        raise InputError(
            "--report has one setting: let sd_tf.evaluate try several, such as by --guidance-scale"
        )
    check_comparable(reports, SETTINGS)
    names = [set(_distances(report)) for report in reports]
    if any(each != names[0] for each in names):
        raise InputError("--report has reports by different judges: evaluate all settings by the same")


def _distances(report):
    return {name: score["value"] for name, score in report["scores"].items() if name.endswith(DISTANCE)}


def _resamples(folder):
    """Those that the folder recommends already, as no report tells of them."""
    try:
        return read_settings(folder, Settings()).resamples
    except InputError:  # what is damaged is written anew
        return Settings().resamples


def _settings(report, resamples):
    given = {name: value for name, value in report["settings"].items() if name != "seed"}
    with naming("--report"):
        if "truncation" in given:
            return settings_of_gan(given)
        return dataclasses.replace(settings_of(given), resamples=resamples)


def _about(report, distances):
    return {
        "found_by": report["command"],
        "distances": {name: round(each, 4) for name, each in distances.items()},
    }


def _described(settings):
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


if __name__ == "__main__":
    commandline.run(main)

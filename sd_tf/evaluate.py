"""Scores models: `python -m sd_tf.evaluate --model fashion-mnist`, or several with `--compare A B`.

Writes report.json, where every number stands with its protocol, and report.html, a page to look at.
"""

import argparse
import dataclasses
import itertools
import json
import re
import shlex
import sys
import tempfile
import warnings
from pathlib import Path

from sd_tf import commandline, families
from sd_tf.checkpoints.sources import resolve, weights_sha256
from sd_tf.data.open import open_data
from sd_tf.data.options import DATASETS, DataOptions
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.errors import InputError, unknown
from sd_tf.evaluation.protocol import (
    OF_FAMILIES,
    UNITS,
    check_comparable,
    check_samples,
    read_reports,
)
from sd_tf.files import write_text
from sd_tf.gan.settings import GanSettings
from sd_tf.generation.settings import Settings
from sd_tf.options import is_choice, meaning_of

FASHION_MNIST = "fashion_mnist"  # whose garments have judges of their own
# Drawn garments have no end, so that there are no pictures that a model has not seen.
JUDGED_DATASETS = [name for name in DATASETS if name != "garments"]
DATA_FLAGS = ("caption", "caption_column", "caption_template", "fit", "background")  # of captioned pictures
USUAL_SAMPLES = {True: (5000, 1600), False: (400, 200)}  # of Fashion-MNIST, of captioned pictures
COMPARED_SETTINGS = ("sampler", "steps", "guidance_scale", "truncation")  # of which several may be given
GARMENT_SIDE = 32  # pixels of Fashion-MNIST's pictures, with their border
GIVEN_SETTINGS = (*COMPARED_SETTINGS, "guidance_interval", "karras", "timestep_spacing")


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, draws pictures, has them judged and writes the report."""
    flags = _parser().parse_args(arguments)
    _complete(flags)
    _check(flags)
    _check_output(Path(flags.output))
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "sd_tf.evaluate", *words])
    reports, pictures = _reports(flags, command)
    commandline.load_tensorflow()
    check_comparable(reports, _compared(flags))
    _write(flags, command, reports, pictures)


def _parser():
    parser = commandline.Parser("python -m sd_tf.evaluate", description=__doc__)
    parser.add_argument("--model", help="a bundled name, a folder or a hub id (default: fashion-mnist)")
    commandline.add_loading(parser)
    parser.add_argument(
        "--compare", nargs="+", metavar="MODEL", help="models, or report.json files of earlier evaluations"
    )
    _add_data_flags(parser)
    _add_drawing_flags(parser)
    _add_judge_flags(parser)
    parser.add_argument("--output", default="evaluation", help="folder for the report (default: evaluation)")
    return parser


def _add_data_flags(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--dataset",
        default=FASHION_MNIST,
        help="fashion_mnist, whose garments are judged, or captioned pictures, as sd_tf.train takes them",
    )
    parser.add_argument("--data-dir", help=meaning_of(DataOptions.named("data_dir")).help)
    for name in DATA_FLAGS:
        help = meaning_of(DataOptions.named(name)).help
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"of captioned pictures: {help}")
    parser.add_argument(
        "--colour-prompt",
        help="of captioned pictures on white: a prompt with {} for a colour (default: pokemon has its own)",
    )


def _add_drawing_flags(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--samples",
        type=int,
        help="pictures of prompts without a colour, or of the data set's captions (default: 5000, or 400)",
    )
    parser.add_argument(
        "--tinted-samples",
        type=int,
        help="pictures of prompts with a colour (default: 1600, or 200; fewer with fewer --samples)",
    )
    for name, kind, default, text in (
        ("sampler", str, "ddim", "ddim, euler, dpmpp_2m, unipc, …; several are compared"),
        ("steps", int, 20, "sampling steps; several numbers are compared"),
        ("guidance_scale", float, 3, "weight of the prompt in guidance; several are compared"),
        ("truncation", float, 1, "of GANs, 0 to 1, less for less variety; several are compared"),
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            nargs="+",
            default=[None],
            help=f"{text} (default: the model's, or {default})",
        )
    commandline.add_guidance_interval(parser)
    commandline.add_levels(parser)
    parser.add_argument("--seed", type=int, default=0, help="of each prompt's first picture (default: 0)")


def _add_judge_flags(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--classifier",
        default="fashion-mnist-classifier",
        help="a bundled name or a folder (default: fashion-mnist-classifier)",
    )
    parser.add_argument(
        "--clip", default="clip-mini", help="a bundled name, a folder or a hub id (default: clip-mini)"
    )
    parser.add_argument(
        "--inception",
        help="file of the Inception graph, or 'none' (default: in the user's cache, or downloaded)",
    )
    parser.add_argument(
        "--lpips",
        nargs="+",
        metavar="FILE",
        help="safetensors files of LPIPS: AlexNet or VGG-16 with torchvision's names, and the linear heads "
        "(default: a bundled network measures diversity in its place)",
    )


def _check_output(output):
    commandline.check_writable(output)
    for name in ("report.json", "report.html"):
        commandline.check_no_folder(output / name)


def _write(flags, command, reports, pictures):
    """Writes and prints what was found."""
    from sd_tf.evaluation import report as reporting

    output = Path(flags.output)
    is_plotted = len(reports) > 1 and flags.dataset == FASHION_MNIST
    plot = reporting.pareto_plot(reports) if is_plotted else None
    output.mkdir(parents=True, exist_ok=True)
    whole = reports[0] if len(reports) == 1 else {"reports": reports}
    write_text(output / "report.json", _json(whole))
    page = reporting.page(reports, pictures, command, plot)
    write_text(output / "report.html", page)
    print(reporting.as_text(reports))
    print(f"written: {output / 'report.json'}, {output / 'report.html'}")


def _compared(flags):
    """What may differ in protocols: settings of which several were given or models have their own."""
    several = [name for name in COMPARED_SETTINGS if len(getattr(flags, name)) > 1]
    if not flags.compare or any(name.endswith(".json") for name in flags.compare):
        return several
    own = [name for name in GIVEN_SETTINGS if getattr(flags, name) in (None, [None])]
    return [*several, *own, *OF_FAMILIES]


def _json(value):
    """As text, with a list of numbers on one line."""
    text = json.dumps(value, indent=2) + "\n"
    return re.sub(r"\[[-\d.,\s]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)


def _complete(flags):
    """Fills in defaults that depend on the data set, and refuses flags that it does not take."""
    if not is_choice(flags.dataset, JUDGED_DATASETS):
        raise unknown("--dataset", flags.dataset, JUDGED_DATASETS)
    samples, tinted_samples = USUAL_SAMPLES[flags.dataset == FASHION_MNIST]
    if flags.tinted_samples is None:  # fewer where fewer of the others were asked for
        unit = UNITS[flags.dataset == FASHION_MNIST][1]
        share = min(1.0, max(0, flags.samples or samples) / samples)
        flags.tinted_samples = max(2 * unit, int(share * tinted_samples) // unit * unit)
    flags.samples = samples if flags.samples is None else flags.samples
    for name in (*DATA_FLAGS, "colour_prompt"):
        if flags.dataset == FASHION_MNIST and getattr(flags, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is for captioned pictures: leave it out with --dataset {FASHION_MNIST}")
    if flags.dataset == "pokemon" and flags.colour_prompt is None:
        flags.colour_prompt = "a drawing of a {} pokemon"
    if flags.colour_prompt is not None and flags.colour_prompt.count("{}") != 1:
        raise InputError(f"--colour-prompt is {flags.colour_prompt!r}: put one {{}} where the colour goes")


def _check(flags):
    if flags.model is not None and flags.compare is not None:
        raise InputError("--model and --compare are both given: name all models behind --compare")
    check_samples(flags.dataset == FASHION_MNIST, flags.samples, flags.tinted_samples)
    of_any_model = NoiseSchedule(ScheduleConfig(timestep_spacing="trailing"))
    for given in _given_settings(flags):
        GanSettings().replaced(truncation=given.pop("truncation"))
        settings = Settings().replaced(**given)
        if settings.karras and given["sampler"] is None:  # it may suit the model's
            settings = dataclasses.replace(settings, karras=False)
        settings.levels(of_any_model)
    if not 0 <= flags.seed < 2**32:
        raise InputError(f"--seed is {flags.seed}: give 0 to {2**32 - 1}")


def _reports(flags, command):
    """The reports of all models and settings, and the pictures of each model's first."""
    names = flags.compare or [flags.model or "fashion-mnist"]
    # Whatever can be wrong is found before minutes of drawing.
    earlier = {name: read_reports(Path(name)) for name in names if name.endswith(".json")}
    check_comparable([report for found in earlier.values() for report in found], _compared(flags))
    new = [name for name in names if name not in earlier]
    sides = _check_paths(flags, new)
    given = {key for each in _given_settings(flags) for key, value in each.items() if value is not None}
    for name in new:
        families.check_takes(families.class_of(name, flags.revision), given)
    judges = _judges(flags, sides) if new else None
    reports, pictures = [], {}
    for name in names:
        if name in earlier:
            reports += earlier[name]
            continue
        for report, sheets in _scored(name, flags, judges, command):
            reports.append(report)
            if report["model"] not in [label.partition(", ")[0] for label in pictures]:
                pictures[report["label"]] = sheets
    return reports, pictures


def _check_paths(flags, models):
    """Refuses models, judges and data that are missing or do not fit, before TensorFlow is imported.

    Returns:
        Name of a model -> the side of the square pictures that it draws.
    """
    loading = commandline.loading(flags)
    for name, value in loading.items():
        if value is not None and not models:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is for models, but only reports are compared: leave it out")
    for name in models:
        families.check(name, from_text=True, **loading)
    sides = {name: _side(name, loading) for name in models}
    if models:
        _open_data(flags)
        if flags.dataset == FASHION_MNIST:
            _check_sides(sides)
            resolve(flags.classifier, kind="classifier")
            resolve(flags.clip, kind="CLIP")
        if flags.inception not in (None, "none"):
            commandline.check_there("--inception", [flags.inception])
        commandline.check_there("--lpips", flags.lpips or [])
    return sides


def _side(name, loading):
    """The side of the pictures that a model draws, whose networks are not read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load` says it
        height, width = families.load_lazily(name, **loading).image_size
    if height != width:
        raise InputError(f"{name} draws pictures of {width} x {height}: only square ones are judged")
    return height


def _check_sides(sides):
    for name, side in sides.items():
        if side != GARMENT_SIDE:
            raise InputError(
                f"{name} draws pictures of {side} x {side}: Fashion-MNIST's garments are judged at "
                f"{GARMENT_SIDE} x {GARMENT_SIDE}"
            )


def _open_data(flags):
    given = {name: getattr(flags, name) for name in DATA_FLAGS if getattr(flags, name) is not None}
    return open_data(flags.dataset, data_dir=flags.data_dir, **given)


def _judges(flags, sides):
    """Name of a model -> what judges its pictures."""
    commandline.load_tensorflow()
    if flags.dataset != FASHION_MNIST:
        return _picture_judges(flags, sides)
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.judging import Judges

    train, test = (FashionMNIST(split, flags.data_dir) for split in ("train", "test"))
    return dict.fromkeys(
        sides, Judges(train, test, flags.classifier, flags.clip, flags.inception, flags.lpips)
    )


def _picture_judges(flags, sides):
    """As `_judges`: pictures of each size are held against real ones of that size."""
    from sd_tf.evaluation.of_pictures import PictureJudges

    data, found = _open_data(flags), {}
    for side in set(sides.values()):
        with tempfile.TemporaryDirectory(prefix="sd_tf-") as folder:
            dataset = data.at(side, folder)
            dataset.decode()
            is_one_of_several = len(set(sides.values())) > 1
            inception = None if flags.inception == "none" else flags.inception
            found[side] = PictureJudges(
                dataset, flags.colour_prompt, is_one_of_several, flags.lpips, inception
            )
    return {name: found[side] for name, side in sides.items()}


def _given_settings(flags):
    """The settings that flags give, one after another; None is the model's."""
    fixed = {name: getattr(flags, name) for name in GIVEN_SETTINGS if name not in COMPARED_SETTINGS}
    for values in itertools.product(*(getattr(flags, name) for name in COMPARED_SETTINGS)):
        yield dict(zip(COMPARED_SETTINGS, values, strict=True)) | fixed


def _scored(name, flags, judges, command):
    """A report and sheets of pictures for each of the settings, one after another."""
    from sd_tf.evaluation import judging

    model = families.load(name, **commandline.loading(flags))
    judges, facts = judges[name], getattr(model, "drawing_facts", dict)()
    skipped = judges.skipped | ({} if judging.has_autoencoder(model) else judging.NO_AUTOENCODER)
    skipped |= {} if judging.reads_text(model) else judging.NO_TEXT
    coloured = flags.dataset == FASHION_MNIST or flags.colour_prompt
    weights = weights_sha256(resolve(name, flags.revision, flags.variant), flags.variant)
    number = flags.samples + (flags.tinted_samples if coloured else 0)
    for given in _given_settings(flags):
        given = {each: value for each, value in given.items() if value is not None}
        settings = _described(model.recommended.replaced(**given)) | {"seed": flags.seed}
        described = ", ".join(f"{each.replace('_', ' ')} {value}" for each, value in settings.items())
        print(f"{name}: {number} pictures, {described}", file=sys.stderr)
        drawn = judges.draw(model, flags.samples, flags.tinted_samples, settings)
        found = judges.scores(drawn, settings | facts, model.text_encoder)
        found = found if judging.reads_text(model) else judging.without_agreement(found)
        varied = [
            f"{each.replace('_', ' ')} {settings[each]}" for each in _compared(flags) if each in settings
        ]
        report = {
            "model": name,
            "label": ", ".join([name, *varied]),
            "weights": weights,
            "command": command,
            "settings": settings,
            **({"drawing": facts} if facts else {}),
            **judges.about,
            "skipped": skipped,
            "scores": {title: score.to_json() for title, score in found.items()},
        }
        yield report, judges.sheets(drawn)


def _described(settings):
    """Settings as protocols have them: some only if they are not the usual ones, as in older reports."""
    values = settings.to_json()
    values.pop("resamples", None)  # of inpainting, which nothing is judged by
    usual = {"guidance_rescale": 0.0, "eta": 0.0, "karras": False, "timestep_spacing": None}
    return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


if __name__ == "__main__":
    commandline.run(main)

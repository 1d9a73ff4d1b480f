"""Pictures for the same minutes: our preset against diffusers, trained and judged in one run.

    python -m benchmarks.quality --output DIR [--minutes 28] [--also fashion-mnist ...]

Trains one after the other, each with the same wall-clock minutes on the whole machine, from starting the
process to having the weights; ours less the minutes that its frozen networks took, once, before. Looks for
each one's best guidance by the Frechet distance of few pictures: scales, until it rises, in all steps and
then in the later ones alone. Has many judged by `sd_tf.evaluation`, of diffusers also those with its best
guidance in all steps, to which the ratios are; `--also` names other models to be judged so. What was
trained stays in DIR, so that a second call judges again. Flags of `sd_tf.train` are passed on. Writes
`quality.json`, which `sd_tf.evaluate --compare` reads, and `quality.html`.
"""

import argparse
import functools
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

SCALES = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
STARTS = [0.0, 0.35]  # shares of the steps before guidance
PATIENCE = 1  # scales in a row that are worse than the best one end the search
SEARCH = {"samples": 500, "tinted_samples": 160}  # for each guidance scale
OURS, THEIRS = "sd_tf", "diffusers"
PRESET = "fashion-mnist-narrow"
PEER = "benchmarks.peers.trained_diffusers"
DRAWING = {"sampler": "ddim", "steps": 25, "seed": 0}
FROZEN_MINUTES = 7  # of `clip-mini` and `perceptual-mini`, on two cores
STARTING_MINUTES = 1  # of `sd_tf.train`, tracing and saving included, which its budget does not count


def train(output, minutes, arguments):
    """Both models, in processes of their own; the minutes that each took.

    Raises:
        ValueError: `output` holds an unfinished run, or one of other minutes or flags.
    """
    file, asked = output / "minutes.json", {"minutes": minutes, "flags": arguments}
    if file.is_file():
        found = json.loads(file.read_text())
        if found["asked"] != asked:
            raise ValueError(
                f"{output} was trained with {found['asked']}, not {asked}: name another --output"
            )
        return found["took"]
    for name in (THEIRS, OURS):
        if (output / name).exists():
            raise ValueError(
                f"{output / name} is of a run that was stopped: remove it, its minutes are not known"
            )
    budget = minutes - FROZEN_MINUTES - STARTING_MINUTES
    ours = ["sd_tf.train", "--dataset", "fashion_mnist", "--preset", PRESET, "--max-minutes", budget]
    took = {}
    for name, words in {THEIRS: [PEER, "--minutes", minutes], OURS: [*ours, *arguments]}.items():
        began = time.monotonic()
        _run(*words, "--output", output / name)
        took[name] = (time.monotonic() - began) / 60
    file.write_text(json.dumps({"asked": asked, "took": took}))
    return took


def _run(*words):
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


class Guidance(NamedTuple):
    """A scale, and the share of the steps that go before it is on."""

    scale: float
    start: float

    def __str__(self):
        return f"guidance {self.scale:g}" + (f" from {self.start:g} on" if self.start else "")

    def drawing(self):
        """What is to be said of how pictures were drawn, and what `LatentDiffusion.generate` takes."""
        return DRAWING | {"guidance_scale": self.scale, "guidance_interval": [self.start, 1.0]}


class Ours:
    """A model of sd_tf that is judged: `folder` is one, or a bundled name."""

    def __init__(self, name, folder):
        import sd_tf
        from sd_tf.checkpoints.sources import resolve, weights_sha256

        self.name, self.model = name, sd_tf.load(folder)
        self.weights = weights_sha256(resolve(folder))
        self.text_encoder = self.model.text_encoder

    def drawn(self, judges, guidance, samples, tinted_samples, rebuild=True):
        """Its pictures by some guidance, and what its autoencoder makes of real ones."""
        return judges.draw(self.model, samples, tinted_samples, guidance.drawing(), rebuild)


class Theirs:
    """What diffusers trained: `folder` keeps the pictures that it has drawn."""

    name, text_encoder = THEIRS, None

    def __init__(self, folder):
        from sd_tf.checkpoints.sources import weights_sha256

        self.folder, self.weights = folder, weights_sha256(folder)

    def drawn(self, judges, guidance, samples, tinted_samples, rebuild=True):
        """As `Ours.drawn`."""
        from sd_tf.evaluation.scores import Drawn

        scale, start = guidance
        file = self.folder / f"drawn-{scale:g}-{start:g}-{samples}-{tinted_samples}.npz"
        if not file.is_file():
            words = {
                "--output": self.folder,
                "--guidance-scale": scale,
                "--guidance-start": start,
                "--steps": DRAWING["steps"],
                "--seed": DRAWING["seed"],
                "--samples": samples,
                "--tinted-samples": tinted_samples,
            }
            _run(PEER, *(word for pair in words.items() for word in pair))
        pictures = np.load(file)
        return Drawn(pictures["grey"], pictures["tinted"], pictures["rebuilt"] if rebuild else None)


def report(contestant, guidance, drawn, judges):
    """What `sd_tf.evaluate` writes of a model."""
    found = judges.scores(drawn, guidance.drawing(), contestant.text_encoder)
    return {
        "model": contestant.name,
        "label": f"{contestant.name}, {guidance}",
        "weights": contestant.weights,
        "command": command(),
        "skipped": judges.skipped,
        "scores": {title: score.to_json() for title, score in found.items()},
    }


def few(contestant, judges, guidance):
    """The report of few of its pictures, but for reconstructions, which no guidance changes."""
    drawn = contestant.drawn(judges, guidance, **SEARCH, rebuild=False)
    return report(contestant, guidance, drawn, judges)


def command():
    return shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]])


def search(report_of):
    """Reports by guidance, of `report_of(guidance)`, and the best one.

    With each start the scale grows until the distance rises, from the best one with the start before: the
    later guidance begins, the more of it there may be.
    """
    reports, first = {}, SCALES[0]
    for start in STARTS:
        own = {}
        for scale in SCALES[SCALES.index(first) :]:
            own[Guidance(scale, start)] = report_of(Guidance(scale, start))
            best = min(own, key=lambda guidance: distance(own[guidance]))
            if list(own).index(best) + PATIENCE < len(own):
                break
        reports, first = reports | own, best.scale
    return reports, min(reports, key=lambda guidance: distance(reports[guidance]))


def distance(report):
    return report["scores"]["frechet_distance"]["value"]


def table(reports):
    """Values, and their ratios to the first report's."""
    lines = [f"{'':28}" + "".join(f"{report['model']:>22}" for report in reports) + f"{'real':>10}"]
    for name, score in reports[0]["scores"].items():
        values = [report["scores"][name]["value"] for report in reports]
        cells = [f"{values[0]:22.4g}"]
        cells += [f"{value:13.4g} ({value / values[0] if values[0] else 0:5.3f})" for value in values[1:]]
        real = "" if score["real"] is None else f"{score['real']:.4g}"
        lines.append(f"{name:28}{''.join(f'{cell:>22}' for cell in cells)}{real:>10}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=28.0, help="for each of the two (default: 28)")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--tinted-samples", type=int, default=800)
    parser.add_argument(
        "--also", nargs="*", default=[], help="other models to judge, bundled names or folders"
    )
    options, of_training = parser.parse_known_args()
    least = FROZEN_MINUTES + STARTING_MINUTES
    if options.minutes <= least:
        parser.error(f"--minutes is {options.minutes:g}: give more than {least}, which we take before")
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        minutes = train(options.output, options.minutes, of_training)
    except ValueError as error:
        parser.error(str(error))

    from sd_tf import commandline

    commandline.load_tensorflow()
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.judging import Judges
    from sd_tf.evaluation.protocol import check_comparable
    from sd_tf.evaluation.report import page, pareto_plot

    judges = Judges(FashionMNIST("train"), FashionMNIST("test"), inception="none")
    contestants = [Theirs(options.output / THEIRS), Ours(OURS, options.output / OURS)]
    contestants += [Ours(name, name) for name in options.also]
    chosen, searched, pictures = [], [], {}
    for contestant in contestants:
        reports, best = search(functools.partial(few, contestant, judges))
        searched += reports.values()
        in_all_steps = min((each for each in reports if not each.start), key=lambda g: distance(reports[g]))
        for guidance in dict.fromkeys([in_all_steps, best] if contestant.name == THEIRS else [best]):
            drawn = contestant.drawn(judges, guidance, options.samples, options.tinted_samples)
            chosen.append(report(contestant, guidance, drawn, judges))
            pictures[chosen[-1]["label"]] = judges.sheets(drawn)
    check_comparable(chosen, varied=["guidance_scale", "guidance_interval"])
    found = {"minutes": minutes, "searched": searched, "reports": chosen}
    (options.output / "quality.json").write_text(json.dumps(found))
    (options.output / "quality.html").write_text(page(chosen, pictures, command(), pareto_plot(searched)))
    print(table(chosen))
    best = "; ".join(each["label"] for each in chosen)
    print(f"minutes: {', '.join(f'{name} {took:.2f}' for name, took in minutes.items())}; best: {best}")


if __name__ == "__main__":
    main()

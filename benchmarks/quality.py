"""Pictures for the same minutes: our preset against diffusers, trained and judged in one run.

    python -m benchmarks.quality --output DIR [--minutes 28]

Trains one after the other, each with the same wall-clock minutes on the whole machine, from starting the
process to having the weights; ours less the minutes that its frozen networks took, once, before. Looks for
each one's best guidance scale by the Frechet distance of few pictures, until it rises, and has many judged by
`sd_tf.evaluation`. What was trained stays in DIR, so that a second call judges again. Flags of
`sd_tf.train` are passed on. Writes `quality.json` and `quality.html`.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SCALES = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.5]
PATIENCE = 2  # scales in a row that are worse than the best one end the search
SEARCH = {"samples": 500, "tinted_samples": 160}  # for each guidance scale
OURS, THEIRS = "sd_tf", "diffusers"
PRESET = "fashion-mnist-narrow"
PEER = "benchmarks.peers.trained_diffusers"
DRAWING = {"sampler": "ddim", "steps": 25, "seed": 0}
FROZEN_MINUTES = 7  # of `clip-mini` and `perceptual-mini`, on two cores
STARTING_MINUTES = 1  # of `sd_tf.train`, tracing and saving included, which its budget does not count


def train(output, minutes, arguments):
    """Both models, in processes of their own; the minutes that each took."""
    file = output / "minutes.json"
    if file.is_file():
        return json.loads(file.read_text())
    budget = minutes - FROZEN_MINUTES - STARTING_MINUTES
    ours = ["sd_tf.train", "--dataset", "fashion_mnist", "--preset", PRESET, "--max-minutes", budget]
    took = {}
    for name, words in {THEIRS: [PEER, "--minutes", minutes], OURS: [*ours, *arguments]}.items():
        began = time.monotonic()
        _run(*words, "--output", output / name)
        took[name] = (time.monotonic() - began) / 60
    file.write_text(json.dumps(took))
    return took


def _run(*words):
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


class Contestants:
    """Both trained models, and who judges them."""

    def __init__(self, output):
        import sd_tf
        from sd_tf.data.fashion_mnist import FashionMNIST
        from sd_tf.evaluation.judging import Judges

        self.output = output
        self.judges = Judges(FashionMNIST("train"), FashionMNIST("test"), inception="none")
        self.model = sd_tf.load(output / OURS)

    def drawn(self, name, scale, samples, tinted_samples):
        """One's pictures at a guidance scale."""
        from sd_tf.evaluation import judging
        from sd_tf.evaluation.scores import Drawn

        if name == OURS:
            settings = DRAWING | {"guidance_scale": scale}
            return judging.draw(self.model, self.judges.real, samples, tinted_samples, settings)
        file = self.output / THEIRS / f"drawn-{scale:g}-{samples}-{tinted_samples}.npz"
        if not file.is_file():
            counts = ["--samples", samples, "--tinted-samples", tinted_samples]
            _run(PEER, "--output", self.output / THEIRS, "--guidance-scale", scale, *counts)
        pictures = np.load(file)
        return Drawn(pictures["grey"], pictures["tinted"], pictures["rebuilt"])

    def search(self, name):
        """Reports of few pictures by guidance scale, until the distance rises, and the best scale."""
        reports = {}
        for scale in SCALES:
            reports[scale] = self.report(name, scale, self.drawn(name, scale, **SEARCH))
            best = min(reports, key=lambda scale: distance(reports[scale]))
            if list(reports).index(best) + PATIENCE < len(reports):
                break
        return reports, best

    def report(self, name, scale, drawn):
        """What `sd_tf.evaluate` writes of a model."""
        text_encoder = self.model.text_encoder if name == OURS else None
        found = self.judges.scores(drawn, DRAWING | {"guidance_scale": scale}, text_encoder)
        return {
            "model": name,
            "label": f"{name}, guidance {scale:g}",
            "command": shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]]),
            "skipped": self.judges.skipped,
            "scores": {title: score.to_json() for title, score in found.items()},
        }


def distance(report):
    return report["scores"]["frechet_distance"]["value"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=28.0, help="for each of the two (default: 28)")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--tinted-samples", type=int, default=800)
    options, of_training = parser.parse_known_args()
    least = FROZEN_MINUTES + STARTING_MINUTES
    if options.minutes <= least:
        parser.error(f"--minutes is {options.minutes:g}: give more than {least}, which we take before")
    options.output.mkdir(parents=True, exist_ok=True)
    minutes = train(options.output, options.minutes, of_training)

    from sd_tf import commandline

    commandline.load_tensorflow()
    from sd_tf.evaluation.report import page, pareto_plot, sheets

    contestants, searched, chosen, pictures = Contestants(options.output), [], [], {}
    for name in (THEIRS, OURS):
        reports, scale = contestants.search(name)
        drawn = contestants.drawn(name, scale, options.samples, options.tinted_samples)
        chosen.append(contestants.report(name, scale, drawn))
        searched += reports.values()
        pictures[chosen[-1]["label"]] = sheets(drawn, contestants.judges)
    found = {"minutes": minutes, "searched": searched, "chosen": chosen}
    (options.output / "quality.json").write_text(json.dumps(found, indent=2))
    (options.output / "quality.html").write_text(page(chosen, pictures, pareto_plot(searched)))
    print(f"{'':28}{THEIRS:>12}{OURS:>12}{'ratio':>9}{'real':>9}")
    for name, score in chosen[0]["scores"].items():
        theirs, ours = score["value"], chosen[1]["scores"][name]["value"]
        real = "" if score["real"] is None else f"{score['real']:.4g}"
        print(f"{name:28}{theirs:12.4g}{ours:12.4g}{ours / theirs if theirs else 0:9.3f}{real:>9}")
    print(f"minutes: {minutes}; best guidance: {', '.join(report['label'] for report in chosen)}")


if __name__ == "__main__":
    main()

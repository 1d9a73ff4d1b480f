"""Pictures for the same minutes: our preset against diffusers, trained and judged in one run.

    python -m benchmarks.quality --output DIR [--minutes 28]

Trains one after the other, each with the same wall-clock minutes on the whole machine, from starting the
process to having the weights; draws from each at several guidance scales; and has all pictures judged by
`sd_tf.evaluation`. Compared is each one's best guidance, by its Frechet distance. What was trained stays in
DIR, so that a second call judges again. Writes `quality.json` and `quality.html`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SCALES = [1.0, 1.5, 2.0, 2.5]
OURS, THEIRS = "sd_tf", "diffusers"
PEER = "benchmarks.peers.trained_diffusers"
DRAWING = {"sampler": "ddim", "steps": 25, "seed": 0}


def train(output, minutes, arguments):
    """Both models, in processes of their own; the minutes that each took."""
    file = output / "minutes.json"
    if file.is_file():
        return json.loads(file.read_text())
    took = {}
    for name, words in {
        THEIRS: [PEER, "--minutes", minutes],
        OURS: ["sd_tf.train", "--dataset", "fashion_mnist", "--max-minutes", minutes, *arguments],
    }.items():
        began = time.monotonic()
        _run(*words, "--output", output / name)
        took[name] = (time.monotonic() - began) / 60
    file.write_text(json.dumps(took))
    return took


def _run(*words):
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def judged(output, samples, tinted_samples):
    """A report for each model and guidance scale, and sheets of each model's best."""
    import sd_tf
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation import judging
    from sd_tf.evaluation.report import sheets
    from sd_tf.evaluation.scores import Drawn

    judges = judging.Judges(FashionMNIST("train"), FashionMNIST("test"), inception="none")
    model = sd_tf.load(output / OURS)
    through = np.load(output / THEIRS / "rebuilt.npz")["rebuilt"]
    reports, pictures = [], {}
    for scale in SCALES:
        file = np.load(output / THEIRS / f"guidance-{scale:g}.npz")
        settings = DRAWING | {"guidance_scale": scale}
        both = {
            THEIRS: (Drawn(file["grey"], file["tinted"], through), None),
            OURS: (judging.draw(model, judges.real, samples, tinted_samples, settings), model.text_encoder),
        }
        for name, (drawn, text_encoder) in both.items():
            found = judges.scores(drawn, settings, text_encoder)
            report = {
                "model": name,
                "label": f"{name}, guidance {scale:g}",
                "command": f"python -m benchmarks.quality --output {output}",
                "skipped": judges.skipped,
                "scores": {title: score.to_json() for title, score in found.items()},
            }
            reports.append(report)
            distance = found["frechet_distance"].value
            if distance <= best(reports, name)["scores"]["frechet_distance"]["value"]:
                pictures[name] = sheets(drawn, judges)
    return reports, pictures


def best(reports, name):
    """A model's report with the smallest Frechet distance."""
    own = [report for report in reports if report["model"] == name]
    return min(own, key=lambda report: report["scores"]["frechet_distance"]["value"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=28.0, help="for each of the two (default: 28)")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tinted-samples", type=int, default=1600)
    options, of_training = parser.parse_known_args()
    options.output.mkdir(parents=True, exist_ok=True)
    minutes = train(options.output, options.minutes, options.samples, options.tinted_samples, of_training)

    from sd_tf import commandline

    commandline.load_tensorflow()
    from sd_tf.evaluation.report import page, pareto_plot

    reports, pictures = judged(options.output, options.samples, options.tinted_samples)
    (options.output / "quality.json").write_text(
        json.dumps({"minutes": minutes, "reports": reports}, indent=2)
    )
    chosen = [best(reports, name) for name in (THEIRS, OURS)]
    (options.output / "quality.html").write_text(page(chosen, pictures, pareto_plot(reports)))
    print(f"{'':28}{THEIRS:>12}{OURS:>12}{'ratio':>9}{'real':>9}")
    for name, score in chosen[0]["scores"].items():
        theirs, ours = score["value"], chosen[1]["scores"][name]["value"]
        real = "" if score["real"] is None else f"{score['real']:.4g}"
        print(f"{name:28}{theirs:12.4g}{ours:12.4g}{ours / theirs if theirs else 0:9.3f}{real:>9}")
    print(f"minutes: {minutes}; best guidance: {', '.join(report['label'] for report in chosen)}")


if __name__ == "__main__":
    main()

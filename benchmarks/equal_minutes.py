"""MinImagen's base for the same minutes as ours, on Fashion-MNIST, judged as `sd_tf.evaluate` judges.

    python -m benchmarks.equal_minutes --output DIR --minutes 28
    python -m benchmarks.equal_minutes --output DIR --steps N --sampling-steps 50

The first command times steps on the idle machine and says how many the minutes are. The second trains, draws
and judges; it may run beside other work, and goes on where it was stopped. MinImagen
(`benchmarks/peers/trained_minimagen.py`) gets the captions and colours that ours get, the states of the same
frozen text encoder, `clip-mini`, and its own loss, optimizer and sampler. Writes `report.json`, which
`python -m sd_tf.evaluate --compare OURS DIR/report.json` takes beside models of ours.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

PEER, TEXT_ENCODER = "benchmarks.peers.trained_minimagen", "clip-mini"
ENCODED_AT_ONCE = 256  # captions
KINDS = ("grey", "tinted")


def write_texts(folder):
    """Writes `texts.npz`: the states of every caption and prompt, for a process without TensorFlow."""
    if (folder / "texts.npz").is_file():
        return
    from sd_tf.checkpoints.text_encoders import open_text_encoder
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS

    encoder = open_text_encoder(TEXT_ENCODER)
    captions = sorted({*FashionMNIST("train").distinct_captions, *CLASS_PROMPTS, *TINTED_PROMPTS})
    states, masks = [], []
    for start in range(0, len(captions), ENCODED_AT_ONCE):
        encoded = encoder.encode(*encoder.tokenize(captions[start : start + ENCODED_AT_ONCE]))
        states.append(np.asarray(encoded.states, np.float32))
        masks.append(np.asarray(encoded.mask, bool))
    found = {"captions": captions, "grey": CLASS_PROMPTS, "tinted": TINTED_PROMPTS}
    np.savez(folder / "texts.tmp.npz", states=np.concatenate(states), masks=np.concatenate(masks), **found)
    (folder / "texts.tmp.npz").rename(folder / "texts.npz")


def measured_steps(folder, minutes, batch_size, measured):
    """(seconds of a step, how many are that many minutes), on the machine as it is now."""
    words = ["--output", folder, "--measure", measured, "--batch-size", batch_size]
    done = subprocess.run(
        [sys.executable, "-m", PEER, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = float(done.stdout.split()[-1])
    return seconds, round(60 * minutes / seconds)


def drawn(folder, samples, tinted_samples, scale, sampling_steps):
    """`Drawn` of what its process has written."""
    from benchmarks.peers.trained_minimagen import drawn_file
    from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS, Drawn

    found = []
    for kind, prompts, total in zip(
        KINDS, (CLASS_PROMPTS, TINTED_PROMPTS), (samples, tinted_samples), strict=True
    ):
        number = total // len(prompts)
        files = (drawn_file(folder, kind, i, number, scale, sampling_steps) for i in range(len(prompts)))
        found.append(np.concatenate([np.load(file) for file in files]))
    return Drawn(*found, None)


def report_of(judges, pictures, weights, settings, training):
    """What `sd_tf.evaluate` writes of a model."""
    found = judges.scores(pictures, settings)
    label = f"minimagen, {training['steps']} steps, guidance {settings['guidance_scale']:g}"
    return {
        "model": "minimagen",
        "label": label,
        "weights": weights,
        "command": shlex.join(["python", "-m", "benchmarks.equal_minutes", *sys.argv[1:]]),
        "settings": settings,
        "training": training,
        **judges.about,
        "skipped": judges.skipped | {"the autoencoder's scores": "the model draws pixels, without one"},
        "scores": {title: score.to_json() for title, score in found.items()},
    }


def _run(*words):
    subprocess.run([sys.executable, "-m", PEER, *map(str, words)], check=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="times steps and says how many these minutes are")
    length.add_argument("--steps", type=int, help="trains for so many steps, draws and judges")
    parser.add_argument("--measured", type=int, default=20, help="steps that are timed (default: 20)")
    parser.add_argument("--batch-size", type=int, default=2, help="of a step (default: 2, MinImagen's)")
    parser.add_argument("--samples", type=int, default=400, help="grey pictures, a multiple of 10")
    parser.add_argument(
        "--tinted-samples", type=int, default=160, help="pictures in colours, a multiple of 80"
    )
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument(
        "--sampling-steps",
        type=int,
        default=1000,
        help="of its sampler; fewer than 1000 take so many of its timesteps (default: 1000)",
    )
    options = parser.parse_args()
    for name, unit in (("samples", 10), ("tinted_samples", 80)):
        value = getattr(options, name)
        if value < 2 * unit or value % unit:
            parser.error(f"--{name.replace('_', '-')} is {value}: give a multiple of {unit}, from {2 * unit}")
    options.output.mkdir(parents=True, exist_ok=True)

    from sd_tf import commandline

    commandline.load_tensorflow()
    write_texts(options.output)
    if options.minutes is not None:
        seconds, number = measured_steps(
            options.output, options.minutes, options.batch_size, options.measured
        )
        said = f"{seconds:.3f} s for a step of {options.batch_size}"
        print(f"{said}: {options.minutes:g} minutes are {number} steps")
        words = ["--output", options.output, "--steps", number, "--batch-size", options.batch_size]
        print(shlex.join(["python", "-m", "benchmarks.equal_minutes", *map(str, words)]))
        return
    trained = options.output / "training.json"
    asked = {"steps": options.steps, "batch_size": options.batch_size}
    if not trained.is_file():
        _run("--output", options.output, "--steps", options.steps, "--batch-size", options.batch_size)
    training = json.loads(trained.read_text())
    if not asked.items() <= training.items():
        parser.error(f"{options.output} is of {training}, not {asked}: name another --output")
    numbers = (options.samples, options.tinted_samples, options.guidance_scale, options.sampling_steps)
    flags = ("--samples", "--tinted-samples", "--guidance-scale", "--sampling-steps")
    _run("--output", options.output, *(word for pair in zip(flags, numbers, strict=True) for word in pair))

    from sd_tf.checkpoints.sources import weights_sha256
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.judging import Judges
    from sd_tf.evaluation.report import as_text, page

    judges = Judges(FashionMNIST("train"), FashionMNIST("test"), inception="none")
    pictures = drawn(options.output, *numbers)
    settings = {
        "sampler": "ddpm",
        "steps": options.sampling_steps,
        "guidance_scale": options.guidance_scale,
        "seed": 0,
    }
    weights = weights_sha256(options.output / "unet.safetensors")
    report = report_of(judges, pictures, weights, settings, training)
    (options.output / "report.json").write_text(json.dumps(report, indent=2))
    sheets = {report["label"]: judges.sheets(pictures)}
    (options.output / "report.html").write_text(page([report], sheets, report["command"], None))
    print(as_text([report]))


if __name__ == "__main__":
    main()

"""MinImagen's base for the same minutes as ours, on Fashion-MNIST, judged as `sd_tf.evaluate` judges.

    python -m benchmarks.equal_minutes --output DIR --minutes 28
    python -m benchmarks.equal_minutes --output DIR --steps N --sampling-steps 50 --beside runs/cascade

The first command times steps on the idle machine and says how many the minutes are. The second trains, draws
and judges; it may run beside other work, and goes on where it was stopped. MinImagen
(`benchmarks/peers/trained_minimagen.py`) gets the captions and colours that ours get, the states of the same
frozen text encoder, `clip-mini`, and its own loss, optimizer and sampler. Models of ours that `--beside`
names draw as many pictures, by their recommended settings. Writes `report.json` and `report.html` of all.
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
COMPARED = ("sampler", "steps", "guidance_scale", "guidance_interval")  # which are each model's own
SIDE = 32  # pixels


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


def report_of(judges, pictures, settings, facts, text_encoder, **about):
    """What `sd_tf.evaluate` writes of a model.

    Args:
        judges: `Judges`.
        pictures: `Drawn`.
        settings, facts: how they were drawn: those of the sampler, and others.
        text_encoder: the model's, which tells whether the judging CLIP has taught it.
        about: "model", "label", "weights" and so on.
    """
    from sd_tf.evaluation.judging import NO_AUTOENCODER

    found = judges.scores(pictures, settings | facts, text_encoder)
    return {
        "command": _command(),
        "settings": settings,
        **({"drawing": facts} if facts else {}),
        **judges.about,
        **about,
        "skipped": judges.skipped | (NO_AUTOENCODER if pictures.rebuilt is None else {}),
        "scores": {title: score.to_json() for title, score in found.items()},
    }


def ours(name, judges, samples, tinted_samples):
    """The report of a model of ours, and its pictures."""
    import sd_tf
    from sd_tf.checkpoints.sources import resolve, weights_sha256

    model = sd_tf.load(name)
    recommended = model.recommended.to_json()
    settings = {each: recommended[each] for each in COMPARED} | {"seed": 0}
    pictures = judges.draw(model, samples, tinted_samples, settings)
    facts = getattr(model, "drawing_facts", dict)()
    about = {"model": name, "label": name, "weights": weights_sha256(resolve(name))}
    return report_of(judges, pictures, settings, facts, model.text_encoder, **about), pictures


def _command():
    return shlex.join(["python", "-m", "benchmarks.equal_minutes", *sys.argv[1:]])


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
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="MinImagen's (default: 3)")
    parser.add_argument(
        "--sampling-steps",
        type=int,
        default=1000,
        help="of its sampler; fewer than 1000 take so many of its timesteps (default: 1000)",
    )
    parser.add_argument(
        "--beside", nargs="*", default=[], metavar="MODEL", help="models of ours, bundled names or folders"
    )
    options = parser.parse_args()
    for name, unit in (("samples", 10), ("tinted_samples", 80)):
        value = getattr(options, name)
        if value < 2 * unit or value % unit:
            parser.error(f"--{name.replace('_', '-')} is {value}: give a multiple of {unit}, from {2 * unit}")
    if not 1 <= options.sampling_steps <= 1000:
        parser.error(f"--sampling-steps is {options.sampling_steps}: give 1 to 1000")
    options.output.mkdir(parents=True, exist_ok=True)

    from sd_tf import commandline, families

    for name in options.beside:
        families.check(name, from_text=True)
        height, width = families.load_lazily(name).image_size
        if (height, width) != (SIDE, SIDE):
            parser.error(f"--beside {name} draws {width} x {height}: MinImagen draws {SIDE} x {SIDE} here")
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
    from sd_tf.checkpoints.text_encoders import open_text_encoder
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.judging import Judges
    from sd_tf.evaluation.protocol import OF_FAMILIES, check_comparable
    from sd_tf.evaluation.report import as_text, page

    judges = Judges(FashionMNIST("train"), FashionMNIST("test"), inception="none")
    pictures = drawn(options.output, *numbers)
    values = ("ddpm", options.sampling_steps, options.guidance_scale, [0.0, 1.0])
    settings = dict(zip(COMPARED, values, strict=True))
    about = {
        "model": "minimagen",
        "label": f"minimagen, {training['steps']} steps, guidance {options.guidance_scale:g}",
        "weights": weights_sha256(options.output / "unet.safetensors"),
        "training": training,
    }
    encoder = open_text_encoder(TEXT_ENCODER)
    found = [(report_of(judges, pictures, settings | {"seed": 0}, {}, encoder, **about), pictures)]
    found += [ours(name, judges, options.samples, options.tinted_samples) for name in options.beside]
    reports = [report for report, _ in found]
    check_comparable(reports, varied=[*COMPARED, *OF_FAMILIES])
    whole = reports[0] if len(reports) == 1 else {"reports": reports}
    (options.output / "report.json").write_text(json.dumps(whole, indent=2))
    sheets = {report["label"]: judges.sheets(own) for report, own in found}
    (options.output / "report.html").write_text(page(reports, sheets, _command(), None))
    print(as_text(reports))


if __name__ == "__main__":
    main()

"""A peer for the same minutes as ours, on Fashion-MNIST, judged as `sd_tf.evaluate` judges.

    python -m benchmarks.equal_minutes --output DIR --minutes 28
    python -m benchmarks.equal_minutes --output DIR --steps N --sampling-steps 50 --beside runs/cascade
    python -m benchmarks.equal_minutes --peer gigagan-pytorch --output DIR --steps N --beside runs/gan

The first command times steps on the idle machine and says how many the minutes are. The second trains, draws
and judges; it may run beside other work, and goes on where it was stopped. A peer, MinImagen's base
(`benchmarks/peers/trained_minimagen.py`) or gigagan-pytorch (`trained_gigagan.py`), gets the captions and
colours that ours get, the states of the same frozen text encoder, `clip-mini`, and its own loss, optimizer
and sampler. Models of ours of any family that `--beside` names draw as many pictures, by their recommended
settings. Pictures a second mean little beside other work. Writes `report.json` and `report.html` of all.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.peers.drawn_files import KINDS, drawn_file, read_speed


class Peer(NamedTuple):
    """A peer: its module, the file of its weights, its batch size, and whether it draws in steps."""

    module: str
    weights: str
    batch_size: int
    draws_in_steps: bool


PEERS = {
    "minimagen": Peer("benchmarks.peers.trained_minimagen", "unet.safetensors", 2, True),
    "gigagan-pytorch": Peer("benchmarks.peers.trained_gigagan", "generator.safetensors", 16, False),
}
TEXT_ENCODER = "clip-mini"
ENCODED_AT_ONCE = 256  # captions
# Which are each model's own.
COMPARED = ("sampler", "steps", "guidance_scale", "guidance_interval", "truncation")
OF_STEPS = {"guidance_scale": 3.0, "sampling_steps": 1000}  # flags of a peer that draws in steps
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


def measured_steps(module, folder, minutes, batch_size, measured):
    """(seconds of a step, how many are that many minutes), on the machine as it is now."""
    words = ["--output", folder, "--measure", measured, "--batch-size", batch_size]
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = float(done.stdout.split()[-1])
    return seconds, round(60 * minutes / seconds)


def drawn(folder, samples, tinted_samples, settings=()):
    """`Drawn` of what a peer's process has written, with settings as of `drawn_file`."""
    from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS, Drawn

    found = []
    for kind, prompts, total in zip(
        KINDS, (CLASS_PROMPTS, TINTED_PROMPTS), (samples, tinted_samples), strict=True
    ):
        number = total // len(prompts)
        files = (drawn_file(folder, kind, i, number, *settings) for i in range(len(prompts)))
        found.append(np.concatenate([np.load(file) for file in files]))
    return Drawn(*found, None)


def speed_score(pictures, seconds):
    """Pictures a second, as a report has scores."""
    from sd_tf.evaluation.protocol import Score

    timed = {"pictures": pictures, "seconds": seconds}
    return {"pictures_per_second": Score(pictures / seconds, "higher", {}, details=timed)}


def report_of(judges, pictures, settings, facts, text_encoder, speed, **about):
    """What `sd_tf.evaluate` writes of a model.

    Args:
        judges: `Judges`.
        pictures: `Drawn`.
        settings, facts: how they were drawn: those of the sampler, and others.
        text_encoder: the model's, which tells whether the judging CLIP has taught it.
        speed: a `speed_score`, or {} where none was timed.
        about: "model", "label", "weights" and so on.
    """
    from sd_tf.evaluation.judging import NO_AUTOENCODER

    found = judges.scores(pictures, settings | facts, text_encoder) | speed
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
    """The report of a model of ours, and its pictures, which are drawn again to be timed."""
    import sd_tf
    from sd_tf.checkpoints.sources import resolve, weights_sha256

    model = sd_tf.load(name)
    recommended = model.recommended.to_json()
    settings = {each: recommended[each] for each in COMPARED if each in recommended} | {"seed": 0}
    pictures = judges.draw(model, samples, tinted_samples, settings)
    began = time.perf_counter()
    judges.draw(model, samples, tinted_samples, settings, rebuild=False)
    speed = speed_score(samples + tinted_samples, time.perf_counter() - began)
    facts = getattr(model, "drawing_facts", dict)()
    about = {"model": name, "label": name, "weights": weights_sha256(resolve(name))}
    return report_of(judges, pictures, settings, facts, model.text_encoder, speed, **about), pictures


def _command():
    return shlex.join(["python", "-m", "benchmarks.equal_minutes", *sys.argv[1:]])


def _run(module, *words):
    subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True)


def _options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="times steps and says how many these minutes are")
    length.add_argument("--steps", type=int, help="trains for so many steps, draws and judges")
    parser.add_argument("--peer", choices=PEERS, default="minimagen", help="default: minimagen")
    parser.add_argument("--measured", type=int, default=20, help="steps that are timed (default: 20)")
    sizes = ", ".join(f"{peer.batch_size} of {name}" for name, peer in PEERS.items())
    parser.add_argument("--batch-size", type=int, help=f"of a step (default: {sizes})")
    parser.add_argument("--samples", type=int, default=400, help="grey pictures, a multiple of 10")
    parser.add_argument(
        "--tinted-samples", type=int, default=160, help="pictures in colours, a multiple of 80"
    )
    parser.add_argument("--guidance-scale", type=float, help="MinImagen's (default: 3)")
    parser.add_argument(
        "--sampling-steps",
        type=int,
        help="of MinImagen's sampler; fewer than 1000 take so many of its timesteps (default: 1000)",
    )
    parser.add_argument(
        "--beside", nargs="*", default=[], metavar="MODEL", help="models of ours, bundled names or folders"
    )
    options = parser.parse_args()
    for name, unit in (("samples", 10), ("tinted_samples", 80)):
        value = getattr(options, name)
        if value < 2 * unit or value % unit:
            parser.error(f"--{name.replace('_', '-')} is {value}: give a multiple of {unit}, from {2 * unit}")
    for name, usual in OF_STEPS.items():
        value = getattr(options, name)
        if value is None:
            setattr(options, name, usual)
        elif not PEERS[options.peer].draws_in_steps:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} is {value:g}, and {options.peer} draws in one pass: leave {flag} out")
    if not 1 <= options.sampling_steps <= 1000:
        parser.error(f"--sampling-steps is {options.sampling_steps}: give 1 to 1000")
    if options.batch_size is None:
        options.batch_size = PEERS[options.peer].batch_size
    least = 2 if options.peer == "gigagan-pytorch" else 1  # whose texts that do not match are another's
    if options.batch_size < least:
        parser.error(f"--batch-size is {options.batch_size}: give {least} or more")
    return parser, options


def main():
    parser, options = _options()
    peer = PEERS[options.peer]
    options.output.mkdir(parents=True, exist_ok=True)

    from sd_tf import commandline, families

    for name in options.beside:
        families.check(name, from_text=True)
        height, width = families.load_lazily(name).image_size
        if (height, width) != (SIDE, SIDE):
            parser.error(f"--beside {name} draws {width} x {height}: the peer draws {SIDE} x {SIDE} here")
    commandline.load_tensorflow()
    write_texts(options.output)
    if options.minutes is not None:
        seconds, number = measured_steps(
            peer.module, options.output, options.minutes, options.batch_size, options.measured
        )
        said = f"{seconds:.3f} s for a step of {options.batch_size}"
        print(f"{said}: {options.minutes:g} minutes are {number} steps")
        words = ["--peer", options.peer, "--output", options.output, "--steps", number]
        words += ["--batch-size", options.batch_size]
        print(shlex.join(["python", "-m", "benchmarks.equal_minutes", *map(str, words)]))
        return
    trained = options.output / "training.json"
    asked = {"peer": options.peer, "steps": options.steps, "batch_size": options.batch_size}
    if not trained.is_file():
        words = ["--steps", options.steps, "--batch-size", options.batch_size]
        _run(peer.module, "--output", options.output, *words)
    training = json.loads(trained.read_text())
    if not asked.items() <= training.items():
        parser.error(f"{options.output} is of {training}, not {asked}: name another --output")
    totals = (options.samples, options.tinted_samples)
    words = ["--samples", options.samples, "--tinted-samples", options.tinted_samples]
    drawing, settings, guidance = (), {}, ""
    if peer.draws_in_steps:
        drawing = options.guidance_scale, options.sampling_steps
        words += ["--guidance-scale", options.guidance_scale, "--sampling-steps", options.sampling_steps]
        values = ("ddpm", options.sampling_steps, options.guidance_scale, [0.0, 1.0])
        settings = dict(zip(COMPARED, values, strict=False))
        guidance = f", guidance {options.guidance_scale:g}"
    _run(peer.module, "--output", options.output, *words)

    from sd_tf.checkpoints.sources import weights_sha256
    from sd_tf.checkpoints.text_encoders import open_text_encoder
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.judging import Judges
    from sd_tf.evaluation.protocol import OF_FAMILIES, check_comparable
    from sd_tf.evaluation.report import as_text, page

    judges = Judges(FashionMNIST("train"), FashionMNIST("test"), inception="none")
    pictures, timed = drawn(options.output, *totals, drawing), read_speed(options.output, totals, drawing)
    speed = speed_score(**timed) if timed else {}
    about = {
        "model": options.peer,
        "label": f"{options.peer}, {training['steps']} steps{guidance}",
        "weights": weights_sha256(options.output / peer.weights),
        "training": training,
    }
    encoder = open_text_encoder(TEXT_ENCODER)
    found = [(report_of(judges, pictures, settings | {"seed": 0}, {}, encoder, speed, **about), pictures)]
    found += [ours(name, judges, *totals) for name in options.beside]
    reports = [report for report, _ in found]
    check_comparable(reports, varied=[*COMPARED, *OF_FAMILIES])
    whole = reports[0] if len(reports) == 1 else {"reports": reports}
    (options.output / "report.json").write_text(json.dumps(whole, indent=2))
    sheets = {report["label"]: judges.sheets(own) for report, own in found}
    (options.output / "report.html").write_text(page(reports, sheets, _command(), None))
    print(as_text(reports))


if __name__ == "__main__":
    main()

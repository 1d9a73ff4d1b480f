"""Runs killed by `kill -9` at random moments, while saving too, end with the weights of one that was not.

`python -m tests.training.test_kills --number 25` prints what each was doing when it was killed.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

import sd_tf

STEPS = 30
FLAGS = ["--dataset", "garments", "--preset", "tiny", "--text-encoder", "none", "--deterministic"]
FLAGS += ["--max-steps", str(STEPS), "--checkpoint-every", "2", "--batch-size", "8"]
RUN = "from tests.training.test_run import with_tiny_preset; from sd_tf import commandline, train\n"
RUN += "with with_tiny_preset(): commandline.run(train.main)"


def start(folder):
    """A run in its own process, new or resumed."""
    root = Path(sd_tf.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *FLAGS, "--output", str(folder)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder):
    """Runs to the end; the weights of every part, as they are in the files."""
    process = start(folder)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for part in ("clip", "vae", "unet", "text_encoder")
        for file in sorted((folder / part).glob("*.safetensors"))
    }


def doing(folder):
    """What a run is at: starting, a stage, or saving in it."""
    if list(folder.rglob(".*.new")):
        return "saving"
    for part, stage in (("model_index.json", "finished"), ("vae", "diffusion"), ("clip", "autoencoder")):
        if (folder / part).exists():
            return stage
    return "clip" if (folder / "checkpoints").exists() else "starting"


def kill(folder, after, while_saving):
    """Kills a run after some seconds, or in the save after that; what it was at, None if it had ended."""
    process = start(folder)
    until = time.monotonic() + after
    try:
        while process.poll() is None:
            if time.monotonic() > until and (not while_saving or doing(folder) == "saving"):
                break
            time.sleep(0.001 if while_saving else 0.05)
        return doing(folder) if process.poll() is None else None
    finally:
        process.kill()
        process.communicate()


def kill_often(number, seed, say=lambda line: None):
    """Kills, resumes and compares with an undisturbed run, so many times; what runs were at, counted."""
    generator, moments = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        began = time.monotonic()
        undisturbed = finish(Path(temporary) / "undisturbed")
        seconds = time.monotonic() - began
        assert {name.split("/")[0] for name in undisturbed} == {"clip", "vae", "unet", "text_encoder"}
        while sum(moments.values()) < number:
            folder = Path(tempfile.mkdtemp(dir=temporary)) / "run"
            moment = kill(folder, generator.uniform(0, seconds), while_saving=generator.random() < 0.4)
            if moment is None:
                continue
            moments[moment] += 1
            same = finish(folder) == undisturbed
            say(f"{sum(moments.values())}: killed at {moment}, weights {'the same' if same else 'DIFFER'}")
            assert same, moment
    return moments


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_an_undisturbed_one():
    assert sum(kill_often(4, seed=0).values()) == 4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(dict(kill_often(options.number, options.seed, lambda line: print(line, flush=True))))

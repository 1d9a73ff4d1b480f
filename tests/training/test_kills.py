"""Runs killed by `kill -9` at random moments, while saving too, end with the weights of one that was not.

`python -m tests.training.test_kills --number 25` prints what each was doing when it was killed; with
`--workers 2`, where one of the workers, or what launched them, is killed.
"""

import argparse
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import pytest

import sd_tf

STEPS = 30
PARTS = {"clip": ["clip"], "autoencoder": ["vae"], "diffusion": ["unet", "text_encoder"]}  # of each stage
FLAGS = ["--dataset", "garments", "--preset", "tiny", "--text-encoder", "none", "--deterministic"]
FLAGS += ["--max-steps", str(STEPS), "--checkpoint-every", "2", "--batch-size", "8"]
RUN = "from tests.training.tiny import with_tiny_preset; from sd_tf import commandline, train\n"
RUN += "with with_tiny_preset(): commandline.run(train.main)"


def start(folder, flags=()):
    """A run in its own process, new or resumed."""
    root = Path(sd_tf.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *FLAGS, *flags, "--output", str(folder)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, flags=()):
    """Runs to the end; the weights of every part, as they are in the files."""
    process = start(folder, flags)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return weights(folder)


def weights(folder):
    """File -> content, of every part that there is."""
    files = sorted(file for part in chain(*PARTS.values()) for file in (folder / part).glob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def before(stage, ended, folder):
    """Copies a run that has ended, as it was before that stage."""
    shutil.copytree(ended, folder)
    (folder / "model_index.json").unlink()
    for each in list(PARTS)[list(PARTS).index(stage) :]:
        for part in [f"checkpoints/{each}", *PARTS[each]]:
            shutil.rmtree(folder / part)


def doing(folder, stage):
    """What a run of one stage is at: starting, training, saving a checkpoint, or what it made."""
    if list(folder.glob("checkpoints/*/.*.new")):
        return "saving a checkpoint"
    if (folder / PARTS[stage][0]).exists() or list(folder.glob(".*new*")):
        return "saving the model"
    return "training" if (folder / "checkpoints" / stage).exists() else "starting"


def processes_of(process):
    """Its number and those of the workers that it launched."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [process.pid, *map(int, children.split())]


def steps_saved(folder, stage):
    return sorted(int(path.name[5:]) for path in folder.glob(f"checkpoints/{stage}/step-*"))


def kill(folder, stage, seconds, generator, flags=()):
    """Kills one process of a run at a random moment, and waits for the others.

    A fifth of the moments are any within `seconds`, which is mostly before training. Two fifths are
    after a random step, and two fifths in the next save after one.

    Returns:
        What the run was at and which of its processes was killed; None where it had ended before.
    """
    until = time.monotonic() + generator.uniform(0, seconds)
    kind, step = generator.choice(["any", "step", "step", "save", "save"]), generator.randrange(STEPS)
    moment_later = generator.uniform(0, 0.05)
    process = start(folder, flags)
    while process.poll() is None:
        if kind == "any" and time.monotonic() > until:
            break
        if kind != "any" and max(steps_saved(folder, stage), default=-1) >= step:
            if kind == "step":
                time.sleep(moment_later)
                break
            if doing(folder, stage).startswith("saving"):
                break
        time.sleep(0.001)
    moment, numbers = doing(folder, stage), processes_of(process)
    if process.poll() is not None:
        return None
    victim = generator.randrange(len(numbers))
    os.kill(numbers[victim], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    for _ in range(600):
        if not any(Path(f"/proc/{number}").exists() for number in numbers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlives the others by a minute")
    who = "the run" if len(numbers) == 1 else f"worker {victim - 1}" if victim else "the launcher"
    return moment, who


def kill_often(number, seed, workers=1, say=lambda line: None):
    """Kills stage after stage, resumes and compares with an undisturbed run, so many times."""
    generator = random.Random(seed)
    flags = [] if workers == 1 else ["--workers", str(workers)]
    with tempfile.TemporaryDirectory() as temporary:
        ended, seconds = Path(temporary) / "undisturbed", {}
        for stage in PARTS:
            began = time.monotonic()
            undisturbed = finish(ended, [*flags, "--stage", stage])
            seconds[stage] = time.monotonic() - began
        assert {name.split("/")[0] for name in undisturbed} == {"clip", "vae", "unet", "text_encoder"}
        done = 0
        while done < number:
            stage, folder = list(PARTS)[done % len(PARTS)], Path(tempfile.mkdtemp(dir=temporary)) / "run"
            before(stage, ended, folder)
            own = [*flags, "--stage", stage]
            killed = kill(folder, stage, seconds[stage], generator, own)
            if killed is None:
                continue
            done += 1
            steps = steps_saved(folder, stage)
            found = finish(folder, own)
            same = found == {name: undisturbed[name] for name in found}
            outcome = "the same" if same and found else "DIFFER"
            moment, who = killed
            say(f"{done}: {stage}, {moment}: killed {who}, checkpoints {steps}, then weights {outcome}")
            assert outcome == "the same"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_runs_end_with_the_weights_of_an_undisturbed_one(workers):
    kill_often(3, seed=0, workers=workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    kill_often(options.number, options.seed, options.workers, functools.partial(print, flush=True))

"""Every way to take a step, beside the plain one: ten steps of the diffusion stage from the same start.

`python -m tests.training.test_combinations` measures all and prints the table; the tests take a few of
them, and all where slow ones run.
"""

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import sd_tf
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.unet import UNet
from sd_tf.training import strategy as strategies
from sd_tf.training.loop import Budget, Trainer
from tests.conftest import make_tiny_model, shake_variables
from tests.latent.test_stages import diffusion_stage

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
ALL = list(itertools.product(PRECISIONS, (1, 2), (1, 4), (False, True), (False, True)))
PLAIN = ("float32", 1, 1, False, False)
FEW = [("float32", 2, 4, True, False), ("mixed_float16", 1, 1, False, True)]
# Of the weights after ten steps, relative: rounding, and what bfloat16's 8 and float16's 11 digits allow.
TOLERANCES = {"float32": 1e-5, "mixed_bfloat16": 3e-3, "mixed_float16": 1e-3}
STEPS = 10


def after_ten_steps(tiny_model, precision, replicas, accumulate, remat, xla):
    """The weights, in one vector each, and the mean losses of the steps."""
    keras.utils.set_random_seed(0)
    strategy = strategies.make("none" if replicas == 1 else "mirrored", None)
    others = {
        name: getattr(tiny_model, name) for name in ("autoencoder", "text_encoder", "tokenizer", "schedule")
    }
    with strategy.scope():
        unet = UNet(tiny_model.unet.config, dtype=precision)
        unet.build()
        shake_variables(unet)
    stage = diffusion_stage(LatentDiffusion(unet=unet, **others))
    stage.config = dataclasses.replace(stage.config, batch_size=16, learning_rate=1e-4)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            stage,
            strategy,
            Budget(None, STEPS),
            folder,
            precision,
            1e9,
            accumulate=accumulate,
            remat=remat,
            xla=xla,
        )
        trainer.fit([lambda trainer, step, elapsed, means: losses.append(float(means["loss"]))])
        assert trainer.step.skipped_moves == 0 and trainer.steps_taken == STEPS
    return [np.asarray(v.value, np.float64).ravel() for v in unet.trainable_variables], losses


def apart(ours, theirs):
    """The largest of the variables' distances, each relative to its length."""
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True))


def compare(tiny_model, combinations, say=print):
    """Prints a line for each; returns those that differ from the plain step by more than they may."""
    plain, plain_losses = after_ten_steps(tiny_model, *PLAIN)
    start = apart(after_ten_steps(tiny_model, *PLAIN)[0], plain)
    say(f"the plain step, twice: {start:.1e}")
    wrong = []
    for combination in combinations:
        precision, replicas, accumulate, remat, xla = combination
        began = time.monotonic()
        weights, losses = after_ten_steps(tiny_model, *combination)
        distance = apart(weights, plain)
        of_losses = max(abs(a - b) / b for a, b in zip(losses, plain_losses, strict=True))
        switches = "  ".join(
            f"{name} {'on' if on else '--'}" for name, on in (("remat", remat), ("XLA", xla))
        )
        say(
            f"{precision:<15} replicas {replicas}  accumulate {accumulate}  {switches}  "
            f"weights {distance:.1e}  losses {of_losses:.1e}  "
            f"{time.monotonic() - began:.0f} s"
        )
        if distance > TOLERANCES[precision]:
            wrong.append((combination, distance))
    return wrong


def run(number):
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    command = [sys.executable, "-m", "tests.training.test_combinations", number]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_ways_to_take_a_step_end_where_the_plain_one_does():
    run("few")


@pytest.mark.slow
def test_all_ways_to_take_a_step_end_where_the_plain_one_does():
    run("all")


if __name__ == "__main__":  # in a process of its own: virtual devices come before all else
    strategies.make("mirrored", 2)
    raise SystemExit(bool(compare(make_tiny_model(), FEW if sys.argv[1:] == ["few"] else ALL)))

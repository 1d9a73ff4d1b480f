"""What `--dry-run` says, beside what a run then does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf import train
from sd_tf.training.dry_run import _peak_bytes

ROOT = str(Path(sd_tf.__file__).parent.parent)
MIB = {"MiB": 1.0, "GiB": 1024.0}


def dry_run(capsys, folder, *flags):
    train.main(["--dataset", "garments", "--dry-run", "--output", str(folder), *flags])
    return capsys.readouterr().out


def memory(said, part):
    """MiB of a part of what a stage takes."""
    number, unit = re.search(rf"{part}:? ([0-9.]+) (MiB|GiB)", said).groups()
    return float(number) * MIB[unit]


def test_it_says_what_a_run_would_be_and_writes_nothing(capsys, tmp_path):
    said = dry_run(capsys, tmp_path / "run", "--max-steps", "1234", "--learning-rate", "2e-4")
    assert list(tmp_path.iterdir()) == []
    for words in (
        "preset             garments",
        f"output             {tmp_path}/run",
        "seed               0",
    ):
        assert words in said
    stages = re.findall(r"^stage (\w+)\n  1,234 steps, each of (\d+) examples, on 1 replica\n", said, re.M)
    assert [name for name, _ in stages] == ["clip", "autoencoder", "diffusion"]
    assert said.count("learning rate 0.0002, cosine, after") == 3
    assert said.count("muon") == 2 and said.count("adamw") == 1


def test_parameters_are_those_of_the_bundled_networks(capsys, tmp_path):
    said = dry_run(capsys, tmp_path / "run", "--preset", "fashion-mnist", "--max-steps", "1")
    model = sd_tf.load("fashion-mnist")
    for network in (model.autoencoder, model.unet):
        assert f"  {network.count_params():,} trainable parameters," in said
    assert f"{model.autoencoder.count_params() + model.text_encoder.count_params():,} frozen" in said


def test_activations_grow_with_the_batch_and_shrink_by_accumulation_and_workers(capsys, tmp_path):
    flags = ["--stage", "diffusion", "--max-steps", "1", "--batch-size"]
    whole = memory(dry_run(capsys, tmp_path, *flags, "128"), "activations")
    for more in (["64"], ["128", "--accumulate", "2"], ["128", "--workers", "2"]):
        assert memory(dry_run(capsys, tmp_path, *flags, *more), "activations") == pytest.approx(
            whole / 2, rel=0.05
        )
    assert memory(dry_run(capsys, tmp_path, *flags, "128", "--remat"), "activations") < 0.5 * whole


def test_the_small_preset_takes_less_than_three_megabytes_in_half_precision(capsys, tmp_path):
    said = dry_run(capsys, tmp_path, "--preset", "fashion-mnist-small", "--stage", "diffusion")
    trained, frozen = re.search(r"([\d,]+) trainable parameters, ([\d,]+) frozen", said).groups()
    assert 2e6 < 2 * sum(int(number.replace(",", "")) for number in (trained, frozen)) < 2.95e6


def test_peak_memory_counts_tensors_until_their_last_use():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [1000])  # an input
        a = tf.exp(x)  # 4,000 bytes, needed to the end
        b = tf.reshape(tf.exp(a), [10, 100])  # 4,000, until c is there
        c = tf.reduce_sum(b)  # 4
        tf.concat([a, a, a], axis=0) + c  # 12,000 twice, beside a
    assert _peak_bytes(graph.get_operations()) == 24_004  # after a


# Runs its words and prints the most memory that they had, in KiB: in a small process of its own, since one
# that is started begins with the most that its parent had.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_the_memory_is_what_a_run_takes(tmp_path, data_dir, stage):
    environment = os.environ | {"PYTHONPATH": ROOT}

    def run(*words):
        words = [sys.executable, *words]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout

    command = ["-m", "sd_tf.train", "--max-steps", "3", "--batch-size", "512", "--output", tmp_path / "run"]
    said = run(*command, "--dry-run", "--stage", stage)
    for earlier in ("autoencoder", "diffusion")[: 1 if stage == "autoencoder" else 2]:
        used = int(run("-c", MEASURED, sys.executable, *command, "--stage", earlier))
    assert memory(said, "replica") == pytest.approx(used / 1024, rel=0.15)


def test_the_memory_of_the_process_that_starts_another_is_not_counted():
    code = "from sd_tf.training.dry_run import peak_memory; print(peak_memory())"
    held = np.ones(2**28)  # 2 GiB, of this process
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 2**28 < int(found.stdout) < held.nbytes

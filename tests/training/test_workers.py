"""Several processes train as one does, and none goes on without the others.

`python -m tests.training.test_workers --steps 200` trains the bundled model's kind of UNet on Fashion-MNIST
in one process and in two, and prints how far apart their losses and weights are, and how fast they were.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import sd_tf
from sd_tf.data.cache import latent_cache
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.data.garments import Garments
from sd_tf.errors import InputError
from sd_tf.graphs import one_core_for_each_operation
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.caching import _compiled_encoder
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.stages import AutoencoderStage, DiffusionStage
from sd_tf.latent.unet import UNet
from sd_tf.training import strategy as strategies
from sd_tf.training.launch import end_with_launcher, launch
from sd_tf.training.loop import Budget, Trainer
from sd_tf.training.options import StageConfig
from tests.training.tiny import TINY

ROOT = str(Path(sd_tf.__file__).parent.parent)


def garments_stage(folder):
    """A tiny autoencoder on drawn garments."""
    config = StageConfig(batch_size=8, learning_rate=1e-3, warmup_steps=1)
    autoencoder = AutoencoderKL(TINY.autoencoder)
    autoencoder.build()
    return AutoencoderStage(config, autoencoder, Garments(32, seed=0), seed=0)


def fashion_stage(folder):
    """A UNet as large as the bundled model's, on its latents of real pictures."""
    config = StageConfig(batch_size=64, learning_rate=3e-4, warmup_steps=20)
    model = sd_tf.load("fashion-mnist")
    unet = UNet(model.unet.config)
    unet.build()
    model = LatentDiffusion(model.autoencoder, unet, model.text_encoder, model.tokenizer, model.schedule)
    dataset = FashionMNIST("train", None, seed=0)
    encode = _compiled_encoder(model.autoencoder)
    cache = latent_cache(folder, "latents", dataset, encode, model.encode_prompts, 4096)
    return DiffusionStage(config, model, cache, caption_dropout=0.1, seed=0)


STAGES = {"garments": garments_stage, "fashion": fashion_stage}


def work(which, steps, folder):
    """What each process does: trains, and writes its losses, its weights and its speed."""
    one_core_for_each_operation()
    strategy = strategies.make("multiworker" if "TF_CONFIG" in os.environ else "none", None)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        stage = STAGES[which](folder)
    trainer = Trainer(stage, strategy, Budget(None, steps), folder / "checkpoints", "float32", 1e9)
    losses, times = [], []

    def observe(trainer, step, elapsed, means):
        losses.append(float(means["loss"]))
        times.append(time.monotonic())

    trainer.fit([observe])
    weights = {str(i): np.asarray(v.value) for i, v in enumerate(stage.network.variables)}
    np.savez(folder / f"worker-{trainer.workers.index}.npz", **weights)
    if trainer.workers.is_chief:
        seconds = float(np.median(np.diff(times))) if len(times) > 1 else None
        (folder / "losses.json").write_text(json.dumps({"losses": losses, "seconds": seconds}))


def train(which, steps, workers, folder):
    """Losses, the median step's seconds, and the weights of each worker."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.training.test_workers", "--work", which]
    command += ["--steps", str(steps), "--folder", str(folder)]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ROOT
    try:
        if workers == 1:
            subprocess.run(command, check=True)
        else:
            assert launch(command, workers) == 0
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    found = json.loads((folder / "losses.json").read_text())
    weights = [dict(np.load(folder / f"worker-{i}.npz")) for i in range(workers)]
    return found["losses"], found["seconds"], weights


def compare(which, steps):
    """How far losses and weights are apart, relative; the steps' seconds; whether workers agree."""
    with tempfile.TemporaryDirectory() as folder:
        alone, alone_seconds, (weights,) = train(which, steps, 1, Path(folder) / "one")
        losses, seconds, of_workers = train(which, steps, 2, Path(folder) / "two")
    assert len(losses) == len(alone) == steps
    same = all(np.array_equal(of_workers[0][key], of_workers[1][key]) for key in weights)
    of_losses = max(abs(a - b) / b for a, b in zip(losses, alone, strict=True))
    # Of all together: of some alone, as biases before a norm of one channel, gradients are rounding only.
    ours, theirs = (
        np.concatenate([found[key].ravel() for key in weights]) for found in (of_workers[0], weights)
    )
    of_weights = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    return of_losses, of_weights, same, alone_seconds, seconds


def test_two_workers_learn_what_one_process_does():
    of_losses, of_weights, same, *_ = compare("garments", 10)
    assert of_losses < 1e-5 and of_weights < 1e-4 and same


@pytest.mark.slow
def test_two_workers_learn_what_one_process_does_on_real_pictures(data_dir):
    of_losses, _, same, *_ = compare("fashion", 200)
    assert of_losses < 1e-4 and same


SLEEP = "import time; time.sleep(60)"
ONE_FAILS = """
import json, os, sys, time
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == {index}:
    {does}
time.sleep(60)
"""


def failing(index, does):
    return [sys.executable, "-c", ONE_FAILS.format(index=index, does=does)]


def test_more_workers_than_can_be_started_are_refused(monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("sd_tf.training.launch.socket.socket", full)
    with pytest.raises(InputError, match="workers is 99999, which cannot be started .Too many open files"):
        launch(["nothing"], 99999)


def test_a_worker_that_is_killed_stops_the_others_and_is_named(monkeypatch):
    monkeypatch.setattr("sd_tf.training.launch.GRACE", 0.5)
    began = time.monotonic()
    with pytest.raises(InputError, match="worker 1 of 3 was killed by SIGKILL.*resumes from the last"):
        launch(failing(1, "os.kill(os.getpid(), 9)"), 3)
    assert time.monotonic() - began < 20


def test_a_worker_that_fails_gives_its_status_and_its_last_words(monkeypatch, capfd):
    monkeypatch.setattr("sd_tf.training.launch.GRACE", 0.5)
    assert launch(failing(1, "sys.exit('error: no such picture')"), 2) == 1
    assert capfd.readouterr().err.strip() == "error: no such picture"


def test_sigterm_reaches_all_workers():
    code = "from sd_tf.training.launch import launch; import sys\n"
    code += f"sys.exit(launch([sys.executable, '-c', {SLEEP!r}], 2))"
    launcher = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ROOT})
    workers = until(lambda: children(launcher.pid), 2)
    time.sleep(0.5)
    launcher.terminate()
    launcher.wait(timeout=30)
    assert launcher.returncode != 0
    assert not any(alive(worker) for worker in workers)


def test_workers_end_with_their_launcher():
    code = "from sd_tf.training.launch import launch; import sys\n"
    worker = "from sd_tf.training.launch import end_with_launcher as end; end(); " + SLEEP
    code += f"launch([sys.executable, '-c', {worker!r}], 2)"
    launcher = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ROOT})
    workers = until(lambda: children(launcher.pid), 2)
    time.sleep(3.0)  # they look every half second, once they run
    launcher.kill()
    launcher.wait()
    assert until(lambda: [worker for worker in workers if not alive(worker)], 2) == workers


def children(number):
    found = subprocess.run(["pgrep", "-P", str(number)], capture_output=True, text=True).stdout
    return [int(child) for child in found.split()]


def alive(number):
    state = Path(f"/proc/{number}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def until(found, number, seconds=20):
    """What a function finds, once that are so many."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if len(found()) == number:
            return found()
        time.sleep(0.05)
    pytest.fail(f"there are {found()}")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "workers N for N processes on this machine, set TF_CONFIG .* srun"),
        ({"TF_CONFIG": "{"}, "cannot use TF_CONFIG: "),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "cannot use TF_CONFIG: "),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "cannot use SLURM's environment: .*SLURM_"),
    ],
    ids=["nothing", "no JSON", "no task", "half of SLURM"],
)
def test_a_worker_that_cannot_know_its_place_says_how_to_tell_it(monkeypatch, environment, words):
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"strategy multiworker .*{words}"):
        strategies.make("multiworker", None)


def test_without_a_tpu_that_is_said():
    with pytest.raises(InputError, match="strategy tpu finds no TPU"):
        strategies.make("tpu", None)


def test_slurm_tells_its_tasks_their_places():
    """As `srun -n 2` on one node starts them, with the variables that it sets."""
    code = "import tensorflow as tf; from sd_tf.training import strategy\n"
    code += "from sd_tf.training.workers import Workers\n"
    code += "workers = Workers(strategy.make('multiworker', None))\n"
    code += "print(workers.number, workers.index, workers.gathered(workers.index + 1.0).tolist())"
    common = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    common |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NUM_NODES": "1", "PYTHONPATH": ROOT}
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"} | common
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"SLURM_PROCID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for i in range(2)
    ]
    said = [task.communicate(timeout=120)[0].strip() for task in tasks]
    assert said == ["2 0 [[1.0], [2.0]]", "2 1 [[1.0], [2.0]]"]


@pytest.mark.parametrize(("number", "shares"), [(2, ["ab", "cd"]), (3, ["a", "b", "cd"]), (1, ["abcd"])])
def test_workers_on_a_machine_share_its_gpus(monkeypatch, number, shares):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = []
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: list("abcd"))
    monkeypatch.setattr("tensorflow.config.set_visible_devices", lambda devices, kind: seen.append(devices))
    addresses = ["far:1", *(f"here:{port}" for port in range(number)), "far:2"]
    spec = SimpleNamespace(job_tasks=lambda job: addresses)
    for i in range(number):
        own = SimpleNamespace(cluster_spec=lambda: spec, task_type="worker", task_id=1 + i)
        strategies._take_share_of_gpus(own)
    assert ["".join(devices) for devices in seen] == shares


def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: ["a"])
    spec = SimpleNamespace(job_tasks=lambda job: ["here:1", "here:2"])
    with pytest.raises(InputError, match="2 workers are on a machine with 1 GPUs: start at most 1"):
        strategies._take_share_of_gpus(
            SimpleNamespace(cluster_spec=lambda: spec, task_type="worker", task_id=0)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--stage", choices=STAGES, default="fashion")
    parser.add_argument("--work", choices=STAGES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.work:
        end_with_launcher()
        work(options.work, options.steps, options.folder)
    else:
        of_losses, of_weights, same, alone, two = compare(options.stage, options.steps)
        print(f"{options.steps} steps: losses {of_losses:.1e} and weights {of_weights:.1e} apart, relative")
        print(f"both workers' weights {'identical' if same else 'DIFFER'}")
        print(f"median step: one process {alone:.4f} s, two workers {two:.4f} s: {two / alone:.3f}")

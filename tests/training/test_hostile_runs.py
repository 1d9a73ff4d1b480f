"""Run folders of strangers, resumed: a clear line or the checkpoint before, and nothing outside is touched.

`python -m tests.training.test_hostile_runs` tries all that is done to checkpoints, logs and run files, and
prints what became of it; `--number 2000` takes more of the random ones.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.errors import InputError
from sd_tf.training.checkpoints import Checkpoints
from sd_tf.training.loop import Budget
from sd_tf.training.observers import Log, Previews, Snapshots
from sd_tf.training.own_folder import MOST_ENTRIES, check_own, written_once
from sd_tf.training.workers import Workers
from tests.checkpoints.hostile import CANARY, SPECIAL
from tests.fuzzing import forget_peak, limited, memory
from tests.training.tiny import config, run_of, with_tiny_preset

MEMORY = 2_000_000_000
ALONE = Workers(tf.distribute.get_strategy())
NUMBER = 60  # of random damages


# -- checkpoints ------------------------------------------------------------------------------------------


def state_of_shape(*shape):
    return tf.train.Checkpoint(
        weights=[tf.Variable(np.ones(shape, "f4"))], step=tf.Variable(0, dtype=tf.int64)
    )


def with_checkpoints(run, shape=(3, 5)):
    """Of steps 1, 2 and 3, each with its number as the weights."""
    made = Checkpoints(state_of_shape(*shape), run / "checkpoints" / "diffusion", keep=3)
    for step in (1, 2, 3):
        made.state.weights[0].assign(np.full(shape, step, "f4"))
        made.state.step.assign(step)
        made.save(step)
    return made


def sums_again(folder):
    sums = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != "sums.json"
    }
    (folder / "sums.json").write_text(json.dumps(sums))


def forged(seed):
    """TensorFlow's files damaged, and the sums made anew."""

    def change(last, secret):
        rng = random.Random(seed)
        file = rng.choice(sorted(last.glob("state.*")))
        content = bytearray(file.read_bytes())
        for _ in range(rng.choice([1, 1, 2, 8, 100])):
            how = rng.choice(["flip", "cut", "grow", "zeros", "lost"])
            place = rng.randrange(max(1, len(content)))
            if how == "flip" and content:
                content[place] ^= 1 << rng.randrange(8)
            elif how == "cut":
                del content[place:]
            elif how == "grow":
                content[place:place] = rng.randbytes(rng.choice([1, 8, 1000]))
            elif how == "zeros":
                content[place : place + 8] = bytes(8)
        file.write_bytes(content)
        sums_again(last)

    return change


def of_another_network(*shape):
    def change(last, secret):
        shutil.rmtree(last)
        other = Checkpoints(state_of_shape(*shape), last.parent.parent / "other", keep=1)
        other.save(3)
        other.place(3).rename(last)
        other.folder.rmdir()

    return change


def nothing_of_it(last, secret):
    for file in last.glob("state.*"):
        file.unlink()
    tf.train.Checkpoint(else_where=tf.Variable(3.0)).write(str(last / "state"))
    sums_again(last)


def in_place_of(name, how):
    def change(last, secret):
        file = next(last.glob(name))
        file.unlink()
        how(file, secret)

    return change


def whole_folder(how):
    def change(last, secret):
        shutil.rmtree(last)
        how(last, secret)

    return change


def sums_say(text):
    return lambda last, secret: (last / "sums.json").write_text(text)


def named(name):
    def change(last, secret):
        (last.parent / name).mkdir()
        (last.parent / name / "sums.json").write_text("{}")

    return change


def more(last, secret):
    (last / "more").symlink_to(secret)


SUMS = [
    "[]",
    "3",
    "null",
    "{}",
    "",
    "[" * 10**5,
    '{"a":' * 1000 + "1" + "}" * 1000,
    '{"../../x": "0"}',
    "{\xff",
]
SUMS += [
    '{"state.index": 5}',
    '{"state.index": {}}',
    '{"state.index": NaN}',
    '{"state.index": "' + "0" * 10**6,
]
STEPS = [
    "step-" + "9" * 240,
    "step-",
    "step-٣٣٣٣٣٣٣",
    "step--000001",
    "step-1",
    "step-00000001",
    "step-1e00005",
]
STEPS += ["step-0000004x", "step-999999999999", "step- 000007", "step-\n000007"]


def checkpoint_cases(number):
    specials = [(title, how) for title, how in SPECIAL.items() if title != "a terabyte"]
    for name in ("state.index", "state.data*", "sums.json"):
        for title, how in specials:
            yield f"{name} is {title}", in_place_of(name, how)
    for title, how in specials:
        yield f"the checkpoint is {title}", whole_folder(how)
    for text in SUMS:
        yield f"sums say {text[:30]!r}", sums_say(text)
    for name in STEPS:
        yield f"a folder is called {name[:30]!r}", named(name)
    for shape in ((5, 3), (15,), (3, 6), (), (0,), (1, 3, 5)):
        yield f"it is of the shape {shape}", of_another_network(*shape)
    yield "it is of something else", nothing_of_it
    yield "there is a link in it", more
    for seed in range(number):
        yield f"forged {seed}", forged(seed)


def resumed(run, secret, change):
    """Restores, saves twice more, and says from what."""
    checkpoints = with_checkpoints(run)
    change(checkpoints.place(3), secret)
    checkpoints.state.weights[0].assign(np.zeros((3, 5), "f4"))
    found = checkpoints.restore(ALONE)
    weights = checkpoints.state.weights[0].numpy()
    assert found in (1, 2, 3) and (weights == found).all() or found == 3, (found, weights)
    assert np.isfinite(weights).all() or found == 3
    for step in (3, 4, 5):
        checkpoints.save(step)
    assert checkpoints.restore(ALONE) in (5, 999999999999)
    return f"from step {found}"


# -- logs -------------------------------------------------------------------------------------------------

GOOD = {"stage": "diffusion", "step": 10, "loss": 2.0}
LINES = [
    "[1]",
    "3",
    "null",
    '"a"',
    "{}",
    '{"stage": 3, "step": 4}',
    '{"stage": "diffusion"}',
    "{",
    "\0" * 100,
]
LINES += ['{"stage": "diffusion", "step": "x"}', '{"stage": "diffusion", "step": NaN}', "[" * 10**5, "\u2028"]
LINES += ['{"stage": ["diffusion"], "step": 1}', '{"stage": "x", "step": 1e999}', '{"step": 1}', "9" * 5000]
LINES += ['{"stage": "diffusion", "step": ' + "9" * 4000 + "}", '{"a":' * 900 + "1" + "}" * 900, "\x1b[31m"]


def log_with(content):
    def change(run, secret):
        (run / "log.jsonl").write_bytes(content)

    return change


def log_is(how):
    return lambda run, secret: how(run / "log.jsonl", secret)


def log_cases():
    good = json.dumps(GOOD).encode() + b"\n"
    for line in LINES:
        yield f"a line is {line[:30]!r}", log_with(good + line.encode() + b"\n" + good)
    yield "a line without end", log_with(good + b"x" * 5_000_000)
    yield "a line that is no text", log_with(good + b"\xff\xfe\n" + good)
    yield "bytes of another text", log_with('{"stage": "diffusion"}\n'.encode("utf-16"))
    for title, how in SPECIAL.items():
        yield f"the log is {title}", log_is(how)


def trainer_of(budget):
    """What the log asks of a `Trainer`."""
    optimizer = SimpleNamespace(learning_rate=tf.Variable(0.5), loss_scale=None)
    step = SimpleNamespace(learners={"unet": SimpleNamespace(optimizer=optimizer)}, skipped_moves=0)
    return SimpleNamespace(budget=budget, step=step, is_to_stop=False)


def logged(run, secret, change):
    """A stage of one step; the good lines stay."""
    run.mkdir(parents=True)
    change(run, secret)
    stage = SimpleNamespace(name="diffusion", batch_size=1)
    Log(stage, run, 10)(trainer_of(Budget(None, 20)), 20, 5.0, {"loss": 1.0})
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20 and all(line.get("stage") for line in lines)
    return f"{len(lines)} lines"


# -- run.json, and what else the folder may have ----------------------------------------------------------

RUN_FILES = ["[]", "3", "null", '"a"', "", "{", "[" * 10**6, '{"seed": NaN}', '{"seed": {"a": [1, 2, 3]}}']
RUN_FILES += ['{"seed": "' + "x" * 10**5 + '"}', '{"seed": ' + "9" * 5000 + "}", '{"init_from_sha256": []}']
RUN_FILES += [
    '{"captions_fingerprint": 5}',
    '{"preset": null}',
    '{"learning_rate": [1]}',
    '{"dataset": "\\ud800"}',
]
RUN_FILES += ['{"a":' * 400 + "1" + "}" * 400, '{"seed": "a\\nb\\u001b[31m"}', '{"max_steps": 1e400}']
PLACES = [
    "run.json",
    "log.jsonl",
    "tensorboard",
    "samples",
    "snapshots",
    "checkpoints",
    "cache",
    "clip",
    "vae",
]
PLACES += ["unet", "text_encoder", "tokenizer", "scheduler", "model_index.json", "prior", "wandb-id.txt"]
PLACES += ["checkpoints/clip", "samples/x.png", "checkpoints/clip/step-0000001", "tensorboard/clip"]


def run_says(text):
    def change(run, secret):
        (run / "run.json").write_text(text)

    return change


def place_is(name, how):
    def change(run, secret):
        (run / name).parent.mkdir(exist_ok=True, parents=True)
        how(run / name, secret)

    return change


def run_cases():
    for text in RUN_FILES:
        yield f"run.json says {text[:30]!r}", run_says(text)
    leading_out = ("a pipe", "a socket", "a private file", "zeros without end", "a circle", "nothing")
    wrong = SPECIAL["a folder"], SPECIAL["bytes that are no text"]
    for i, name in enumerate(PLACES):
        for title in leading_out[i % 2 :: 2]:
            yield f"{name} is {title}", place_is(name, SPECIAL[title])
        if name not in ("checkpoints/clip/step-0000001", "samples/x.png"):
            yield f"{name} is of the other kind", place_is(name, wrong["." not in name])


def begun(run, secret, change):
    run.mkdir(parents=True)
    change(run, secret)
    begun = run_of(config(run))
    assert json.loads((run / "run.json").read_text())["seed"] == 0
    return f"begun in {begun.folder.name}"


# -- all --------------------------------------------------------------------------------------------------


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def attempt(root, kind, change):
    """What became of a case: "done", "refused" or "fault", and what was said of it."""
    use = {"checkpoints": resumed, "log": logged, "run": begun}[kind]
    run, secret = root / "case" / "run", root / "outside" / "private.txt"
    before = contents(root / "outside")
    forget_peak()
    used, start = memory("VmRSS"), time.perf_counter()
    try:
        with limited(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said = use(run, secret, change)
        verdict = "done"
        said = " ".join([said, *(str(each.message) for each in caught if each.category is UserWarning)])
        if not said.isprintable():
            verdict = "fault"
    except InputError as error:
        verdict, said = "refused", str(error)
        if not said.isprintable() or "run" not in said or len(said) > 2001:
            verdict = "fault"
    except KeyboardInterrupt:
        raise
    except BaseException:
        verdict, said = "fault", traceback.format_exc()
    if contents(root / "outside") != before:
        verdict, said = "fault", f"it changed what lies outside: {said}"
    if CANARY in said or (peak := memory("VmHWM") - used) > MEMORY:
        verdict, said = "fault", f"private, or too much memory: {said}"
    shutil.rmtree(root / "case", ignore_errors=True)
    return verdict, said, time.perf_counter() - start, peak


def run_all(number, kinds=("checkpoints", "log", "run")):
    cases = {"checkpoints": checkpoint_cases(number), "log": log_cases(), "run": run_cases()}
    found = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary, with_tiny_preset():
        root = Path(temporary)
        (root / "outside").mkdir()
        for name in ("private.txt", "notes.txt"):
            (root / "outside" / name).write_text(CANARY)
        for kind in kinds:
            for name, change in cases[kind]:
                result = attempt(root, kind, change)
                found[kind].append(result)
                if result[0] == "fault":
                    print(f"{kind}, {name}: {result[1]}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--show", action="store_true", help="what was said of each")
    options = parser.parse_args()
    start, faults = time.perf_counter(), 0
    print(f"{'of':16}{'run':>8}{'done':>8}{'refused':>8}{'faults':>8}{'slowest, s':>12}{'largest, MB':>12}")
    for kind, results in run_all(options.number).items():
        verdicts = collections.Counter(result[0] for result in results)
        faults += verdicts["fault"]
        slowest, largest = (max(result[i] for result in results) for i in (2, 3))
        counts = "".join(f"{verdicts[each]:>8}" for each in ("done", "refused", "fault"))
        print(f"{kind:16}{len(results):>8}{counts}{slowest:>12.2f}{largest / 1e6:>12.0f}")
        for result in results if options.show else ():
            print("   ", result[0], result[1][:300])
    print(f"{time.perf_counter() - start:.0f} s")
    sys.exit(faults > 0)


def assert_no_run_does_harm(*flags, seconds):
    """In a process of its own, whose end is not ours."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.test_hostile_runs", *flags],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc"
)


@needs_proc
def test_hostile_runs_do_no_harm():
    assert_no_run_does_harm(seconds=300)


@needs_proc
@pytest.mark.slow
def test_thousands_of_hostile_runs_do_no_harm():
    assert_no_run_does_harm("--number", "3000", seconds=1800)


# -- one by one -------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    (folder / "step-0000009").mkdir(parents=True)
    (folder / "step-0000009" / "thesis.txt").write_text("years of work")
    (folder / "shell.rc").write_text("mine")
    return folder


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/diffusion"])
def test_checkpoints_elsewhere_are_neither_read_nor_deleted(run, outside, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(outside)
    before = contents(outside)
    checkpoints = Checkpoints(state_of_shape(2), run / "checkpoints" / "diffusion", keep=1)
    for use in (lambda: checkpoints.restore(ALONE), lambda: checkpoints.save(3)):
        with pytest.raises(InputError, match="is a link out of the run's folder: copy what it points to"):
            use()
    assert contents(outside) == before


def test_where_no_checkpoint_can_be_read_nothing_is_learned_from_half_of_one(run):
    checkpoints = with_checkpoints(run)
    for step in (1, 2, 3):
        of_another_network(3, 6)(checkpoints.place(step), None)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(
            InputError, match="no checkpoint in .* can be read into this network: delete that folder"
        ),
    ):
        checkpoints.restore(ALONE)


def test_a_log_elsewhere_is_not_written_to(run, outside):
    stage = SimpleNamespace(name="diffusion", batch_size=1)
    log = Log(stage, run, 0)
    (run / "log.jsonl").symlink_to(outside / "shell.rc")
    with pytest.raises(InputError, match="log.jsonl is not a file that a run wrote: delete it"):
        log(trainer_of(Budget(None, 1)), 1, 0.0, {"loss": 1.0})
    with pytest.raises(
        InputError, match="log.jsonl is a link out of its folder.*delete it to begin a new log"
    ):
        Log(stage, run, 0)
    assert (outside / "shell.rc").read_text() == "mine"


def test_snapshots_elsewhere_are_not_deleted(run, outside):
    snapshots = run / "snapshots"
    snapshots.mkdir()
    (snapshots / "step-0000009").symlink_to(outside / "step-0000009")
    (snapshots / "step-0000003").mkdir()
    (snapshots / "step-0000008").mkdir()
    for name in ("step-", "step-x", "step-" + "9" * 240, "step-8"):
        (snapshots / name).mkdir()
    Snapshots(None, snapshots, 1, Budget(None, 10), 0.0, first_step=5)
    assert (outside / "step-0000009" / "thesis.txt").exists()
    left = {path.name for path in snapshots.iterdir()}
    assert left == {"step-0000003", "step-", "step-x", "step-" + "9" * 240, "step-8"}


@pytest.mark.parametrize("how", ["a private file", "a pipe", "nothing", "a circle"])
def test_a_preview_takes_the_place_of_a_link(run, outside, how):
    (run / "samples").mkdir()
    SPECIAL[how](run / "samples" / "diffusion-0000001.png", outside / "shell.rc")
    stage = SimpleNamespace(name="diffusion", preview=lambda: (np.zeros((1, 8, 8, 3), np.uint8), 1))
    now = SimpleNamespace(step=SimpleNamespace(averages_in_place=contextlib.nullcontext))
    Previews(stage, run / "samples", 1, Budget(None, 1), 0.0)(now, 1, 0.0, {})
    assert (run / "samples" / "diffusion-0000001.png").lstat().st_size > 50
    assert (outside / "shell.rc").read_text() == "mine" and not (run / "samples" / "nowhere").exists()


@pytest.mark.parametrize("how", SPECIAL)
def test_the_word_of_a_stranger_is_not_sent_anywhere(run, outside, how):
    SPECIAL[how](run / "wandb-id.txt", outside / "shell.rc")
    with limited(), pytest.raises(InputError, match="wandb-id.txt"):
        written_once(run / "wandb-id.txt", r"[\w-]{1,64}", lambda: "abc")
    assert (outside / "shell.rc").read_text() == "mine" and not (run / "nowhere").exists()
    assert written_once(run / "id.txt", r"\w+", lambda: "abc") == "abc"
    assert written_once(run / "id.txt", r"\w+", lambda: "def") == "abc"


def test_a_folder_without_end_is_no_run(run, monkeypatch):
    monkeypatch.setattr("sd_tf.training.own_folder.MOST_ENTRIES", 50)
    (run / "cache").mkdir()
    for i in range(60):
        (run / "cache" / str(i)).touch()
    with pytest.raises(InputError, match="has more than 50 files: is it a run"):
        check_own(run, [], ["cache"])
    assert MOST_ENTRIES > 10_000
    check_own(run, ["nothing"], ["samples"])


def test_links_within_a_run_and_a_link_to_the_run_are_followed(run, tmp_path):
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest").symlink_to("run-1")
    (tmp_path / "named").symlink_to("run")
    check_own(tmp_path / "named", [], ["wandb"])


@pytest.mark.parametrize("name", ["log.jsonl", "checkpoints", "samples", "run.json"])
def test_the_command_refuses_a_run_that_leads_out_in_one_line(run, outside, name):
    (run / name).symlink_to(outside / ("shell.rc" if "." in name else "step-0000009"))
    before = contents(outside)
    done = subprocess.run(
        [sys.executable, "-m", "sd_tf.train", "--dataset", "garments", "--output", str(run)],
        env=os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and f"{run / name} is a link out of the run's folder" in said
    assert "another --output" in said and contents(outside) == before
    assert [path.name for path in run.iterdir()] == [name]


if __name__ == "__main__":
    main()

"""Checkpoints made to do harm: each opens and draws, or is refused in one line, and nothing else happens.

`python -m tests.checkpoints.test_hostile_files` tries every case and prints what became of it; `--every 5`
every fifth, and `--only 123` one.
"""

import argparse
import collections
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import pytest

import sd_tf.generation.engines as engines
from sd_tf.checkpoints import clip as clip_folders
from sd_tf.errors import LONGEST, InputError
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.unet import UNet
from sd_tf.text.clip import CLIPTextModel
from sd_tf.text.tokenizer import Tokenizer
from tests.checkpoints.hostile import CANARY, DRAWN, MUST_REFUSE, READ, all_cases
from tests.checkpoints.undamaged import use
from tests.fuzzing import forget_peak, limited, memory

MEMORY = 2_000_000_000  # bytes of one case
ADDRESSES = 12_000_000_000  # bytes that may be mapped besides
EAGER_MEMORY = 3e8  # bytes of a picture's largest layer, above which a case is opened and not drawn


class Result(NamedTuple):
    """What became of a case."""

    number: int
    kind: str
    name: str
    verdict: str  # "drawn", "opened", "refused" or "fault"
    said: str
    seconds: float
    memory: int


def draw(model):
    """Two steps of a picture, or the only one that there is, all finite."""
    steps, number = [], min(2, model.schedule.config.num_train_timesteps)
    images = model.generate(
        "a red dress",
        steps=number,
        engine="tensorflow",
        progress=False,
        callback=lambda step, latents, prediction: steps.append(np.asarray(latents)),
    )
    if not all(np.isfinite(each).all() for each in steps):
        raise AssertionError("latents that are not finite")
    if not np.isfinite(np.asarray(model.autoencoder.decode(steps[-1]))).all():
        raise AssertionError("a picture that is not finite")
    assert len(steps) == number and images.dtype == np.uint8


def run_case(number, case, root):
    """Loads what the case made, and draws with it where it is a whole model."""
    name = case.checkpoint.replace(" ", "-")
    # A folder of its own: the thread of a race before it ends when that one's folder is gone.
    folder, secret = root / f"case-{number}" / name, root / "private.txt"
    shutil.copytree(root / "named" / name, folder)
    expected = case.change(folder, secret)
    others = state_of(root / "outside")
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = READ[case.checkpoint].load(folder)
            verdict, said = attempt(loaded, folder, expected)
    except InputError as error:
        verdict, said = "refused", str(error)
        if len(said) > LONGEST + 1 or not said.isprintable() or str(folder) not in said:
            verdict, said = "fault", f"no line that names a file: {said!r}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        verdict, said = "fault", traceback.format_exc()
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    if verdict in ("opened", "drawn") and expected == MUST_REFUSE:
        verdict, said = "fault", "it was opened"
    if CANARY in said:
        verdict, said = "fault", "it shows what is private"
    if state_of(root / "outside") != others or secret.read_text() != CANARY:
        verdict, said = "fault", "it changed what lies outside"
    if peak > MEMORY:
        verdict, said = "fault", f"took {peak / 1e6:.0f} MB"
    for _ in range(100):  # a race may make one more file meanwhile
        shutil.rmtree(root / f"case-{number}", ignore_errors=True)
        if not (root / f"case-{number}").exists():
            break
    return Result(number, case.kind, f"{case.checkpoint}: {case.name}", verdict, said, seconds, peak)


def attempt(loaded, folder, expected):
    if isinstance(loaded, LatentDiffusion) and expected == DRAWN:
        height, width = loaded.unet.config.latent_size
        if 16 * (height * width) ** 2 > EAGER_MEMORY:
            return "opened", ""
        draw(loaded)
        return "drawn", ""
    if isinstance(loaded, CLIPTextModel) and expected == DRAWN:
        clip = clip_folders.load_clip(folder)
        size = clip.vision_config.image_size
        clip.image_features(np.zeros((1, size, size, clip.vision_config.num_channels), "float32"))
    if can_be_used(loaded):
        with contextlib.suppress(InputError):
            use(loaded)
    assert CANARY not in repr(loaded)[: 10**6]
    return "opened", ""


def can_be_used(loaded):
    return isinstance(loaded, (LatentDiffusion, Tokenizer, UNet, AutoencoderKL, CLIPTextModel))


def state_of(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(numbers=None, every=1, first=0):
    """Every case that is asked for, with a line for each fault."""
    engines.compiled = lambda function: function  # two steps are drawn before a graph is traced
    results = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        root = Path(temporary)
        (root / "outside").mkdir()
        for name in ("private.txt", "outside/notes.txt"):
            (root / name).write_text(CANARY)
        cases = all_cases(root)
        chosen = numbers if numbers is not None else range(first, len(cases), every)
        use(READ["model"].load(root / "named" / "model"))  # what that leaves in memory is no case's doing
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES, most))
        for number in chosen:
            results.append(run_case(number, cases[number], root))
            if results[-1].verdict == "fault":
                print(f"case {number}, {results[-1].name}: {results[-1].said}", flush=True)
    return results


def summary(results):
    kinds = collections.defaultdict(list)
    for result in results:
        kinds[result.kind].append(result)
    rows = [("case", "run", "drawn", "opened", "refused", "faults", "slowest, s", "largest, MB")]
    for name, of_kind in [*sorted(kinds.items()), ("all", results)]:
        verdicts = collections.Counter(result.verdict for result in of_kind)
        counts = [verdicts[each] for each in ("drawn", "opened", "refused", "fault")]
        slowest, largest = (max(getattr(each, field) for each in of_kind) for field in ("seconds", "memory"))
        rows.append((name, len(of_kind), *counts, f"{slowest:.2f}", f"{largest / 1e6:.0f}"))
    return "\n".join(f"{row[0]:40}" + "".join(f"{each:>12}" for each in row[1:]) for row in rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+")
    options = parser.parse_args()
    start = time.perf_counter()
    results = run(options.only, options.every, options.first)
    for result in results if options.only else ():
        print(json.dumps(result._asdict(), indent=1))
    print(summary(results))
    print(f"{time.perf_counter() - start:.0f} s")
    sys.exit(any(result.verdict == "fault" for result in results))


def assert_no_case_does_harm(*flags, seconds):
    """In a process of its own, whose memory is its own and whose end is not ours."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.test_hostile_files", *flags],
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
def test_hostile_checkpoints_do_no_harm():
    assert_no_case_does_harm("--every", "4", seconds=300)


@needs_proc
@pytest.mark.slow
def test_every_hostile_checkpoint_does_no_harm():
    assert_no_case_does_harm(seconds=1800)


if __name__ == "__main__":
    main()

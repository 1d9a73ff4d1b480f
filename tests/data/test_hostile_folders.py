"""Folders, stores and caches of strangers, made worse at random: each is read, or refused in one line.

None takes more than its seconds and its memory, shows what a private file holds, or changes one.
`python -m tests.data.test_hostile_folders --number 2000` prints what was tried, and `--only 123` repeats one.
"""

import argparse
import collections
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import pytest

from sd_tf.data.cache import latent_cache
from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.data.sources import folder_source
from sd_tf.errors import LONGEST, InputError
from tests.data import hostile, hostile_stores
from tests.data.hostile import COLOUR, LAYOUTS, WORD
from tests.fuzzing import forget_peak, limited, memory

SECONDS = 10  # of one case
MEMORY = 1_000_000_000  # bytes that one may take
ADDRESSES = 8_000_000_000  # bytes that may be mapped besides, so that a mistake does not take the machine
KINDS = {
    **{name: ("folder", change) for name, change in hostile.DAMAGES.items()},
    **{f"race: {name}": ("race", name) for name in ("links", "ends", "folders")},
    **{f"store: {name}": ("store", change) for name, change in hostile_stores.DAMAGES.items()},
    **{f"cache: {name}": ("cache", change) for name, change in hostile_stores.DAMAGES.items()},
}


def opened(case):
    """All that a data set shows: captions, squares, and what is said."""
    caption = "a thing" if case.rng.random() < 0.1 else None
    source = folder_source(case.data, caption=caption, outputs=[case.data / "run"])
    pictures = CaptionedPictures(source, 8, case.run / "cache")
    pictures.decode(progress=False)
    examples = pictures.examples(range(len(pictures)), 0)
    return pictures, examples.images, [*examples.captions, *source.problems]


def cached(case, pictures):
    """Latents of it, which are pictures themselves."""

    def encode(images):
        return images / 255.0, images / 255.0

    def encode_captions(captions):
        return np.array([[[len(caption)]] for caption in captions], np.float32)

    return latent_cache(case.run / "cache", "latents", pictures, encode, encode_captions, 24)


def used(case, kind, change):
    """What a case shows, in pictures and in words."""
    if kind == "race":
        with racing(case, change):
            _, images, said = opened(case)
        return images, said
    if kind == "folder":
        change(case)
        forget_peak()
        _, images, said = opened(case)
        return images, said
    pictures, *_ = opened(case)
    cached(case, pictures)
    stores = {"store": next((case.run / "cache").glob("pictures-*")), "cache": case.run / "cache" / "latents"}
    change(case, stores[kind])
    pictures, images, said = opened(case)
    cache = cached(case, pictures)
    assert len(np.asarray(cache.contexts)[np.asarray(cache.caption)]) == len(cache.mean) == len(cache.std)
    return images, said


class racing:
    """Another process, as it were, that changes the folder as often as it can while it is read."""

    def __init__(self, case, kind):
        self.case, self.kind, self.done = case, kind, threading.Event()
        self.thread = threading.Thread(target=self.change, daemon=True)

    def __enter__(self):
        self.files = [*self.case.pictures, *self.case.texts]
        self.whole = {file: file.read_bytes() for file in self.files}
        self.thread.start()

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def change(self):
        rng, new = random.Random(0), self.case.run / "new"
        while not self.done.is_set():
            file = rng.choice(self.files)
            try:
                if self.kind == "links":
                    secret = "secret.png" if file.suffix == ".png" else "secret.txt"
                    new.symlink_to(self.case.private / secret)
                    new.replace(file)
                    time.sleep(0.0002)
                elif self.kind == "ends":
                    os.truncate(file, rng.randrange(len(self.whole[file])))
                else:
                    shutil.rmtree(file.parent) if rng.random() < 0.1 else file.unlink()
                    file.parent.mkdir(exist_ok=True)
                new.write_bytes(self.whole[file])
                new.replace(file)
            except OSError:
                new.unlink(missing_ok=True)


def run_case(number, seed, root):
    """The damages take turns; all else about a case follows from its number and the seed."""
    rng = random.Random(f"{seed}/{number}")
    name = list(KINDS)[number % len(KINDS)]
    kind, change = KINDS[name]
    case = hostile.make(root / f"case-{number}", rng.choice(LAYOUTS), rng)
    private = {file: file.read_bytes() for file in case.private.iterdir()}
    forget_peak()
    before, start, said, verdict = memory("VmRSS"), time.perf_counter(), [], "read"
    try:
        with limited(SECONDS), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            images, said = used(case, kind, change)
        if (images == COLOUR).all(axis=(1, 2, 3)).any():
            verdict = "fault: shows a private picture"
    except InputError as error:
        verdict, said = "refused", [str(error)]
        if not said[0].isprintable() or len(said[0]) > LONGEST + 1:
            verdict = f"fault: more than one line: {said[0]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of a library in Rust is no Exception
        verdict = f"fault: {traceback.format_exc()}"
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    of_ours = [str(each.message) for each in warned if "/sd_tf/" in each.filename]
    skipped = [file.read_text() for file in case.run.glob("cache/*/skipped.txt") if not file.is_symlink()]
    if WORD in repr([*said, *of_ours, *skipped]):
        verdict = f"fault: shows a private file: {said} {of_ours} {skipped}"
    if any(file.read_bytes() != content for file, content in private.items()):
        verdict = "fault: changed a private file"
    if not all(each.isprintable() for each in of_ours):
        verdict = f"fault: warns in more than one line: {of_ours}"
    if peak > MEMORY:
        verdict = f"fault: took {peak / 1e6:.0f} MB"
    remove(root / f"case-{number}")
    return name, verdict, said, seconds, peak


def remove(folder):
    """Deep folders as well, which `shutil.rmtree` of older Pythons gives up on."""
    subprocess.run(["rm", "-rf", folder], check=True)


def run(numbers, seed):
    """Every case, with a line for each fault; the faults, and a table."""
    faults, kinds = 0, collections.defaultdict(list)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES, most))
    with tempfile.TemporaryDirectory() as root:
        for number in numbers:
            name, verdict, said, seconds, peak = run_case(number, seed, Path(root))
            kinds[name].append((verdict, seconds, peak))
            if verdict.startswith("fault"):
                faults += 1
                print(f"case {number}, {name}: {verdict}", flush=True)
            if len(numbers) < 10:
                print(number, name, verdict, said)
    for name, cases in kinds.items():
        read = sum(verdict == "read" for verdict, *_ in cases)
        seconds, peak = max(each[1] for each in cases), max(each[2] for each in cases)
        print(f"{name:45} {len(cases):4} of which read {read:4} {seconds:7.2f} s {peak / 1e6:6.0f} MB")
    return faults


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=2000, help="cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases to repeat")
    options = parser.parse_args()
    sys.exit(run(options.only or range(options.number), options.seed) > 0)


def assert_all_are_read_or_refused(number, seed, seconds):
    """In a process of its own, whose memory is its own and whose end is not ours."""
    command = [sys.executable, "-m", "tests.data.test_hostile_folders", "--number", str(number)]
    done = subprocess.run(
        [*command, "--seed", str(seed)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc"
)


@needs_proc
def test_hostile_folders_are_read_or_refused_in_one_line():
    assert_all_are_read_or_refused(5 * len(KINDS), seed=0, seconds=300)


@needs_proc
@pytest.mark.slow
def test_thousands_of_hostile_folders_are_read_or_refused_in_one_line():
    assert_all_are_read_or_refused(3000, seed=1, seconds=3600)


if __name__ == "__main__":
    main()

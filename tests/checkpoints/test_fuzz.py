"""Checkpoints from strangers, damaged at random: each opens, or is refused in one line that names a file.

`python -m tests.checkpoints.test_fuzz --number 2000` prints what was tried and what became of it, and
`--only 123` repeats one case and shows what was said of it.
"""

import argparse
import collections
import contextlib
import json
import os
import random
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
from safetensors.numpy import load_file, save_file

from sd_tf.errors import LONGEST, InputError
from tests.checkpoints.damages import (
    DAMAGES,
    EMPTY,
    MUST_REFUSE,
    Case,
    header_of,
    read_json,
    write_header,
    write_json,
)
from tests.checkpoints.undamaged import CHECKPOINTS, SINGLE, use
from tests.fuzzing import forget_peak, limited, memory

MEMORY = 1_000_000_000  # bytes that one load may take, and that all together may leave behind
ADDRESSES = 8_000_000_000  # bytes that may be mapped besides, so that a mistake does not take the machine


class Result(NamedTuple):
    """What became of a case."""

    number: int
    damage: str
    checkpoint: str
    verdict: str  # "loaded", "refused" or "fault"
    said: str
    seconds: float
    memory: int  # bytes at the most while it was loaded, more than before


def undamaged(name, root):
    """The folder of a checkpoint, written when it is first asked for and loaded once.

    What the first load leaves in memory, threads and caches, is not the next one's doing.
    """
    folder = root / "undamaged" / name.replace(" ", "-")
    if not folder.exists():
        CHECKPOINTS[name].write(folder)
        use(CHECKPOINTS[name].load(folder))
    return folder


def run_case(number, seed, root):
    """The damages take turns; all else about a case follows from its number and the seed."""
    rng = random.Random(f"{seed}/{number}")
    damage = list(DAMAGES)[number % len(DAMAGES)]
    names, change = DAMAGES[damage]
    (name,) = rng.choices(names, [CHECKPOINTS[each].share for each in names])
    case = Case(root / "case", undamaged(name, root), root / "executed", rng)
    shutil.copytree(case.outside, case.folder)
    must_refuse = change(case) == MUST_REFUSE
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = CHECKPOINTS[name].load(case.folder)
            with contextlib.suppress(InputError):
                use(loaded)
        verdict, said = ("fault", "loaded") if must_refuse else ("loaded", "")
    except InputError as error:
        wrong = wrong_with(str(error), case.folder)
        verdict, said = ("fault", f"{wrong}: {str(error)!r}") if wrong else ("refused", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of a library in Rust is no Exception
        verdict, said = "fault", traceback.format_exc()
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    if case.marker.exists():
        verdict, said = "fault", "a pickle was executed"
    if peak > MEMORY:
        verdict, said = "fault", f"took {peak / 1e6:.0f} MB"
    shutil.rmtree(case.folder)
    return Result(number, damage, name, verdict, said, seconds, peak)


def wrong_with(message, folder):
    """What a message lacks, or None."""
    if len(message.splitlines()) != 1 or not message.isprintable():
        return "more than one line"
    if str(folder) not in message:
        return "names no file"
    if len(message) > LONGEST + 1:
        return "too long"
    return None


def run(numbers, seed):
    """Every case, with a line for each fault; and what they leave in memory, in bytes."""
    results = []
    with tempfile.TemporaryDirectory() as root:
        for name in CHECKPOINTS:
            undamaged(name, Path(root))
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES, most))
        before = memory("VmRSS")
        for number in numbers:
            results.append(run_case(number, seed, Path(root)))
            if results[-1].verdict == "fault":
                print(f"case {number}, {results[-1].damage}, {results[-1].checkpoint}: {results[-1].said}")
                sys.stdout.flush()
    return results, memory("VmRSS") - before


def summary(results, left):
    """A table of the damages, and what was slowest and largest."""
    kinds = collections.defaultdict(list)
    for result in results:
        kinds[result.damage].append(result)
    rows = [("damage", "run", "loaded", "refused", "faults", "slowest, s", "largest, MB")]
    for name, of_kind in [*sorted(kinds.items()), ("all", results)]:
        verdicts = collections.Counter(result.verdict for result in of_kind)
        slowest, largest = (max(getattr(r, field) for r in of_kind) for field in ("seconds", "memory"))
        counts = (len(of_kind), verdicts["loaded"], verdicts["refused"], verdicts["fault"])
        rows.append((name, *counts, f"{slowest:.2f}", f"{largest / 1e6:.0f}"))
    lines = [f"{row[0]:40}" + "".join(f"{each:>12}" for each in row[1:]) for row in rows]
    for field in ("seconds", "memory"):
        worst = max(results, key=lambda result: getattr(result, field))
        lines.append(f"most {field}: case {worst.number}, {worst.damage}, {worst.checkpoint}")
    return "\n".join([*lines, f"left in memory by all: {left / 1e6:.0f} MB"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=2000, help="cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases to repeat")
    options = parser.parse_args()
    start = time.perf_counter()
    results, left = run(options.only or range(options.number), options.seed)
    for result in results if options.only else ():
        print(result)
    print(summary(results, left))
    print(f"{time.perf_counter() - start:.0f} s")
    sys.exit(any(result.verdict == "fault" for result in results) or left > MEMORY)


def assert_all_open_or_are_refused(number, seed, seconds):
    """In a process of its own, whose memory is its own and whose end is not ours."""
    command = [
        sys.executable,
        "-m",
        "tests.checkpoints.test_fuzz",
        "--number",
        str(number),
        "--seed",
        str(seed),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=seconds)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc"
)


@needs_proc
def test_damaged_checkpoints_open_or_are_refused_in_one_line():
    assert_all_open_or_are_refused(2 * len(DAMAGES), seed=0, seconds=300)


@needs_proc
@pytest.mark.slow
def test_thousands_of_damaged_checkpoints_open_or_are_refused_in_one_line():
    assert_all_open_or_are_refused(2500, seed=1, seconds=3600)


# -- what it found, so that it stays found ----------------------------------------------------------------


def change_json(name, **changes):
    def change(folder):
        write_json(folder / name, read_json(folder / name) | changes)

    return change


def change_header(change):
    def changed(folder):
        (file,) = folder.glob("*.safetensors")
        header, body = header_of(file)
        write_header(file, change(header) or header, body)

    return changed


def link(name, target):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def a_key_twice(header):
    fillers = {f"filler.{i}": EMPTY for i in range(50_000)}
    return (json.dumps(fillers)[:-1] + "," + json.dumps(header)[1:-1] + ', "filler.49999": {}}').encode()


LAYERS = {
    "block_out_channels": [4] * 11,
    "down_block_types": ["DownBlock2D"] * 11,
    "up_block_types": ["UpBlock2D"] * 11,
    "attention_head_dim": [2] * 11,
    "layers_per_block": 80,
}
WORDS = {str(518 + i): {"content": f"<{i}>", "special": i % 2 == 0} for i in range(3000)}
FOUND = {
    "a key twice among many": ("UNet", change_header(a_key_twice), "filler.49999 stands in it twice"),
    "many layers": ("UNet", change_json("config.json", **LAYERS), "90 tensors make at most 11 layers"),
    "a list without end": (
        "UNet",
        change_json("config.json", in_channels=[4] * 10**6),
        r"\(4, 4, 4, .*…, exp",
    ),
    "a list of lists": ("UNet", change_json("config.json", more="@deep@"), "nests more than 50 objects"),
    "a number of thousands of digits": (
        "tokenizer",
        change_json("tokenizer_config.json", more="@digits@"),
        "tokenizer_config.json cannot be read as JSON",
    ),
    "a link in a circle": ("UNet", link("config.json", "config.json"), "config.json cannot be read"),
    "a link to a long name": ("UNet", link("config.json", "x" * 300), "config.json cannot be read"),
    "a shard with a null byte": (
        "shards",
        change_json("diffusion_pytorch_model.safetensors.index.json", weight_map={"a": "\0.safetensors"}),
        "which is no safetensors file beside it",
    ),
    "groups by default": ("UNet", change_json("config.json", norm_num_groups=32), "case: 4 channels do not"),
    "a negative size": (
        "UNet",
        change_json("config.json", norm_num_groups=-2),
        "norm_num_groups is -2, expected 1",
    ),
    "many added tokens": (
        "tokenizer",
        change_json("tokenizer_config.json", added_tokens_decoder=WORDS),
        "merges.txt: 3000 tokens are added, 2000 are the most",
    ),
    "timesteps without end": (
        "model",
        change_json("scheduler/scheduler_config.json", num_train_timesteps=10**9),
        "scheduler_config.json: num_train_timesteps is 1000000000",
    ),
    "no size": (
        "file of 1.x",
        change_header(
            lambda header: header["model.diffusion_model.input_blocks.0.0.weight"].update(shape=[64 * 4 * 9])
        ),
        r"input_blocks.0.0.weight has shape \(2304,\), which says no size",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), FOUND.values(), ids=FOUND)
def test_what_was_found_is_refused_in_one_line(name, change, message, tmp_path):
    folder = tmp_path / "case"
    CHECKPOINTS[name].write(folder)
    change(folder)
    with pytest.raises(InputError, match=message) as error, limited():
        CHECKPOINTS[name].load(folder)
    assert wrong_with(str(error.value), folder) is None


def test_three_projections_in_one_are_three(tmp_path):
    CHECKPOINTS["file of 2.x"].write(tmp_path)
    file = tmp_path / SINGLE
    tensors = load_file(file)
    for key, value in tensors.items():
        if "attn.in_proj" in key:
            tensors[key] = np.concatenate([value, value[:1]])
    save_file(tensors, file)
    with pytest.raises(
        InputError, match=r"in_proj_weight has shape \(385, 128\), which is not that of three in one"
    ):
        CHECKPOINTS["file of 2.x"].load(tmp_path)


if __name__ == "__main__":
    main()

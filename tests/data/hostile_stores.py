"""What a run keeps of pictures, as a stranger may leave it: squares, latents, and what is said of them."""

import json
import os
import shutil

import numpy as np

from tests.data.hostile import SPECIAL, put

ODD_JSON = (b"[1]", b"", b"{", b'{"seconds": "x"}', b'{"seconds": NaN}', b"[" * 100_000, b'{"seconds": -1}')
ODD_NUMBERS = ([-1, 2, 3], [0, 1, 10**6], [3, 2, 1], [], [1, 1, 2], [[0, 1]], [0.5, 1.0])


def files_of(store):
    return sorted(each for each in store.iterdir() if each.is_file() and each.suffix in (".npy", ".json"))


def cut(case, store):
    file = case.any(files_of(store))
    with open(file, "r+b") as opened:
        opened.truncate(case.rng.randrange(file.stat().st_size))


def bits(case, store):
    file = case.any(files_of(store))
    content = bytearray(file.read_bytes())
    content[case.rng.randrange(min(128, len(content)))] ^= 1 << case.rng.randrange(8)
    file.write_bytes(content)


def other_kind(case, store):
    put(case.any(SPECIAL), case.any(files_of(store)), case)


def missing(case, store):
    case.any(files_of(store)).unlink()


def endless(case, store):
    with open(case.any(files_of(store)), "r+b") as opened:
        opened.truncate(10**12)


def numbers(case, store):
    name = "kept" if (store / "kept.npy").exists() else "caption"
    kind = np.int64 if name == "kept" else np.int32
    values = case.any(ODD_NUMBERS)
    np.save(store / f"{name}.npy", np.array(values, None if 0.5 in values else kind))


def shapes(case, store):
    name = case.any([each for each in files_of(store) if each.suffix == ".npy"])
    shape = case.any([(), (0,), (3,), (24, 2, 2), (24, 16, 16, 4), (10**6, 1), (1, 1, 1, 1, 1)])
    np.save(name, np.zeros(shape, case.any([np.uint8, np.float16, np.float64, "U3", np.int32])))


def objects(case, store):
    name = case.any([each for each in files_of(store) if each.suffix == ".npy"])
    np.save(name, np.array([print, {}], object), allow_pickle=True)


def what_is_said(case, store):
    for file in files_of(store):
        if file.suffix == ".json":
            file.write_bytes(case.any(ODD_JSON))


def link_to_private(case, store):
    """The whole store, or what is in it, somewhere else."""
    elsewhere = case.private / "store"
    if case.rng.random() < 0.5:
        store.rename(elsewhere)
        store.symlink_to(elsewhere)
    else:
        file = case.any(files_of(store))
        shutil.move(file, elsewhere)
        file.symlink_to(elsewhere)


def a_file(case, store):
    shutil.rmtree(store)
    if case.rng.random() < 0.5:
        store.write_text(json.dumps({}))
    else:
        os.mkfifo(store)


DAMAGES = {
    "cut short": cut,
    "bits": bits,
    "special files": other_kind,
    "missing": missing,
    "without end": endless,
    "numbers out of range": numbers,
    "other shapes": shapes,
    "objects of Python": objects,
    "what is said of it": what_is_said,
    "a link": link_to_private,
    "no folder": a_file,
}

"""Where a peer's process leaves its pictures, and how fast it drew them; reading them needs no torch."""

import json

import numpy as np

KINDS = ("grey", "tinted")


def drawn_file(folder, kind, i, number, *settings):
    """Where the pictures of a prompt are, as many as `number`, drawn with some settings."""
    words = (*(f"{each:g}" for each in settings), number, kind, f"{i:02}")
    return folder / f"drawn-{'-'.join(map(str, words))}.npy"


def write_pictures(file, images):
    """Writes uint8 (n, 32, 32, 3) as a whole, or not at all."""
    np.save(file.with_suffix(".tmp.npy"), images)
    file.with_suffix(".tmp.npy").rename(file)


def add_speed(folder, totals, settings, pictures, seconds):
    """Counts pictures and the seconds they took to those that an earlier call has counted."""
    before = read_speed(folder, totals, settings) or {"pictures": 0, "seconds": 0.0}
    write_speed(folder, totals, settings, before["pictures"] + pictures, before["seconds"] + seconds)


def write_speed(folder, totals, settings, pictures, seconds):
    """Writes what `read_speed` reads."""
    found = {"pictures": pictures, "seconds": seconds}
    _speed_file(folder, totals, settings).write_text(json.dumps(found))


def read_speed(folder, totals, settings):
    """{"pictures": ..., "seconds": ...}; None where nothing was timed.

    Args:
        folder: the peer's.
        totals: how many pictures of each kind were asked for.
        settings: as of `drawn_file`.
    """
    file = _speed_file(folder, totals, settings)
    return json.loads(file.read_text()) if file.is_file() else None


def _speed_file(folder, totals, settings):
    return folder / f"speed-{'-'.join(f'{each:g}' for each in (*settings, *totals))}.json"

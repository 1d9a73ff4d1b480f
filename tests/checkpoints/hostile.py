"""What a stranger puts in place of a checkpoint's files: pipes, links, races, numbers at their bounds.

Every case is a function that changes a checkpoint's folder. It returns `MUST_REFUSE` where nothing that is
there then may be read, and `DRAWN` where what opens has to draw.
"""

import contextlib
import itertools
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from sd_tf.checkpoints.bounds import BOUNDS
from sd_tf.checkpoints.sources import weights_sha256
from sd_tf.checkpoints.word_files import FILE as WORD_FILE
from sd_tf.checkpoints.word_files import read_word
from sd_tf.evaluation.classifier import load_classifier
from sd_tf.latent.lora import read_lora
from sd_tf.lora.files import FILE as LORA_FILE
from tests.checkpoints.undamaged import CHECKPOINTS, Checkpoint

MUST_REFUSE, DRAWN = "must be refused", "drawn"
CANARY = "a-private-word-of-the-user"
MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


class Case(NamedTuple):
    """One change, of one kind of checkpoint."""

    kind: str
    name: str
    checkpoint: str
    change: Callable  # of (folder, secret file)


# -- what else is read from folders of strangers ----------------------------------------------------------


def write_lora_folder(folder):
    folder.mkdir(parents=True)
    arrays = {
        f"{MODULE}.lora_A.weight": np.ones((2, 4), "f4"),
        f"{MODULE}.lora_B.weight": np.ones((4, 2), "f4"),
    }
    save_file(arrays, folder / LORA_FILE)


def write_word_folder(folder):
    folder.mkdir(parents=True)
    save_file({"<mine>": np.ones(8, "f4")}, folder / WORD_FILE)


def write_classifier(folder):
    from sd_tf.checkpoints.sources import resolve

    shutil.copytree(resolve("fashion-mnist-classifier"), folder)


READ = CHECKPOINTS | {
    "LoRA": Checkpoint(write_lora_folder, lambda folder: read_lora(folder, {MODULE: (4, 4)}), 1),
    "word": Checkpoint(write_word_folder, read_word, 1),
    "classifier": Checkpoint(write_classifier, load_classifier, 1),
    "hash": Checkpoint(CHECKPOINTS["model"].write, weights_sha256, 1),
    "hash of shards": Checkpoint(CHECKPOINTS["shards"].write, weights_sha256, 1),
}


# -- special files ----------------------------------------------------------------------------------------


def listen(file):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server, contextlib.chdir(file.parent):
        server.bind(file.name)


def loop(file, secret):
    file.symlink_to(file.name)


def pipe_behind_a_link(file, secret):
    os.mkfifo(file.with_name("a pipe"))
    file.symlink_to("a pipe")


def two_steps(file, secret):
    file.with_name("step").symlink_to(secret)
    file.symlink_to("step")


def endless(file, secret):
    with file.open("wb") as opened:
        opened.truncate(2**40)  # with holes: it takes no space


SPECIAL = {
    "a pipe": lambda file, secret: os.mkfifo(file),
    "a pipe behind a link": pipe_behind_a_link,
    "a socket": lambda file, secret: listen(file),
    "a folder": lambda file, secret: file.mkdir(),
    "zeros without end": lambda file, secret: file.symlink_to("/dev/zero"),
    "a terminal": lambda file, secret: file.symlink_to("/dev/tty"),
    "our environment": lambda file, secret: file.symlink_to("/proc/self/environ"),
    "a private file": lambda file, secret: file.symlink_to(secret),
    "a private file in two steps": two_steps,
    "a circle": loop,
    "nothing": lambda file, secret: file.symlink_to("nowhere"),
    "a terabyte": endless,
    "bytes that are no text": lambda file, secret: file.write_bytes(b"\xff\xfe\xfa" * 50),
}
OPTIONAL = ("special_tokens_map.json", "tokenizer_config.json")  # a folder in whose place is none at all


def special(name, how):
    def change(folder, secret):
        file = folder / name
        file.unlink()
        how(file, secret)
        return None if file.name in OPTIONAL else MUST_REFUSE

    return change


def special_cases(root):
    for checkpoint, kind in READ.items():
        folder = root / "named" / checkpoint.replace(" ", "-")
        kind.write(folder)
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if checkpoint == "CLIP":  # of which the text tower is read
            names = ["config.json", "model.safetensors"]
        if checkpoint == "classifier":
            names.remove("README.md")
        if checkpoint.startswith("hash"):
            names = [name for name in names if name.endswith((".safetensors", ".index.json"))]
        for name, (title, how) in itertools.product(names, SPECIAL.items()):
            hashed = checkpoint.startswith("hash") and not name.endswith(".index.json")
            if hashed and title == "bytes that are no text":
                continue  # any bytes have a hash
            yield Case("a file is " + title, f"{name} is {title}", checkpoint, special(name, how))


# -- races ------------------------------------------------------------------------------------------------


def racing(name, swap):
    """While the checkpoint is loaded, a thread changes a file over and over; it ends with the folder."""

    def change(folder, secret):
        file = folder / name
        content, beside = file.read_bytes(), folder / "beside"

        def work():
            with contextlib.suppress(OSError):
                while file.parent.is_dir():
                    swap(file, beside, content, secret)

        threading.Thread(target=work, daemon=True).start()

    return change


def cut(file, beside, content, secret):
    with file.open("r+b") as opened:
        opened.truncate(len(content) // 2)
        opened.truncate(len(content))
        opened.write(content)


def swap_for_a_link(file, beside, content, secret):
    beside.symlink_to(secret)
    beside.replace(file)
    beside.write_bytes(content)
    beside.replace(file)


def swap_for_a_pipe(file, beside, content, secret):
    os.mkfifo(beside)
    beside.replace(file)
    beside.write_bytes(content)
    beside.replace(file)


def grow(file, beside, content, secret):
    with file.open("ab") as opened:
        opened.write(b"\0" * 1000)
    file.write_bytes(content)


def race_cases():
    swaps = {"cut": cut, "a link": swap_for_a_link, "a pipe": swap_for_a_pipe, "longer": grow}
    places = [
        *(("UNet", "diffusion_pytorch_model.safetensors"), ("UNet", "config.json")),
        *(("halves", "diffusion_pytorch_model.safetensors"), ("text tower", "model.safetensors")),
        *(("tokenizer", "vocab.json"), ("tokenizer", "merges.txt"), ("LoRA", LORA_FILE)),
        *(("model", "model_index.json"), ("word", WORD_FILE)),
    ]
    for (checkpoint, name), (title, swap) in itertools.product(places, swaps.items()):
        yield Case("a race", f"{name} is {title} again and again", checkpoint, racing(name, swap))


# -- numbers ----------------------------------------------------------------------------------------------

FILES = {  # of the whole model and of CLIP -> the object in the file with the numbers
    ("model", "unet/config.json"): None,
    ("model", "vae/config.json"): None,
    ("model", "text_encoder/config.json"): None,
    ("model", "scheduler/scheduler_config.json"): None,
    ("CLIP", "config.json"): "text_config",
    ("CLIP images", "config.json"): "vision_config",
}
HARD = [0, -1, 2**31, 2**63, 10**30, 1e-300, -1e-9, 1e300, True, None, "1", [], [0]]
SAID = {"NaN": float("nan"), "infinity": float("inf")}
PAIRS = {  # numbers that are well each by itself
    "a shift as large as what is shifted": ("unet/config.json", {"freq_shift": 2}),
    "half of the width": ("unet/config.json", {"freq_shift": 1, "block_out_channels": [2]}),
    "pictures of 8192": ("unet/config.json", {"sample_size": 8192}),
    "pictures of 2^31": ("unet/config.json", {"sample_size": 2**31}),
    "attention of gigabytes": ("unet/config.json", {"sample_size": 512}),
    "two sides of gigabytes": ("unet/config.json", {"sample_size": [4096, 4096]}),
    "three sides": ("unet/config.json", {"sample_size": [4, 4, 4]}),
    "no sides": ("unet/config.json", {"sample_size": []}),
    "pictures multiplied by 0": ("vae/config.json", {"scaling_factor": 0}),
    "nothing is lost": ("scheduler/scheduler_config.json", {"beta_start": 1e-30, "beta_end": 1e-30}),
    "nothing is left": ("scheduler/scheduler_config.json", {"beta_start": 0.9, "beta_end": 0.9}),
    "nothing is left of v": (
        "scheduler/scheduler_config.json",
        {"beta_start": 0.9, "beta_end": 0.9, "prediction_type": "v_prediction"},
    ),
    "far more timesteps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 100_000}),
    "other latents": ("unet/config.json", {"out_channels": 5}),
}


def with_number(file, inside, field, value):
    def change(folder, secret):
        content = json.loads((folder / file).read_text())
        (content if inside is None else content[inside])[field] = value
        (folder / file).write_text(json.dumps(content))
        return DRAWN

    return change


def with_numbers(file, changes):
    def change(folder, secret):
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(content))
        return MUST_REFUSE

    return change


def values_at(bound, old):
    """On both sides of both bounds; and those at which something else broke once."""
    step = 1 if isinstance(bound.least, int) and isinstance(bound.most, int) else 1e-13
    near = [bound.least, bound.most, bound.least - step, bound.most + step, *HARD, *SAID.values()]
    return near + ([[value] for value in near[:4]] if isinstance(old, list) else [])


def number_cases(root):
    for (checkpoint, file), inside in FILES.items():
        folder = root / "named" / checkpoint.split()[0]
        content = json.loads((folder / file).read_text())
        content = content if inside is None else content[inside]
        for field in sorted(content.keys() & BOUNDS.keys()):
            for value in values_at(BOUNDS[field], content[field]):
                change = with_number(file, inside, field, value)
                yield Case("a number", f"{file}: {field} is {value}", checkpoint.split()[0], change)
    for title, (file, changes) in PAIRS.items():
        yield Case("numbers together", title, "model", with_numbers(file, changes))


def all_cases(root: Path):
    """Every case there is, in an order that does not change."""
    return [*special_cases(root), *race_cases(), *number_cases(root)]

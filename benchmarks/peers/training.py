"""What peers share that train on Fashion-MNIST in colour: texts, batches, the loop and a command line.

A peer is a class, made of `Texts`, that has:

    name, weights: its own, and the file in DIR that `tensors` go into
    batch_size, saved_every: of a step, and steps from one state to the next
    steps_of_a_round: after how many steps the next ones cost the same again
    losses: the names of what `steps` yields
    steps(batch_size, first): takes a training step for each item that is asked for
    state(), load_state(state): all that training goes on from
    tensors(): those that draw
    add_flags(parser), draw(folder, options): its own flags, and drawing with them
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.peers.drawn_files import KINDS
from sd_tf.data.fashion_mnist import FashionMNIST

SIDE = 32  # pixels
WARM_UP = 3  # steps, at least, that are not timed


class Texts:
    """The states of captions, from `texts.npz`."""

    def __init__(self, folder):
        found = np.load(folder / "texts.npz")
        self.states, self.masks = (torch.from_numpy(found[name]) for name in ("states", "masks"))
        self.prompts = {kind: found[kind].tolist() for kind in KINDS}
        self.rows = {caption: row for row, caption in enumerate(found["captions"].tolist())}

    @property
    def width(self):
        """Of the states."""
        return self.states.shape[-1]

    def __call__(self, captions):
        """(states, masks) of some captions."""
        rows = [self.rows[caption] for caption in captions]
        return self.states[rows], self.masks[rows]


def batches(batch_size, first=0):
    """Yields (pictures, float (n, 3, 32, 32) in [0, 1], and their captions), without end, from a batch on."""
    dataset, number = FashionMNIST("train"), first
    while True:
        epoch, start = divmod(number * batch_size, len(dataset) // batch_size * batch_size)
        order = np.random.default_rng(epoch).permutation(len(dataset))
        examples = dataset.examples(order[start : start + batch_size], epoch)
        images = torch.from_numpy(examples.images).permute(0, 3, 1, 2).float() / 255
        yield images, list(examples.captions)
        number += 1


def measure(peer, number, batch_size):
    """Seconds of a step: of a round, the median of enough rounds for so many steps, by its steps."""
    size = peer.steps_of_a_round
    losses, taken = peer.steps(batch_size, 0), []
    warm_up, timed = (-(-steps // size) for steps in (WARM_UP, number))  # rounds, rounded up
    for _ in range(warm_up + timed):
        began = time.perf_counter()
        for _ in range(size):
            next(losses)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[warm_up:])) / size


def train(folder, peer, number, batch_size):
    """Trains for so many steps, and writes the weights; goes on from a state that an earlier call left."""
    state, asked = folder / "state.pt", {"peer": peer.name, "steps": number, "batch_size": batch_size}
    done, before = 0, 0.0  # steps and seconds of earlier calls
    if state.is_file():
        found = torch.load(state, weights_only=True)
        if found["asked"] != asked:
            raise SystemExit(f"{folder} is of {found['asked']}, not {asked}: name another --output")
        peer.load_state(found["state"])
        torch.set_rng_state(found["random"])
        done, before = found["done"], found["seconds"]
    losses, began, recent = peer.steps(batch_size, done), time.monotonic(), []
    while done < number:
        recent.append(next(losses))
        done += 1
        if done % peer.saved_every == 0 or done == number:
            seconds = before + time.monotonic() - began
            values = {"asked": asked, "done": done, "seconds": seconds, "random": torch.get_rng_state()}
            torch.save(values | {"state": peer.state()}, folder / "state.tmp")
            (folder / "state.tmp").rename(state)
            means = zip(peer.losses, np.mean(recent, axis=0), strict=True)
            said = ", ".join(f"{name} {value:.4f}" for name, value in means)
            print(f"step {done} of {number}, {said}", flush=True)
            recent = []
    seconds = before + time.monotonic() - began
    save_file(peer.tensors(), folder / peer.weights)
    (folder / "training.json").write_text(json.dumps(asked | {"seconds": round(seconds, 1)}))
    state.unlink(missing_ok=True)


def to_uint8(images):
    """Of pictures (n, 3, 32, 32) in [0, 1], an array (n, 32, 32, 3)."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def main(kind, description):
    """The command line of a peer of that class."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure", type=int, help="times so many steps")
    parser.add_argument("--steps", type=int, help="trains for so many; draws where none are given")
    parser.add_argument("--batch-size", type=int, default=kind.batch_size)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--tinted-samples", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    kind.add_flags(parser)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    peer = kind(Texts(options.output))
    if options.measure is not None:
        print(measure(peer, options.measure, options.batch_size))
    elif options.steps is not None:
        train(options.output, peer, options.steps, options.batch_size)
    else:
        peer.draw(options.output, options)

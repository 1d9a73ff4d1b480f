"""Latents and caption embeddings, computed once: both networks are frozen while the UNet trains.

A cache is a folder named by a hash of everything its contents depend on. It holds, for each cached
picture, the mean and the standard deviation of its latents (so each epoch draws fresh ones) and the
number of its caption, and the embedding of each different caption.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from sd_tf.errors import InputError


def fingerprint(*parts) -> str:
    """A short hash of strings, numbers and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.shape, part.dtype.str)).encode())
            digest.update(np.ascontiguousarray(part))
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")  # 1, 23 are not 12, 3
    return digest.hexdigest()[:16]


def weights_fingerprint(model) -> str:
    """A hash of a Keras model's weights."""
    return fingerprint(*(np.asarray(variable.value) for variable in model.variables))


class LatentCache:
    """A finished cache.

    Attributes:
        mean, std: float16 (examples, h, w, channels), of the scaled latents.
        caption: int32 (examples,), rows of `contexts`.
        contexts: float16 (captions, tokens, width), or what else captions were encoded as; the last row
            is the empty caption.
        seconds: that it took to compute, which belong to the run's budget.
    """

    def __init__(self, folder: Path):
        self.mean, self.std, self.caption, self.contexts = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std", "caption", "contexts")
        )
        self.seconds = json.loads((folder / "cache.json").read_text())["seconds"]

    def __len__(self):
        return len(self.caption)


def latent_cache(
    folder,
    key,
    dataset,
    encode_images,
    encode_captions,
    num_examples,
    max_seconds=None,
    batch_size=256,
    progress=None,
) -> LatentCache:
    """Opens the cache of `key`, or computes it.

    Args:
        folder: of all caches.
        key: of this one, from `fingerprint`.
        dataset: a `CaptionedImages`, cached epoch by epoch, so that a picture has several captions.
        encode_images: uint8 (n, size, size, 3) -> (mean, std), each (n, h, w, channels).
        encode_captions: list of n strings -> float (n, tokens, width), or token ids, int (n, tokens).
        num_examples: pictures to cache at most. They are taken in a shuffled order, so that a part
            of an epoch is a fair sample.
        max_seconds: stop after so long with what is done by then, None for no limit.
        batch_size: pictures encoded at once.
        progress: called as `progress(done, total)`.

    Raises:
        InputError: the folder cannot be written.
    """
    final = Path(folder) / key
    if final.is_dir():
        return LatentCache(final)
    new = final.with_name(f".{key}.new-{os.getpid()}")
    began, size = time.monotonic(), len(dataset)
    means, stds, captions, numbers, done = [], [], [], {}, 0
    while done < num_examples and (max_seconds is None or not done or time.monotonic() - began < max_seconds):
        epoch, start = divmod(done, size)
        order = np.random.default_rng([epoch, size]).permutation(size)
        order = order[start : start + min(batch_size, num_examples - done)]
        examples = dataset.examples(order, epoch)
        mean, std = encode_images(examples.images)
        means.append(np.asarray(mean, np.float16))
        stds.append(np.asarray(std, np.float16))
        captions += [numbers.setdefault(caption, len(numbers)) for caption in examples.captions]
        done += len(order)
        if progress is not None:
            progress(done, num_examples)
    texts = [*numbers, ""]
    contexts = [encode_captions(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
    try:
        new.mkdir(parents=True)
        np.save(new / "mean.npy", np.concatenate(means))
        np.save(new / "std.npy", np.concatenate(stds))
        np.save(new / "caption.npy", np.array(captions, np.int32))
        contexts = np.concatenate(contexts)
        np.save(new / "contexts.npy", contexts.astype(np.float16) if contexts.dtype.kind == "f" else contexts)
        (new / "cache.json").write_text(json.dumps({"seconds": time.monotonic() - began}))
        new.rename(final)
    except OSError as error:
        if not final.is_dir():  # else another run of the same made it meanwhile
            raise InputError(f"cannot write the cache {final}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return LatentCache(final)

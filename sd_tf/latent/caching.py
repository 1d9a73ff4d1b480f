"""Caches latents and caption embeddings, which are computed once as their networks are frozen."""

import time

import numpy as np

from sd_tf.data.cache import LatentCache, latent_cache
from sd_tf.data.pipeline import pictures_at_once
from sd_tf.graphs import compiled
from sd_tf.hashing import fingerprint, weights_fingerprint
from sd_tf.images import to_unit
from sd_tf.progress import tqdm

CACHE_SHARE = 0.05  # of the stage's minutes that caching may take
AT_ONCE = 256  # batch size for pictures of 32 x 32


def cached_latents(
    run, model, budget, *, epochs: int, batch_size: int, token_ids: str | None, each_once: bool
) -> LatentCache:
    """The cache of a run's data set; the chief makes it if it is missing.

    Args:
        run: the `Run`.
        model: its `LatentDiffusion`.
        budget: the stage's `Budget`, of which caching may take a twentieth.
        epochs: most epochs of the data set to cache, or as many as `each_once` takes.
        batch_size: the stage's; no more examples are cached than its steps use.
        token_ids: a new word to train: captions are cached as token ids, and the text encoder runs in every
            step. None caches the text encoder's output.
        each_once: whether every picture is cached at least once, however long that takes.
    """
    dataset, reader = run.dataset, model.text_reader()
    epochs_of_all = getattr(dataset, "epochs_of_all", 1)  # a prior's pictures come a part in each epoch
    if each_once:
        epochs = max(epochs, epochs_of_all)
    num_examples = min(epochs, dataset.distinct_epochs or epochs) * len(dataset)
    if run.options.overfit:
        num_examples = run.options.overfit
    elif budget.steps is not None:
        num_examples = min(num_examples, budget.steps * batch_size)
    at_least = min(num_examples, epochs_of_all * len(dataset)) if each_once else 1
    max_seconds = None if budget.seconds is None else CACHE_SHARE * budget.seconds
    key = fingerprint(
        dataset.fingerprint,
        weights_fingerprint(model.autoencoder),
        model.autoencoder.config,
        reader.fingerprint,
        reader.config,
        num_examples,
        budget.seconds,
        run.options.precision,
        *(["token ids", token_ids] if token_ids else []),
        *(["each picture once"] if each_once and max_seconds is not None else []),
    )
    if not run.workers.is_chief:
        run.workers.wait()  # the chief makes it
    with _progress_bar(run.shows_progress, max_seconds, at_least) as progress:
        cache = latent_cache(
            run.cache_folder,
            key,
            dataset,
            _compiled_encoder(model.autoencoder),
            (lambda texts: reader.tokenize(texts)[0]) if token_ids else model.encode_prompts,
            num_examples,
            max_seconds,
            pictures_at_once(AT_ONCE, dataset.image_size),
            progress,
            at_least=at_least,
        )
    if run.workers.is_chief:
        run.workers.wait()
    if run.shows_progress:
        _say_what_is_missing(len(cache), min(len(dataset), num_examples))
    return cache


def _say_what_is_missing(number, whole):
    if number < whole:
        print(
            f"learning from {number:,} of {whole:,} pictures: no more could be encoded within a twentieth of "
            "the UNet's minutes; train for longer to use more"
        )


class _progress_bar:
    """Yields `progress(done, total)`, which moves a bar to 100 % at `total` examples or when time is over.

    Args:
        is_shown: whether there is a bar.
        max_seconds: time for caching, None for as long as it takes.
        at_least: examples that are cached however long they take.
    """

    def __init__(self, is_shown, max_seconds, at_least):
        self.began, self.max_seconds, self.at_least = time.monotonic(), max_seconds, at_least
        self.bar = tqdm(
            total=100.0,
            desc="caching    ",
            bar_format="{desc} |{bar:24}| {percentage:3.0f}%{postfix}",
            disable=not is_shown,
        )

    def __enter__(self):
        return self._progress

    def _progress(self, done, total):
        share = done / total
        if self.max_seconds is not None:
            seconds = time.monotonic() - self.began
            in_time = 1.0 if seconds >= self.max_seconds else seconds / self.max_seconds
            share = max(share, min(in_time, done / self.at_least))
        self.bar.n = round(100.0 * share, 1)
        self.bar.set_postfix_str(f"{done:,} of {total:,} examples")

    def __exit__(self, kind, *_):
        if kind is None:
            self.bar.n = self.bar.total
            self.bar.refresh()
        self.bar.close()


def _compiled_encoder(autoencoder):
    encode = compiled(autoencoder.encode)

    def encode_images(images):
        mean, std = encode(to_unit(images))
        return np.asarray(mean), np.asarray(std)

    return encode_images

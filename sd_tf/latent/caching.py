"""Caches latents and caption embeddings, which are computed once as their networks are frozen."""

import numpy as np

from sd_tf.data.cache import LatentCache, latent_cache
from sd_tf.data.pipeline import pictures_at_once, to_unit
from sd_tf.graphs import compiled
from sd_tf.hashing import fingerprint, weights_fingerprint
from sd_tf.progress import tqdm

CACHE_SHARE = 0.1  # of the stage's minutes that caching may take
AT_ONCE = 256  # batch size for pictures of 32 x 32


def cached_latents(
    run, model, budget, *, epochs: int, batch_size: int, token_ids: str | None, each_once: bool
) -> LatentCache:
    """The cache of a run's data set; the chief makes it if it is missing.

    Args:
        run: the `Run`.
        model: its `LatentDiffusion`.
        budget: the stage's `Budget`, of which caching may take a tenth.
        epochs: most epochs of the data set to cache.
        batch_size: the stage's; no more examples are cached than its steps use.
        token_ids: a new word to train: captions are cached as token ids, and the text encoder runs in every
            step. None caches the text encoder's output.
        each_once: whether every picture is cached at least once, however long that takes.
    """
    dataset = run.dataset
    num_examples = min(epochs, dataset.distinct_epochs or epochs) * len(dataset)
    if run.options.overfit:
        num_examples = run.options.overfit
    elif budget.steps is not None:
        num_examples = min(num_examples, budget.steps * batch_size)
    max_seconds = None if budget.seconds is None else CACHE_SHARE * budget.seconds
    key = fingerprint(
        dataset.fingerprint,
        weights_fingerprint(model.autoencoder),
        model.autoencoder.config,
        weights_fingerprint(model.text_encoder),
        sorted(model.tokenizer.vocab.items()),
        num_examples,
        budget.seconds,
        run.options.precision,
        *(["token ids", token_ids] if token_ids else []),
        *(["each picture once"] if each_once and max_seconds is not None else []),
    )
    if not run.workers.is_chief:
        run.workers.wait()  # the chief makes it
    with _progress_bar(run.shows_progress) as progress:
        cache = latent_cache(
            run.cache_folder,
            key,
            dataset,
            _compiled_encoder(model.autoencoder),
            model.tokenizer if token_ids else model.encode_prompts,
            num_examples,
            max_seconds,
            pictures_at_once(AT_ONCE, dataset.image_size),
            progress,
            at_least=len(dataset) if each_once else 1,
        )
    if run.workers.is_chief:
        run.workers.wait()
    if run.shows_progress:
        _say_what_is_missing(len(cache), min(len(dataset), num_examples))
    return cache


def _say_what_is_missing(number, whole):
    if number < whole:
        print(
            f"learning from {number:,} of {whole:,} pictures: no more could be encoded within a tenth of "
            "the UNet's minutes; train for longer to use more"
        )


class _progress_bar:
    """Yields `progress(done, total)`, which moves a bar."""

    def __init__(self, is_shown):
        self.bar = tqdm(
            total=100.0,
            desc="caching    ",
            bar_format="{desc} |{bar:24}| {percentage:3.0f}%",
            disable=not is_shown,
        )

    def __enter__(self):
        def progress(done, total):
            self.bar.n = round(100.0 * done / total, 1)
            self.bar.refresh()

        return progress

    def __exit__(self, *_):
        self.bar.close()


def _compiled_encoder(autoencoder):
    encode = compiled(autoencoder.encode)

    def encode_images(images):
        mean, std = encode(to_unit(images))
        return np.asarray(mean), np.asarray(std)

    return encode_images

"""Rewords prompts: each becomes the caption that means most nearly the same.

A small model knows its captions by heart, and of other words it makes blots. A sentence encoder knows that
booze is nearest to a cocktail glass, and a model that has learned cocktail glasses can draw one. Retrieval at
drawing time, as in Sheynin et al. 2023 ("kNN-Diffusion") and Blattmann et al. 2022 ("Retrieval-augmented
diffusion models"), of texts where theirs is of pictures.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from sd_tf.errors import InputError, shown
from sd_tf.files import read_text
from sd_tf.progress import tqdm

ENCODED_AT_ONCE = 64
FILE = "captions.txt"  # of a model's folder: a caption in each line
LARGEST = 100_000_000  # bytes of a file of captions
LONGEST = 10_000  # characters of one; what has more is no caption


def read_captions(file, root=None) -> list[str]:
    """The lines of a text file in UTF-8, in their order, without empty ones.

    Args:
        file: a path.
        root: see `sd_tf.files.open_file`.

    Raises:
        InputError: names the file: it cannot be read, is too large or no UTF-8, has no captions, or a line
            that is too long for one.
    """
    captions = [line.strip() for line in read_text(file, LARGEST, root).splitlines()]
    for number, caption in enumerate(captions, 1):
        if len(caption) > LONGEST:
            raise InputError(
                f"{file}, line {number} has {len(caption):,} characters: a caption has {LONGEST:,} at most"
            )
    captions = [caption for caption in captions if caption]
    if not captions:
        raise InputError(f"{file} has no captions: write one in each line")
    return captions


class NearestCaptions:
    """`reword = NearestCaptions(encoder, captions)`; `reword(["a 3d icon of booze"])`.

    Nearest is what has the largest cosine of the pooled states, of which the mean over all captions has been
    taken away: what all captions say, such as "a 3d icon of", does not count.

    Args:
        text_encoder: a `TextEncoder`, best a sentence-transformer: a model's `text_reader()`, or what
            `sd_tf.checkpoints.text_encoders.open_text_encoder` opens.
        captions: strings, such as the captions that a model has learned from. They are encoded at once.

    Raises:
        InputError: there are no captions, or one is no string; in a call, prompts are no strings.
    """

    def __init__(self, text_encoder, captions: Sequence[str]):
        captions = _strings("captions", captions)
        self.captions = list(dict.fromkeys(each.strip() for each in captions if each.strip()))
        if not self.captions:
            raise InputError("there are no captions: give those that the model has learned from")
        self.text_encoder = text_encoder
        pooled = self._pooled(self.captions)
        self._mean = pooled.mean(axis=0) if len(pooled) > 1 else 0.0
        self._directions = _unit(pooled - self._mean)

    @classmethod
    def of_file(cls, text_encoder, file) -> "NearestCaptions":
        """The captions are those of `read_captions`."""
        return cls(text_encoder, read_captions(file))

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """The nearest caption of each prompt, in which words have no weights.

        Captions are plain text. To draw one that may have parentheses, give `generate`
        `sd_tf.text.prompt_syntax.prompt_of(caption)`.
        """
        prompts = _strings("prompts", prompts)
        directions = _unit(self._pooled(prompts) - self._mean) if prompts else ()
        nearest = [int(np.argmax(self._directions @ direction)) for direction in directions]
        return [self.captions[place] for place in nearest]

    def _pooled(self, texts):
        """(texts, width): their pooled states, or the mean of their tokens' where there are none."""
        found = []
        starts = range(0, len(texts), ENCODED_AT_ONCE)
        for start in tqdm(
            starts, desc="captions    ", disable=None if len(starts) > 15 else True, leave=False
        ):
            ids, mask = self.text_encoder.tokenize(texts[start : start + ENCODED_AT_ONCE])
            encoded = self.text_encoder.encode(ids, mask)
            pooled = encoded.pooled
            if pooled is None:
                states, weights = np.asarray(encoded.states, np.float32), np.asarray(mask)[..., None]
                pooled = (states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
            found.append(np.asarray(pooled, np.float32))
        return np.concatenate(found)


def _strings(name, texts):
    """A list of strings; raises `InputError` for what is none, such as a string alone."""
    found = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, (str, bytes)) else None
    if found is None or not all(isinstance(each, str) for each in found):
        raise InputError(f"{name} are {shown(texts)}: give a list of strings")
    return found


def _unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)

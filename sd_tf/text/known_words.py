"""The words of the captions that a model has learned from, so that others in a prompt are pointed out.

A text encoder that was trained on a large corpus knows most words. One that was trained on the captions of a
data set alone knows those and no others: a prompt with another word draws something, but not that.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from sd_tf.files import read_text, write_text

FILE = "caption_words.txt"  # of a model's folder: a word in each line
LARGEST = 10_000_000  # bytes of it
WORD = re.compile(r"[^\W\d_]+")
TAUGHT = re.compile(r"<[\w-]+>")  # as words of textual inversion are written
BREAK = "BREAK"  # of A1111, which is no word


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """All words, in small letters."""
    return frozenset(word.lower() for text in texts for word in WORD.findall(text))


def read_words(folder: Path) -> frozenset[str] | None:
    """Those of a model's folder; None where it has no `FILE`: its text encoder may know any word."""
    file = Path(folder) / FILE
    if not os.path.lexists(file):
        return None
    return words_of([read_text(file, LARGEST, root=folder)])


def write_words(folder: Path, words: Iterable[str]):
    """Writes the words into a model's folder."""
    write_text(Path(folder) / FILE, "".join(f"{word}\n" for word in sorted(words)))


def warnings_about(prompts: Iterable[str], tokenizer, known: frozenset[str] | None) -> list[str]:
    """What a user should know about the words of prompts.

    Args:
        prompts: as they were typed.
        tokenizer: a `Tokenizer`, whose `added_tokens` are words that were taught.
        known: of the captions; None for any.
    """
    added = [token.content for token in tokenizer.added_tokens.values()]
    found = []
    for prompt in dict.fromkeys(prompts):
        text = prompt
        for word in added:
            text = text.replace(word, " ")
        for word in dict.fromkeys(TAUGHT.findall(text)):
            found.append(
                f"{word} is no word of this model, but read as text: load_textual_inversion teaches it"
            )
        found += words_beyond([text], known, of=prompt)
    return found


def words_beyond(prompts: Iterable[str], known: frozenset[str] | None, of: str | None = None) -> list[str]:
    """A warning for each prompt with words that are in no caption.

    Args:
        prompts: texts to look through.
        known: the words of the captions; None for any.
        of: the prompt to name in the warning; None for the text itself.
    """
    found = []
    for prompt in dict.fromkeys(prompts) if known is not None else ():
        words = dict.fromkeys(WORD.findall(TAUGHT.sub(" ", prompt)))
        new = [word for word in words if word != BREAK and word.lower() not in known]
        if new:
            found.append(
                f"prompt {of or prompt!r} has words that were in no caption that this model has learned "
                f"from: {', '.join(new)}"
            )
    return found

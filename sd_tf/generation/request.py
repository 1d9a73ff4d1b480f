"""What to draw, checked, for all families: prompts, seeds, number of pictures, batch size, initial noise."""

import collections
import secrets

import numpy as np

from sd_tf.diffusion.editing import slerp
from sd_tf.errors import InputError, shown, unknown
from sd_tf.generation.checks import check_text, check_whole
from sd_tf.seeding import normals
from sd_tf.text.prompt_syntax import SYNTAXES, without_loras

LARGEST_SEED = 2**32 - 1
LARGEST_BATCH = 2**20
MOST_PICTURES = 2**20  # in one call
PICTURE_NOISE = 1  # key of the stream of random numbers for generation (`sd_tf.seeding`)


class Request:
    """Which pictures to draw.

    With one seed, picture j of a prompt has `seed + j`. If a prompt is there again, with the same negative
    prompt, its pictures go on from the seeds that they had before.

    Args:
        prompt: a string or a list of strings.
        negative_prompt: what to avoid: a string for all prompts, or a list with one for each.
        num_images: pictures for each prompt.
        seed: seed of the first picture of each prompt; a list of seeds, one for the first picture of each
            prompt or one for each picture; None for a random one.
        batch_size: the most pictures, and prompts, that are computed at once.
        prompt_syntax: one of `sd_tf.text.prompt_syntax.SYNTAXES`.
        prompt_embeds: float (prompts, tokens, width), instead of `prompt`.
        negative_prompt_embeds: float (1 or prompts, tokens, width), instead of `negative_prompt`.
        may_be_empty: whether a prompt may say nothing.

    Attributes:
        prompts, negative_prompts: lists of strings of equal length; empty strings in place of embeddings.
        prompt_embeds, negative_prompt_embeds: float32 (prompts, tokens, width), or None.
        num_images, batch_size: as given.
        number: total number of pictures.
        syntax: as given.
        loras: name -> weight, which prompts of a1111 name.
        seeds: int64 (number,), prompt by prompt.

    Raises:
        InputError: an argument is of the wrong type or out of range.
    """

    def __init__(
        self,
        prompt=None,
        negative_prompt="",
        num_images=1,
        seed=0,
        batch_size=64,
        prompt_syntax="weights",
        prompt_embeds=None,
        negative_prompt_embeds=None,
        may_be_empty=False,
    ):
        self.syntax = checked_syntax(prompt_syntax)
        self.prompt_embeds = _checked_embeds("prompt_embeds", prompt_embeds, "prompt", prompt)
        if self.prompt_embeds is None:
            self.prompts, self.loras = _prompts_and_loras(prompt, prompt_syntax, may_be_empty)
        else:
            self.prompts, self.loras = [""] * len(self.prompt_embeds), {}
        number = len(self.prompts)
        self.negative_prompts = checked_negative_prompts(negative_prompt, number)
        self.negative_prompt_embeds = _checked_embeds(
            "negative_prompt_embeds", negative_prompt_embeds, "negative_prompt", negative_prompt, number
        )
        self.num_images = check_whole("num_images", num_images, 1, MOST_PICTURES)
        self.batch_size = check_whole("batch_size", batch_size, 1, LARGEST_BATCH)
        self.number = len(self.prompts) * self.num_images
        self.seeds = self._seeds(seed)

    def _seeds(self, seed):
        if isinstance(seed, (list, tuple, np.ndarray)):
            if len(seed) == self.number:
                return np.array([check_whole("seed", each, 0, LARGEST_SEED) for each in seed], np.int64)
            if len(seed) != len(self.prompts):
                raise InputError(
                    f"seed has {len(seed)} numbers: give one, one for each prompt ({len(self.prompts)}), or "
                    f"one for each picture ({self.number})"
                )
            firsts = [check_whole("seed", each, 0, LARGEST_SEED - (self.num_images - 1)) for each in seed]
            return np.concatenate([first + np.arange(self.num_images) for first in firsts])
        if seed is None:
            seed = secrets.randbelow(LARGEST_SEED + 2 - self.number)
        before, firsts = collections.Counter(), []
        for pair in zip(self.prompts, self.negative_prompts, strict=True):
            firsts.append(before[pair] * self.num_images)
            before[pair] += self.prompt_embeds is None  # embeddings are not compared
        seed = check_whole("seed", seed, 0, LARGEST_SEED - (max(firsts) + self.num_images - 1))
        return np.concatenate([seed + first + np.arange(self.num_images) for first in firsts])

    @property
    def warnings(self) -> list[str]:
        """Warnings about the prompts."""
        return [
            f"prompt {prompt!r} has no Latin letter: the text encoder was trained on English captions"
            for prompt in (self.prompts if self.prompt_embeds is None else ())
            if prompt.strip() and not any("a" <= letter <= "z" for letter in prompt.lower())
        ]

    def for_each_picture(self, values) -> np.ndarray:
        """Repeats values, (1, ...) or (prompts, ...), for each picture: (number, ...)."""
        return _for_each(values, len(self.prompts), self.num_images)

    def noise(self, places, draw: int, shape) -> np.ndarray:
        """Noise for some of the pictures, which depends on their seeds only.

        Args:
            places: int (n,), indices of the pictures.
            draw: 0 for the initial noise, k + 1 for the noise of step k.
            shape: shape of one sample, such as (h, w, channels).

        Returns:
            Standard normal, float32 (n, *shape).
        """
        return _noise(self.seeds[places], draw, shape)

    def checked_latents(self, latents, shape) -> np.ndarray:
        """Checks the initial noise that a user gives; returns a float32 copy.

        Args:
            latents: float (number, ..., channels); it sets the size of the pictures.
            shape: shape of one sample of the model's default size, such as (h, w, channels).

        Raises:
            InputError: it has another number of axes or channels, is not floating-point or not finite.
        """
        latents = np.asarray(latents)
        fits = latents.ndim == 1 + len(shape) and (latents.shape[0], latents.shape[-1]) == (
            self.number,
            shape[-1],
        )
        if not fits or not min(latents.shape[1:]):
            axes = ("depth", "height", "width")[-(len(shape) - 1) :]
            raise InputError(
                f"latents have the shape {latents.shape}: give ({self.number}, {', '.join(axes)}, "
                f"{shape[-1]}), one for each picture"
            )
        if not np.issubdtype(latents.dtype, np.floating) or not np.isfinite(latents).all():
            raise InputError(f"latents are {latents.dtype}, or not all finite: give standard normal noise")
        return np.array(latents, "float32")


class Interpolation:
    """Pictures that interpolate between prompts, between seeds, or both.

    Args:
        prompts: a string or a list of strings.
        seeds: a number or a list of numbers: as many as prompts, or a single one of either.
        frames: number of pictures. The first and the last are those of the first and the last prompt and
            seed.
        negative_prompt: a string for all frames.
        batch_size: the most pictures, and prompts, that are computed at once.

    Attributes:
        prompts, negative_prompt, frames, batch_size, syntax: as given, the prompts as a list.
        loras: name -> weight, which prompts of a1111 name.
        number: number of pictures, `frames`.

    Raises:
        InputError: there is nothing to interpolate, or an argument is of the wrong type or out of range.
    """

    def __init__(
        self, prompts, seeds=0, frames=8, negative_prompt="", batch_size=64, prompt_syntax="weights"
    ):
        self.syntax = checked_syntax(prompt_syntax)
        self.prompts, self.loras = _prompts_and_loras(prompts, prompt_syntax)
        [self.negative_prompt] = checked_negative_prompts(negative_prompt, 1)
        seeds = list(seeds) if isinstance(seeds, (list, tuple)) else [seeds]
        self._stops = max(len(self.prompts), len(seeds))
        if self._stops < 2 or any(len(each) not in (1, self._stops) for each in (self.prompts, seeds)):
            raise InputError(
                f"{len(self.prompts)} prompts and {len(seeds)} seeds: give two or more of one of them, and "
                "as many or one of the other"
            )
        self.number = self.frames = frames = check_whole("frames", frames, 2, MOST_PICTURES)
        self._seeds = np.array([check_whole("seeds", seed, 0, LARGEST_SEED) for seed in seeds])
        self.batch_size = check_whole("batch_size", batch_size, 1, LARGEST_BATCH)
        positions = np.linspace(0, self._stops - 1, frames)
        firsts = [min(int(position), self._stops - 2) for position in positions]
        self._positions = [
            (first, float(position - first)) for first, position in zip(firsts, positions, strict=True)
        ]

    def conditions(self, condition):
        """The conditions of the frames, interpolated linearly; between prompts a mask is the union of theirs.

        Args:
            condition: a `Condition` whose rows are the negative prompt and then the prompts.

        Returns:
            (negative, positive) for each frame, each a `Condition` of one row.
        """

        def mixed(share, here, there):
            if here.dtype == bool:
                return (here if share < 1 else there) if share in (0, 1) else here | there
            return (1 - share) * here + share * there

        negative, texts = condition.rows(slice(0, 1)), condition.rows(slice(1, None))
        texts = texts.map(lambda part: _for_each(part, self._stops, 1))
        found = []
        for first, share in self._positions:
            both = texts.rows(slice(first, first + 2))
            found.append((negative, both.map(lambda part, share=share: mixed(share, part[:1], part[1:]))))
        return found

    def noise(self, places, draw: int, shape) -> np.ndarray:
        """As `Request.noise`, interpolated spherically between the noise of two seeds (`slerp`)."""
        stops = _for_each(_noise(self._seeds, draw, shape), self._stops, 1)
        mixed = [
            slerp(*stops[first : first + 2], share) for first, share in (self._positions[i] for i in places)
        ]
        return np.stack(mixed).astype("float32")


def checked_prompts(prompt, may_be_empty=False) -> list[str]:
    """A prompt, or several, as a list.

    Args:
        prompt: a string or a list of strings.
        may_be_empty: whether one may say nothing.

    Raises:
        InputError: it is neither a string nor a list of strings, there is none, or one is empty.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise InputError(f"prompt is {shown(prompts)}: give a string or a list of strings")
    for text in prompts:
        check_text("prompt", text)
        if not (may_be_empty or text.strip()):
            raise InputError("the prompt is empty: say what to draw, such as 'a red dress'")
    return list(prompts)


def checked_syntax(prompt_syntax) -> str:
    """Raises `InputError` if prompts are not written in that syntax."""
    if prompt_syntax not in SYNTAXES:
        raise unknown("prompt_syntax", prompt_syntax, SYNTAXES)
    return prompt_syntax


def _prompts_and_loras(prompt, syntax, may_be_empty=False):
    prompts = checked_prompts(prompt, may_be_empty)
    return without_loras(prompts) if syntax == "a1111" else (prompts, {})


def checked_negative_prompts(negative_prompt, number: int) -> list[str]:
    """A negative prompt for each of `number` prompts.

    Raises:
        InputError: it is neither a string nor a list of strings, or not one for each prompt.
    """
    texts = [negative_prompt] * number if isinstance(negative_prompt, str) else negative_prompt
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"negative_prompt is {shown(negative_prompt)}: give a string or a list of strings")
    for text in texts:
        check_text("negative prompt", text)
    if len(texts) != number:
        raise InputError(f"{len(texts)} negative prompts for {number} prompts: give one, or one for each")
    return list(texts)


def _checked_embeds(name, embeds, replaced, text, number=None):
    """The text encoder's output that a user gives, float32 (prompts, tokens, width), or None.

    Args:
        name: of the argument.
        embeds: its value.
        replaced, text: name and value of the argument that it stands for.
        number: of prompts, if they are known.
    """
    if embeds is None:
        return None
    if text not in (None, ""):
        raise InputError(f"{replaced} and {name} are both given: leave one out")
    embeds = np.asarray(embeds)
    if embeds.ndim != 3 or not embeds.size or number is not None and len(embeds) not in (1, number):
        prompts = "prompts" if number is None else f"1 or {number}"
        raise InputError(f"{name} have the shape {embeds.shape}: give ({prompts}, tokens, width)")
    if not np.issubdtype(embeds.dtype, np.floating) or not np.isfinite(embeds).all():
        raise InputError(f"{name} are {embeds.dtype}, or not all finite: give the text encoder's output")
    return np.broadcast_to(embeds, (number or len(embeds), *embeds.shape[1:])).astype("float32")


def _noise(seeds, draw, shape):
    return normals((PICTURE_NOISE, draw), seeds, shape)


def _for_each(values, prompts, num_images):
    return np.repeat(np.broadcast_to(values, (prompts, *values.shape[1:])), num_images, axis=0)

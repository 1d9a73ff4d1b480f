"""What each part of a small GigaGAN is worth: `python -m sd_tf.study gigagan-ladder`.

Each rung has what the rung before has, and one part more; the CLIP loss of token states stands beside the
one of projected features.
"""

import argparse
import re
import warnings
from pathlib import Path

from sd_tf import commandline, families
from sd_tf.checkpoints.sources import resolve
from sd_tf.data.open import open_data
from sd_tf.data.options import DATASETS, GARMENTS, DataOptions
from sd_tf.errors import InputError, unknown
from sd_tf.evaluation.protocol import check_samples
from sd_tf.options import is_choice, meaning_of
from sd_tf.studies.ladder import Ladder, Rung
from sd_tf.text.prompt_syntax import prompt_of
from sd_tf.training.options import OptimizerOptions, RunOptions

NAME, FAMILY = "gigagan-ladder", "gan"
FASHION_MNIST = "fashion_mnist"
STUDIED = [name for name in DATASETS if name != "garments"]  # which have judges
DATA_FLAGS = ("caption", "caption_column", "caption_template", "fit", "background")
LARGEST_SEED = 2**32 - 1
MOST_PICTURES = 16  # of a prompt
PROMPTS = {"pokemon": ["drawing of a brown and black pokemon"]}  # others' are those of their previews
MOST_PROMPTS = 6

_ALONE = ("--reconstruction-weight", "0")
_PLAIN = ("--multi-scale", "none", "--num-kernels", "1", *_ALONE)
_NO_CLIP = ("--clip-weight", "0")
_CLIP_WEIGHT = "0.25"
_CLIP = ("--matching-weight", "1", "--clip-weight", _CLIP_WEIGHT)
RUNGS = (
    Rung("unconditional", "without a text", "nothing: it draws without a text", ("--unconditional", *_PLAIN)),
    Rung(
        "text",
        "+ text",
        "the text's global code and its tokens, in both players",
        ("--matching-weight", "0", *_NO_CLIP, *_PLAIN),
    ),
    Rung(
        "matching",
        "+ matching",
        "real pictures with another's text count as drawn",
        ("--matching-weight", "1", *_NO_CLIP, *_PLAIN),
    ),
    Rung("clip", "+ CLIP loss", "CLIP's contrastive loss of projected features", (*_CLIP, *_PLAIN)),
    Rung(
        "clip-token-states",
        "CLIP loss of the students",
        "beside the rung before, not above it: its loss compares the towers' pooled states, neither "
        "projected nor of length 1, as in the students' report that this ladder answers, whose training "
        "diverged",
        (*_CLIP, "--clip-features", "token_states", *_PLAIN),
    ),
    Rung(
        "multi-scale",
        "+ several scales",
        "the discriminator sees and judges several scales",
        (*_CLIP, "--multi-scale", "both", "--num-kernels", "1", *_ALONE),
    ),
    Rung(
        "filter-bank",
        "+ filter bank",
        "the generator's convolutions mix four kernels by the example",
        (*_CLIP, "--multi-scale", "both", "--num-kernels", "4", *_ALONE),
    ),
    Rung(
        "encoder",
        "+ encoder",
        "half of a batch is drawn again from what an encoder says of real pictures",
        (*_CLIP, "--multi-scale", "both", "--num-kernels", "4"),
    ),
)
OF_CLIP = ("clip", "clip-token-states")  # rungs that are about nothing else
NO_CLIP = (
    "The rungs {left_out} are left out, and the rungs above them go without CLIP's loss: the bundled "
    "clip-mini has learned captions of garments alone, and not those of {dataset}. --clip NAME takes a CLIP "
    "that knows them."
)


def add_flags(parser: argparse.ArgumentParser):
    """Adds the flags of the study."""
    add = parser.add_argument
    add("--dataset", default=FASHION_MNIST, help="as of sd_tf.evaluate (default: fashion_mnist)")
    add("--data-dir", help=meaning_of(DataOptions.named("data_dir")).help)
    for name in DATA_FLAGS:
        help = meaning_of(DataOptions.named(name)).help.replace("%", "%%")
        add(f"--{name.replace('_', '-')}", help=f"of captioned pictures: {help}")
    add("--minutes", type=float, help="training time of each run (default: 15)")
    add("--max-steps", type=int, help="training steps of each run, instead of minutes")
    add(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training, a run for each (default: 0 1 2)"
    )
    names = [rung.name for rung in RUNGS]
    add("--rungs", nargs="+", metavar="RUNG", help=f"some of {', '.join(names)} (default: all)")
    add("--preset", help="network sizes and training settings (default: that of the data set)")
    add("--batch-size", type=int, help="examples in a step (default: the preset's)")
    add(
        "--clip", help="CLIP of the CLIP loss, which knows the captions: a bundled name, a folder or a hub id"
    )
    add("--samples", type=int, help="pictures that are scored, as of sd_tf.evaluate")
    add("--tinted-samples", type=int, help="pictures of prompts with a colour, likewise")
    add("--inception", help="file of the Inception graph, for distances in its features")
    add("--lpips", nargs="+", metavar="FILE", help="files of LPIPS, as of sd_tf.evaluate")
    add("--pictures", type=int, default=8, help="pictures of each rung and prompt on the page (default: 8)")
    add("--output", help="folder (default: runs/gigagan-ladder-DATASET)")


def ladder_of(flags: argparse.Namespace) -> Ladder:
    """The study of parsed flags; imports neither Keras nor TensorFlow.

    Raises:
        InputError: a flag is bad, or what it names is missing.
    """
    if not is_choice(flags.dataset, STUDIED):
        raise unknown("--dataset", flags.dataset, STUDIED)
    _check_numbers(flags)
    open_data(flags.dataset, data_dir=flags.data_dir, **_data(flags))
    commandline.check_there("--lpips", flags.lpips or [])
    commandline.check_there("--inception", [flags.inception] if flags.inception else [])
    if flags.clip is not None:
        resolve(flags.clip, kind="CLIP")
    folder = flags.output or f"runs/{NAME}-{re.sub('[:/]', '-', flags.dataset)}"
    folder = Path(folder).expanduser()
    commandline.check_writable(folder)
    rungs, notes = _rungs(flags)
    training = _training(flags, folder)
    for rung in rungs:
        _check_training([*training, *rung.flags])
    identity = {f"--{name.replace('_', '-')}": value for name, value in _identity(flags).items()}
    return Ladder(
        NAME,
        FAMILY,
        folder,
        rungs,
        tuple(flags.seeds),
        training,
        _judging(flags),
        {"study": NAME, **identity},
        flags.minutes if flags.max_steps is None else None,
        notes,
    )


def _check_numbers(flags):
    if flags.minutes is not None and flags.max_steps is not None:
        raise InputError("--minutes and --max-steps are both given: leave one out")
    if flags.minutes is None and flags.max_steps is None:
        flags.minutes = 15.0
    for name, least, most in (("seeds", 0, LARGEST_SEED), ("pictures", 1, MOST_PICTURES)):
        values = getattr(flags, name)
        values = values if isinstance(values, list) else [values]
        for value in values:
            if not least <= value <= most:
                raise InputError(f"--{name} is {value}: give {least} to {most}")
            if values.count(value) > 1:
                raise InputError(f"--{name} has {value} twice: give it once")
    check_samples(flags.dataset == FASHION_MNIST, flags.samples, flags.tinted_samples)


def _data(flags):
    return {name: getattr(flags, name) for name in DATA_FLAGS if getattr(flags, name) is not None}


def _identity(flags):
    """Name -> value of the flags by which a study is another one."""
    others = ("data_dir", "seeds", "rungs", "output", "pictures", "study")
    return {name: value for name, value in vars(flags).items() if name not in others}


def _rungs(flags):
    """The rungs that were asked for, in their order, with the CLIP; and what is to be said of them."""
    names = [rung.name for rung in RUNGS]
    for name in flags.rungs or ():
        if name not in names:
            raise unknown("rung", name, names)
        if flags.rungs.count(name) > 1:
            raise InputError(f"--rungs has {name} twice: give it once")
    chosen = [rung for rung in RUNGS if rung.name in (flags.rungs or names)]
    if flags.clip is not None:
        return tuple(_with_clip(rung, flags.clip) for rung in chosen), ()
    if flags.dataset in GARMENTS:
        return tuple(chosen), ()
    if flags.rungs and set(flags.rungs) & set(OF_CLIP):
        [name, *_] = [name for name in flags.rungs if name in OF_CLIP]
        raise InputError(
            f"--rungs {name} needs a CLIP that knows the captions of {flags.dataset}, and clip-mini has "
            "learned those of garments alone: add --clip NAME, or leave the rung out"
        )
    without = tuple(_without_clip(rung) for rung in chosen if rung.name not in OF_CLIP)
    is_told = set(OF_CLIP) & {rung.name for rung in chosen} or tuple(chosen) != without
    note = NO_CLIP.format(left_out=" and ".join(OF_CLIP), dataset=flags.dataset)
    return without, (note,) if is_told else ()


def _with_clip(rung, clip):
    return rung._replace(flags=(*rung.flags, "--clip", clip)) if _CLIP_WEIGHT in rung.flags else rung


def _without_clip(rung):
    return rung._replace(flags=tuple("0" if flag == _CLIP_WEIGHT else flag for flag in rung.flags))


def _training(flags, folder):
    """Flags of `sd_tf.train gan` that all runs share."""
    given = {
        "dataset": flags.dataset,
        "data_dir": flags.data_dir,
        **_data(flags),
        "max_minutes": flags.minutes,
        "max_steps": flags.max_steps,
        "preset": flags.preset,
        "batch_size": flags.batch_size,
        "judged_by": "pixels",
        "previews": 0,  # which take a part of the minutes
        "cache_dir": folder / "cache",
    }
    return _words(given)


def _judging(flags):
    """Flags of `sd_tf.evaluate` that all runs share."""
    names = ("dataset", "data_dir", *DATA_FLAGS, "samples", "tinted_samples")
    words = _words({name: getattr(flags, name) for name in names} | {"inception": flags.inception or "none"})
    return (*words, "--lpips", *flags.lpips) if flags.lpips else words


def _words(given):
    return tuple(
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    )


def _check_training(words):
    """Raises `InputError` for flags that training would refuse."""
    family = families.commands_of(FAMILY)
    kinds = (DataOptions, RunOptions, OptimizerOptions, family.Options)
    parser = commandline.Parser("python -m sd_tf.train gan", add_help=False)
    for kind in kinds:
        commandline.add_flags(parser, kind)
    parsed = parser.parse_args(list(words))
    *_, options = (commandline.from_flags(parsed, kind) for kind in kinds)
    family.check(options)


def sheets(flags: argparse.Namespace, results) -> dict:
    """What the rungs draw: prompt -> uint8 (height, width, 3), a row for each rung, the same seeds in each.

    Of each rung it is the first seed's model that draws, of those that were trained to the end.

    Args:
        flags: parsed.
        results: `Result`s of all runs.
    """
    import numpy as np

    from sd_tf.images import contact_sheet

    first = {}  # title of a rung -> the folder of its model
    for result in results:
        if result.model is not None:
            first.setdefault(result.rung.title, result.model)
    prompts, rows = None, []
    for folder in first.values():
        model = families.load(folder)
        if prompts is None:
            prompts = _prompts(flags, model.image_size[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of words, which all rungs read alike
            drawn = [
                model.generate(prompt_of(prompt), flags.pictures, engine="tensorflow", progress=False)
                for prompt in prompts
            ]
        rows.append(np.stack(drawn))
    columns = [f"seed {seed}" for seed in range(flags.pictures)]
    return {
        prompt: contact_sheet(np.stack([row[i] for row in rows]), list(first), columns, prompt)
        for i, prompt in enumerate(prompts or ())
    }


def _prompts(flags, side):
    if flags.dataset in PROMPTS:
        return PROMPTS[flags.dataset]
    data = open_data(flags.dataset, data_dir=flags.data_dir, **_data(flags))
    return list(data.at(side).preview_prompts)[:MOST_PROMPTS]

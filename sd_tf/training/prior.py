"""DreamBooth's prior preservation (Ruiz et al. 2023): pictures that a model draws before it is fine-tuned."""

from pathlib import Path

from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.data.pipeline import pictures_at_once
from sd_tf.data.sources import folder_source
from sd_tf.data.with_prior import WithPrior
from sd_tf.images import save_png
from sd_tf.training.finetuning_options import FineTuningOptions
from sd_tf.training.own_folder import remove

FOLDER = "prior"  # in the run's folder
PICTURES, SHARE = 100, 0.5  # defaults


def mix_in_prior(run, options: FineTuningOptions, model):
    """Adds pictures that a model now draws for `prior_prompt` to the data set of a run.

    Args:
        run: the `Run`, whose `dataset` is replaced.
        options: prompt, number and share of the pictures.
        model: with `generate`, as it was before the run.
    """
    folder, seed, size = run.folder / FOLDER, run.options.seed, run.dataset.image_size
    if run.workers.is_chief:
        draw_prior(model, options.prior_prompt, options.prior_pictures or PICTURES, seed, folder, size)
    run.workers.wait()
    source = folder_source(folder, caption=options.prior_prompt)
    prior = CaptionedPictures(source, size, run.cache_folder, seed=seed)
    run.decode(prior)
    run.dataset = WithPrior(run.dataset, prior, options.prior_share or SHARE)


def draw_prior(model, prompt: str, number: int, seed: int, folder: Path, image_size: int):
    """Writes the pictures that a model draws for DreamBooth's class prompt.

    Pictures that an earlier start has written are kept.

    Args:
        model: with `generate`.
        prompt: the class prompt.
        number: how many pictures.
        seed: seed of the first picture.
        folder: for 00000.png and so on.
        image_size: pixels along a side, which sets the batch size.
    """
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i:05}.png" for i in range(number)]
    at_once = pictures_at_once(64, image_size)
    for start in range(sum(file.exists() for file in files), number, at_once):
        part = files[start : start + at_once]
        for file, image in zip(part, model.generate(prompt, len(part), seed=seed + start), strict=True):
            new = folder.with_name(
                f".{folder.name}-{file.name}"
            )  # outside: it is no picture of the prior yet
            remove(new)  # of a killed run, or an untrusted link
            save_png(new, image, {"prompt": prompt})
            new.replace(file)

"""Data set options: which data set, which captions, and how pictures are cropped and augmented."""

import re
from dataclasses import dataclass

from sd_tf.errors import InputError, argument, shown
from sd_tf.options import Options, option

DATASETS = ("fashion_mnist", "garments", "folder", "pokemon", "emoji", "hub:<id>", "tfds:<name>")
GARMENTS = DATASETS[:2]  # with captions made by sd_tf; the others are the user's captioned pictures
CAPTIONED_DATA_FLAGS = (  # only for captioned pictures
    "caption",
    "caption_column",
    "caption_template",
    "shorten_captions",
    "fit",
    "background",
    "flip",
    "jitter",
)
FITS = ("center", "random", "pad")
ARRAYS = "arrays"  # name of a data set given in Python; not for the command line


@dataclass(frozen=True)
class DataOptions(Options):
    """The data set, and how its pictures and captions are prepared.

    Raises:
        InputError: a value has the wrong type, is out of range or not a valid choice, or contradicts another.
    """

    dataset: str = option(
        "fashion_mnist", "data set to train on", choices=DATASETS, name="source", group="data"
    )
    data_dir: str | None = option(
        None,
        "folder with the data set's files (default: $SD_TF_DATA_DIR)",
        identifies=False,
        group="data",
    )
    caption: str | None = option(
        None, "one caption for every picture, instead of the captions of the data set", group="data"
    )
    caption_column: str | None = option(
        None,
        "column of a table, or key of a dictionary, that holds the captions "
        "(default: text, caption or prompt, the first that is there)",
        group="data",
    )
    caption_template: str = option(
        "{}", "text around each caption, such as 'a photo of {}'; {} is the caption", group="data"
    )
    shorten_captions: float = option(
        0.0,
        "share of captions cut before a comma or a word like 'with', so that short prompts are learned too; "
        "others in each epoch",
        at_least=0,
        at_most=1,
        example="0.3",
        group="data",
    )
    fit: str = option(
        "center",
        "how pictures become square: center crop, random crop in each epoch, or padding with the background "
        "colour",
        choices=FITS,
        group="data",
    )
    background: str = option(
        "ffffff",
        "colour behind padding and transparency: red, green and blue as six hexadecimal digits",
        group="data",
    )
    flip: bool = option(
        False, "mirror a random half of the pictures horizontally, in each epoch", group="data"
    )
    jitter: float = option(
        0.0,
        "colour jitter: by how much brightness, contrast and saturation vary; 0.1 is up to a tenth",
        at_least=0,
        below=1,
        example="0.1",
        group="data",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset in GARMENTS:
            self._refuse_options_of_pictures()
        if self.caption is not None and not self.caption.strip():
            raise InputError(f"{argument('caption')} is empty: say what the pictures show")
        if self.caption is not None and self.caption_column is not None:
            raise InputError(
                f"{argument('caption')} replaces the captions that {argument('caption_column')} names: "
                "leave one of them out"
            )
        if self.caption_template.count("{}") != 1:
            raise InputError(
                f"{argument('caption_template')} is {shown(self.caption_template)}: put one {{}} where the "
                "caption goes"
            )
        if not re.fullmatch("[0-9a-fA-F]{6}", self.background):
            raise InputError(
                f"{argument('background')} is {shown(self.background)}: give six hexadecimals, such as ffffff"
            )

    def _refuse_options_of_pictures(self):
        for name in CAPTIONED_DATA_FLAGS:
            if name in self.given:
                raise InputError(
                    f"{argument(name)} is for your own pictures, such as those of a folder: leave it out, as "
                    f"{argument('source', '--dataset')} is {self.dataset}"
                )

    @property
    def background_colour(self) -> tuple[int, int, int]:
        """`background` as (red, green, blue), 0 to 255."""
        return tuple(bytes.fromhex(self.background))


@dataclass(frozen=True)
class ArrayOptions(DataOptions):
    """The options of pictures that are given in Python."""

    dataset: str = option(ARRAYS, "pictures that were given", choices=(ARRAYS,), name="source", group="data")

    def __post_init__(self):
        super().__post_init__()
        if self.data_dir is not None:
            raise InputError(
                f"{argument('data_dir')} is the folder of a named data set: leave it out with pictures that "
                "are given"
            )

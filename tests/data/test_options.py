"""What may be asked of a data set, and what does not go together."""

import pytest

from sd_tf.data.options import ArrayOptions, DataOptions
from sd_tf.errors import InputError


@pytest.mark.parametrize(
    ("values", "message", "on_the_command_line"),
    [
        ({"dataset": "foldr"}, "unknown source 'foldr': did you mean 'folder'", "unknown --dataset 'foldr'"),
        ({"dataset": "hub:"}, "unknown source 'hub:'", "unknown --dataset"),
        ({"flip": True}, "leave it out, as source is fashion_mnist", "as --dataset is fashion_mnist"),
        ({"dataset": "garments", "caption": "a"}, "caption is for your own pictures", "--caption is for"),
        ({"dataset": "folder", "caption": " "}, "caption is empty: say what", "--caption is empty"),
        (
            {"dataset": "folder", "caption": "a", "caption_column": "text"},
            "caption replaces the captions that caption_column names",
            "--caption replaces the captions that --caption-column names",
        ),
        (
            {"dataset": "folder", "caption_template": "a photo"},
            "caption_template is 'a photo': put one {} where",
            "--caption-template is",
        ),
        ({"dataset": "folder", "background": "white"}, "background is 'white': give six", "--background is"),
        ({"dataset": "folder", "background": "ffffff\n"}, "background is 'ffffff", "--background is"),
        ({"dataset": "folder", "jitter": 1.0}, "jitter is 1.0: give 0 or more, below 1", "--jitter is 1.0"),
        ({"dataset": "folder", "shorten_captions": 2}, "shorten_captions is 2: give 0 to 1", "--shorten-cap"),
        ({"dataset": "folder", "fit": "crop"}, "unknown fit 'crop'", "unknown --fit 'crop'"),
        ({"dataset": "folder", "flip": 1}, "flip is 1: give True or False", "--flip is 1"),
        ({"dataset": "folder", "data_dir": 3}, "data_dir is 3: give a string", "--data-dir is 3"),
    ],
)
def test_bad_options_are_named_as_they_were_given(values, message, on_the_command_line):
    with pytest.raises(InputError) as raised:
        DataOptions(**values)
    assert message in str(raised.value)
    assert on_the_command_line in str(raised.value.with_flags())


def test_two_runs_differ_by_all_but_where_the_files_are():
    here, there = (DataOptions("folder", data_dir=place) for place in "ab")
    assert here.identity == there.identity and "data_dir" not in here.identity
    assert here.identity["dataset"] == "folder"
    assert DataOptions("folder", flip=True).identity != here.identity


def test_the_background_is_a_colour():
    assert DataOptions("folder", background="ff8000").background_colour == (255, 128, 0)


def test_pictures_that_are_given_have_no_folder_and_no_name():
    assert isinstance(ArrayOptions(flip=True), DataOptions)
    with pytest.raises(InputError, match="data_dir is the folder of a named data set"):
        ArrayOptions(data_dir="here")
    with pytest.raises(InputError, match="unknown source 'folder'"):
        ArrayOptions(dataset="folder")
    with pytest.raises(InputError, match="unknown source 'arrays'"):
        DataOptions(dataset="arrays")  # no command line can name them

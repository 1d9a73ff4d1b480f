"""`sd_tf.show`: a page of pictures in a notebook or a file, with captions."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf.errors import InputError
from sd_tf.images import sheet
from sd_tf.showing import page_of


def pictures(n=6, height=32, width=32):
    return np.random.default_rng(0).integers(60, 256, (n, height, width, 3), np.uint8)


def found_in(page, images, scale):
    """How many of the pictures are on the page, pixel by pixel enlarged, at whatever place."""
    page, number = np.ascontiguousarray(page), 0
    for image in images:
        image = image.repeat(scale, axis=0).repeat(scale, axis=1)
        height, width = image.shape[:2]
        windows = np.lib.stride_tricks.sliding_window_view(page[..., 0], (1, width))[:, :, 0]
        places = np.argwhere((windows[: len(page) - height + 1] == image[0, :, 0]).all(axis=-1))
        number += any((page[top : top + height, left : left + width] == image).all() for top, left in places)
    return number


def test_small_pictures_are_enlarged_pixel_by_pixel_and_large_ones_are_not():
    np.testing.assert_array_equal(page_of(pictures(3)), sheet(pictures(3), columns=3, scale=4))
    assert page_of(pictures(1, 28, 28)).shape == (4 + 4 * 28, 4 + 4 * 28, 3)
    assert page_of(pictures(1, 200, 300)).shape == (204, 304, 3)
    np.testing.assert_array_equal(page_of(pictures(4), columns=2, scale=3), sheet(pictures(4), 2, scale=3))


@pytest.mark.parametrize(("n", "side", "columns"), [(20, 32, 8), (3, 32, 3), (5, 256, 4), (2, 2000, 1)])
def test_a_page_is_no_wider_than_a_notebook_unless_it_is_asked_to_be(n, side, columns):
    page = page_of(pictures(n, side, side))
    assert page.shape[1] == columns * (side * max(1, 128 // side) + 2) + 2


@pytest.mark.parametrize(
    "captions", [None, "a title", [f"picture {i}" for i in range(6)], ["one row", "another"], ["above all"]]
)
def test_every_picture_is_there_whole_whatever_is_written(captions):
    page = page_of(pictures(), captions)
    assert page.dtype == np.uint8 and page.shape[2] == 3
    assert found_in(page, pictures(), scale=4) == 6


def test_captions_stand_below_their_pictures_and_above_their_rows():
    black = np.zeros((6, 32, 32, 3), np.uint8)  # so that only texts are light
    cell = 4 * 32 + 2

    def light(page):
        return np.argwhere((page > 200).all(axis=-1))

    below = light(page_of(black, ["", "", "x", "", "", ""], columns=3))
    assert (below[:, 0] > cell).all() and (below[:, 0] < cell + 60).all()
    assert (below[:, 1] > 2 * cell).all()
    above = light(page_of(black, ["", "x"], columns=3))
    assert (above[:, 0] > cell).all() and (above[:, 1] < cell).all()
    title = light(page_of(black, "x"))
    assert (title < 40).all() and len(title)
    assert not len(light(page_of(black)))


def test_captions_of_rows_decide_how_many_pictures_stand_in_a_row():
    assert page_of(pictures(6), ["a", "b"]).shape[1] == 3 * (128 + 2) + 2
    rows = pictures(6).reshape(2, 3, 32, 32, 3)
    np.testing.assert_array_equal(page_of(rows, ["a", "b"]), page_of(pictures(6), ["a", "b"]))
    np.testing.assert_array_equal(page_of(rows), sheet(pictures(6), columns=3, scale=4))
    np.testing.assert_array_equal(page_of(list(rows)), page_of(rows))


@pytest.mark.parametrize("caption", ["word " * 1000, "x" * 5000, "\n\x1b[2J\ud800", "красное платье, 緑", ""])
def test_strange_captions_stay_within_their_cell(caption):
    black = np.zeros((2, 32, 32, 3), np.uint8)
    page = page_of(black, [caption, ""])
    assert page.shape[1] == 2 * 130 + 2 and page.shape[0] < 128 + 100
    assert (page[132:, 132:] == 40).all()


def test_other_forms_of_pictures_are_shown_alike():
    images = pictures(3)
    for same in (list(images), tuple(images), images / 255, (images / 255).astype(np.float32)):
        np.testing.assert_array_equal(page_of(same), page_of(images))
    np.testing.assert_array_equal(page_of(images[0]), page_of(images[:1]))
    grey = images[..., :1]
    for same in (grey, grey[..., 0]):
        np.testing.assert_array_equal(page_of(same), page_of(grey.repeat(3, axis=-1)))


def test_numbers_and_texts_of_numpy_are_taken():
    texts = ["a", "b", "c"]
    for given in (np.array(texts), np.array(texts, "S")):
        np.testing.assert_array_equal(page_of(pictures(), given), page_of(pictures(), texts))
    page = page_of(pictures(), columns=np.int8(6), scale=np.uint8(4))
    np.testing.assert_array_equal(page, page_of(pictures(), columns=6, scale=4))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (
            [pictures()[0], pictures(1, 16, 16)[0]],
            {},
            "the pictures differ in size: give pictures of one size",
        ),
        (["a.png"], {}, r"the pictures have the shape \(1,\)"),
        ([None], {}, "are not arrays of one size"),
        (pictures(0), {}, "there are no pictures in an array of the shape"),
        ([], {}, "there are no pictures"),
        (pictures().astype(int), {}, "has pixels of int64: give uint8"),
        (pictures() / 127.5 - 1, {}, "from 0 to 1, or uint8"),
        (pictures().transpose(0, 3, 1, 2), {}, r"shape \(6, 3, 32, 32\): give \(n, height, width, 3\)"),
        (pictures(), {"captions": ["a"] * 4}, "4 captions for 6 pictures: give one for each picture or row"),
        (pictures(), {"captions": ["a"] * 7}, "7 captions for 6 pictures"),
        (pictures(), {"captions": []}, "0 captions for 6 pictures"),
        (pictures(), {"captions": ["a", "b"], "columns": 2}, "2 captions for 6 pictures in rows of 2"),
        (pictures(), {"captions": 5}, "captions is 5: give one text, or a list of texts"),
        (pictures(), {"captions": [1, 2]}, r"captions\[0\] is 1, which is not a string"),
        (pictures(), {"columns": 0}, "columns is 0: give a whole number"),
        (pictures(), {"scale": 1.5}, "scale is 1.5: give a whole number"),
        (pictures(5000), {}, "5,000 pictures of 32 x 32, 4 times enlarged, are too large for one page"),
        (pictures(), {"file": "sheet.jpg"}, "file is 'sheet.jpg': name a .png file"),
        (pictures(), {"file": "nowhere/sheet.png"}, "cannot write nowhere/sheet.png"),
        (pictures(), {}, r"there is no notebook to show pictures in: save them, show\(images, file="),
    ],
)
def test_bad_input_gets_one_line(images, options, message):
    with pytest.raises(InputError, match=message) as raised:
        sd_tf.show(images, **options)
    assert "\n" not in str(raised.value)


def test_a_file_is_the_page(tmp_path):
    assert sd_tf.show(pictures(), ["a", "b"], file=tmp_path / "sheet.png") is None
    with Image.open(tmp_path / "sheet.png") as file:
        np.testing.assert_array_equal(np.asarray(file), page_of(pictures(), ["a", "b"]))


def in_shell(monkeypatch, name):
    """What is displayed from now on, in a shell of IPython of that class."""
    IPython = pytest.importorskip("IPython")
    displayed, shell = [], type(name, (), {})()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", displayed.append)
    return displayed


def test_a_notebook_shows_the_page_and_returns_nothing(monkeypatch):
    displayed = in_shell(monkeypatch, "ZMQInteractiveShell")
    assert sd_tf.show(pictures(), columns=3) is None
    (shown,) = displayed
    with Image.open(io.BytesIO(shown.data)) as image:
        np.testing.assert_array_equal(np.asarray(image), page_of(pictures(), columns=3))


def test_a_terminal_of_ipython_shows_no_pictures(monkeypatch):
    in_shell(monkeypatch, "TerminalInteractiveShell")
    with pytest.raises(InputError, match="there is no notebook"):
        sd_tf.show(pictures())


def test_neither_matplotlib_nor_ipython_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "IPython", None)
    sd_tf.show(pictures(), "a title", file=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()
    with pytest.raises(InputError, match="there is no notebook"):
        sd_tf.show(pictures())

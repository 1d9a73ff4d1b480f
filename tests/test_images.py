"""PNG files, sheets and file names."""

import numpy as np
import pytest
from PIL import Image

from sd_tf.images import file_name, save_png, save_sheet, sheet


def pictures(n, height=3, width=5):
    return np.random.default_rng(0).integers(100, 256, (n, height, width, 3), np.uint8)


def test_a_png_keeps_every_pixel_and_says_how_it_was_made(tmp_path):
    image = pictures(1)[0]
    save_png(tmp_path / "a.png", image, {"prompt": "ein grünes Kleid, 緑", "seed": 7, "eta": 0.5})
    with Image.open(tmp_path / "a.png") as file:
        assert file.format == "PNG" and file.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(file), image)
        assert file.text == {"prompt": "ein grünes Kleid, 緑", "seed": "7", "eta": "0.5"}


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (5, 2, 3), (2, 4, 1)])
def test_a_sheet_holds_the_pictures_row_by_row_with_gaps_between(n, columns, rows):
    images, gap, scale = pictures(n), 3, 2
    page = sheet(images, columns, gap=gap, scale=scale)
    height, width = 3 * scale, 5 * scale
    assert page.dtype == np.uint8
    assert page.shape == (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    rest = np.ones(page.shape[:2], bool)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        area = np.s_[gap + row * (height + gap) :, gap + column * (width + gap) :]
        enlarged = page[area][:height, :width]
        for dy in range(scale):
            for dx in range(scale):
                np.testing.assert_array_equal(enlarged[dy::scale, dx::scale], image)
        rest[area][:height, :width] = False
    assert (page[rest] == page[0, 0]).all() and page[0, 0].max() < 100


def test_a_saved_sheet_is_the_sheet_with_its_settings(tmp_path):
    save_sheet(tmp_path / "grid.png", pictures(6), 3, {"seed": 1})
    with Image.open(tmp_path / "grid.png") as file:
        np.testing.assert_array_equal(np.asarray(file), sheet(pictures(6), 3))
        assert file.text == {"seed": "1"}


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red dress", "a-red-dress-7.png"),
        ("A t-shirt,  by /etc/../passwd!", "a-t-shirt-by-etc-passwd-7.png"),
        ("красное платье", "красное-платье-7.png"),
        ("?!", "picture-7.png"),
        ("__init__", "init-7.png"),
    ],
)
def test_a_file_is_named_by_prompt_and_seed(prompt, name):
    assert file_name(prompt, 7) == name


def test_the_longest_prompt_and_seed_make_a_name_that_file_systems_take(tmp_path):
    name = file_name("𝒳" * 500, 2**32 - 1)
    assert name.endswith(f"-{2**32 - 1}.png") and len(name.encode()) <= 255
    save_png(tmp_path / name, pictures(1)[0])
    assert (tmp_path / name).is_file()


def test_names_fit_a_file_system_whatever_the_prompt_is(tmp_path):
    for prompt in ("𝐚" * 100, "緑" * 100, "é" * 100, "\ud800", "...", "/" * 10):
        name = file_name(prompt, 2**32 - 1)
        assert len(name.encode()) <= 230 and "/" not in name
        save_png(tmp_path / name, pictures(1)[0], {"prompt": prompt})
    assert file_name("...", 1) == "picture-1.png"

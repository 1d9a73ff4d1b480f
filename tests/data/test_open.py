"""`sd_tf.open_data`: names, folders, and pictures that are given in Python, whatever way they come."""

import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import sd_tf
from sd_tf.data import arrays
from sd_tf.data.open import Data
from sd_tf.errors import InputError

CAPTIONS = ["a red dress", "a blue bag", "a shirt", "a boot"]


def pictures(n=4, height=8, width=8, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)


def pairs(*_):
    return list(zip(pictures(), CAPTIONS, strict=True))


def dataset_of(*parts):
    return tf.data.Dataset.from_tensor_slices(*parts)


FORMS = {
    "an array and captions": lambda: (pictures(), CAPTIONS),
    "a tuple of both": lambda: ((pictures(), CAPTIONS),),
    "a list of arrays": lambda: (list(pictures()), tuple(CAPTIONS)),
    "numpy's texts": lambda: (pictures(), np.array(CAPTIONS)),
    "numpy's bytes": lambda: (pictures(), np.array(CAPTIONS, "S")),
    "floats": lambda: (pictures() / 255, CAPTIONS),
    "float32": lambda: ((pictures() / 255).astype(np.float32), CAPTIONS),
    "PIL pictures": lambda: ([Image.fromarray(each) for each in pictures()], CAPTIONS),
    "tensors": lambda: (tf.constant(pictures()), tf.constant(CAPTIONS)),
    "generators of both": lambda: (iter(pictures()), iter(CAPTIONS)),
    "pairs": lambda: (pairs(),),
    "a tuple of pairs": lambda: (tuple(pairs()),),
    "a generator of pairs": lambda: (pair for pair in [pairs()]),
    "an iterator of pairs": lambda: (iter(pairs()),),
    "lists of two": lambda: ([list(pair) for pair in pairs()],),
    "several captions": lambda: ([(image, [text, "another"]) for image, text in pairs()],),
    "dictionaries": lambda: ([{"image": image, "text": text} for image, text in pairs()],),
    "other keys": lambda: ([{"label": 3, "caption": text, "img": image} for image, text in pairs()],),
    "a dictionary of columns": lambda: ({"image": pictures(), "text": CAPTIONS},),
    "batches": lambda: ([(pictures()[:3], CAPTIONS[:3]), (pictures()[3:], CAPTIONS[3:])],),
    "a tf.data.Dataset": lambda: (dataset_of((pictures(), CAPTIONS)),),
    "its batches": lambda: (dataset_of((pictures(), CAPTIONS)).batch(3),),
    "its dictionaries": lambda: (dataset_of({"image": pictures(), "text": CAPTIONS}).batch(2),),
    "its pictures": lambda: (dataset_of(pictures()).batch(3), CAPTIONS),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_and_captions_are_the_same_however_they_are_given(form, tmp_path):
    data = sd_tf.open_data(*FORMS[form]())
    found = data.at(8, tmp_path)
    found.decode(progress=False)
    examples = found.examples(range(4), 0)
    np.testing.assert_array_equal(examples.images, pictures())
    assert examples.captions == CAPTIONS
    assert (len(data), data.name, data.side) == (4, "arrays", None)
    assert data.fingerprint == sd_tf.open_data(pictures(), CAPTIONS).fingerprint


def test_other_pictures_or_captions_have_another_fingerprint():
    changed = pictures()
    changed[3, 7, 7, 2] ^= 1
    found = {
        sd_tf.open_data(images, captions).fingerprint
        for images, captions in [
            (pictures(), CAPTIONS),
            (changed, CAPTIONS),
            (pictures(), [*CAPTIONS[:3], "a bot"]),
            (pictures()[::-1], CAPTIONS),
            (pictures().reshape(4, 4, 16, 3), CAPTIONS),
        ]
    }
    assert len(found) == 5


def test_grey_and_transparent_pictures_become_rgb():
    grey, alpha = pictures(channels=1), pictures(channels=4)
    for given in (grey, grey[..., 0], [Image.fromarray(each) for each in grey[..., 0]]):
        found = sd_tf.open_data(given, CAPTIONS).at(8).examples(range(4), 0).images
        np.testing.assert_array_equal(found, np.repeat(grey, 3, axis=-1))
    alpha[..., 3] = 0
    for given in (alpha, [Image.fromarray(each) for each in alpha]):
        found = sd_tf.open_data(given, CAPTIONS, background="0a141e").at(8).examples(range(4), 0).images
        assert (found == (10, 20, 30)).all()


def test_pictures_of_several_sizes_are_fitted_as_files_are(tmp_path):
    given = [pictures(1, 20, 30)[0], pictures(1, 9, 40)[0], Image.fromarray(pictures(1, 64, 64)[0])]
    for number, each in enumerate(given):
        each = Image.fromarray(each) if isinstance(each, np.ndarray) else each
        each.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(CAPTIONS[number])
    for options in (
        {},
        {"fit": "pad", "background": "808080"},
        {"fit": "random", "flip": True, "jitter": 0.2},
    ):
        options |= {"caption_template": "a photo of {}"}
        ours = sd_tf.open_data(given, CAPTIONS[:3], **options).at(16, tmp_path / "ours", seed=3)
        theirs = sd_tf.open_data(tmp_path, **options).at(16, tmp_path / "theirs", seed=3)
        for each in (ours, theirs):
            each.decode(progress=False)
        ours, theirs = ours.examples(range(3), 2), theirs.examples(range(3), 2)
        np.testing.assert_array_equal(ours.images, theirs.images)
        assert ours.captions == theirs.captions == [f"a photo of {each}" for each in CAPTIONS[:3]]


def test_one_caption_serves_all_pictures():
    assert sd_tf.open_data(pictures(), caption="a toy").at(8).corpus() == ("a toy",) * 4


def test_a_key_of_captions_can_be_named():
    rows = [{"image": image, "text": "no", "title": text} for image, text in pairs()]
    assert sd_tf.open_data(rows, caption_column="title").at(8).corpus() == tuple(CAPTIONS)


NAN = np.where(np.arange(4)[:, None, None, None] == 1, np.nan, pictures() / 255)


def used_up():
    generator = (pair for pair in pairs())
    list(generator)
    return generator


BAD = {
    "pictures without captions": (lambda: (pictures(),), {}, r"images\[0\] has no caption: give pairs"),
    "a list without captions": (lambda: (list(pictures()),), {}, r"images\[0\] has no caption: give pairs"),
    "fewer captions": (lambda: (pictures(), CAPTIONS[:3]), {}, "more pictures than the 3 captions: give"),
    "more captions": (lambda: (pictures(), [*CAPTIONS, "a"]), {}, "more captions than the 4 pictures: give"),
    "one text": (lambda: (pictures(), "a dress"), {}, "captions is one string: give a list, or caption"),
    "a number of captions": (lambda: (pictures(), 4), {}, "captions is 4: give pairs"),
    "a caption without axes": (lambda: (pictures(), np.array("a")), {}, "captions is array.*: give pairs"),
    "labels": (
        lambda: (pictures(), [9, 1, 2, 3]),
        {},
        r"captions\[0\] is 9, which is not a string: .* class names",
    ),
    "numpy's labels": (lambda: (pictures(), np.arange(4)), {}, r"captions\[0\] is 0, which is not a string"),
    "no text": (
        lambda: (pictures(), ["a", None, "b", "c"]),
        {},
        r"captions\[1\] is None, which is not a string",
    ),
    "an empty caption": (lambda: (pictures(), ["a", "b", " \n", "c"]), {}, r"captions\[2\] is empty"),
    "integers": (
        lambda: (pictures().astype(int), CAPTIONS),
        {},
        r"images\[0\] has pixels of int64: give uint8",
    ),
    "large floats": (
        lambda: (pictures() * 1.0, CAPTIONS),
        {},
        "floating-point pixels from 0 to .* from 0 to 1",
    ),
    "floats below 0": (lambda: (pictures() / 127.5 - 1, CAPTIONS), {}, "pixels from -1 to .* from 0 to 1"),
    "NaN": (lambda: (NAN, CAPTIONS), {}, r"images\[1\] has pixels that are NaN"),
    "no pictures": (lambda: ([], []), {}, "there are no pictures in the list"),
    "an empty array": (lambda: (pictures(0), []), {}, "there are no pictures in the ndarray"),
    "a picture of no size": (lambda: (pictures(4, 0, 8), CAPTIONS), {}, r"images\[0\] has 8 x 0 pixels"),
    "used up": (lambda: (used_up(),), {}, "no pictures in the generator, which can be read only once"),
    "a number": (lambda: (3,), {}, "source is 3: give the name of a data set, a folder, or pictures"),
    "an array without axes": (lambda: (np.array(3), CAPTIONS), {}, r"source is array\(3\): give the name"),
    "nothing": (lambda: (None,), {}, "source is None: give the name"),
    "one picture": (lambda: (pictures()[0], CAPTIONS), {}, "is one picture: give .n, height, width, 3"),
    "one pair": (lambda: ((pictures()[0], "a"),), {}, "one picture with one caption: give a list"),
    "channels first": (
        lambda: (pictures().transpose(0, 3, 1, 2), CAPTIONS),
        {},
        r"images\[0\] has the shape \(3, 8, 8\): give \(height, width, 3\), channels last",
    ),
    "five channels": (lambda: (pictures(channels=5), CAPTIONS), {}, r"has the shape \(8, 8, 5\): give"),
    "names of files": (lambda: ([("a.png", "a")],), {}, r"images\[0\] is 'a.png': give pixels, or name"),
    "objects": (lambda: ([(object(), "a")],), {}, r"images\[0\] has the shape \(\): give"),
    "triples": (lambda: ([(1, 2, 3)],), {}, r"images\[0\] has no caption"),
    "no known key": (lambda: ([{"image": 1, "label": 2}],), {}, "has none of text, caption, prompt, but"),
    "no such key": (
        lambda: ([{"image": 1, "text": 2}],),
        {"caption_column": "txt"},
        "row 0 has no 'txt', but",
    ),
    "no picture's key": (lambda: ([{"text": "a"}],), {}, r"has none of image, img, picture, but \['text'\]"),
    "captions twice": (
        lambda: (pictures(), CAPTIONS),
        {"caption": "a"},
        "captions and caption are both given",
    ),
    "captions inside": (
        lambda: (pairs(), CAPTIONS),
        {},
        "row 0 is a tuple, but captions are given separately",
    ),
    "a key of pairs": (lambda: (pairs(),), {"caption_column": "text"}, "leave it out with pairs"),
    "a folder": (lambda: (pictures(), CAPTIONS), {"data_dir": "x"}, "data_dir is the folder of a named"),
    "no option": (lambda: (pictures(), CAPTIONS), {"flipp": 1}, "option of open_data 'flipp': .* 'flip'"),
    "a data set's name": (lambda: ("fashion",), {}, "unknown source 'fashion': did you mean 'fashion_mnist'"),
    "captions of a name": (lambda: ("garments", CAPTIONS), {}, "captions are for pictures that are given"),
    "options of garments": (lambda: ("garments",), {"flip": True}, "flip is for your own pictures"),
    "no folder": (lambda: ("folder",), {}, "source folder needs data_dir"),
    "no path": (lambda: ("folder:",), {}, "has no path behind it"),
    "no such folder": (lambda: ("folder:nowhere",), {}, "nowhere is not a folder"),
    "two folders": (lambda: (Path("a"),), {"data_dir": "b"}, "the folder a and data_dir are both given"),
    "without end": (lambda: (dataset_of((pictures(), CAPTIONS)).repeat(),), {}, "Dataset has no end"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name):
    make, options, message = BAD[name]
    with pytest.raises(InputError, match=message) as raised:
        sd_tf.open_data(*make(), **options)
    assert "\n" not in str(raised.value)


def test_an_iterable_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(arrays, "MOST_PICTURES", 100)
    endless = iter(lambda: pairs()[0], None)
    with pytest.raises(InputError, match="there are more than 100 pictures: .* has an end"):
        sd_tf.open_data(endless)
    monkeypatch.setattr(arrays, "MOST_BYTES", 10_000)
    with pytest.raises(InputError, match=r"cannot be kept in .* take more than 10,000 bytes.*: make room"):
        sd_tf.open_data(endless)


class OfPyTorch:
    """As its data sets are: without `__iter__`, and what lies behind their end need not be an error."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return pairs()[i % 4]


def test_what_has_a_length_is_read_to_it(monkeypatch):
    monkeypatch.setattr(arrays, "MOST_PICTURES", 100)
    assert sd_tf.open_data(OfPyTorch()).fingerprint == sd_tf.open_data(pairs()).fingerprint


def test_an_error_of_a_generator_is_its_own():
    def broken():
        yield pairs()[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sd_tf.open_data(broken())


def test_many_pictures_take_no_memory_and_leave_no_file():
    before = sorted(os.listdir(tempfile.gettempdir()))
    tracemalloc.start()
    try:
        rows = ((np.full((64, 64, 3), i % 256, np.uint8), f"picture {i}") for i in range(2000))  # 25 MB
        found = sd_tf.open_data(rows).at(64)
        assert (found.examples([1999], 0).images == 1999 % 256).all()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5e6
    new = set(os.listdir(tempfile.gettempdir())) - set(before)
    assert not any(Path(tempfile.gettempdir(), name).stat().st_size > 1e6 for name in new)


def test_what_was_given_may_be_changed_afterwards():
    given = pictures()
    data = sd_tf.open_data(given, CAPTIONS)
    given[:] = 0
    np.testing.assert_array_equal(data.at(8).examples(range(4), 0).images, pictures())


def test_without_a_folder_captions_can_be_had_and_nothing_is_decoded():
    found = sd_tf.open_data(pictures(), CAPTIONS).at(8)
    assert found.corpus() == tuple(CAPTIONS)
    with pytest.raises(InputError, match="arrays has no folder for decoded pictures"):
        found.decode()


@pytest.fixture
def folder(tmp_path):
    for number, image in enumerate(pictures()):
        (tmp_path / "my dresses").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "my dresses" / f"{number}.png")
        (tmp_path / "my dresses" / f"{number}.txt").write_text(CAPTIONS[number])
    return tmp_path / "my dresses"


def test_a_folder_has_three_names(folder):
    for data in (
        sd_tf.open_data(f"folder:{folder}"),
        sd_tf.open_data(folder),
        sd_tf.open_data("folder", data_dir=folder),
    ):
        assert data.options.dataset == "folder" and data.options.data_dir == str(folder)
        assert data.at(8).corpus() == tuple(CAPTIONS)
        assert data.fingerprint is None
        assert repr(data) == f"folder {folder}: 4 pictures, 'a red dress'"
    with pytest.raises(InputError, match="my dresses is a folder: write folder: before its path, or"):
        sd_tf.open_data(str(folder))


def test_a_data_set_is_opened_once(folder):
    data = sd_tf.open_data(folder)
    assert sd_tf.open_data(data) is data
    with pytest.raises(InputError, match="is open already"):
        sd_tf.open_data(data, flip=True)


def test_a_run_does_not_learn_from_what_it_writes(folder):
    with pytest.raises(InputError, match="is also where the run writes"):
        sd_tf.open_data(folder).at(8, outputs=[folder])


def test_a_name_is_opened_without_reading_anything():
    program = (
        "import sys, sd_tf\n"
        "data = [sd_tf.open_data(name) for name in ('fashion_mnist', 'garments', 'hub:a/b', 'tfds:c')]\n"
        "print(*data, sep=chr(10))\n"
        "sys.exit('imported' if {'keras', 'tensorflow'} & set(sys.modules) else 0)"
    )
    empty = {"SD_TF_DATA_DIR": "nowhere", "PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | empty, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "fashion_mnist: 60,000 pictures of 32 x 32, 'a red dress'",
        "garments: 60,000 pictures, 'a red dress'",
        "hub:a/b: not loaded yet",
        "tfds:c: not loaded yet",
    ]


def test_what_a_data_set_says_of_its_size_is_true(data_dir):
    for name, side in (("fashion_mnist", 32), ("garments", None)):
        data = sd_tf.open_data(name, data_dir=str(data_dir))
        assert data.side == side
        found = data.at(32)
        assert len(found) == len(data) and found.image_size == 32
    with pytest.raises(InputError, match="image_size is 64: fashion_mnist has pictures of 32 pixels"):
        sd_tf.open_data("fashion_mnist", data_dir=data_dir).at(64)
    with pytest.raises(InputError, match="image_size is 0: give a whole number"):
        sd_tf.open_data("garments").at(0)


def test_a_seed_is_that_of_captions_and_crops():
    one, other = (sd_tf.open_data("garments").at(32, seed=seed) for seed in (1, 2))
    assert one.fingerprint != other.fingerprint
    assert isinstance(sd_tf.open_data("garments"), Data)

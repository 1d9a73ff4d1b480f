"""A folder of pictures as a data set: squares, crops, flips and jitter that belong to each picture."""

import json
import os
import random
import resource
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sd_tf.data import captioned_pictures
from sd_tf.data.captioned_pictures import CaptionedPictures
from sd_tf.data.sources import find_source, folder_source
from sd_tf.errors import InputError
from sd_tf.images import save_png
from tests.data import hostile_stores
from tests.data.hostile import Case
from tests.data.test_opening import damaged, in_all_formats

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def folder_of(tmp_path, pictures):
    """Pictures uint8 (height, width, 3) with captions "picture 0" and so on."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
        rows.append({"file_name": f"{number:05}.png", "text": f"picture {number}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def noise(count, height=20, width=30):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def dataset(folder, tmp_path, size=16, **options):
    pictures = CaptionedPictures(folder_source(folder), size, tmp_path / "store", **options)
    pictures.decode(progress=False)
    return pictures


def stripes():
    """Red, green and blue, of 8 columns each, in 8 rows."""
    return np.repeat(np.array([[RED, GREEN, BLUE]], np.uint8), 8, axis=1).repeat(8, axis=0)


def test_the_middle_square_is_cut_out(tmp_path):
    examples = dataset(folder_of(tmp_path, [stripes()] * 2), tmp_path, size=8).examples([0, 1], 0)
    np.testing.assert_array_equal(examples.images, np.full((2, 8, 8, 3), GREEN))
    assert examples.captions == ["picture 0", "picture 1"]


def test_padding_shows_the_whole_picture_on_a_colour(tmp_path):
    options = {"fit": "pad", "background": (9, 9, 9), "size": 24}
    image = dataset(folder_of(tmp_path, [stripes()] * 2), tmp_path, **options).examples([0], 0).images[0]
    np.testing.assert_array_equal(image[8:16], stripes())
    assert (image[:8] == 9).all() and (image[16:] == 9).all()


def test_random_crops_are_windows_of_one_square_and_differ_between_epochs(tmp_path):
    folder = folder_of(tmp_path, noise(2, 18, 18))  # the square's own size: nothing is resized
    pictures, whole = dataset(folder, tmp_path, fit="random"), noise(2, 18, 18)
    places = set()
    for epoch in range(40):
        for index in (0, 1):
            image = pictures.examples([index], epoch).images[0]
            here = [
                (top, left)
                for top in range(3)
                for left in range(3)
                if (whole[index][top : top + 16, left : left + 16] == image).all()
            ]
            assert len(here) == 1
            places.update(here)
    assert len(places) == 9


def test_half_of_the_pictures_are_flipped_and_jitter_stays_within_its_strength(tmp_path):
    folder = folder_of(
        tmp_path, [np.tile(np.linspace(60, 180, 16).astype(np.uint8)[None, :, None], (16, 1, 3))] * 40
    )
    plain = dataset(folder, tmp_path).examples(range(40), 0).images
    flipped = dataset(folder, tmp_path, flip=True).examples(range(40), 0).images
    same = (flipped == plain).all(axis=(1, 2, 3))
    assert 10 <= same.sum() <= 30
    np.testing.assert_array_equal(flipped[~same], plain[~same][:, :, ::-1])
    jittered = dataset(folder, tmp_path, jitter=0.2).examples(range(40), 0).images.astype(float)
    shift = (jittered - plain).mean(axis=(1, 2, 3)) / 255
    assert shift.std() > 0.05 and np.abs(shift).max() <= 0.2 + 0.01
    spread = jittered.std(axis=(1, 2, 3)) / plain.std(axis=(1, 2, 3))
    assert spread.std() > 0.05 and spread.min() >= 0.8 - 0.01 and spread.max() <= 1.2 + 0.01


def test_jitter_keeps_the_hue_that_captions_name(tmp_path):
    pictures = dataset(
        folder_of(tmp_path, [np.full((16, 16, 3), (160, 100, 100), np.uint8)] * 20), tmp_path, jitter=0.3
    )
    images = pictures.examples(range(20), 0).images.astype(int)
    assert (np.abs(images[..., 1] - images[..., 2]) <= 1).all() and (images[..., 0] > images[..., 1]).all()
    chroma = (images[:, 0, 0, 0] - images[:, 0, 0, 1]) / (160 - 100)  # saturation alone changes it
    assert chroma.std() > 0.1 and chroma.min() >= 0.7 - 0.02 and chroma.max() <= 1.3 + 0.02


@pytest.mark.parametrize("options", [{"fit": "random"}, {"flip": True}, {"jitter": 0.2}])
def test_a_picture_is_the_same_alone_and_among_others(tmp_path, options):
    pictures = dataset(folder_of(tmp_path, noise(8)), tmp_path, **options)
    together = pictures.examples(range(8), 3)
    for index in range(8):
        alone = pictures.examples([index], 3)
        np.testing.assert_array_equal(alone.images[0], together.images[index])
        assert alone.groups[0] == together.groups[index]


def test_templates_and_groups(tmp_path):
    folder = tmp_path / "mine"
    for name in ("dress/1", "dress/2", "bag/1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    pictures = dataset(folder, tmp_path, template="a photo of a {}")
    examples = pictures.examples([0, 1, 2], 0)
    assert examples.captions == ["a photo of a bag", "a photo of a dress", "a photo of a dress"]
    assert examples.groups[0] != examples.groups[1] == examples.groups[2]
    assert pictures.corpus() == tuple(examples.captions)
    assert pictures.preview_prompts == ("a photo of a bag", "a photo of a dress")
    with pytest.raises(InputError, match="put one {} where the caption goes"):
        dataset(folder, tmp_path, template="a photo")


def test_some_captions_end_early(tmp_path):
    folder, long = folder_of(tmp_path, noise(2)), "a green toy with four legs, grass and poison"
    rows = [{"file_name": f"{number:05}.png", "text": text} for number, text in enumerate([long, "a toy"])]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = dataset(folder, tmp_path, shorten=0.5)
    assert pictures.distinct_epochs is None and pictures.corpus() == (long, "a toy")
    seen = [pictures.examples([0, 1], epoch) for epoch in range(400)]
    short = {"a green toy", "a green toy with four legs", "a green toy with four legs, grass"}
    assert {examples.captions[0] for examples in seen} == {long, *short}
    assert {examples.captions[1] for examples in seen} == {"a toy"}
    whole = sum(examples.captions[0] == long for examples in seen)
    assert 160 < whole < 240
    groups = {examples.captions[0]: examples.groups[0] for examples in seen}
    assert len(set(groups.values()) | {seen[0].groups[1]}) == 5  # a group for each caption
    for caption in short:
        assert 40 < sum(examples.captions[0] == caption for examples in seen) < 95
    np.testing.assert_array_equal(seen[0].images, seen[1].images)


def test_pictures_are_decoded_once_and_again_when_they_change(tmp_path):
    folder = folder_of(tmp_path, noise(3))
    first = dataset(folder, tmp_path)
    assert dataset(folder, tmp_path).fingerprint == first.fingerprint
    assert len(list((tmp_path / "store").iterdir())) == 1
    Image.fromarray(noise(4)[3]).save(folder / "00000.png")
    second = dataset(folder, tmp_path)
    assert second.fingerprint != first.fingerprint
    assert (second.examples([0], 0).images != first.examples([0], 0).images).any()


def test_few_unreadable_pictures_are_listed_and_many_are_an_error(tmp_path, capsys):
    folder = folder_of(tmp_path, noise(40))
    (folder / "00007.png").write_bytes(b"no picture")
    pictures = dataset(folder, tmp_path)
    assert len(pictures) == 39 and pictures.examples([7], 0).captions == ["picture 8"]
    assert "1 of 40 pictures skipped" in capsys.readouterr().out
    listed = next((tmp_path / "store").glob("*/skipped.txt")).read_text()
    assert listed.startswith(f"{folder}/00007.png: cannot be read as a picture")
    for number in (8, 9):
        (folder / f"{number:05}.png").write_bytes(b"no picture")
    with pytest.raises(
        InputError, match="3 of 40 pictures cannot be used, more than one in twenty: .*00007.png"
    ):
        dataset(folder, tmp_path)
    assert len(list((tmp_path / "store").iterdir())) == 1  # nothing is left of the refused one


def test_a_hundred_damaged_pictures_are_read_or_listed_and_the_others_stay_as_they_are(tmp_path):
    folder, generator, good = tmp_path / "mine", np.random.default_rng(0), noise(1, 8, 8)[0]
    folder.mkdir()
    files, names = in_all_formats(good), [f"{number:04}.png" for number in range(2400)]
    for name in names:
        (folder / name).write_bytes(files["PNG"])
    broken = generator.choice(names, 100, replace=False)
    for number, name in enumerate(broken):
        (folder / name).write_bytes(damaged(list(files.values())[number % len(files)], generator))
    pictures = CaptionedPictures(folder_source(folder, caption="noise"), 8, tmp_path / "store")
    pictures.decode(progress=False)
    (store,) = (tmp_path / "store").iterdir()
    skipped = (store / "skipped.txt").read_text().splitlines()
    unread = [line.removeprefix(f"{folder}/").partition(": ")[0] for line in skipped]
    assert 20 < len(unread) < 100 and set(unread) <= set(broken)
    kept = [name for name in names if name not in unread]
    assert len(pictures) == len(kept)
    whole = [index for index, name in enumerate(kept) if name not in broken]
    assert (pictures.examples(whole, 0).images == good).all()


def test_a_damaged_picture_whose_name_is_no_text_is_listed(tmp_path):
    folder = folder_of(tmp_path, noise(40))
    (folder / "metadata.jsonl").unlink()
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(b"no picture")
    pictures = CaptionedPictures(folder_source(folder, caption="noise"), 16, tmp_path / "store")
    pictures.decode(progress=False)
    listed = next((tmp_path / "store").glob("*/skipped.txt")).read_text()
    assert len(pictures) == 40 and listed.startswith(f"{folder}/\\udcff.png: cannot be read")


def test_before_decoding_an_unreadable_picture_is_black_and_named(tmp_path):
    folder = folder_of(tmp_path, noise(3))
    (folder / "00001.png").write_bytes(b"no picture")
    pictures = CaptionedPictures(folder_source(folder), 16, tmp_path / "store")
    with pytest.warns(UserWarning, match="00001.png: cannot be read as a picture.*; training leaves it out"):
        images = pictures.examples(range(3), 0).images
    assert [image.any() for image in images] == [True, False, True]


def test_too_little_room_is_said_in_bytes_and_nothing_is_left(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, noise(20))
    needed = f"{20 * 16 * 16 * 3:,} bytes"
    with monkeypatch.context() as patch:
        patch.setattr(captioned_pictures.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match=rf"{needed} \(1,000 are free\): make room there"):
            dataset(folder, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # a write fails, as on a disk that others fill
    try:
        with pytest.raises(InputError, match=rf"{needed} \(File too large\): make room there"):
            dataset(folder, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "store").iterdir())


def test_one_picture_is_too_few(tmp_path):
    with pytest.raises(InputError, match="has 1 picture: give two or more"):
        dataset(folder_of(tmp_path, noise(1)), tmp_path)


def test_squares_are_read_from_disk_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned_pictures, "CHUNK", 4)
    pictures = CaptionedPictures(folder_source(folder_of(tmp_path, noise(150))), 96, tmp_path / "store")
    tracemalloc.start()
    try:
        pictures.decode(progress=False)
        for start in range(0, 150, 4):
            pictures.examples(range(start, min(start + 4, 150)), 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 * 96 * 96 * 3 / 4


@pytest.mark.parametrize(
    "name, count, first", [("pokemon", 809, "a drawing of a green pokemon"), ("emoji", 1316, "a 3d")]
)
def test_the_real_folders(data_dir, tmp_path, name, count, first):
    source = find_source(name, str(data_dir))
    pictures = CaptionedPictures(source, 64, tmp_path)
    pictures.decode(progress=False)
    assert len(pictures) == count
    examples = pictures.examples(range(8), 0)
    assert examples.captions[0].startswith(first)
    assert (examples.images[:, 0, 0] > 250).all()  # they stand on white
    assert examples.images.std() > 20


@pytest.mark.filterwarnings("ignore:.*it is made again")
@pytest.mark.parametrize(
    "name", [each for each in hostile_stores.DAMAGES if each not in ("a link", "no folder")]
)
def test_a_damaged_store_is_made_again(tmp_path, name):
    folder = folder_of(tmp_path, noise(24))
    expected = dataset(folder, tmp_path).examples(range(24), 0).images
    (tmp_path / "private").mkdir()
    (store,) = (tmp_path / "store").iterdir()
    for seed in range(4):
        case = Case(folder, tmp_path / "private", tmp_path, "jsonl", random.Random(seed))
        hostile_stores.DAMAGES[name](case, store)
        found = dataset(folder, tmp_path).examples(range(24), 0).images
        if name != "bits":
            np.testing.assert_array_equal(found, expected)


def test_a_store_that_is_a_link_is_refused_and_what_it_leads_to_kept(tmp_path):
    folder = folder_of(tmp_path, noise(3))
    dataset(folder, tmp_path)
    (store,) = (tmp_path / "store").iterdir()
    store.rename(tmp_path / "elsewhere")
    store.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="made again"), pytest.raises(InputError, match="remove it"):
        dataset(folder, tmp_path)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 4


def test_pictures_that_a_model_drew_are_warned_of(tmp_path):
    folder = folder_of(tmp_path, noise(3))
    save_png(folder / "00001.png", noise(1)[0], {"prompt": "a dress", "seed": 3})
    with pytest.warns(UserWarning, match="1 of 3 pictures were drawn by a model, such as .*00001.png"):
        dataset(folder, tmp_path)


def test_skipped_pictures_are_listed_one_to_a_line(tmp_path):
    folder = folder_of(tmp_path, noise(30))
    (folder / "00007.png").rename(folder / "a\n\x1b[2J.png")
    rows = (folder / "metadata.jsonl").read_text().replace("00007.png", "a\\n\\u001b[2J.png")
    (folder / "metadata.jsonl").write_text(rows)
    (folder / "a\n\x1b[2J.png").write_bytes(b"no picture")
    dataset(folder, tmp_path)
    (file,) = (tmp_path / "store").glob("*/skipped.txt")
    assert file.read_text().count("\n") == 1 and r"a\n\x1b[2J.png: cannot be read" in file.read_text()


def test_a_picture_that_is_gone_since_is_skipped(tmp_path):
    folder = folder_of(tmp_path, noise(30))
    source = folder_source(folder)
    (folder / "00003.png").unlink()
    os.mkfifo(folder / "00003.png")
    pictures = CaptionedPictures(source, 16, tmp_path / "store")
    pictures.decode(progress=False)
    assert len(pictures) == 29


def test_each_epoch_draws_one_of_several_captions(tmp_path):
    folder = folder_of(tmp_path, np.zeros((2, 8, 8, 3), np.uint8))
    rows = [
        {"file_name": "00000.png", "text": ["a dress", "a gown"]},
        {"file_name": "00001.png", "text": "a bag"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = CaptionedPictures(folder_source(folder), 8, None)
    assert pictures.distinct_epochs is None and len(pictures) == 2
    assert sorted(pictures.corpus()) == ["a bag", "a dress", "a gown"]
    drawn = [pictures.examples([0, 1], epoch) for epoch in range(40)]
    assert 10 < sum(examples.captions[0] == "a gown" for examples in drawn) < 30
    assert {examples.captions[1] for examples in drawn} == {"a bag"}
    for examples in drawn:  # pictures of the same caption are of the same group
        assert (examples.groups[0], examples.groups[1]) == (
            {"a dress": 1, "a gown": 2}[examples.captions[0]],
            0,
        )

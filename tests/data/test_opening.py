"""Pictures of any kind become 8-bit RGB as their makers meant them, and damaged ones one line."""

import contextlib
import io
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from sd_tf.data import opening
from sd_tf.data.budget import Budget
from sd_tf.data.opening import open_picture
from sd_tf.errors import InputError
from tests.data.hostile import PICTURES, SPECIAL, make, put
from tests.fuzzing import forget_peak, limited, memory

RED, GREEN = (255, 0, 0), (0, 128, 0)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(file, **options):
    picture = open_picture(file, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def halves(mode="RGB", size=(8, 4)):
    """Red on the left, green on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(GREEN, (size[0] // 2, 0, *size))
    return picture.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_every_format_without_loss_is_read_to_the_bit(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(halves(), kind, **options)), np.asarray(halves()))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_and_grey_become_rgb(mode):
    picture = halves(mode)
    np.testing.assert_array_equal(pixels(encoded(picture)), np.asarray(picture.convert("RGB")))


def test_sixteen_bits_become_eight():
    levels = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    found = pixels(encoded(Image.fromarray(levels)))
    np.testing.assert_array_equal(found[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_cmyk_jpeg_keeps_its_colours():
    found = pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(found.astype(int) - RED).max() < 12


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_what_is_transparent_shows_the_background(background):
    picture = halves("RGBA")
    picture.putpixel((0, 0), (255, 0, 0, 0))
    found = pixels(encoded(picture), background=background)
    np.testing.assert_array_equal(found[0, 0], background)
    np.testing.assert_array_equal(found[0, 1], RED)


def test_a_transparent_palette_colour_shows_the_background():
    picture = halves("P")
    found = pixels(encoded(picture, transparency=picture.getpixel((0, 0))), background=(1, 2, 3))
    np.testing.assert_array_equal(found[0, 0], (1, 2, 3))
    np.testing.assert_array_equal(found[0, -1], picture.convert("RGB").getpixel((7, 0)))


def test_a_photograph_is_turned_as_its_exif_data_say():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    found = pixels(encoded(halves(size=(8, 4)), exif=exif))
    assert found.shape == (8, 4, 3)
    np.testing.assert_array_equal(found[0, 0], RED)
    np.testing.assert_array_equal(found[-1, 0], GREEN)


def test_a_photograph_of_an_iphone_is_read_and_turned():
    """HEIC tells the decoder to turn it, and its EXIF data say so once more."""
    pillow_heif = pytest.importorskip("pillow_heif")
    photograph, exif, file = halves(size=(64, 32)), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    pillow_heif.register_heif_opener()
    photograph.save(file, "HEIF", quality=-1, exif=exif.tobytes())
    found = pixels(file)
    assert found.shape == (64, 32, 3)
    expected = np.asarray(photograph.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(found - expected).max() < 8
    for cut in (0, 5, 20, 100, 300, -40):
        with pytest.raises(InputError):
            open_picture(io.BytesIO(file.getvalue()[:cut]))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    found = pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(found[0, 0], RED)


def test_a_large_jpeg_is_decoded_no_smaller_than_needed():
    found = open_picture(encoded(halves(size=(800, 400)), "JPEG"), least_side=64)
    assert 64 <= min(found.size) < 400


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(opening, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="has 100 x 100 pixels, more than the 1000 allowed"):
        open_picture(encoded(Image.new("RGB", (100, 100))))


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(InputError, match="cannot be read as a picture"):
        open_picture(io.BytesIO(content))


def test_floating_point_pixels_are_refused():
    with pytest.raises(InputError, match="floating-point"):
        open_picture(encoded(Image.new("F", (4, 4)), "TIFF"))


def in_all_formats(pixels):
    """uint8 (height, width, 3) -> the bytes of a file of each format, by its name."""
    kinds = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
    return {kind: encoded(Image.fromarray(pixels), kind).getvalue() for kind in kinds}


def damaged(content, generator):
    """Bytes with bits turned, the end cut off, or bytes put in."""
    content = bytearray(content)
    kind, place = generator.integers(3), int(generator.integers(len(content)))
    if kind == 0:
        for turned in generator.integers(len(content), size=4):
            content[turned] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        del content[place:]
    else:
        content[place:place] = generator.bytes(16)
    return bytes(content)


def test_a_thousand_damaged_pictures_are_read_or_refused():
    """Anything but a crash or another exception."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (24, 24, 3), np.uint8)
    whole = list(in_all_formats(pixels).values())
    if opening.HEIC:
        opening._register_heic()
        whole.append(encoded(Image.fromarray(pixels), "HEIF").getvalue())
    refused = 0
    for number in range(1200):
        try:
            content = damaged(whole[number % len(whole)], generator)
            assert open_picture(io.BytesIO(content)).mode == "RGB"
        except InputError:
            refused += 1
    assert 300 < refused < 1200


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_picture_is_a_regular_file(tmp_path, kind):
    case = make(tmp_path, "classes", None)
    file = case.data / "a.png"
    put(kind, file, case)
    with limited(5), pytest.raises(InputError) as refused:
        open_picture(file, root=case.data)
    assert str(file) not in str(refused.value)  # which those name who ask for it


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is read from /proc")
@pytest.mark.parametrize("name", PICTURES)
def test_a_small_file_takes_little_time_and_memory(name):
    content = PICTURES[name]()
    forget_peak()
    before = memory("VmRSS")
    with limited(5), contextlib.suppress(InputError):
        open_picture(io.BytesIO(content))
    assert memory("VmHWM") - before < 150_000_000


@pytest.mark.parametrize(
    "name", ["JPEG with EXIF data after junk", "JPEG of scans", "PPM of text", "TIFF of tiles"]
)
def test_a_small_file_that_takes_much_is_refused(name):
    with pytest.raises(InputError, match="has|takes"):
        open_picture(io.BytesIO(PICTURES[name]()))


def test_memory_is_shared_by_all_threads(monkeypatch):
    """No more is decoded at once than the budget has, and what alone needs more is refused."""
    whole = encoded(Image.new("RGB", (2000, 1000))).getvalue()
    monkeypatch.setattr(opening, "BUDGET", Budget(40_000_000))
    at_once, most, lock = 0, 0, threading.Lock()

    def use(picture):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1

    threads = [
        threading.Thread(target=open_picture, args=(io.BytesIO(whole),), kwargs={"use": use})
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2  # each is 8 MB, and 8 to be turned
    monkeypatch.setattr(opening, "BUDGET", Budget(10_000_000))
    with pytest.raises(InputError, match="takes 17 MB of memory to decode, more than the 10 MB allowed"):
        open_picture(io.BytesIO(whole))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "CMYK", "1"])
def test_large_pictures_become_what_small_ones_do(monkeypatch, mode):
    levels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(levels[..., :2].copy().view(np.uint16)[..., 0])
    else:
        picture = Image.fromarray(levels, "RGBA").convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    expected = pixels(encoded(picture, kind), background=(1, 2, 3))
    monkeypatch.setattr(opening, "BAND", 130)
    np.testing.assert_array_equal(pixels(encoded(picture, kind), background=(1, 2, 3)), expected)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pictures_are_turned_as_pillow_turns_them(turn, kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    file = encoded(picture, kind, exif=exif)
    with Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(pixels(file), expected)

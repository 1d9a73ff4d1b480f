"""Folders of captioned pictures as a stranger may make them, and ways to make them worse."""

import io
import json
import os
import random
import socket
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

WORD = "canary-8c1f"  # of private files, which must appear nowhere
COLOUR = (201, 7, 133)  # of private pictures, likewise
LAYOUTS = ("classes", "texts", "jsonl", "csv", "parquet")
SPECIAL = ("pipe", "socket", "folder", "zero", "environ", "loop", "dangling", "private", "above", "circle")


class Case(NamedTuple):
    """A folder of pictures beside private files, and where a run writes."""

    data: Path
    private: Path
    run: Path
    layout: str
    rng: random.Random

    @property
    def pictures(self):
        return sorted(each for each in self.data.rglob("*.png") if not each.is_symlink() and each.is_file())

    @property
    def texts(self):
        """Files that say what pictures show."""
        kind = "*.txt" if self.layout == "texts" else "metadata.*"
        return sorted(self.data.rglob(kind))

    def any(self, files):
        return self.rng.choice(files)


def make(root, layout, rng) -> Case:
    """Twenty-four pictures, so that one of them may be unreadable, in that layout."""
    case = Case(root / "data", root / "private", root / "run", layout, rng)
    for folder in case[:3]:
        folder.mkdir(parents=True)
    (case.private / "secret.txt").write_text(WORD)
    (case.private / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": WORD}))
    (case.private / "metadata.csv").write_text(f"file_name,text\n0.png,{WORD}\n")
    Image.new("RGB", (12, 12), COLOUR).save(case.private / "secret.png")
    rows = []
    for i in range(24):
        name = f"{'red_dress' if i % 2 else 'bag'}/{i}.png" if layout == "classes" else f"{i}.png"
        (case.data / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 9), (i, 5 * i, 100)).save(case.data / name)
        rows.append({"file_name": name, "text": f"picture {i}"})
        if layout == "texts":
            (case.data / f"{i}.txt").write_text(f"picture {i}")
    write_rows(case, rows)
    return case


def write_rows(case, rows):
    """Metadata in the case's layout, where it has any."""
    if case.layout == "jsonl":
        (case.data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif case.layout == "csv":
        lines = [f'"{row["file_name"]}","{row["text"]}"\n' for row in rows]
        (case.data / "metadata.csv").write_text("file_name,text\n" + "".join(lines), errors="replace")
    elif case.layout == "parquet":
        import pyarrow
        from pyarrow import parquet

        rows = [{key: value.encode(errors="replace").decode() for key, value in row.items()} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(rows), case.data / "metadata.parquet")


def put(kind, path, case):
    """Something that is no regular file of the folder, in place of what is there."""
    path.unlink(missing_ok=True)
    targets = {
        "zero": "/dev/zero",
        "environ": "/proc/self/environ",
        "loop": path.name,
        "dangling": "nowhere",
        "above": os.pardir,
        "private": case.private / ("secret.png" if path.suffix == ".png" else "secret.txt"),
    }
    if path.name.startswith("metadata.") and (case.private / path.name).exists():
        targets["private"] = case.private / path.name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        listening, before = socket.socket(socket.AF_UNIX), os.getcwd()
        os.chdir(path.parent)  # its path would be too long
        listening.bind(path.name)
        os.chdir(before)
        listening.close()
    elif kind == "circle":
        path.symlink_to("circle-a")
        (path.parent / "circle-a").symlink_to("circle-b")
        (path.parent / "circle-b").symlink_to("circle-a")
    else:
        path.symlink_to(targets[kind])


# -- pictures that are more than they seem ---------------------------------------------------------


def png(chunks=(), size=(8, 8), rows=None):
    """A PNG with more chunks before its pixels, or with other pixels than it has place for."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(3 * size[0])) * size[1] if rows is None else rows
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def jpeg(segments=b"", **options):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", **options)
    content = file.getvalue()
    return content[:2] + segments + content[2:]


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def exif_bomb(size=60_000):
    """Entries that all have the same long value."""
    number = size // 24
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, size // 2, 8) for i in range(number))
    return (b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", number) + entries).ljust(size, b"\0")


def scans_bomb(scans=400):
    """A progressive JPEG that says its last scan again and again."""
    content = jpeg(progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + (content[last:-2]) * scans + content[-2:]


def bmp_in_runs(side):
    content = b"\xff\x00" * (side * side // 255 + 1) + b"\x00\x01"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(content), 0, 0, 256, 0)
    whole = struct.pack("<IHHI", 1078 + len(content), 0, 0, 1078) + header + bytes(1024) + content
    return b"BM" + whole


def tiff(entries):
    """(tag, type, count, value) in order of the tags, and some pixels."""
    entries = b"".join(struct.pack("<HHII", *each) for each in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries) // 12) + entries + bytes(4000)


def tiff_of_tiles(side=65_520):
    return tiff(
        [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
        + [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 200), (325, 4, 1, 100)]
    )


def tiff_of_numbers(count=900_000):
    """Whose number of bits is a fraction, of which there are many."""
    size = [(256, 4, 1, 8), (257, 4, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8), (279, 4, 1, 192)]
    return tiff([*size, (258, 5, count, 100)]) + bytes(8 * count)


PICTURES = {
    "PNG of 20000 x 20000": lambda: png(size=(20_000, 20_000), rows=b""),
    "PNG of a line": lambda: png(size=(2**26, 1), rows=b"\0" * 100),
    "PNG with too many rows": lambda: png(rows=bytes(10**7)),
    "PNG with a text that unpacks": lambda: png([(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))]),
    "PNG with a profile that unpacks": lambda: png([(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 9))]),
    "PNG with long EXIF data": lambda: png([(b"eXIf", exif_bomb(200_000))]),
    "PNG of chunks": lambda: png([(b"prIv", b"")] * 100_000),
    "PNG with a private chunk": lambda: png([(b"prIv", bytes(20_000_000))]),
    "JPEG with EXIF data that repeat": lambda: jpeg(segment(0xE1, b"Exif\0\0" + exif_bomb())),
    "JPEG with EXIF data after junk": lambda: jpeg(b"\0" + segment(0xE1, b"Exif\0\0" + exif_bomb())),
    "JPEG with EXIF data of large files": lambda: jpeg(segment(0xE1, b"Exif\0\0II+\0" + bytes(60_000))),
    "JPEG with an index that repeats": lambda: jpeg(segment(0xE2, b"MPF\0" + exif_bomb())),
    "JPEG of segments": lambda: jpeg(segment(0xFE, b"") * 20_000),
    "JPEG of EXIF segments": lambda: jpeg(segment(0xE1, b"Exif\0\0".ljust(65_000, b"\0")) * 300),
    "JPEG of junk": lambda: jpeg(bytes(2_000_000)),
    "JPEG of scans": scans_bomb,
    "GIF of comments": lambda: b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0",
    "BMP in runs": lambda: bmp_in_runs(4000),
    "PPM of text": lambda: b"P3 4000 4000 255\n" + b"0 " * 10**6,
    "PPM of comments": lambda: b"P3 8 8 255\n" + b"#a\n" * 300_000,
    "PPM of a long number": lambda: b"P3 " + b"9" * 10**6,
    "TIFF of tiles": tiff_of_tiles,
    "TIFF of numbers": tiff_of_numbers,
    "WEBP of 16383 x 16383": lambda: (
        b"RIFF<\0\0\0WEBPVP8L" + struct.pack("<I", 48) + b"\x2f\xff\xff\xff\x0f" + bytes(43)
    ),
}


def picture_bomb(name):
    def change(case):
        case.any(case.pictures).write_bytes(PICTURES[name]())

    return change


# -- captions and tables ---------------------------------------------------------------------------

NAMES = (
    "../private/secret.png",
    "/etc/passwd",
    "/proc/self/environ",
    "/dev/zero",
    "a/../../private/secret.png",
    "nul\0.png",
    "\ud800.png",
    "x" * 5000,
    "y/" * 3000,
    ".",
    "",
    "line\nbreak\x1b[2J.png",
)
TABLES = {
    "a line without end": lambda: b'{"file_name": "' + b"x" * 5_000_000,
    "a quoted field without end": lambda: b'file_name,text\n0.png,"' + b"x\n" * 2_000_000,
    "fields without end": lambda: b"file_name,text\n0.png" + b',"\n"' * 1_000_000,
    "deep lists": lambda: b'{"file_name": "0.png", "text": ' + b"[" * 100_000 + b"\n",
    "many lists": lambda: b'{"file_name": "0.png", "text": [' + b"[]," * 300_000 + b"[]]}\n",
    "many digits": lambda: b'{"file_name": "0.png", "text": ' + b"9" * 100_000 + b"}\n",
    "no UTF-8": lambda: b"file_name,text\n0.png,\xff\xfe\n",
    "many columns": lambda: b"file_name,text" + b",x" * 200_000 + b"\n0.png,a" + b",1" * 200_000 + b"\n",
    "null characters": lambda: bytes(100_000),
    "carriage returns": lambda: b"file_name,text\r0.png,a dress\r1.png,a bag\r",
    "a mark of Parquet": lambda: b"PAR1" + b"\xff" * 100_000 + struct.pack("<I", 100_000) + b"PAR1",
}


def table(name):
    def change(case):
        for file in case.data.glob("metadata.*"):
            file.unlink()
        suffix = case.any(["jsonl", "csv"]) if name != "a mark of Parquet" else "parquet"
        (case.data / f"metadata.{suffix}").write_bytes(TABLES[name]())

    return change


def parquet_bomb(kind):
    """A file of a few kilobytes that unpacks to gigabytes."""

    def change(case):
        import pyarrow
        from pyarrow import parquet

        zeros = pyarrow.DictionaryArray.from_arrays(np.zeros(1_500_000, np.int32), ["0.png"])
        long = pyarrow.DictionaryArray.from_arrays(np.zeros(1000, np.int32), ["x" * 8_000_000])
        columns, options = {
            "a long value in a dictionary": ((["0.png"] * 1000, long), {}),
            "values that begin alike": (
                (["0.png"] * 200, ["x" * 1_000_000] * 200),
                {
                    "use_dictionary": False,
                    "column_encoding": {"text": "DELTA_BYTE_ARRAY", "file_name": "PLAIN"},
                },
            ),
            "rows without end": ((zeros, zeros), {}),
            "lists": ((["0.png"], [["a"] * 1000]), {}),
            "a long value among others": ((["0.png", "1.png"], ["x" * 40_000_000, "a dress"]), {}),
        }[kind]
        for file in case.data.glob("metadata.*"):
            file.unlink()
        made = pyarrow.table(dict(zip(("file_name", "text"), columns, strict=True)))
        parquet.write_table(made, case.data / "metadata.parquet", compression="zstd", **options)

    return change


def names(case):
    """One that leads elsewhere, or that no file has."""
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(24)]
    rows[case.rng.randrange(24)]["file_name"] = case.any(NAMES)
    write_rows(case, rows)


def captions(case):
    """Bytes that are no text, a terminal's commands, a text that has no end."""
    file = case.any(case.pictures).with_suffix(".txt")
    file.write_bytes(case.any([b"\xff\xfe\xfa", b"a \x1b[2J dress\r\n", bytes(100), b"", "ä".encode()[:1]]))
    if case.rng.random() < 0.3:
        with open(file, "r+b") as opened:
            opened.truncate(10**10)


def flip(case):
    """Any file's bits, end or middle."""
    file = case.any([*case.pictures, *case.texts])
    content = bytearray(file.read_bytes())
    place = case.rng.randrange(len(content))
    kind = case.rng.randrange(3)
    if kind == 0:
        content[place] ^= 1 << case.rng.randrange(8)
    elif kind == 1:
        del content[place:]
    else:
        content[place:place] = case.rng.randbytes(case.rng.randrange(1, 40))
    file.write_bytes(content)


def endless(case):
    """A file of ten gigabytes, of which none is on the disk."""
    with open(case.any([*case.pictures, *case.texts]), "r+b") as file:
        file.truncate(10**10)


def special(kind):
    def change(case):
        texts = case.texts[: case.rng.choice([1, 24])]
        put(kind, case.any([case.any(case.pictures), *texts, case.data / "metadata.jsonl"]), case)

    return change


def links_of_folders(case):
    target = case.any([case.private, "..", ".", "/proc/self", "/", "loop", "../data"])
    (case.any([case.data, *(each for each in case.data.iterdir() if each.is_dir())]) / "loop").symlink_to(
        target
    )


def odd_names(case):
    """Of pictures and folders."""
    picture = case.any(case.pictures)
    name = case.any([b"\xff\xfe", b"line\nbreak", b"\x1b[2J\x1b]0;title\x07", b"x" * 240, "\u202e".encode()])
    below = os.fsencode(case.data) + b"/" + name
    if case.rng.random() < 0.5:
        os.rename(picture, below + b".png")
    else:
        os.mkdir(below)
        os.rename(picture, below + b"/0.png")


def deep(case):
    """Folders in folders, as deep as a path can be."""
    before = os.getcwd()
    os.chdir(case.data)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("0.png").write_bytes(png())
    os.chdir(before)


def runs(case):
    """Sheets that runs have drawn, of this run and of another."""
    for name in ("run", "other"):
        samples = case.data / name / "samples"
        samples.mkdir(parents=True)
        (case.data / name / "run.json").write_text("{}")
        for i in range(3):
            Image.new("RGB", (12, 12), COLOUR).save(samples / f"{i}.png")
            (samples / f"{i}.txt").write_text(WORD)


DAMAGES = {
    **{f"a {kind} in place of a file": special(kind) for kind in SPECIAL},
    **{f"picture: {name}": picture_bomb(name) for name in PICTURES},
    **{f"table: {name}": table(name) for name in TABLES},
    **{
        f"Parquet: {kind}": parquet_bomb(kind)
        for kind in (
            "a long value in a dictionary",
            "values that begin alike",
            "rows without end",
            "lists",
            "a long value among others",
        )
    },
    "names that lead elsewhere": names,
    "captions that are no text": captions,
    "bits, ends and middles": flip,
    "a file without end": endless,
    "links of folders": links_of_folders,
    "names that do not print": odd_names,
    "deep folders": deep,
    "folders of runs": runs,
}

"""What can be wrong with a stranger's checkpoint, by accident or on purpose.

Each damage is a function of a `Case` that changes files in its folder, as the case's random numbers
have it. It returns `MUST_REFUSE` where nothing that it can do may be read over.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.checkpoints.undamaged import CHECKPOINTS, tokenizer

MUST_REFUSE = "must be refused"
ALL = tuple(CHECKPOINTS)
TOKENIZERS = ("tokenizer", "model")
WEIGHTS = tuple(name for name in ALL if name != "tokenizer")
CONFIGURED = tuple(name for name in ALL if not name.startswith("file"))

DAMAGES = {}  # name -> (names of checkpoints that can have it, function of a case)

# fmt: off
# What json.dumps cannot write, by a text that stands for it.
RAW = {
    "@nested@": "[" * 40 + "]" * 40,
    "@deep@": "[" * 900 + "]" * 900,
    "@deep objects@": '{"a":' * 450 + "1" + "}" * 450,
    "@too deep@": "[" * 100_000 + "]" * 100_000,
    "@digits@": "9" * 5000,
    "@minus digits@": "-" + "9" * 4000,
    "@tiny@": "1e-400",
    "@overflow@": "1e400",
}
HOSTILE = [  # values
    None, True, False, 0, -1, -2, -8, 1, 2, 3, 7, 10**5, 10**9, 2**31, 2**63, -(2**63), 10**30, 10**300,
    0.5, -0.5, 2.0, float("nan"), float("inf"), float("-inf"), 1e-320, 1e308, 1e30,
    "", "16", "a\nb", "\x1b[31m", "\ud800", "\x00", "silu", "x" * 100_000, "\u2028", "é\u202e",
    [], [0], [-8], [4.0], ["4"], [None], [10**9], [8] * 3, [[8]], [4] * 1000, [2**64], [4, 4],
    {}, {"a": 1}, {"content": "a\nb"}, {"0": {"content": ""}}, *RAW,
]
NAMES = [  # of shards; UP is a way out of the folder to a sound one, OUTSIDE its path
    "", ".", "..", " ", "../UP", "sub/UP", "./UP", "..\\UP", "OUTSIDE", "/etc/passwd", "/dev/zero",
    "\0.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors", "a\n.safetensors", ".safetensors",
    "~/x.safetensors", "file:///x.safetensors", "C:\\x.safetensors", "é.safetensors", "-rf.safetensors",
    "missing.safetensors", "model.bin", "config.json", 5, None, True, [], ["a.safetensors"], {}, "@deep@",
]
DTYPES = [
    "F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F6_E2M3", "F4", "C64", "f32",
    "", "F32\n", "x" * 100_000, None, 3, ["F32"], {"F32": 1}, "@deep@",
]
SHAPES = [
    [], [-1], [0], [10**9], [2**63], [2**64], [2**32, 2**32], [10**30], [2] * 70, [1] * 1000,
    ["4"], [4.5], [True], [[4]], None, "4", {"a": 1}, 4, "@deep@", "@digits@",
]
OFFSETS = [
    [-4, 0], [2**63, 2**64 - 1], [10**30, 10**30], [0], [0, 1, 2], [], None, "0", [0.0, 4.0], ["0", "4"],
    "@deep@",
]
MERGES = [
    "a b c", "a", " ", "a  b", "\x00 \x00", "x" * 10**5, "a " + "b" * 10**5, "#version", "\r", "a\tb", "é é",
]
# fmt: on
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


class Case(NamedTuple):
    """Where a damage works."""

    folder: Path
    outside: Path  # a folder beside it with the same files
    marker: Path  # what only executed code makes
    rng: random.Random

    def file(self, *patterns):
        """One of the files that match, or of all."""
        patterns = patterns or ("*",)
        found = sorted({path for each in patterns for path in self.folder.rglob(each) if path.is_file()})
        return self.rng.choice(found)

    def weights(self):
        return self.file("*.safetensors")

    def configuration(self):
        return self.file("config.json", "*_config.json", "model_index.json", "special_tokens_map.json")


def damage(name, checkpoints=ALL):
    def register(function):
        DAMAGES[name] = checkpoints, function
        return function

    return register


def read_json(file):
    return json.loads(file.read_text())


def write_json(file, values):
    file.write_text(dumped(values))


def dumped(values):
    text = json.dumps(values)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


# -- bytes ------------------------------------------------------------------------------------------------


def place(rng, content):
    """Somewhere in it, more often than not near its beginning."""
    return rng.randrange(max(1, min(len(content), rng.choice([16, 400, len(content)]))))


@damage("bytes flipped")
def _(case):
    file = case.file()
    content = bytearray(file.read_bytes())
    for _ in range(case.rng.choice([1, 2, 8, 64])):
        content[place(case.rng, content)] ^= 1 << case.rng.randrange(8)
    file.write_bytes(content)


@damage("bytes inserted")
def _(case):
    file = case.file()
    content = file.read_bytes()
    at = case.rng.choice([place(case.rng, content), len(content)])
    more = case.rng.randbytes(case.rng.choice([1, 8, 1000]))
    file.write_bytes(content[:at] + more + content[at:])


@damage("bytes deleted")
def _(case):
    file = case.file()
    content = file.read_bytes()
    at = place(case.rng, content)
    file.write_bytes(content[:at] + content[at + case.rng.choice([1, 8, 1000]) :])


@damage("cut short")
def _(case):
    file = case.file()
    content = file.read_bytes()
    file.write_bytes(content[: case.rng.choice([0, 1, 8, place(case.rng, content), len(content) - 1])])


@damage("two files exchanged")
def _(case):
    first, second = case.file(), case.file()
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


# -- headers of safetensors files -------------------------------------------------------------------------


def header_of(file):
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(file, header, body):
    text = header if isinstance(header, bytes) else dumped(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def keys_of(header):
    return [key for key in header if key != "__metadata__"]


def change_entries(case, field, values):
    """Another value in the header's entry of one tensor, or of several."""
    file = case.weights()
    header, body = header_of(file)
    entries = [header[key] for key in keys_of(header)]
    for entry in case.rng.sample(entries, min(len(entries), case.rng.choice([1, 1, 2, 50]))):
        entry[field] = case.rng.choice(values(entry, entries, len(body)))
    write_header(file, header, body)


@damage("header: length", WEIGHTS)
def _(case):
    file = case.weights()
    content = file.read_bytes()
    right, size = int.from_bytes(content[:8], "little"), len(content)
    lengths = [0, 1, 7, right - 1, right + 1, size - 8, size - 7, size, 10**8, 2**31, 2**63, 2**64 - 1]
    file.write_bytes(case.rng.choice(lengths).to_bytes(8, "little") + content[8:])


@damage("header: shapes", WEIGHTS)
def _(case):
    def shapes(entry, entries, size):
        shape = entry["shape"]
        near = [shape + [1], [1, *shape], shape[::-1], shape[:-1]]
        return [*SHAPES, *near, [-each if isinstance(each, int) else each for each in shape]]

    change_entries(case, "shape", shapes)


@damage("header: offsets", WEIGHTS)
def _(case):
    def offsets(entry, entries, size):
        begin, end = entry["data_offsets"]
        near = [[0, size], [end, begin], [begin - 4, end - 4], [begin, end + 4], [size, size + end - begin]]
        return [*OFFSETS, *near, [0, end - begin], case.rng.choice(entries)["data_offsets"]]

    change_entries(case, "data_offsets", offsets)


@damage("header: dtypes", WEIGHTS)
def _(case):
    change_entries(case, "dtype", lambda *_: DTYPES)


@damage("header: a key twice", WEIGHTS)
def _(case):
    file = case.weights()
    header, body = header_of(file)
    key, entry = case.rng.choice(keys_of(header)), json.dumps(EMPTY)
    many = "".join(f'"filler.{i}":{entry},' for i in range(case.rng.choice([0, 0, 50_000])))
    again = f"{json.dumps(key)}:{case.rng.choice([json.dumps(header[key]), entry, 'null'])}"
    write_header(file, ("{" + many + json.dumps(header)[1:-1] + "," + again + "}").encode(), body)
    return MUST_REFUSE


@damage("header: nested", WEIGHTS)
def _(case):
    file = case.weights()
    header, body = header_of(file)
    deep, wide = case.rng.choice([100, 900, 10**5, 10**6]), case.rng.choice([10**3, 10**6])
    nested = ['{"a":' * deep + "1" + "}" * deep, "[" * deep + "]" * deep, "[" * deep, '{"a":' * deep]
    nested += ["[" + "{}," * wide + "1]", "[" + "1," * wide + "1]"]
    around = [("", ""), ('{"__metadata__":', "}"), ('{"conv_in.weight":', "}")]
    before, after = case.rng.choice([*around, (json.dumps(header)[:-1] + ',"x":', "}")])
    write_header(file, (before + case.rng.choice(nested) + after).encode(), body)
    return MUST_REFUSE


@damage("header: keys", WEIGHTS)
def _(case):
    file = case.weights()
    header, body = header_of(file)
    key = case.rng.choice(keys_of(header))
    parts = key.split(".")
    numbers = [str(10**6), str(10**12), "9" * 4400, "-1", "٣", "01"]
    counted = ".".join(case.rng.choice(numbers) if part.isdigit() else part for part in parts)
    others = ["", ".", "a\nb", "\x1b[31m", "\ud800", "x" * 100_000, "..", "__metadata__", "a." * 10_000]
    others += [key.upper(), key + ".", "." + key, key + "\u2028", ".".join(parts[::-1]), "text_model." + key]
    others += [key.replace("to_q", "query"), key.replace("weight", "kernel"), counted, counted, counted]
    other = case.rng.choice(others)
    header[other] = header.pop(key) if case.rng.random() < 0.5 else EMPTY
    write_header(file, header, body)


@damage("header: many numbered keys", ("UNet", "text tower", "file of 1.x", "file of 2.x"))
def _(case):
    """A reader counts layers by the numbers in names."""
    file = case.weights()
    header, body = header_of(file)
    stems = sorted(
        {key.rpartition(".")[0] for key in header if any(part.isdigit() for part in key.split("."))}
    )
    for stem in case.rng.sample(stems, min(len(stems), 3)):
        parts = stem.split(".")
        at = case.rng.choice([i for i, part in enumerate(parts) if part.isdigit()])
        for number in range(case.rng.choice([20, 2000])):
            parts[at] = str(number)
            for last in ("weight", "bias"):
                header.setdefault(".".join([*parts, last]), EMPTY)
    write_header(file, header, body)


@damage("header: metadata", WEIGHTS)
def _(case):
    file = case.weights()
    header, body = header_of(file)
    header["__metadata__"] = case.rng.choice([*HOSTILE, {"format": "np"}, {"a": {"b": 1}}, {"a": 1}])
    write_header(file, header, body)


@damage("header: text", WEIGHTS)
def _(case):
    file = case.weights()
    header, body = header_of(file)
    text = json.dumps(header)
    plain = text.encode()
    others = [b"null", b"[]", b"{}", b"", b"1e999", text.encode("utf-16"), b"\xef\xbb\xbf" + plain]
    others += [plain + b"\xff", plain + b"\0", plain + b"{}", b" " + plain, plain + b" " * 1000]
    others += [text.replace("F32", "F\\u0033\\u0032").encode(), text.replace(":", ":NaN", 1).encode()]
    write_header(file, case.rng.choice(others), body)


# -- tensors ----------------------------------------------------------------------------------------------


@damage("tensors: rewritten", WEIGHTS)
def _(case):
    """A sound file of other tensors."""
    file = case.weights()
    tensors = load_file(file)
    key, other = case.rng.choice(sorted(tensors)), case.rng.choice(sorted(tensors))
    value = np.atleast_1d(tensors[key])
    change = case.rng.choice(["value", "value", "lost", "more", "renamed", "exchanged"])
    if change == "value":
        dtypes = ("f8", "f2", ml_dtypes.bfloat16, "i8", "i4", "u1", "?")
        values = [value.reshape(-1), value.T, value[None], value[:0], value[:-1], np.float32(1), np.zeros(0)]
        values += [np.concatenate([value] * 2), value * np.float32(np.nan), value.astype("f8") * 1e300]
        tensors[key] = case.rng.choice([*values, *(value.astype(dtype) for dtype in dtypes)])
    elif change == "more":
        tensors[key + case.rng.choice([".extra", "\n", "2"])] = value.copy()
    elif change == "exchanged":
        tensors[key], tensors[other] = tensors[other].copy(), value.copy()
    else:
        value = tensors.pop(key)
        if change == "renamed":
            names = ["a", "text_model." + key, key.removeprefix("text_model.")]
            tensors[case.rng.choice(names)] = value
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file)


@damage("tensors: random bytes", WEIGHTS)
def _(case):
    file = case.weights()
    header, body = header_of(file)
    write_header(file, header, case.rng.randbytes(len(body)))


# -- configurations ---------------------------------------------------------------------------------------


def leaves(values):
    """(object, key) of every value in nested objects."""
    for key, value in values.items():
        yield values, key
        if isinstance(value, dict):
            yield from leaves(value)


def change_values(case, number, values):
    file = case.configuration()
    content = read_json(file)
    for _ in range(number):
        inside, key = case.rng.choice(list(leaves(content)))
        inside[key] = case.rng.choice(values(inside[key]))
    write_json(file, content)


@damage("configuration: a value", CONFIGURED)
def _(case):
    change_values(case, 1, lambda old: HOSTILE)


@damage("configuration: values of their kind", CONFIGURED)
def _(case):
    """What a check of types lets pass."""

    def others(old):
        if isinstance(old, (bool, str)) or old is None:
            return [True, False, None, "epsilon", "sample", "linear", "trailing", "gelu", "UpBlock2D"]
        if isinstance(old, int):
            return [0, -1, -2, old - 1, old + 1, 2 * old, -old, 50, 1000, 10**6, 10**9, 2**31, 2**63, 10**30]
        if isinstance(old, float):
            return [0.0, -old, 1e299, -1e299, 1e-300, 5, 0, 10**200, 1.0, 0.999]
        if isinstance(old, list):
            return [old * 2, old * 50, old * 10_000, [], old[:-1], old[::-1], [0], [-4], [10**9], [10**30]]
        return HOSTILE

    change_values(case, case.rng.choice([1, 1, 2, 4]), others)


@damage("configuration: the schedule", ("model",))
def _(case):
    file = case.folder / "scheduler" / "scheduler_config.json"
    content = read_json(file)
    for _ in range(case.rng.choice([1, 1, 2])):
        values = [0, -1, 1, 2, 999, 1000, 10**5, 10**6, 10**9, 10**30, -0.1, 0.0, 1e-9, 0.5, 1.0, 1e299]
        values += ["linear", "squaredcos_cap_v2", "trailing", "linspace", "sample", True, False, *HOSTILE]
        content[case.rng.choice(sorted(content))] = case.rng.choice(values)
    write_json(file, content)


@damage("configuration: many layers", ("UNet", "shards", "halves", "CLIP", "model"))
def _(case):
    """More than anybody would lay out, and all fields agree."""
    file = case.file("config.json")
    content, levels = read_json(file), case.rng.choice([2, 8, 40, 85])
    for inside in [content, *(value for value in content.values() if isinstance(value, dict))]:
        for key, value in inside.items():
            if isinstance(value, list) and value:
                inside[key] = value * levels
            elif key in ("layers_per_block", "num_hidden_layers"):
                inside[key] = case.rng.choice([1, 10, 30, 80])
    write_json(file, content)


@damage("configuration: fields lost", CONFIGURED)
def _(case):
    file = case.configuration()
    content = read_json(file)
    for key in case.rng.sample(sorted(content), case.rng.randint(1, len(content))):
        del content[key]
    write_json(file, content)


@damage("configuration: fields more", CONFIGURED)
def _(case):
    file = case.configuration()
    content = read_json(file)
    inside = case.rng.choice([content, *(value for value in content.values() if isinstance(value, dict))])
    for key in ("kept", "self", "__class__", "a\nb", "\ud800", "", "added_tokens_decoder", "x" * 10**5):
        if case.rng.random() < 0.3:
            inside[key] = case.rng.choice(HOSTILE)
    inside["more"] = case.rng.choice(list(RAW))
    write_json(file, content)


@damage("configuration: text", CONFIGURED)
def _(case):
    file = case.configuration()
    text, wide = file.read_bytes(), case.rng.choice([10**4, 3 * 10**6, 2 * 10**7])
    others = [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"a"',
        b"{",
        b"{}",
        b"\x00" * 100,
        text + b"}",
        b"\xef\xbb\xbf" + text,
    ]
    others += [text.decode().encode("utf-16"), text.replace(b"{", b"{,", 1), text.replace(b":", b":NaN,", 1)]
    others += [text.replace(b'"', b"'"), text.replace(b"e", b"\xff"), b" " * 3 * wide + text, b"[" * wide]
    others += [b'{"a":' * wide, b'{"a":' * 400 + b"1" + b"}" * 400, b'{"a":[' + b"{}," * wide + b"1]}"]
    file.write_bytes(case.rng.choice(others))


@damage("configuration: a long list", CONFIGURED)
def _(case):
    file = case.configuration()
    content = read_json(file)
    inside, key = case.rng.choice(list(leaves(content)))
    entry = case.rng.choice([4, -4, "DownBlock2D", {}, "a\nb", None])
    inside[key] = [entry] * case.rng.choice([1000, 10**5, 10**6])
    write_json(file, content)


# -- indices of shards ------------------------------------------------------------------------------------


@damage("index: names", ("shards",))
def _(case):
    file = case.file("*.index.json")
    content = read_json(file)
    files, name = content["weight_map"], case.rng.choice(NAMES)
    shard, key = case.rng.choice(sorted(set(files.values()))), case.rng.choice(sorted(files))
    if isinstance(name, str):
        name = name.replace("UP", f"{case.outside.name}/{shard}").replace(
            "OUTSIDE", str(case.outside / shard)
        )
    change = case.rng.choice(["all", "a shard", "a key"])
    for each, old in files.items():
        if change == "all" or (change == "a key" and each == key) or (change == "a shard" and old == shard):
            files[each] = name
    write_json(file, content)
    return MUST_REFUSE


@damage("index: keys", ("shards",))
def _(case):
    file = case.file("*.index.json")
    content = read_json(file)
    files = content["weight_map"]
    key, other = case.rng.sample(sorted(files), 2)
    change = case.rng.choice(["moved", "lost", "more", "many", "map", "metadata"])
    if change == "moved":
        files[key], files[other] = files[other], case.rng.choice(sorted(set(files.values())))
    elif change == "lost":
        del files[key]
    elif change == "more":
        files[case.rng.choice(["a\nb", "", "\ud800", "x" * 10**5, key + "2"])] = files[key]
    elif change == "many":
        files.update({f"filler.{i}": files[key] for i in range(10**5)})
    else:
        content["weight_map" if change == "map" else "metadata"] = case.rng.choice(HOSTILE)
    write_json(file, content)


@damage("index: shards", ("shards",))
def _(case):
    first, second = case.rng.sample(sorted(case.folder.glob("*.safetensors")), 2)
    change = case.rng.choice(["lost", "doubled", "moved", "no index", "single as well"])
    if change == "lost":
        first.unlink()
    elif change == "doubled":
        first.write_bytes(second.read_bytes())
    elif change == "moved":
        (case.folder / "sub").mkdir()
        first.rename(case.folder / "sub" / first.name)
    elif change == "no index":
        case.file("*.index.json").unlink()
    else:
        (case.folder / "diffusion_pytorch_model.safetensors").write_bytes(first.read_bytes())
    return MUST_REFUSE


# -- files, folders and links -----------------------------------------------------------------------------


@damage("files: one missing")
def _(case):
    case.file().unlink()


@damage("files: a directory in its place")
def _(case):
    file = case.file()
    file.unlink()
    file.mkdir()
    if case.rng.random() < 0.5:
        (file / "config.json").write_text("{}")


@damage("files: a pipe or a socket in its place")
def _(case):
    file = case.file()
    file.unlink()
    if case.rng.random() < 0.5:
        os.mkfifo(file)
    else:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server, contextlib.chdir(file.parent):
            server.bind(file.name)


@damage("files: one for a directory", ("model", "file of 1.x"))
def _(case):
    folder = case.rng.choice(sorted(path for path in case.folder.iterdir() if path.is_dir()))
    shutil.rmtree(folder)
    case.rng.choice([lambda: folder.write_bytes(b"{}"), folder.mkdir, lambda: os.mkfifo(folder)])()
    return MUST_REFUSE


@damage("links: out of the folder", CONFIGURED)
def _(case):
    file = case.file()
    targets = [case.outside / file.relative_to(case.folder), "/dev/zero", "/etc/passwd", "/proc/self/environ"]
    target = case.rng.choice(targets)
    file.unlink()
    way = case.rng.choice(["straight", "relative", "in two steps"])
    if way == "in two steps":
        (case.folder / "step").symlink_to(target)
        target = case.folder / "step"
    if way != "straight":
        target = os.path.relpath(target, file.parent)
    file.symlink_to(target)
    return MUST_REFUSE


@damage("links: of folders, out of the folder", ("model",))
def _(case):
    folder = case.rng.choice(sorted(path for path in case.folder.iterdir() if path.is_dir()))
    shutil.rmtree(folder)
    folder.symlink_to(case.outside / folder.name)
    return MUST_REFUSE


@damage("links: broken, in circles, within")
def _(case):
    file = case.file()
    target = case.rng.choice([file.name, "nowhere", "other", "back", ".", "x" * 300])
    content = file.read_bytes()
    file.unlink()
    if target == "other":
        (file.parent / "other").write_bytes(content)
    if target == "back":
        (file.parent / "back").symlink_to(file.name)
    with contextlib.suppress(OSError):
        file.symlink_to(target)


# -- pickles ----------------------------------------------------------------------------------------------


class Executed:
    """What a pickle can do to whoever opens it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(case):
    return pickle.dumps({"weight": Executed(case.marker)}, case.rng.randrange(6))


@damage("pickles: named safetensors", WEIGHTS)
def _(case):
    case.weights().write_bytes(pickled(case))
    return MUST_REFUSE


@damage("pickles: under their own names", WEIGHTS)
def _(case):
    file = case.weights()
    for other in file.parent.glob("*.safetensors*"):
        other.unlink()
    names = [file.name + ".bin", "pytorch_model.bin", "model.ckpt", "model.pt", "diffusion_pytorch_model.bin"]
    suffix = case.rng.choice([".bin", ".ckpt", ".pt", ".pth", ".pkl"])
    for path in (file.with_suffix(suffix), file.with_name(case.rng.choice(names))):
        path.write_bytes(pickled(case))
    return MUST_REFUSE


@damage("pickles: anywhere")
def _(case):
    case.file().write_bytes(pickled(case))


# -- tokenizers -------------------------------------------------------------------------------------------


@damage("tokenizer: vocabulary", TOKENIZERS)
def _(case):
    file = case.file("vocab.json")
    content = read_json(file)
    token = case.rng.choice(sorted(content))
    change = case.rng.choice(["id", "ids", "lost", "more", "renamed", "many", "end", "all"])
    if change == "id":
        content[token] = case.rng.choice(HOSTILE)
    elif change == "ids":
        content = {each: case.rng.choice([i, i, i, 0, -1, 2**31 - 1, 10**9]) for each, i in content.items()}
    elif change == "lost":
        del content[token]
    elif change == "more":
        content[case.rng.choice(["", "\n", "\ud800", "x" * 10**5, "\x00"])] = case.rng.choice(
            [600, 2**31 - 1, 0]
        )
    elif change == "renamed":
        content[case.rng.choice(["", "\n", "é", "\ud800"])] = content.pop(token)
    elif change == "many":
        content.update({f"filler{i}": len(content) + i for i in range(10**5)})
    elif change == "end":
        content.pop(case.rng.choice(["<|endoftext|>", "<|startoftext|>"]))
    else:
        content = case.rng.choice([{}, {token: 0}])
    write_json(file, content)


@damage("tokenizer: merges", TOKENIZERS)
def _(case):
    file = case.file("merges.txt")
    lines = file.read_text("utf-8").split("\n")
    change = case.rng.choice(["line", "order", "twice", "lost", "many", "bytes"])
    if change == "line":
        lines.insert(case.rng.randrange(len(lines)), case.rng.choice(MERGES))
    elif change == "order":
        case.rng.shuffle(lines)
    elif change == "twice":
        lines += lines
    elif change == "lost":
        del lines[case.rng.randrange(len(lines))]
    elif change == "many":
        lines += [case.rng.choice(lines)] * 10**5
    file.write_text("\n".join(lines), "utf-8")
    if change == "bytes":
        file.write_bytes(
            case.rng.choice([b"\xff\xfe", b"", b"\x00" * 1000, b" \n" * 10**6, b"a b\n" * 3 * 10**6])
        )


def added_tokens(case):
    """As `tokenizer_config.json` has them: id -> options of a token."""
    options = {"content": "<new>", "special": case.rng.random() < 0.5, "normalized": False, "lstrip": True}
    if case.rng.random() < 0.5:
        options[case.rng.choice(sorted(options))] = case.rng.choice(HOSTILE)
    first, tokens = case.rng.choice([tokenizer().vocab_size] * 5 + [0, 10**6, -1]), {}
    for i in range(case.rng.choice([1, 3, 1000, 3000])):
        key, content = str(first + i), options["content"]
        if case.rng.random() < 0.0005:
            key = case.rng.choice(["", "x", "1.5", "٣", "9" * 5000, " 7 "])
        tokens[key] = {**options, "content": f"{content}{i}" if i and isinstance(content, str) else content}
    return tokens


@damage("tokenizer: options", TOKENIZERS)
def _(case):
    file = case.file("tokenizer_config.json")
    content = read_json(file)
    content["added_tokens_decoder"] = case.rng.choice([*[added_tokens(case)] * 60, *HOSTILE])
    if case.rng.random() < 0.5:
        role = case.rng.choice(["bos_token", "eos_token", "unk_token", "pad_token", "model_max_length"])
        content[role] = case.rng.choice([*HOSTILE, {"content": case.rng.choice(HOSTILE)}])
    write_json(file, content)


@damage("tokenizer: older files", TOKENIZERS)
def _(case):
    file = case.file("tokenizer_config.json")
    content = read_json(file)
    del content["added_tokens_decoder"]
    write_json(file, content)
    words = {f"<new{i}>": tokenizer().vocab_size + i for i in range(case.rng.choice([1, 5, 1000, 3000]))}
    added = case.rng.choice([*[words] * 20, *HOSTILE, {"a": "@digits@"}])
    roles = {"bos_token": case.rng.choice(HOSTILE), "pad_token": "!"}
    write_json(file.with_name("added_tokens.json"), added)
    write_json(file.with_name("special_tokens_map.json"), case.rng.choice([*[{}] * 20, roles, *HOSTILE]))


@damage("tokenizer: one file", TOKENIZERS)
def _(case):
    vocab_file, merges_file = case.file("vocab.json"), case.file("merges.txt")
    merges = [line.split(" ") for line in merges_file.read_text("utf-8").split("\n")[1:] if line]
    model = {"type": "BPE", "vocab": read_json(vocab_file), "merges": merges, "end_of_word_suffix": "</w>"}
    content = {"version": "1.0", "added_tokens": [], "model": model}
    values = [*HOSTILE, [["a"]], [["a", "b", "c"]], [["a", 5]], ["a b c"], [None], [{"id": "x"}]]
    values += [[{"content": "y"}], [{"id": [1], "content": "y"}], [{"id": {}, "content": "y"}]]
    values += [[{"id": tokenizer().vocab_size, "content": "x"}]]
    for _ in range(case.rng.choice([0, 1, 1, 2])):
        inside, key = case.rng.choice([(content, "added_tokens"), *(2 * [(model, key) for key in model])])
        inside[key] = case.rng.choice(values)
    write_json(vocab_file.with_name("tokenizer.json"), content)
    case.rng.choice([vocab_file, merges_file]).unlink()


# -- several ----------------------------------------------------------------------------------------------


@damage("two at once")
def _(case):
    """One damage may hide another, or open the way to it."""
    names = ["bytes flipped", "bytes deleted", "cut short", "two files exchanged", "files: one missing"]
    if list(case.folder.rglob("config.json")):
        names += ["configuration: values of their kind", "configuration: fields lost"]
    for name in case.rng.sample(names, 2):
        with contextlib.suppress(ValueError, TypeError, AttributeError, IndexError):  # JSON no more
            DAMAGES[name][1](case)

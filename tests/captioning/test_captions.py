"""`python -m sd_tf.caption`: transformers' own captions, for pictures that have none, even after a kill."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import sd_tf
from sd_tf import caption as command
from sd_tf.captioning import describing
from sd_tf.captioning.folder import caption_folder
from sd_tf.data.captioned_folder import list_folder
from sd_tf.errors import InputError, install_extra
from tests.captioning.tiny import write_pictures

ROOT = Path(sd_tf.__file__).parent.parent


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def captions_of(folder):
    return {row["file_name"]: row["text"] for row in rows_of(folder)}


def by_transformers(blip, files, prefix=""):
    """The caption of each picture, one by one, as transformers' documentation shows it."""
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor = BlipProcessor.from_pretrained(blip)
    model = BlipForConditionalGeneration.from_pretrained(blip)
    text = (prefix,) if prefix else ()
    captions = []
    for file in files:
        inputs = processor(Image.open(file).convert("RGB"), *text, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=describing.MOST_TOKENS)
        captions.append(processor.decode(ids[0], skip_special_tokens=True))
    return captions


@pytest.mark.parametrize("prefix", ["", "a photo of"])
def test_captions_are_those_of_transformers_whatever_the_batch(blip, tmp_path, prefix):
    folder = write_pictures(tmp_path, 5)
    found = caption_folder(folder, str(blip), prefix, batch_size=3, progress=False)
    captions, names = captions_of(folder), [f"{number}.png" for number in range(5)]
    expected = by_transformers(blip, [folder / name for name in names], prefix)
    assert [captions.get(name, "") for name in names] == expected
    assert all(caption.startswith(prefix) for caption in expected)
    assert len(set(captions.values())) > 1  # or every model would pass
    assert found.written == len(captions) == 5 - len(found.problems)


def test_what_has_a_caption_keeps_it(blip, tmp_path):
    folder = write_pictures(tmp_path / "some", 4)
    write_pictures(folder / "below", 3)
    mine = {"file_name": "0.png", "text": "mine", "score": 3}
    (folder / "metadata.jsonl").write_text(json.dumps(mine))  # without a line break
    (folder / "1.txt").write_text("mine\n too")
    (folder / "2.txt").write_text("  ")
    (folder / "below" / "metadata.csv").write_text("file_name,text\n0.png,of a csv\n1.png,\n")
    found = caption_folder(folder, str(blip), "a photo of", progress=False)
    assert (found.written, found.kept, found.problems) == (4, 3, [])
    rows = rows_of(folder)
    assert rows[0] == mine
    captions = captions_of(folder)
    assert set(captions) == {"0.png", "1.png", "2.png", "3.png", "below/1.png", "below/2.png"}
    assert captions["1.png"] == "mine too"
    assert all(captions[name].startswith("a photo of") for name in ("2.png", "3.png", "below/2.png"))
    listed = {str(each.file.relative_to(folder)): each.caption for each in list_folder(folder).pictures}
    assert listed == captions | {"below/0.png": "of a csv"}


def test_the_column_of_captions_is_the_one_that_is_there(blip, tmp_path):
    folder = write_pictures(tmp_path, 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "mine"}\n')
    caption_folder(folder, str(blip), "a photo of", progress=False)
    assert [set(row) for row in rows_of(folder)] == [{"file_name", "caption"}] * 2


def test_a_second_call_has_nothing_to_do(blip, tmp_path):
    folder = write_pictures(tmp_path, 2)
    caption_folder(folder, str(blip), "a photo of", progress=False)
    before = (folder / "metadata.jsonl").read_bytes()
    assert caption_folder(folder, "no model at all", progress=False) == (0, 2, [])
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_damaged_pictures_are_counted_and_named(blip, tmp_path, capsys):
    folder = write_pictures(tmp_path, 3)
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "raw.cr2").write_bytes(b"of a camera")
    command.main(["--data-dir", str(folder), "--model", str(blip), "--prefix", "a photo of"])
    said = capsys.readouterr()
    assert said.out == "2 described, 0 had a caption, 2 left out\n"
    assert f"left out: {folder}/1.png: cannot be read as a picture" in said.err
    assert f"left out: {folder}/raw.cr2: is no picture of a kind that is read" in said.err
    assert set(captions_of(folder)) == {"0.png", "2.png"}


def test_a_picture_that_is_a_link_out_of_the_folder_is_not_described(blip, tmp_path):
    folder, outside = write_pictures(tmp_path / "in", 1), write_pictures(tmp_path / "out", 1, seed=1)
    (folder / "link.png").symlink_to(outside / "0.png")
    found = caption_folder(folder, str(blip), "a photo of", progress=False)
    assert set(captions_of(folder)) == {"0.png"}
    assert [problem for problem in found.problems if "link.png: is a link that leads out" in problem]


def test_a_name_that_is_no_utf8_is_described(blip, tmp_path):
    folder = write_pictures(tmp_path, 1)
    (folder / "0.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    caption_folder(folder, str(blip), "a photo of", progress=False)
    assert [os.fsencode(each.file.name) for each in list_folder(folder).pictures] == [b"caf\xe9.png"]


def test_a_killed_run_loses_at_most_its_batch_and_goes_on(blip, tmp_path):
    folder, whole = (write_pictures(tmp_path / name, 10) for name in ("killed", "whole"))
    flags = ["--data-dir", str(folder), "--model", str(blip), "--prefix", "a photo of", "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sd_tf.caption", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    table, deadline = folder / "metadata.jsonl", time.monotonic() + 120
    while not table.exists() or table.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    written = len(rows_of(folder))
    assert 2 <= written < 10
    with open(table, "ab") as stream:
        stream.write(b'{"file_name": "9.png", "te')  # what a full disk or a power cut leaves
    found = caption_folder(folder, str(blip), "a photo of", progress=False)
    assert (found.written, found.kept) == (10 - written, written)
    caption_folder(whole, str(blip), "a photo of", progress=False)
    assert len(rows_of(folder)) == 10 and captions_of(folder) == captions_of(whole)


def test_two_processes_do_not_write_the_same_folder(blip, tmp_path):
    from sd_tf.captioning.table import only_one_writer

    folder = write_pictures(tmp_path, 1)
    with only_one_writer(folder), pytest.raises(InputError, match="are being written by another process"):
        caption_folder(folder, str(blip), progress=False)
    assert not (folder / "metadata.jsonl").exists()


def test_the_folder_can_be_trained_on(blip, tmp_path):
    from sd_tf.data.open import open_data

    folder = write_pictures(tmp_path / "pictures", 4)
    caption_folder(folder, str(blip), "a photo of", progress=False)
    dataset = open_data(f"folder:{folder}").at(16, tmp_path / "cache")
    assert len(dataset) == 4
    assert set(dataset.corpus()) == set(captions_of(folder).values())


# -- what is refused ------------------------------------------------------------------------------------


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(InputError, match="folder .*/nothing is not a folder: name one of pictures"):
        caption_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no picture: name a folder of pictures"):
        caption_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_table_is_not_replaced(tmp_path):
    folder = write_pictures(tmp_path, 2)
    (folder / "metadata.csv").write_text("file_name,text\n0.png,mine\n")
    with pytest.raises(
        InputError, match="has its captions in metadata.csv, and metadata.jsonl would replace"
    ):
        caption_folder(folder)
    assert not (folder / "metadata.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"file_name": "0.png", "label": 3}',
            "row 1 has .*: it needs file_name and text or caption or prompt",
        ),
        ('{"text": "a dress"}', "row 1 has .*: it needs file_name and"),
        ("[1, 2]", "is damaged"),
        ("nonsense", "is damaged"),
    ],
)
def test_a_table_that_is_not_understood_is_left_alone(tmp_path, line, said):
    folder = write_pictures(tmp_path, 1)
    (folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=said):
        caption_folder(folder)
    assert (folder / "metadata.jsonl").read_text() == line + "\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0: give 1 to 1024"),
        ({"batch_size": True}, "batch_size is True: give 1 to 1024"),
        ({"prefix": "x" * 201}, "prefix is .*: give a string of at most 200 characters"),
    ],
)
def test_settings_are_checked(tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        caption_folder(write_pictures(tmp_path, 1), **settings)


def test_a_read_only_folder_is_named_before_a_model_is_read(tmp_path, monkeypatch):
    folder = write_pictures(tmp_path, 1)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sd_tf.training.own_folder.os.open", refused)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        caption_folder(folder, "no model")


def test_models_that_write_no_captions_are_named(blip, tmp_path, monkeypatch):
    from transformers import BertConfig

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = write_pictures(tmp_path / "pictures", 1)
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="model .*/bert is a 'bert': name a BLIP"):
        caption_folder(folder, str(tmp_path / "bert"))
    with pytest.raises(InputError, match="model team/nothing cannot be read"):
        caption_folder(folder, "team/nothing")
    assert not (folder / "metadata.jsonl").exists()


def test_a_pickle_is_not_read(blip, tmp_path):
    import shutil

    import torch

    other = tmp_path / "pickle"
    shutil.copytree(blip, other)
    (other / "model.safetensors").unlink()
    torch.save({}, other / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read .*: name a BLIP on the hub .* in safetensors files"):
        caption_folder(write_pictures(tmp_path / "pictures", 1), str(other))


def test_without_torch_the_extra_is_named(tmp_path):
    folder = write_pictures(tmp_path, 1)
    program = (
        "import sys, importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'torch' else found(name, *more)\n"
        "from sd_tf import caption, commandline\n"
        f"commandline.run(lambda: caption.main(['--data-dir', {str(folder)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: captions need torch: {install_extra('caption')}\n"
    assert [path.name for path in folder.iterdir()] == ["0.png"]

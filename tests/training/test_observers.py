import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import sd_tf
from sd_tf.training.loop import Budget
from sd_tf.training.observers import Log, Previews, ProgressBar, WeightsAndBiases


def stage(name="diffusion", batch_size=10):
    return SimpleNamespace(name=name, batch_size=batch_size)


def trainer(budget, learning_rate=0.25, skipped_steps=0):
    optimizer = SimpleNamespace(learning_rate=tf.Variable(learning_rate), loss_scale=None)
    learners = {"unet": SimpleNamespace(optimizer=optimizer)}
    return SimpleNamespace(
        budget=budget, is_to_stop=False, step=SimpleNamespace(learners=learners, skipped_moves=skipped_steps)
    )


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def log_twelve_seconds(folder):
    """A step each second, whose loss is its number, to the end of the budget at step 12."""
    log, now = Log(stage(), folder, 0), trainer(Budget(12.0, None))
    for step in range(1, 13):
        log(now, step, float(step), {"loss": tf.constant(float(step))})


def test_each_line_of_the_log_is_the_mean_since_the_last(tmp_path):
    log_twelve_seconds(tmp_path)
    common = {"stage": "diffusion", "images_per_second": 10.0, "learning_rate": 0.25, "skipped_steps": 0}
    assert read(tmp_path / "log.jsonl") == [
        {"step": 6, "elapsed": 6.0, "loss": 3.5} | common,  # of steps 1 ... 6
        {"step": 11, "elapsed": 11.0, "loss": 9.0} | common,  # of steps 7 ... 11
        {"step": 12, "elapsed": 12.0, "loss": 12.0} | common,  # the end
    ]


def test_tensorboard_reads_what_the_log_says(tmp_path):
    log_twelve_seconds(tmp_path)
    (file,) = (tmp_path / "tensorboard" / "diffusion").iterdir()
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    for line in read(tmp_path / "log.jsonl"):
        for name in ("loss", "images_per_second", "learning_rate", "skipped_steps"):
            assert found.pop((f"diffusion/{name}", line["step"])) == line[name]
    assert not found


def test_a_mean_of_some_examples_is_of_those_counted_since_the_last_line_and_of_none_not_shown(tmp_path):
    log, now = Log(stage(), tmp_path, 0), trainer(Budget(12.0, None))
    sums = [1.0, 0.0, 6.0, 0.0, 0.0, 0.0] + 5 * [0.0] + [7.0]  # in lines of 6, 5 and 1 steps
    counts = [1.0, 0.0, 3.0, 0.0, 0.0, 0.0] + 5 * [0.0] + [2.0]
    for step, (total, count) in enumerate(zip(sums, counts, strict=True), start=1):
        means = {"loss": 1.0, "loss of timesteps 0-99/sum": total, "loss of timesteps 0-99/count": count}
        log(now, step, float(step), {name: tf.constant(value) / 10.0 for name, value in means.items()})
    first, second, third = read(tmp_path / "log.jsonl")
    assert first["loss of timesteps 0-99"] == pytest.approx(7.0 / 4.0)
    assert "loss of timesteps 0-99" not in second
    assert third["loss of timesteps 0-99"] == pytest.approx(3.5)
    common = {"stage", "step", "elapsed", "loss", "images_per_second", "learning_rate", "skipped_steps"}
    assert set(second) == common and set(third) == common | {"loss of timesteps 0-99"}


def test_a_resumed_stage_forgets_the_steps_after_its_checkpoint_and_no_others(tmp_path):
    file = tmp_path / "log.jsonl"
    lines = [
        {"stage": "autoencoder", "step": 90, "loss": 1.0},
        {"stage": "diffusion", "step": 10, "loss": 2.0},
        {"stage": "diffusion", "step": 20, "loss": 3.0},
        {"stage": "diffusion", "step": 30, "loss": 4.0},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "diffusion", "st')
    log = Log(stage(), tmp_path, 20)
    assert read(file) == lines[:3]
    now = trainer(Budget(None, 30))
    for step in range(21, 31):
        log(now, step, float(step), {"loss": tf.constant(5.0)})
    steps = [line["step"] for line in read(file) if line["stage"] == "diffusion"]
    assert steps == [10, 20, 26, 30]


def test_the_first_line_after_a_resume_counts_only_its_own_steps(tmp_path):
    log = Log(stage(), tmp_path, 1000)
    for step in range(1001, 1008):
        log(trainer(Budget(None, 2000)), step, 500.0 + step - 1001, {"loss": tf.constant(1.0)})
    (line,) = read(tmp_path / "log.jsonl")
    assert line["step"] == 1006 and line["images_per_second"] == pytest.approx(10.0)


def test_a_stage_of_one_step_is_logged(tmp_path):
    Log(stage(), tmp_path, 0)(trainer(Budget(None, 1)), 1, 0.0, {"loss": tf.constant(2.0)})
    (line,) = read(tmp_path / "log.jsonl")
    assert line["loss"] == 2.0 and line["images_per_second"] == 0.0


@pytest.mark.parametrize(
    ("budget", "left"), [(Budget(None, 120), "1:30"), (Budget(100.0, None), "1:10")], ids=["steps", "seconds"]
)
def test_the_bar_shows_progress_loss_speed_and_time_left(capsys, budget, left):
    with contextlib.closing(ProgressBar(stage(), budget, 0.0)) as bar:
        bar.shown = float("inf")  # as if just drawn
        bar(trainer(None), 10, 10.0, {"loss": tf.constant(0.5)})
        bar.shown = 0.0
        bar(trainer(None), 30, 30.0, {"loss": tf.constant(0.123)})
    shown = capsys.readouterr().err
    percent = 25 if budget.steps else 30
    assert f"{percent}%, step 30  loss 0.1230  10 images/s  {left} left" in shown
    assert "step 10" not in shown
    assert shown.endswith("\n")


def test_skipped_steps_are_counted_in_the_bar_and_the_log(capsys, tmp_path):
    now = trainer(Budget(None, 1), skipped_steps=3)
    now.step.learners["unet"].optimizer.loss_scale = tf.Variable(4096.0)
    with contextlib.closing(ProgressBar(stage(), now.budget, 0.0)) as bar:
        bar(now, 1, 0.0, {"loss": tf.constant(1.0)})
    Log(stage(), tmp_path, 0)(now, 1, 0.0, {"loss": tf.constant(1.0)})
    (line,) = read(tmp_path / "log.jsonl")
    assert "step 1 (3 skipped)  loss" in capsys.readouterr().err
    assert (line["skipped_steps"], line["loss_scale"]) == (3, 4096.0)


def test_the_bar_promises_nothing_after_a_single_step(capsys):
    with contextlib.closing(ProgressBar(stage(), Budget(None, 4), 0.0)) as bar:
        bar(trainer(None), 1, 0.0, {"loss": tf.constant(1.0)})
    assert "-:-- left" in capsys.readouterr().err


def test_the_bar_of_a_resumed_stage_begins_where_it_was(capsys):
    ProgressBar(stage(), Budget(None, 100), 0.4).close()
    assert "40%" in capsys.readouterr().err


def test_the_end_is_shown_however_soon_after_the_last_drawing(capsys):
    with contextlib.closing(ProgressBar(stage(), Budget(None, 2), 0.0)) as bar:
        bar(trainer(None), 1, 1.0, {"loss": tf.constant(1.0)})
        bar(trainer(None), 2, 2.0, {"loss": tf.constant(1.0)})
    assert "100%, step 2 " in capsys.readouterr().err


def preview_steps(folder, first, steps, budget, number=8):
    """The steps at which sheets were drawn, all of them with the averages in place."""
    averages, seen = [], []

    @contextlib.contextmanager
    def in_place():
        averages.append(True)
        yield
        averages.pop()

    def preview():
        assert averages, "drawn with the weights themselves"
        seen.append(step)
        return np.full((4, 8, 8, 3), 200, np.uint8), 2

    pictured = stage()
    pictured.preview = preview
    previews = Previews(pictured, folder, number, budget, budget.progress(first, 0.0))
    now = SimpleNamespace(step=SimpleNamespace(averages_in_place=in_place))
    for step in range(first + 1, steps + 1):
        previews(now, step, 0.0, {})
    return seen


def test_eight_sheets_are_drawn_in_a_stage(tmp_path):
    assert preview_steps(tmp_path, 0, 16, Budget(None, 16)) == [2, 4, 6, 8, 10, 12, 14, 16]
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"diffusion-{step:07d}.png" for step in range(2, 17, 2)]
    sheet = np.asarray(Image.open(files[0]))
    assert sheet.ndim == 3 and sheet.max() == 200 and (sheet == 200).mean() > 0.5


def test_a_resumed_stage_draws_the_sheets_that_are_left(tmp_path):
    assert preview_steps(tmp_path, 9, 16, Budget(None, 16)) == [10, 12, 14, 16]


def test_fewer_steps_than_sheets_draw_one_at_each_step(tmp_path):
    assert preview_steps(tmp_path, 0, 3, Budget(None, 3)) == [1, 2, 3]


def test_no_sheets_are_drawn_where_none_are_wanted(tmp_path):
    assert preview_steps(tmp_path / "samples", 0, 16, Budget(None, 16), number=0) == []
    assert not (tmp_path / "samples").exists()


def test_a_stage_without_pictures_writes_none(tmp_path):
    silent = stage()
    silent.preview = lambda: None
    now = SimpleNamespace(step=SimpleNamespace(averages_in_place=contextlib.nullcontext))
    Previews(silent, tmp_path / "samples", 8, Budget(None, 1), 0.0)(now, 1, 0.0, {})
    assert not (tmp_path / "samples").exists()


def drawn_within(folder, monkeypatch, seconds, seconds_of_a_step, seconds_of_a_sheet):
    """On a clock of its own: the seconds at which sheets began, and those that all but the last took."""
    clock, began = [0.0], []
    monkeypatch.setattr("sd_tf.training.observers.time.monotonic", lambda: clock[0])

    def preview():
        began.append(clock[0])
        clock[0] += seconds_of_a_sheet
        return np.zeros((4, 8, 8, 3), np.uint8), 2

    pictured, budget, step = stage(), Budget(seconds, None), 0
    pictured.preview = preview
    previews = Previews(pictured, folder, 8, budget, 0.0)
    now = SimpleNamespace(step=SimpleNamespace(averages_in_place=contextlib.nullcontext))
    while not began or began[-1] < seconds:
        previews(now, step, clock[0], {})
        step, clock[0] = step + 1, clock[0] + seconds_of_a_step
    return began, (len(began) - 1) * seconds_of_a_sheet


@pytest.mark.parametrize(
    ("seconds", "of_a_step", "of_a_sheet", "number"),
    [(42.0, 0.16, 4.0, 1), (1200.0, 0.25, 4.0, 7), (1200.0, 0.25, 15.0, 4), (42.0, 0.001, 0.1, 8)],
    ids=["a short run", "a long run", "slow sheets", "fast sheets"],
)
def test_sheets_take_at_most_a_twentieth_of_the_minutes(
    tmp_path, monkeypatch, seconds, of_a_step, of_a_sheet, number
):
    began, taken = drawn_within(tmp_path, monkeypatch, seconds, of_a_step, of_a_sheet)
    assert taken <= 0.05 * seconds
    assert len(began) == number and began[-1] >= seconds  # the last one, when the minutes are over


def test_the_bar_says_that_a_sheet_is_drawn_until_the_next_step(tmp_path, capsys):
    shown, budget = [], Budget(None, 2)
    now = trainer(budget)
    now.step.averages_in_place = contextlib.nullcontext
    with contextlib.closing(ProgressBar(stage(), budget, 0.0)) as bar:
        pictured = stage()
        pictured.preview = lambda: shown.append(capsys.readouterr().err)
        previews = Previews(pictured, tmp_path, 2, budget, 0.0, bar.announce)
        bar(now, 1, 1.0, {"loss": tf.constant(1.0)})
        previews(now, 1, 1.0, {})
        bar.budget = Budget(None, 4)  # so that it is not the end that is shown
        bar(now, 2, 1.1, {"loss": tf.constant(1.0)})
    assert shown[0].rstrip().endswith("50%, drawing a preview")
    assert "step 2 " in capsys.readouterr().err


def records_of(file):
    """What wandb wrote offline: protocol buffers in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, pieces = file.read_bytes(), 7, b""  # after the file's own mark
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a record's head does not cross blocks
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(pieces)
            pieces = b""


def test_weights_and_biases_offline_has_the_lines_of_the_log_in_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "mine"
    folder.mkdir()
    for step in (1, 2):  # the second is a run that was resumed
        also, now = WeightsAndBiases(folder, {"seed": 7}, ["diffusion"]), trainer(Budget(None, step))
        Log(stage(), folder, step - 1, also=also)(now, step, 0.0, {"loss": tf.constant(2.0)})
        also.close()
    lines, configs, runs = [], [], set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records_of(file):
            if record.history.item:
                items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                lines.append([float(items[f"diffusion/{name}"]) for name in ("step", "loss")])
            if record.run.run_id:
                runs.add(record.run.run_id)
                configs += [(item.key, item.value_json) for item in record.run.config.update]
    assert sorted(lines) == [[1, 2.0], [2, 2.0]]
    assert ("seed", "7") in configs and len(runs) == 1


def test_weights_and_biases_without_a_login_says_how(tmp_path):
    pytest.importorskip("wandb")
    code = "from pathlib import Path; from sd_tf.training.observers import WeightsAndBiases\n"
    code += f"WeightsAndBiases(Path({str(tmp_path)!r}), {{}}, [])"
    ours = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | ours
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert "InputError: wandb: No API key" in done.stderr and "WANDB_MODE=offline" in done.stderr

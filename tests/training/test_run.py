"""Whole runs at sizes that train in seconds: `--dataset garments`, through a preset of their own."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.files import CannotWrite
from sd_tf.latent import folder as checkpoints
from sd_tf.latent import presets
from sd_tf.latent.caching import cached_latents
from sd_tf.training.loop import Budget
from sd_tf.training.run import Run
from tests.training.tiny import (
    STAGE,
    STAGES,
    STEPS,
    TINY,
    contents,
    interrupt,
    lines,
    made,
    train_tiny,
    with_tiny_preset,
)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with with_tiny_preset():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train_tiny(folder)
    return folder


def test_a_run_ends_with_a_model_that_draws(finished):
    images = sd_tf.load(finished).generate("a red dress", steps=2)
    assert images.shape == (1, 32, 32, 3) and images.dtype == np.uint8


def test_a_run_leaves_what_its_page_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names - {"openvino"} == {  # which is there once it has been drawn from
        *("run.json", "log.jsonl", "tensorboard", "samples", "checkpoints", "cache", "clip"),
        *("vae", "unet", "text_encoder", "tokenizer", "scheduler", "model_index.json"),
        *("generation_config.json", "caption_words.txt"),
    }
    assert {path.name for path in (finished / "tensorboard").iterdir()} == set(STAGES)
    for stage in STAGES:
        assert (finished / "checkpoints" / stage / f"step-{STEPS:07d}" / "state.index").is_file()
    assert [(line["stage"], line["step"]) for line in lines(finished)] == [(stage, STEPS) for stage in STAGES]
    assert all(np.isfinite(line["loss"]) for line in lines(finished))
    sheets = sorted((finished / "samples").iterdir())
    assert [file.name for file in sheets] == [f"{s}-{STEPS:07d}.png" for s in ("autoencoder", "diffusion")]
    assert all(np.asarray(Image.open(file)).ndim == 3 for file in sheets)


def test_the_log_shows_losses_of_timesteps_of_the_last_stage_alone(finished):
    bins = {f"loss of timesteps {i}-{i + 99}" for i in range(0, 1000, 100)}
    *_, last = lines(finished)
    found = {name: value for name, value in last.items() if name.startswith("loss of")}
    assert found and set(found) <= bins and all(np.isfinite(value) for value in found.values())
    # 12 examples: the mean of all lies between those of the bins.
    assert min(found.values()) <= last["loss"] <= max(found.values())
    assert not any(set(line) & bins for line in lines(finished)[:2])


def test_zero_terminal_snr_makes_drawing_begin_at_the_last_timestep(tmp_path, monkeypatch):
    leading = dataclasses.replace(TINY, schedule=ScheduleConfig(prediction_type="v_prediction"))
    monkeypatch.setitem(presets.PRESETS, "tiny", leading)
    assert made(tmp_path / "with", zero_terminal_snr=True).recipe.model.schedule.config == ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    assert made(tmp_path / "without").recipe.model.schedule.config == leading.schedule


def test_zero_terminal_snr_of_a_preset_that_predicts_epsilon_is_refused_and_nothing_written(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(presets.PRESETS, "tiny", dataclasses.replace(TINY, schedule=ScheduleConfig()))
    with pytest.raises(InputError, match="prediction_type is 'epsilon'.*take 'v_prediction'"):
        made(tmp_path / "run", zero_terminal_snr=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_before_a_flag_was_there_resumes_with_its_default(tmp_path):
    made(tmp_path)
    file = tmp_path / "run.json"
    before = json.loads(file.read_text())
    del before["offset_noise"], before["zero_terminal_snr"]
    file.write_text(json.dumps(before))
    with pytest.raises(InputError, match="--offset-noise 0.0 -> 0.1"):
        made(tmp_path, offset_noise=0.1)
    made(tmp_path)


def test_the_cache_holds_no_more_pictures_than_the_steps_look_at(finished):
    (cache,) = (finished / "cache").iterdir()
    assert len(np.load(cache / "caption.npy")) == STEPS * STAGE.batch_size


def test_pictures_that_caching_had_no_time_for_are_said(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sd_tf.latent.caching.pictures_at_once", lambda *_: 16)
    model, budget = sd_tf.load(finished), Budget(60.0, None)
    said = []
    for share in (0.0, 10.0):
        monkeypatch.setattr("sd_tf.latent.caching.CACHE_SHARE", share)
        run = made(tmp_path / str(share), max_steps=None, max_minutes=1)
        settings = {"epochs": 1, "batch_size": 4, "token_ids": None, "each_once": False}
        cache = cached_latents(run, model, budget, **settings)
        said.append((len(cache), capsys.readouterr().out))
    (some, line), (everything, nothing) = said
    assert some == 16 and line.startswith("learning from 16 of 40 pictures: no more could be encoded within ")
    assert line.count("\n") == 1 and "train for longer" in line
    assert everything == 40 and nothing == ""


def test_latents_of_the_finished_autoencoder_have_the_deviation_that_diffusion_expects(finished):
    (cache,) = (finished / "cache").iterdir()
    mean, std = (np.load(cache / f"{name}.npy").astype(np.float64) for name in ("mean", "std"))
    assert np.sqrt(mean.var() + (std**2).mean()) == pytest.approx(1.0, rel=0.1)


def test_the_same_command_again_does_nothing_more(finished, capsys):
    before = contents(finished)
    train_tiny(finished)
    assert contents(finished) == before
    assert capsys.readouterr().out == f"finished: {finished}\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 7}, ["--seed 0 -> 7"]),
        ({"learning_rate": 0.5}, ["--learning-rate None -> 0.5"]),
        (
            {"max_steps": 9, "precision": "mixed_bfloat16"},
            ["--max-steps 3 -> 9", "float32 -> mixed_bfloat16"],
        ),
    ],
)
def test_a_changed_configuration_names_the_flag_and_both_values(finished, changes, words):
    before = contents(finished)
    with pytest.raises(InputError) as error:
        made(finished, **changes)
    assert all(word in str(error.value) for word in [*words, str(finished), "another --output"])
    assert contents(finished) == before


def test_a_damaged_run_file_names_the_way_out(tmp_path):
    (tmp_path / "run.json").write_text('{"seed": ')
    with pytest.raises(InputError, match="run.json cannot be read .*another --output"):
        made(tmp_path)


def test_a_run_interrupted_in_each_stage_ends_bit_for_bit_where_an_undisturbed_one_does(
    finished, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    alone = made(folder, stage="clip")  # one stage alone is part of the same run
    interrupt(alone, monkeypatch, "clip", 2)
    interrupt(made(folder), monkeypatch, "autoencoder", 1)
    with monkeypatch.context() as patch:  # killed when a stage has ended, before its result is written

        def killed(*_):
            raise SystemExit

        patch.setattr(checkpoints, "save_autoencoder", killed)
        with pytest.raises(SystemExit):
            train_tiny(folder)
    assert not (folder / "vae").exists()
    interrupt(made(folder), monkeypatch, "diffusion", 2)
    assert not (folder / "model_index.json").exists()
    train_tiny(folder, stage="diffusion")  # with the autoencoder that is in the folder

    ours, theirs = contents(folder), contents(finished)
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert len(weights) == 4
    for name in [*weights, *(name for name in theirs if name.endswith((".json", ".txt", ".png")))]:
        if not name.startswith(("cache", "checkpoints", "openvino")):  # which say when, or how long it took
            assert ours[name] == theirs[name], name
    found, expected = lines(folder), lines(finished)
    assert [line["stage"] for line in found] == [line["stage"] for line in expected]
    assert [line["step"] for line in found] == [STEPS] * 3


@pytest.mark.parametrize("what", ["log", "samples"])
def test_a_full_disk_is_named_wherever_it_is_noticed_and_the_run_resumes(tmp_path, monkeypatch, what):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        name = "_drop_later_lines" if what == "log" else "save_sheet"
        patch.setattr(f"sd_tf.training.observers.{name}", full)
        with pytest.raises(
            InputError, match=f"no space left for --output {folder}: make room, then run it again"
        ):
            train_tiny(folder)
    train_tiny(folder)
    assert (folder / "model_index.json").exists()


def test_a_later_stage_alone_names_the_earlier_one_and_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="clip is missing: run --stage clip first"):
        made(tmp_path / "run", stage="diffusion")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_made_are_named_by_their_flags(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--output .*file is a file"):
        made(tmp_path / "file")
    with pytest.raises(InputError, match="--output .*file/run cannot be written"):
        made(tmp_path / "file" / "run")
    with pytest.raises(InputError, match="--cache-dir .*file/cache cannot be written"):
        made(tmp_path / "run", cache_dir=str(tmp_path / "file" / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_braces_in_the_name_of_the_folder_are_its_own(tmp_path):
    run = made(tmp_path / "{mine} {dataset}")
    assert run.folder == tmp_path / "{mine} garments" and run.folder.is_dir()


def test_the_stages_share_the_minutes_of_the_run(tmp_path, monkeypatch):
    shares = {"clip_stage": 0.15, "autoencoder_stage": 0.3, "diffusion_stage": 0.7}
    preset = dataclasses.replace(
        TINY, **{name: dataclasses.replace(STAGE, share=share) for name, share in shares.items()}
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", preset)

    def minutes(**changes):
        run = made(tmp_path / "run", max_steps=None, max_minutes=10, dry_run=True, **changes)
        return {stage.name: run.budget(stage).seconds / 60 for stage in run.stages}

    assert sum(minutes().values()) == pytest.approx(10)
    assert minutes()["clip"] == pytest.approx(10 * 0.15 / 1.15)
    without = minutes(text_encoder="clip-mini")  # a CLIP that is given takes none
    assert list(without) == ["autoencoder", "diffusion"] and sum(without.values()) == pytest.approx(10)
    assert minutes(stage="autoencoder") == {"autoencoder": pytest.approx(10)}


def test_overfitting_learns_one_batch(tmp_path, capsys):
    train_tiny(tmp_path / "run", overfit=4, max_steps=40, learning_rate=5e-3)
    said = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert [line.split(":")[0] for line in said] == list(STAGES)
    for line in said:
        first, last = (float(word) for word in line.split() if word[0].isdecimal() and "." in word)
        assert line.endswith("on the same 4 examples") and last < 0.9 * first, line


def test_a_folder_that_run_json_cannot_be_written_to_is_not_left_behind(tmp_path, monkeypatch):
    def full(file, _):
        raise CannotWrite(file, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sd_tf.training.run.write_json", full)
    with pytest.raises(InputError, match="run.json: No space left"):
        made(tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_removed_while_it_is_trained_in_is_named(tmp_path, monkeypatch):
    run = made(tmp_path / "run")

    def remove(planned):
        shutil.rmtree(run.folder)
        (run.folder / "log.jsonl").open("a")

    monkeypatch.setattr(run, "_train_stage", remove)
    with pytest.raises(InputError, match="run was removed while it was trained in: begin again"):
        run.train()


def test_of_two_that_begin_at_the_same_time_the_second_is_refused(tmp_path, monkeypatch):
    check = Run._check_captions

    def begin_another(run, before):
        monkeypatch.undo()
        made(tmp_path / "run", seed=1)
        check(run, before)

    monkeypatch.setattr(Run, "_check_captions", begin_another)
    with pytest.raises(InputError, match="a run with other options .--seed 1 -> 0"):
        made(tmp_path / "run", seed=0)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 1


def test_determinism_without_steps_is_refused(tmp_path):
    with pytest.raises(InputError, match="--deterministic needs --max-steps"):
        made(tmp_path / "run", deterministic=True, max_steps=None)


def test_a_second_process_on_the_folder_of_a_running_one_is_refused_and_a_kill_leaves_no_lock(tmp_path):
    run, second = made(tmp_path / "run"), made(tmp_path / "run")
    lock = tmp_path / "run" / ".lock"
    code = "import sys, time; from pathlib import Path; from sd_tf.training.own_folder import locked\n"
    code += "with locked(Path(sys.argv[1]), 'it'): print('held', flush=True); time.sleep(100)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = contents(tmp_path)
        with pytest.raises(InputError, match="folder .*run is being trained by another process: wait for it"):
            second.train()
        assert contents(tmp_path) == before
    finally:
        holder.kill()
        holder.wait()
    assert lock.exists()  # as a killed process leaves it
    run.train()
    assert not lock.exists() and (tmp_path / "run" / "model_index.json").exists()

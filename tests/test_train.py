import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest

import sd_tf
from sd_tf import commandline, train
from sd_tf.data.fashion_mnist import FILES
from sd_tf.errors import printable
from sd_tf.families import commands_of
from sd_tf.latent.options import LatentOptions


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Types a command and gives back the one line that refuses it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command line replaces

    def run(flags):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            commandline.run(lambda: train.main(shlex.split(flags)))
        output, line = capsys.readouterr()
        assert end.value.code == 2 and output == ""
        assert line.startswith("error: ") and line.endswith("\n") and line.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return line

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--dataset fashion_mnits",
            ["--dataset 'fashion_mnits'", "did you mean 'fashion_mnist'", "garments"],
        ),
        ("--preset garment", ["--preset 'garment'", "did you mean 'garments'", "fashion-mnist"]),
        ("--precision float61", ["--precision 'float61'", "did you mean 'float32'", "mixed_bfloat16"]),
        ("--stage difusion", ["--stage 'difusion'", "did you mean 'diffusion'", "autoencoder"]),
        ("--strategy mirror", ["--strategy 'mirror'", "did you mean 'mirrored'", "none"]),
        ("--prediction-type eps", ["--prediction-type 'eps'", "epsilon", "v_prediction"]),
        ("--save-dtype float64", ["--save-dtype 'float64'", "float16"]),
        ("--dataset garments --text-encoder clip-mimi", ["'clip-mimi'", "did you mean 'clip-mini'"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_valid_ones(refused, flags, words):
    line = refused(flags)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max-steps 0", "--max-steps is 0: give 1 or more"),
        ("--max-steps -5", "--max-steps is -5: give 1 or more"),
        ("--max-minutes -1", "--max-minutes is -1.0: give 0.01 or more"),
        ("--max-minutes nan", "--max-minutes is nan: give 0.01 or more"),
        ("--max-minutes inf", "--max-minutes is inf: give 0.01 or more"),
        ("--batch-size 0", "--batch-size is 0: give 1 or more"),
        ("--learning-rate 0", "--learning-rate is 0.0: give 1e-12 or more"),
        ("--checkpoint-seconds -1", "--checkpoint-seconds is -1.0: give 0 or more"),
        ("--caption-dropout 1", "--caption-dropout is 1.0: give 0 or more, below 1"),
        ("--logit-mean nan", "--logit-mean is nan: give -5 to 5"),
        ("--min-snr-gamma 0", "--min-snr-gamma is 0.0: give a number above 0, such as 5"),
        ("--min-snr-gamma inf", "--min-snr-gamma is inf: give a number above 0, such as 5"),
        ("--offset-noise -0.1", "--offset-noise is -0.1: give 0 or more"),
        ("--offset-noise nan", "--offset-noise is nan: give 0 or more"),
        (
            "--zero-terminal-snr --prediction-type epsilon",
            "--zero-terminal-snr leaves no signal at the last timestep, where --prediction-type epsilon "
            "cannot recover the picture: use --prediction-type v_prediction",
        ),
        ("--zero-terminal-snr yes", "unrecognized arguments: yes; "),
        ("--seed -1", "--seed is -1: give 0 to 4294967295"),
        ("--seed 4294967296", "--seed is 4294967296: give 0 to 4294967295"),
        (
            "--dataset garments --image-size 48",
            "garments cannot be drawn at 48 pixels: give an image size of 32 or 64",
        ),
        ("--image-size 64", "--image-size is 64: fashion_mnist has pictures of 32 pixels"),
        (
            "--max-steps 5 --max-minutes 1",
            "--max-minutes and --max-steps are both given: leave one out",
        ),
        ("--replicas 2", "--replicas is 2 with --strategy none: only --strategy mirrored takes it"),
        ("--max-steps many", "argument --max-steps: invalid int value: 'many'; "),
        ("--sampler ddim", "unrecognized arguments: --sampler ddim; "),
        ("--dataset garments --output ''", "--output is '': give a path"),
        ("--overfit 4 --batch-size 8", "--overfit and --batch-size are both given: leave one out"),
        ("--seed", "argument --seed: expected one argument; "),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(refused, flags, message):
    assert refused(flags).startswith(f"error: {message}")


def test_a_boolean_flag_takes_no_value():
    parser = commandline.Parser("train")
    commandline.add_flags(parser, LatentOptions)
    for words, expected in (([], False), (["--zero-terminal-snr"], True)):
        config = commandline.from_flags(parser.parse_args(words), LatentOptions)
        assert config == LatentOptions(zero_terminal_snr=expected)


def test_missing_data_without_a_network_names_the_flag_the_files_and_the_set_that_needs_none(
    refused, tmp_path, monkeypatch
):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.delenv("SD_TF_DATA_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    line = refused("--dataset fashion_mnist")
    assert all(word in line for word in [*FILES, "--data-dir", "$SD_TF_DATA_DIR", "--dataset garments"])


def test_a_data_folder_without_the_files_names_them(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / min(FILES)).write_bytes(b"one of four")
    line = refused("--data-dir data")
    assert all((name in line) == (name != min(FILES)) for name in FILES)
    assert line.startswith("error: data lacks") and "--data-dir" in line


def test_a_truncated_file_is_named_with_its_size(refused, tmp_path):
    (tmp_path / "data").mkdir()
    for name in FILES:
        (tmp_path / "data" / name).write_bytes(b"short")
    line = refused("--data-dir data")
    assert "is truncated, 5 of " in line and any(name in line for name in FILES)


@pytest.mark.parametrize("output", ["file", "file/run", os.fsdecode(b"\xff")])
def test_an_output_that_cannot_be_written_is_named(refused, tmp_path, output):
    (tmp_path / "file").write_text("in the way")
    line = refused(f"--dataset garments --max-steps 1 --output {output}")
    assert line.startswith(f"error: --output {printable(output)} ")


def test_a_finished_part_of_another_run_is_not_overwritten(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"dataset": "fashion_mnist", "seed": 3}))
    line = refused("--dataset garments --output run")
    assert "--dataset fashion_mnist -> garments" in line and "--seed 3 -> 0" in line


def command(folder, data_dir, steps):
    flags = f"--dataset fashion_mnist --text-encoder none --max-steps {steps} --batch-size 8"
    return [
        *(sys.executable, "-m", "sd_tf.train", *flags.split()),
        *("--checkpoint-seconds", "0", "--data-dir", str(data_dir), "--output", str(folder)),
    ]


def start(folder, data_dir, steps=12):
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    with (folder.parent / "output.txt").open("a") as output:
        return subprocess.Popen(
            command(folder, data_dir, steps), env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def last_step(folder, stage):
    """Of the stage's last checkpoint; 0 where there is none."""
    found = [int(path.name.removeprefix("step-")) for path in (folder / "checkpoints" / stage).glob("step-*")]
    return max(found, default=0)


def steps_until(process, folder, stage, enough, seconds=600):
    """The steps of the stage's last checkpoint, in the order seen, until one is `enough`."""
    seen, until = [last_step(folder, stage)], time.monotonic() + seconds
    while seen[-1] < enough:
        assert process.poll() is None and time.monotonic() < until, (folder.parent / "output.txt").read_text()
        if (step := last_step(folder, stage)) != seen[-1]:
            seen.append(step)
        time.sleep(0.002)
    return seen


@pytest.mark.parametrize("flags", [[], ["--remat"]])
def test_cores_share_a_batch_and_with_remat_every_operation_of_it(tmp_path, flags):
    """Two parts of a batch that compute again go out of step, and both keep their gradients."""
    script = (
        "from sd_tf import train; from sd_tf.graphs import cores, batch_slices;"
        f"train.main(['--dataset', 'garments', '--dry-run', '--stage', 'autoencoder', *{flags}]);"
        f"assert batch_slices(1000) == {1 if flags else 'cores()'}"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path, timeout=300)


@pytest.mark.parametrize(
    ("flags", "examples"),
    [
        ("", 32),  # of the autoencoder
        ("--stage clip --text-encoder none", 128),
        ("--stage diffusion --accumulate 2", 32),
        ("--overfit 4", 4),
        ("--batch-size 8", 8),
        ("cascade", 32),  # of sr2
        ("cascade --stages base", 64),
        ("cascade --stages sr2 base", 32),
        ("cascade --stages sr9", 32),  # which is refused where the stages are known
    ],
)
def test_the_smallest_batch_of_the_stages_that_are_trained_says_whether_batches_are_divided(
    flags, examples, monkeypatch
):
    class Stop(Exception):
        pass

    def asked(number):
        raise Stop(number)

    monkeypatch.setattr("sd_tf.graphs.pays_to_divide", asked)
    name, *words = (flags if flags.startswith("cascade") else f"latent {flags}").split()
    family = commands_of(name)
    found = train.parse(name, family, ["--dataset", "garments", *words])
    with pytest.raises(Stop) as stopped:
        train.model_and_data(family, found)
    assert stopped.value.args == (examples,)


@pytest.mark.slow
def test_a_run_killed_in_each_stage_resumes_from_its_last_checkpoint(tmp_path, data_dir):
    folder, killed_at = tmp_path / "run", 3
    resumed = None  # the stage and step at which the process before this one was killed
    for stage in ("clip", "autoencoder", "diffusion", None):
        process = start(folder, data_dir)
        try:
            if resumed is not None:
                seen = steps_until(process, folder, resumed[0], 12)
                assert seen == sorted(seen) and seen[0] >= resumed[1] >= killed_at
            if stage is None:
                assert process.wait(600) == 0, (tmp_path / "output.txt").read_text()
            else:
                steps_until(process, folder, stage, killed_at)
                process.send_signal(signal.SIGKILL)
                assert process.wait(60) == -signal.SIGKILL
                resumed = (stage, last_step(folder, stage))
        finally:
            process.kill()
            process.wait()

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {line["stage"]: line["step"] for line in lines} == {
        stage: 12 for stage in ("clip", "autoencoder", "diffusion")
    }
    images = sd_tf.load(folder).generate("a red dress", num_images=2, steps=3, progress=False)
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8


def help_of(capsys, *flags):
    """What --help says, with the lines of a flag joined."""
    with pytest.raises(SystemExit):
        train.main([*flags, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_gives_the_defaults_of_the_preset_that_the_other_flags_ask_for(capsys):
    usual, emoji = help_of(capsys), help_of(capsys, "--dataset", "emoji")
    assert "training time in minutes (default: 55)" in usual
    assert "training time in minutes (default: 110)" in emoji
    assert "(default: fashion-mnist)" in usual and "(default: emoji-64)" in emoji
    assert "(default: autoencoder 32, diffusion 64)" in usual  # of --batch-size
    tuned = help_of(capsys, "--init-from", "fashion-mnist", "--finetune", "lora")
    assert "training time in minutes (default: 10)" in tuned
    assert "peak learning rate (default: 0.0001)" in tuned


def test_help_is_grouped_and_fits_a_terminal(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = capsys.readouterr().out
    groups = ("data:", "run:", "new model:", "fine-tuning:", "optimizer, in every stage:")
    assert all(f"\n{group}\n" in said for group in groups)
    assert max(map(len, said.splitlines())) <= 110

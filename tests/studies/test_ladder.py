"""`python -m sd_tf.study`: a ladder of configurations that goes on where it was, and its page."""

import html
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sd_tf
from sd_tf import commandline, families, study
from sd_tf.errors import InputError
from sd_tf.evaluation.protocol import Score
from sd_tf.studies import gigagan, ladder
from sd_tf.studies.report import page

ROOT = Path(sd_tf.__file__).parent.parent
# Children that do at once what training and scoring do in minutes: they write the same files.
TRAIN = """
import json, os, sys, time
from pathlib import Path
flags = sys.argv[1:]
folder, seed = Path(flags[flags.index("--output") + 1]), int(flags[flags.index("--seed") + 1])
with open(os.environ["LADDER_CALLS"], "a") as calls:
    calls.write(f"train {folder.parent.name} {seed}\\n")
folder.mkdir(parents=True, exist_ok=True)
step = {"stage": "gan", "step": 10, "elapsed": 5.0 + seed}
if "--clip-features" in flags:
    (folder / "log.jsonl").write_text(json.dumps(step))
    sys.exit(print("50%\\rerror: stage gan stops at step 10: <NaN> is not finite") or 2)
if folder.parent.name == os.environ.get("LADDER_SLOW") and not (folder / "begun").exists():
    from sd_tf.training.launch import end_with_launcher
    end_with_launcher()  # as training does
    (folder / "begun").touch()
    time.sleep(600)
(folder / "log.jsonl").write_text(json.dumps(step))
(folder / "model_index.json").write_text("{}")
"""
SCORE = """
import json, os, sys
from pathlib import Path
flags = sys.argv[1:]
folder, model = Path(flags[flags.index("--output") + 1]), Path(flags[flags.index("--model") + 1])
with open(os.environ["LADDER_CALLS"], "a") as calls:
    calls.write(f"score {model.parent.name} {model.name}\\n")
if "broken" in os.environ.get("LADDER_SCORES", ""):
    sys.exit("error: no judge is at home")
folder.mkdir()
report = json.loads(os.environ["LADDER_REPORT"])
report["scores"]["frechet_distance"]["value"] = float(model.name.removeprefix("seed-")) ** 2
(folder / "report.json").write_text(json.dumps(report))
"""
PROTOCOL = {"extractor": "<our own>", "samples": 20}
REPORT = {
    "model": "a",
    "label": "a",
    "command": "c",
    "skipped": {},
    "scores": {
        "frechet_distance": Score(0.0, "lower", PROTOCOL, real=0.5).to_json(),
        "diversity": Score(0.7, "higher", {"extractor": "perceptual-mini, which"}).to_json(),
    },
}
FLAGS = ["gigagan-ladder", "--minutes", "0.1", "--rungs", "text", "clip-token-states", "filter-bank"]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The lines that the children have written, each of a start; they are stand-ins, and nothing is drawn."""
    file = tmp_path / "calls"
    monkeypatch.setenv("LADDER_CALLS", str(file))
    monkeypatch.setenv("LADDER_REPORT", json.dumps(REPORT))
    monkeypatch.setattr(ladder, "TRAIN", [sys.executable, "-c", TRAIN])
    monkeypatch.setattr(ladder, "EVALUATE", [sys.executable, "-c", SCORE])
    picture = np.zeros((9, 9, 3), np.uint8)
    monkeypatch.setattr(gigagan, "sheets", lambda flags, results: {"a <b>bold</b> prompt": picture})

    def read():
        found = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    return read


def climbed(folder, *flags):
    study.main([*FLAGS, *flags, "--output", str(folder)])
    return json.loads((folder / "results.json").read_text()), (folder / "report.html").read_text()


def test_every_rung_is_made_with_every_seed_and_the_page_has_all_of_them(tmp_path, calls, capsys):
    results, page = climbed(tmp_path / "study")
    made = calls()
    assert [line for line in made if line.startswith("train")] == [
        f"train {rung} {seed}" for seed in range(3) for rung in ("text", "clip-token-states", "filter-bank")
    ]
    summary = {rung["name"]: rung["summary"] for rung in results["rungs"]}
    assert summary["text"]["frechet_distance"] == {"median": 1.0, "low": 0.0, "high": 4.0, "number": 3}
    assert summary["filter-bank"]["seconds_per_step"] == {
        "median": 0.6,
        "low": 0.5,
        "high": 0.7,
        "number": 3,
    }
    if hasattr(os, "wait4"):
        import resource

        own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # with which a child begins, on Linux
        assert 1e6 < summary["text"]["peak_memory"]["median"] < max(1e9, 1.01 * own)
    for rung in ("+ text", "CLIP loss of the students", "+ filter bank"):
        assert rung in page
    assert "1 <small>0 to 4</small>" in page and "perceptual-mini, which stands in for LPIPS" in page
    assert "&lt;our own&gt;" in page and "a &lt;b&gt;bold&lt;/b&gt; prompt" in page
    said = capsys.readouterr()
    assert "run 1 of 9: text, seed 0 (about 1 min left)" in said.err and "written:" in said.out


def test_a_rung_that_fails_is_recorded_with_its_reason_and_the_others_go_on(tmp_path, calls):
    results, page = climbed(tmp_path / "study", "--seeds", "0")
    failed = results["rungs"][1]["runs"][0]
    assert failed["failure"] == "stage gan stops at step 10: <NaN> is not finite" and not failed["scores"]
    assert failed["steps"] == 10 and results["rungs"][2]["runs"][0]["scores"]
    assert "&lt;NaN&gt; is not finite" in page and "1 of 1 failed" in page
    calls()
    climbed(tmp_path / "study", "--seeds", "0")
    assert calls() == [], "what has failed is not made again"
    (tmp_path / "study" / "clip-token-states" / "seed-0.json").unlink()
    climbed(tmp_path / "study", "--seeds", "0")
    assert calls() == ["train clip-token-states 0"]


def test_scoring_that_fails_is_tried_again_at_the_next_start(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("LADDER_SCORES", "broken")
    with pytest.raises(InputError, match="all 3 runs failed, the first of them since: scoring: no judge"):
        climbed(tmp_path / "study", "--seeds", "0")
    calls()
    monkeypatch.setenv("LADDER_SCORES", "")
    results, _ = climbed(tmp_path / "study", "--seeds", "0")
    assert calls() == ["score text seed-0", "score filter-bank seed-0"]
    assert not results["rungs"][0]["runs"][0]["failure"]


def test_a_study_may_have_more_seeds_and_rungs_later_but_no_other_flags(tmp_path, calls):
    folder = tmp_path / "study"
    climbed(folder, "--seeds", "0")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    calls()
    for flags in (["--samples", "40"], ["--batch-size", "8"], ["--preset", "pictures-gan"]):
        with pytest.raises(InputError, match=f"holds a study with other flags .{flags[0]} None -> "):
            climbed(folder, *flags)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    climbed(folder, "--seeds", "0", "1", "--rungs", "text", "matching")
    assert [line for line in calls() if "train" in line] == [
        "train matching 0",
        "train text 1",
        "train matching 1",
    ]


def start(folder):
    """A study in its own process, whose first filter bank trains for ten minutes."""
    program = (
        "import sys; from sd_tf import commandline, study; from sd_tf.studies import gigagan, ladder\n"
        f"ladder.TRAIN = [sys.executable, '-c', {TRAIN!r}]\n"
        f"ladder.EVALUATE = [sys.executable, '-c', {SCORE!r}]\n"
        "gigagan.sheets = lambda flags, results: {}\n"
        "commandline.run(study.main)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *FLAGS, "--seeds", "0", "--output", str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "LADDER_SLOW": "filter-bank"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(file, process):
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


def children_of(process):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_and_says_how_to_go_on(tmp_path, calls, number):
    folder = tmp_path / "study"
    process = start(folder)
    wait_for(folder / "filter-bank" / "seed-0" / "begun", process)
    [child] = children_of(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped in run 3 of 3 (filter-bank, seed 0): the same command goes on from there" in said
    assert not is_there(child)
    calls()
    climbed(folder, "--seeds", "0")
    assert calls() == ["train filter-bank 0", "score filter-bank seed-0"]


def test_a_killed_study_ends_its_run_and_goes_on_where_it_was(tmp_path, calls):
    folder = tmp_path / "study"
    process = start(folder)
    wait_for(folder / "filter-bank" / "seed-0" / "begun", process)
    children = children_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_there, children)):
        assert time.monotonic() < deadline, "the run's process goes on alone"
        time.sleep(0.1)
    calls()
    results, _ = climbed(folder, "--seeds", "0")
    assert calls() == ["train filter-bank 0", "score filter-bank seed-0"]
    assert results["rungs"][2]["runs"][0]["scores"]["frechet_distance"]["value"] == 0


def test_the_reason_of_a_failure_is_the_error_or_what_was_said_last(tmp_path):
    for program, expected in (
        ("print('error: it is <b>\\x1b[2J'); print('later'); raise SystemExit(2)", "it is <b>\\x1b[2J"),
        ("raise MemoryError('no room')", "MemoryError: no room"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, as the system does where memory runs out"),
        ("raise SystemExit(3)", ""),
    ):
        status, said, _ = ladder.run_child([sys.executable, "-c", program], tmp_path / "log")
        assert status and expected in said and said.isprintable()
    with pytest.raises(KeyboardInterrupt):
        ladder.run_child([sys.executable, "-c", "raise SystemExit(130)"], tmp_path / "log")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["gigagan"], "unknown study 'gigagan': did you mean 'gigagan-ladder'"),
        (
            ["gigagan-ladder", "--dataset", "fashion"],
            "unknown --dataset 'fashion': did you mean 'fashion_mnist'",
        ),
        (["gigagan-ladder", "--dataset", "garments"], "unknown --dataset 'garments'"),
        (["gigagan-ladder", "--rungs", "texts"], "unknown rung 'texts': did you mean 'text'"),
        (["gigagan-ladder", "--rungs", "text", "text"], "--rungs has text twice"),
        (["gigagan-ladder", "--seeds", "-1"], "--seeds is -1: give 0 to"),
        (["gigagan-ladder", "--seeds", "1", "1"], "--seeds has 1 twice"),
        (["gigagan-ladder", "--minutes", "0"], "--max-minutes is 0.0"),
        (
            ["gigagan-ladder", "--minutes", "1", "--max-steps", "2"],
            "--minutes and --max-steps are both given",
        ),
        (["gigagan-ladder", "--samples", "45"], "--samples is 45: give a multiple of 10"),
        (["gigagan-ladder", "--pictures", "0"], "--pictures is 0: give 1 to 16"),
        (["gigagan-ladder", "--clip", "clip-mimi"], "'clip-mimi': did you mean 'clip-mini'"),
        (["gigagan-ladder", "--preset", "none"], "unknown --preset 'none'"),
        (["gigagan-ladder", "--lpips", "nowhere.safetensors"], "--lpips nowhere.safetensors is missing"),
        (["gigagan-ladder", "--dataset", "folder"], "folder needs --data-dir"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        study.main([*flags, "--output", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()


def test_bad_flags_are_named_before_tensorflow_is_imported(tmp_path):
    program = (
        "import sys; from sd_tf import study\n"
        "try: study.main(['gigagan-ladder', '--preset', 'none'])\n"
        "except ValueError: sys.exit(str({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("what", ["file", "something", "link", "state"])
def test_folders_that_are_none_of_a_study_are_refused(tmp_path, calls, what):
    folder = tmp_path / "study"
    if what == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        if what != "something":
            climbed(folder, "--seeds", "0")
    if what == "something":
        (folder / "mine.txt").write_text("")
    if what == "link":
        (folder / "matching").symlink_to(tmp_path)
    if what == "state":
        (folder / "text" / "seed-0.json").write_text('{"peak_memory": "much"}')
    expected = "--output|is a file|something that no study wrote|is a link out|peak_memory is 'much'"
    calls()
    with pytest.raises(InputError, match=expected):
        climbed(folder, "--seeds", "0", "--rungs", "text", "matching")
    assert calls() == []


def own_pictures(folder, number=12):
    """Drawings of one colour each, with captions."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(number):
        colour = generator.integers(0, 256, 3)
        Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {('red', 'blue')[i % 2]} bag")
    return ["--dataset", "folder", "--data-dir", str(folder)]


def flags_of(*arguments):
    parser = commandline.Parser("study")
    gigagan.add_flags(parser)
    return parser.parse_args(list(arguments))


def test_without_a_clip_that_knows_the_captions_its_rungs_are_left_out_and_the_page_says_so(tmp_path):
    of_pictures = own_pictures(tmp_path / "pictures")
    found = gigagan.ladder_of(flags_of(*of_pictures))
    assert [rung.name for rung in found.rungs] == [
        *("unconditional", "text", "matching", "multi-scale", "filter-bank", "encoder")
    ]
    weights = [dict(pairwise(rung.flags)).get("--clip-weight") for rung in found.rungs]
    assert weights == [None, "0", "0", "0", "0", "0"]  # without a text there is none
    assert "clip and clip-token-states are left out" in found.notes[0] and html.escape(
        found.notes[0]
    ) in page(found, [], {}, "")
    assert not gigagan.ladder_of(flags_of(*of_pictures, "--rungs", "text")).notes
    with pytest.raises(InputError, match="--rungs clip needs a CLIP that knows .* folder.*: add --clip NAME"):
        gigagan.ladder_of(flags_of(*of_pictures, "--rungs", "text", "clip"))
    named = gigagan.ladder_of(flags_of(*of_pictures, "--clip", "clip-mini"))
    assert len(named.rungs) == 8 and not named.notes
    assert [("--clip" in rung.flags) for rung in named.rungs] == [False] * 3 + [True] * 5


def test_each_rung_has_the_parts_of_the_one_before_and_one_more():
    def parts(rung):
        options = families.commands_of("gan").Options
        parser = commandline.Parser("train")
        commandline.add_flags(parser, options)
        found = commandline.from_flags(parser.parse_args(list(rung.flags)), options)
        return {
            "text": not found.unconditional,
            "matching": bool(found.matching_weight),
            "clip": bool(found.clip_weight) and found.clip_features is None,
            "multi-scale": found.multi_scale == "both",
            "filter-bank": found.num_kernels > 1,
            "encoder": found.reconstruction_weight is None,  # the preset's
        }

    ladder = {rung.name: parts(rung) for rung in gigagan.RUNGS if rung.name != "clip-token-states"}
    names = list(ladder)
    assert names[0] == "unconditional" and not any(ladder["unconditional"].values())
    for number, name in enumerate(names):
        assert [part for part, is_there in ladder[name].items() if is_there] == names[1 : number + 1]


def test_the_page_says_what_is_missing_and_of_which_rung(tmp_path):
    found = gigagan.ladder_of(flags_of("--rungs", "unconditional", "text", "--seeds", "0", "1"))
    plain, text = found.rungs
    accuracy = Score(0.25, "higher", {}, real=0.9).to_json()

    def distance(value, reservation=""):
        return {"frechet_distance": Score(value, "lower", {}, reservation=reservation).to_json()}

    results = [
        ladder.Result(plain, 0, scores=distance(3.0, "no prompt"), skipped={"agreement": "it has no text"}),
        ladder.Result(plain, 1, failure="the discriminator has won"),
        ladder.Result(text, 0, scores=distance(1.0) | {"class_accuracy": accuracy}),
        ladder.Result(text, 1, scores=distance(2.0) | {"class_accuracy": accuracy}),
    ]
    made = html.unescape(page(found, results, {}, "python -m sd_tf.study"))
    assert "Left out of 'without a text': agreement, since it has no text." in made
    assert "No headline of 'without a text': Fréchet distance, since no prompt." in made
    assert "<td>3<br><small>1 of 2 seeds</small></td><td></td>" in made
    assert "<td>1.5 <small>1 to 2</small></td><td>0.25 <small>0.25 to 0.25</small></td>" in made
    assert "without a text, seed 1</td><td class=words>the discriminator has won" in made
    assert "<em>0.9</em>" in made


@pytest.mark.slow
def test_a_study_of_tiny_runs_from_end_to_end(tmp_path, capsys):
    of_pictures = own_pictures(tmp_path / "pictures")
    flags = ["--max-steps", "2", "--batch-size", "4", "--seeds", "0", "--rungs", "unconditional", "text"]
    sizes = [
        "--samples",
        "8",
        "--tinted-samples",
        "20",
        "--pictures",
        "2",
        "--output",
        str(tmp_path / "study"),
    ]
    study.main(["gigagan-ladder", *of_pictures, "--preset", "fashion-mnist-gan", *flags, *sizes])
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    for rung in results["rungs"]:
        assert not rung["runs"][0]["failure"] and rung["runs"][0]["steps"] == 2
        assert {"frechet_distance", "diversity", "peak_memory"} <= rung["summary"].keys()
    assert (tmp_path / "study" / "report.html").read_text().count("<img") == 2  # of both captions
    assert len(list((tmp_path / "study" / "pictures").iterdir())) == 2

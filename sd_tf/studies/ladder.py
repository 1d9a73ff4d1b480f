"""A ladder: what each part of a model is worth. Its rungs are configurations, trained and judged alike.

study.json                          the study's flags, which must be the same at every start
RUNG/seed-0/                        a run of `sd_tf.train`; in it evaluation/, of `sd_tf.evaluate`
RUNG/seed-0.json, RUNG/seed-0.log   the run's peak memory, or why it failed; what it has printed
results.json report.html pictures/  what was found
cache/                              what runs compute of the data set, shared

Every run is a process of its own, so that its peak memory is its own too. A study that was stopped or killed
goes on where it was: training from its last checkpoint, what is finished or scored is not made again.
"""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sd_tf.errors import InputError, printable, shown
from sd_tf.evaluation.protocol import read_reports
from sd_tf.files import is_regular, open_file, read_json, write_json
from sd_tf.training.history import History
from sd_tf.training.launch import LAUNCHER
from sd_tf.training.own_folder import check_own, locked

TRAIN = [sys.executable, "-m", "sd_tf.train"]
EVALUATE = [sys.executable, "-m", "sd_tf.evaluate"]
STUDY, RESULTS, PAGE = "study.json", "results.json", "report.html"
MODEL = "model_index.json"  # which a run writes last
GRACE = 60.0  # seconds for a training that is stopped to save a checkpoint
LARGEST_STATE = 100_000  # bytes
LONGEST_REASON = 400  # characters
TAIL = 20_000  # bytes at the end of a log in which a reason is looked for
INTERRUPTED = 130  # exit status
MEASURES = {"peak_memory": "bytes", "seconds_per_step": "seconds"}  # of a run itself


class Rung(NamedTuple):
    """A configuration.

    Attributes:
        name: of its folder and for `--rungs`.
        title: in tables.
        adds: what it has that the rung before has not.
        flags: of `python -m sd_tf.train`, besides those that all rungs share.
    """

    name: str
    title: str
    adds: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Ladder:
    """A study.

    Attributes:
        name: of the study.
        family: whose models are trained.
        folder: where everything is written.
        rungs, seeds: a run is one of each.
        training: flags of every run's training.
        judging: flags of every run's evaluation.
        identity: flag -> value of the study's flags; another study may not go on in its folder.
        minutes: of each run; None where they are counted in steps.
        notes: sentences for the page.
    """

    name: str
    family: str
    folder: Path
    rungs: tuple[Rung, ...]
    seeds: tuple[int, ...]
    training: tuple[str, ...]
    judging: tuple[str, ...]
    identity: dict
    minutes: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> list["LadderRun"]:
        """All of them: every rung with the first seed, every rung with the second, and so on."""
        return [LadderRun(self, rung, seed) for seed in self.seeds for rung in self.rungs]


class LadderRun(NamedTuple):
    """A rung with a seed, and its files."""

    ladder: Ladder
    rung: Rung
    seed: int

    @property
    def label(self) -> str:
        """Such as "matching, seed 0"."""
        return f"{self.rung.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """That its model is trained in."""
        return self.ladder.folder / self.rung.name / f"seed-{self.seed}"

    @property
    def report(self) -> Path:
        """Of its scores."""
        return self.folder / "evaluation" / "report.json"

    @property
    def log(self) -> Path:
        """What its processes have printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def state_file(self) -> Path:
        """What is kept of it besides its folder."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def state(self) -> dict:
        """As far as they are known: "peak_memory" in bytes, "failure", and "is_final" of that.

        Raises:
            InputError: the file is damaged.
        """
        file = self.state_file
        if not os.path.lexists(file):
            return {}
        found = read_json(file, root=self.ladder.folder, most=LARGEST_STATE)
        memory, failure = found.get("peak_memory"), found.get("failure")
        if not (memory is None or (type(memory) is int and 0 <= memory < 2**60)):
            raise InputError(f"{file}: peak_memory is {shown(memory)}, expected a number: delete the file")
        if not (failure is None or isinstance(failure, str)):
            raise InputError(f"{file}: failure is {shown(failure)}, expected a string: delete the file")
        failure = failure and failure[:LONGEST_REASON]
        return {"peak_memory": memory, "failure": failure, "is_final": found.get("is_final") is True}

    def keep(self, **changes):
        """Writes what is new of its state."""
        write_json(self.state_file, self.state() | changes)

    @property
    def is_trained(self) -> bool:
        """Whether its model is finished."""
        return is_regular(self.folder / MODEL)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to do: it is scored, or its training has failed."""
        return self.state().get("is_final", False) or (self.is_trained and is_regular(self.report))


class Result(NamedTuple):
    """What is known of a run.

    Attributes:
        rung, seed: of the run.
        failure: why it has no scores; empty if it has.
        scores: name -> the dictionary of a `Score`.
        skipped: what its evaluation has left out -> why.
        peak_memory: bytes of its process, None if the system does not say.
        seconds_per_step, steps: of training; None if it took no step.
        model: the folder of its model; None without one.
    """

    rung: Rung
    seed: int
    failure: str = ""
    scores: dict = {}
    skipped: dict = {}
    peak_memory: int | None = None
    seconds_per_step: float | None = None
    steps: int | None = None
    model: Path | None = None


class Spread(NamedTuple):
    """The median of a measure over the seeds, its range, and how many seeds have it."""

    median: float
    low: float
    high: float
    number: int


def climb(ladder: Ladder) -> list[Result]:
    """Trains and scores every run that is not over yet; returns the results of all.

    A run that fails is recorded with its reason, and the others go on.

    Raises:
        InputError: the folder holds a study with other flags or something else, or cannot be written.
        KeyboardInterrupt: Ctrl-C, which ends the process of the run as well.
    """
    _check_folder(ladder)
    with _writing(ladder.folder):
        ladder.folder.mkdir(parents=True, exist_ok=True)
    with locked(ladder.folder / ".lock", f"--output {ladder.folder}"):
        _check_same(ladder)
        clock = _Clock(ladder.minutes)
        for number, run in enumerate(ladder.runs, 1):
            if run.is_over:
                continue
            waiting = sum(not each.is_over for each in ladder.runs)
            _say(f"run {number} of {len(ladder.runs)}: {run.label}{clock.left(waiting)}")
            try:
                with clock.measuring(not run.folder.exists()):
                    _make(run)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped in run {number} of {len(ladder.runs)} ({run.label}): the same command goes on "
                    "from there"
                ) from None
            failure = run.state().get("failure")
            if failure:
                way_out = (
                    f"delete {run.state_file} to try it again"
                    if run.is_over
                    else "the next start tries again"
                )
                _say(f"  failed: {failure}; {way_out}")
        return [result_of(run) for run in ladder.runs]


def _say(text):
    print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _writing(folder):
    try:
        yield
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written: {error.strerror}") from None


# -- the folder -------------------------------------------------------------------------------------


def _check_folder(ladder):
    """Refuses links out of the folder, and a folder with something else in it. Writes nothing."""
    folder = ladder.folder
    if os.path.lexists(folder / STUDY):
        names = [rung.name for rung in ladder.rungs]
        check_own(folder, (STUDY, RESULTS, PAGE, ".lock"), ("pictures", "cache", *names))
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: name a folder")
    if folder.exists() and {entry.name for entry in os.scandir(folder)} - {".lock"}:
        raise InputError(f"--output {folder} holds something that no study wrote: name another folder")


def _check_same(ladder):
    """Refuses to go on in the folder of a study with other flags; rungs and seeds may be other ones."""
    file, identity = ladder.folder / STUDY, dict(ladder.identity)
    identity |= {f"flags of {rung.name}": list(rung.flags) for rung in ladder.rungs}
    before = read_json(file, root=ladder.folder, most=LARGEST_STATE) if os.path.lexists(file) else {}
    changed = [name for name in identity if before.get(name, identity[name]) != identity[name]]
    if changed:
        said = ", ".join(f"{name} {shown(before[name])} -> {shown(identity[name])}" for name in changed)
        raise InputError(
            f"{ladder.folder} holds a study with other flags ({said}): give the same ones to go on with it, "
            "or another --output"
        )
    write_json(file, before | identity)


# -- one run ----------------------------------------------------------------------------------------


def _make(run):
    """Trains and scores a run, as far as that is not done; keeps why it failed.

    A training that fails before its first step, and scoring that fails, are tried again at the next start:
    something outside of the run was missing.
    """
    ladder = run.ladder
    run.log.parent.mkdir(parents=True, exist_ok=True)
    if not run.is_trained:
        own = ["--seed", str(run.seed), *run.rung.flags, "--output", str(run.folder)]
        status, said, memory = run_child([*TRAIN, ladder.family, *ladder.training, *own], run.log)
        known = [each for each in (memory, run.state().get("peak_memory")) if each is not None]
        run.keep(peak_memory=max(known, default=None), failure=None, is_final=False)
        if status or not run.is_trained:
            has_begun = bool(History.of_folder(run.folder).step)
            said = said or f"training ended with status {status} and wrote no model"
            run.keep(failure=said, is_final=has_begun)
            return
    output = ["--model", str(run.folder), "--output", str(run.report.parent)]
    status, said, _ = run_child([*EVALUATE, *ladder.judging, *output], run.log)
    is_scored = not status and is_regular(run.report)
    run.keep(failure=None if is_scored else f"scoring: {said or f'it ended with status {status}'}")


def run_child(command: list[str], log: Path) -> tuple[int, str, int | None]:
    """Runs a command of this package to its end.

    Args:
        command: the program and its arguments.
        log: file that what it prints is appended to.

    Returns:
        Its exit status; the reason that it gave, or "" for status 0; its peak memory in bytes, None where
        the system does not say.

    Raises:
        KeyboardInterrupt: this process, or that of the command, was stopped; the latter has then ended.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(log, flags, 0o666), "ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {LAUNCHER: str(os.getpid())},  # a training ends if this process is killed
            start_new_session=True,  # Ctrl-C comes to this process alone, which stops the other
        )
        try:
            memory = _waited(process)
        except BaseException:
            _stop(process)
            raise
    status = process.returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == 0:
        return 0, "", memory
    if status < 0:
        name = signal.Signals(-status).name
        out_of_memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return status, f"its process was killed by {name}{out_of_memory}", memory
    return status, last_said(log, begin), memory


def _waited(process):
    """Waits for the end of a process; returns its peak memory in bytes, or None."""
    if not hasattr(os, "wait4"):
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stop(process):
    """Lets a process end itself, which saves a checkpoint; kills it after a while, or at a second Ctrl-C."""
    if process.returncode is not None:
        return
    try:
        process.terminate()
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def last_said(log: Path, begin: int = 0) -> str:
    """The last error line that was printed to a log behind `begin` bytes, or else its last line."""
    with open_file(log, root=log.parent) as opened:
        opened.seek(max(begin, opened.seek(0, os.SEEK_END) - TAIL))
        text = opened.read(TAIL).decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or lines or [""])[-1].removeprefix("error: ")
    return printable(said)[:LONGEST_REASON]


class _Clock:
    """How much time is left: what whole runs of this process have taken, or at first their minutes."""

    def __init__(self, minutes):
        self.usual, self.taken = None if minutes is None else 60.0 * minutes, []

    @contextlib.contextmanager
    def measuring(self, is_whole):
        began = time.monotonic()
        yield
        if is_whole:
            self.taken.append(time.monotonic() - began)

    def left(self, runs) -> str:
        """Of so many runs, as the end of a sentence."""
        each = statistics.mean(self.taken) if self.taken else self.usual
        if each is None:
            return ""
        minutes = max(1, round(runs * each / 60))
        hours, minutes = divmod(minutes, 60)
        return f" (about {f'{hours} h ' if hours else ''}{minutes} min left)"


# -- results ----------------------------------------------------------------------------------------


def result_of(run: LadderRun) -> Result:
    """What a run's files say.

    Raises:
        InputError: one of them is damaged.
    """
    state, history = run.state(), History.of_folder(run.folder)
    steps = max(history.step, default=0)
    found = {
        "peak_memory": state.get("peak_memory"),
        "seconds_per_step": max(history.elapsed) / steps if steps else None,
        "steps": steps or None,
        "model": run.folder if run.is_trained else None,
    }
    if state.get("failure"):
        return Result(run.rung, run.seed, state["failure"], **found)
    if not (run.is_trained and is_regular(run.report)):
        return Result(run.rung, run.seed, "it is not finished", **found)
    [report, *_] = read_reports(run.report)
    return Result(run.rung, run.seed, "", report["scores"], report["skipped"], **found)


def of_rung(results: list[Result], rung: Rung) -> list[Result]:
    """Those of a rung, seed by seed."""
    return [result for result in results if result.rung == rung]


def spreads(results: list[Result]) -> dict[str, Spread]:
    """Name of a score or of one of `MEASURES` -> its `Spread` over the runs that have it."""
    values = {}
    for result in results:
        own = {name: score["value"] for name, score in result.scores.items()}
        own |= {name: getattr(result, name) for name in MEASURES}
        for name, value in own.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {
        name: Spread(statistics.median(each), min(each), max(each), len(each))
        for name, each in values.items()
    }


def to_json(ladder: Ladder, results: list[Result], command: str) -> dict:
    """The contents of results.json."""
    rungs = []
    for rung in ladder.rungs:
        own = of_rung(results, rung)
        rungs.append(
            {
                "name": rung.name,
                "title": rung.title,
                "adds": rung.adds,
                "flags": list(rung.flags),
                "summary": {name: spread._asdict() for name, spread in spreads(own).items()},
                "runs": [_of_run(result) for result in own],
            }
        )
    return {
        "study": ladder.name,
        "command": command,
        "notes": list(ladder.notes),
        "training": [ladder.family, *ladder.training],
        "judging": list(ladder.judging),
        "rungs": rungs,
    }


def _of_run(result):
    found = {
        name: getattr(result, name)
        for name in ("seed", "failure", "skipped", "peak_memory", "seconds_per_step", "steps")
    }
    without_details = {
        name: {field: value for field, value in score.items() if field != "details"}
        for name, score in result.scores.items()
    }
    return found | {"scores": without_details}

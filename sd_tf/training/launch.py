"""Starts the workers of a run on one machine, watches them, and lets none go on without the others."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from sd_tf.errors import InputError, argument
from sd_tf.files import reason

LAUNCHER = "SD_TF_LAUNCHER"  # the number of the process that started a worker and watches it
GRACE = 15.0  # seconds in which the others may notice that one is gone, and say so, before they are killed
SAID = 2000  # characters of what a lost worker said last


def launch(command: list[str], number: int) -> int:
    """Runs a training command in several processes, the workers of one run, each with its part of the cores.

    What worker 0 prints is shown. Where a worker ends otherwise than well, the others are stopped.

    Args:
        command: of a worker: the program and its arguments.
        number: of workers.

    Returns:
        The exit status: 0, 130 where all were interrupted, or that of the first that failed.

    Raises:
        InputError: a worker was killed by something else.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(number)]
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(1, number)]
        workers = []
        stack.callback(_kill, workers)
        for index in range(number):
            place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {"TF_CONFIG": json.dumps(place), LAUNCHER: str(os.getpid())}
            output = outputs[index - 1] if index else None
            workers.append(
                subprocess.Popen(
                    command, env=os.environ | environment, stdout=output, stderr=output and subprocess.STDOUT
                )
            )
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(workers[-1].pid, _share_of_cores(index, number))
        with _passing_on_signals(workers):
            first = _first_failed(workers)
        if first is None:
            return 0
        status = workers[first].returncode
        if status < 0:
            raise InputError(
                f"worker {first} of {number} was killed by {signal.Signals(-status).name}, and the others "
                "were stopped: the same command resumes from the last checkpoint"
            )
        if first and status != 130:
            outputs[first - 1].seek(0)
            print(outputs[first - 1].read()[-SAID:].strip(), file=sys.stderr)
        return status


def end_with_launcher():
    """Ends this process, if `launch` started it, when that is gone, however it ended."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch():
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _first_failed(workers):
    """Waits for all to end; the number of the first that did not end well, None where all did."""
    first, until = None, None
    while True:
        statuses = [worker.poll() for worker in workers]
        failed = [i for i, status in enumerate(statuses) if status not in (None, 0)]
        if failed and first is None:
            # Of several, one that was killed or knew why, rather than one that only lost another.
            first, until = min(failed, key=lambda i: (statuses[i] > 0, i)), time.monotonic() + GRACE
        if None not in statuses:
            return first
        if until is not None and time.monotonic() > until:
            _kill(workers)
        time.sleep(0.1)


def _kill(workers):
    for worker in workers:
        worker.kill()
        worker.wait()


@contextlib.contextmanager
def _passing_on_signals(workers):
    """SIGTERM is passed on to the workers; Ctrl-C reaches them by itself, as one terminal's processes."""

    def pass_on(number, frame):
        for worker in workers:
            worker.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def _share_of_cores(index, number):
    """The cores of one of the workers: as equal parts as can be, at least one each."""
    own = sorted(os.sched_getaffinity(0))
    first, end = len(own) * index // number, len(own) * (index + 1) // number
    return own[first : max(end, first + 1)]


def _free_ports(number):
    try:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]
    except OSError as error:
        raise InputError(
            f"{argument('workers')} is {number}: so many cannot be started ({reason(error)})"
        ) from None

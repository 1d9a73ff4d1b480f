"""Starts the workers of a run on one machine, and stops all of them when one fails."""

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

LAUNCHER = "SD_TF_LAUNCHER"  # environment variable: the process id of what started this worker
GRACE = 15.0  # seconds for the others to notice that a worker is gone and say so, before they are killed
LAST_OUTPUT = 2000  # characters of a failed worker's output that are shown


def launch(command: list[str], number: int) -> int:
    """Runs a training command in several processes, the workers of one run, each with its share of the cores.

    The output of worker 0 is shown. If a worker fails, the others are stopped.

    Args:
        command: the program and its arguments, the same for each worker.
        number: how many workers.

    Returns:
        The exit status: 0, 130 if all were interrupted, or that of the first worker that failed.

    Raises:
        InputError: a worker was killed by a signal.
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
        with _forwarding_sigterm(workers):
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
            print(outputs[first - 1].read()[-LAST_OUTPUT:].strip(), file=sys.stderr)
        return status


def end_with_launcher():
    """If `launch` started this process: ends it when the launcher is gone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch():
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _first_failed(workers):
    """Waits for all to end; returns the index of the first that failed, or None."""
    first, deadline = None, None
    while True:
        statuses = [worker.poll() for worker in workers]
        failed = [i for i, status in enumerate(statuses) if status not in (None, 0)]
        if failed and first is None:
            # Prefer one that was killed by a signal: the others may only have lost their connection to it.
            first, deadline = min(failed, key=lambda i: (statuses[i] > 0, i)), time.monotonic() + GRACE
        if None not in statuses:
            return first
        if deadline is not None and time.monotonic() > deadline:
            _kill(workers)
        time.sleep(0.1)


def _kill(workers):
    for worker in workers:
        worker.kill()
        worker.wait()


@contextlib.contextmanager
def _forwarding_sigterm(workers):
    """Forwards SIGTERM to the workers; the terminal sends Ctrl-C to all of its processes anyway."""

    def forward(number, frame):
        for worker in workers:
            worker.send_signal(number)

    before = signal.signal(signal.SIGTERM, forward), signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def _share_of_cores(index, number):
    """The cores of a worker: shares as equal as possible, of at least one core."""
    cores = sorted(os.sched_getaffinity(0))
    first, end = len(cores) * index // number, len(cores) * (index + 1) // number
    return cores[first : max(end, first + 1)]


def _free_ports(number):
    try:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]
    except OSError as error:
        raise InputError(
            f"{argument('workers')} is {number}, which cannot be started ({reason(error)}): give fewer"
        ) from None

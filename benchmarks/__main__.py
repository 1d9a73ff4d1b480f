"""Every workload against diffusers, keras-cv and OpenVINO, in one run.

    python -m benchmarks [W1 W2 …] --output DIR

Each variant runs in a process of its own, which is warmed up; then they take turns. Quoted are medians,
their ratio to the fastest variant that is not ours, and the share of the fastest matrix product that
was measured in the same run at the same precision. Writes `results.md`, `results.png` and
`results.json`. Leave the machine alone meanwhile. The libraries are those of `pip install -e ".[bench]"`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.report import write_report
from benchmarks.workloads import WORKLOADS


class Worker:
    """A process that runs one variant when it is told to; see `benchmarks.worker`."""

    def __init__(self, workload, variant, log):
        self.variant, self.seconds, self.peak_memory_mb = variant, [], None
        command = [sys.executable, "-m", "benchmarks.worker", workload.name, variant]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        answer = self._answer()
        self.skipped, self.flops = answer.get("skipped"), answer.get("flops")

    def _answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"skipped": f"ended with status {self.process.wait()}"}

    def run(self):
        """Runs once and notes the seconds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "seconds" in answer:
            self.seconds.append(answer["seconds"])
        else:
            self.skipped = answer["skipped"]

    def close(self):
        self.process.stdin.close()
        self.peak_memory_mb = self._answer().get("peak_memory_mb")
        self.process.wait()


def measure(workload, variants, log):
    """For each variant {"workload", "variant", "seconds", "flops", "peak_memory_mb"}, or "skipped": why."""
    results = {
        variant: {"workload": workload.name, "variant": variant, "seconds": []} for variant in variants
    }

    def note(worker):
        result = results[worker.variant]
        result["seconds"] += worker.seconds
        result["flops"] = worker.flops or result.get("flops")
        if worker.skipped:
            result["skipped"] = worker.skipped
        else:
            worker.close()
            result["peak_memory_mb"] = max(worker.peak_memory_mb, result.get("peak_memory_mb") or 0)
        said = result.get("skipped") or f"{statistics.median(result['seconds']):.3f} s"
        print(f"{workload.name}  {worker.variant}: {said}", flush=True)

    if workload.alone:
        for _ in range(workload.rounds):
            for variant in variants:
                if "skipped" in results[variant]:
                    continue
                worker = Worker(workload, variant, log)
                for _ in range(0 if worker.skipped else workload.repeats):
                    worker.run()
                note(worker)
        return list(results.values())
    workers = [Worker(workload, variant, log) for variant in variants]
    for _ in range(workload.rounds):
        for worker in workers:
            if not worker.skipped:
                worker.run()
    for worker in workers:
        note(worker)
    return list(results.values())


def has_bfloat16():
    """Whether this CPU multiplies bfloat16 itself."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--variants", help="only those whose name contains this")
    options = parser.parse_args()
    names = ["peak"]
    for asked in options.workloads or WORKLOADS:
        found = [name for name in WORKLOADS if asked in (name, WORKLOADS[name].kind)]
        if not found:
            parser.error(f"no workload {asked!r}: give some of {', '.join(WORKLOADS)}")
        names += [name for name in found if name not in names]
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    with (options.output / "workers.log").open("w") as log:
        for name in names:
            workload = WORKLOADS[name]
            variants = [
                variant
                for variant in workload.variants
                if has_bfloat16() or "bfloat16" not in variant
                if name == "peak" or not options.variants or options.variants in variant
            ]
            results += measure(workload, variants, log)
            write_report(results, options.output)  # after each: an interrupted run keeps what it has


if __name__ == "__main__":
    main()

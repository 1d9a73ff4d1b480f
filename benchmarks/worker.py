"""One variant of one workload, in a process of its own: prepares, then runs once for each line it is sent.

    python -m benchmarks.worker W1 "sd_tf float32"

Answers in lines of JSON: first {"flops": …} where the variant counts them, or {"skipped": why}; then,
for every line of standard input, {"seconds": …}; at the end {"peak_memory_mb": …}.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.workloads import WORKLOADS

LIBRARIES = {
    "diffusers": "benchmarks.peers.of_diffusers",
    "keras-cv": "benchmarks.peers.of_keras_cv",
    "openvino": "benchmarks.peers.of_openvino",
    "minimagen": "benchmarks.peers.of_imagens",
    "imagen-pytorch": "benchmarks.peers.of_imagens",
    "torch": "benchmarks.peers.of_diffusers",
    "tensorflow": "benchmarks.ours",
    "sd_tf": "benchmarks.ours",
}


def main():
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    workload, variant = WORKLOADS[sys.argv[1]], sys.argv[2]
    library = importlib.import_module(LIBRARIES[variant.split()[0]])
    try:
        run, flops = library.prepare(workload, variant)
        for _ in range(workload.warmup):
            run()
    except Exception as error:
        traceback.print_exc()
        answer(skipped=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    answer(flops=flops)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        answer(seconds=(time.perf_counter() - start) * getattr(run, "times", 1))
    own, children = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    answer(peak_memory_mb=max(own, children) / 1024)


if __name__ == "__main__":
    main()

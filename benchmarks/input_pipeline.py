"""Pictures a second of the input pipeline alone, beside what the training step takes of them.

    python -m benchmarks.input_pipeline --dataset pokemon [--seconds 20] [flags of sd_tf.train]

Begins a run in a folder that is removed afterwards, with networks as they begin, and measures each of
its stages: batches alone, steps on one batch that is there already, and steps on batches as training
gets them. The first decode of a data set of files, which later runs of the folder skip, has its own line.
"""

import itertools
import tempfile
import time

from sd_tf import commandline
from sd_tf.config import RunConfig

WARM_UP = 3  # batches, or steps, that are not timed: tracing, and threads that start


def per_second(calls, pictures, seconds):
    """Pictures a second of an endless iterator each of whose items stands for so many."""
    for _ in itertools.islice(calls, WARM_UP):
        pass
    done, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        next(calls)
        done += pictures
    return done / taken


def measured_run(config, seconds):
    """A `Run` that measures each stage in place of training it, into its dictionary `rates`."""
    from sd_tf.training.run import Run

    class MeasuredRun(Run):
        rates = {}

        def _decode(self, dataset):
            began = time.perf_counter()
            super()._decode(dataset)
            self.rates["decoding, once"] = {"pipeline": len(dataset) / (time.perf_counter() - began)}

        def _fit(self, stage, budget=None):
            trainer, number = self.trainer(stage, self.budget(stage.config)), stage.config.batch_size
            same = itertools.repeat(next(iter(stage.batches(0))))

            def steps(batches):  # `float` waits for the step
                return (float(trainer.train_step(batch)["loss"]) for batch in batches)

            self.rates[f"{stage.name}, batches of {number}"] = {
                "pipeline": per_second(iter(stage.batches(0)), number, seconds),
                "step": per_second(steps(same), number, seconds),
                "both": per_second(steps(iter(stage.batches(0))), number, seconds),
            }

    return MeasuredRun(config)


def table(rates):
    """In words; the last column is the share of the step's rate that training reaches."""
    lines = [f"{'pictures a second':32}{'pipeline':>12}{'step':>10}{'ratio':>8}{'both':>10}{'share':>8}"]
    for name, each in rates.items():
        line = f"{name:32}{each['pipeline']:12,.0f}"
        if "step" in each:
            line += f"{each['step']:10,.0f}{each['pipeline'] / each['step']:8.1f}"
            line += f"{each['both']:10,.0f}{each['both'] / each['step']:8.2f}"
        lines.append(line)
    return "\n".join(lines)


def main():
    parser = commandline.Parser("python -m benchmarks.input_pipeline", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each rate (default: 20)")
    commandline.add_flags(parser, RunConfig)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sd_tf-") as folder:
        flags.output = f"{folder}/run"
        config = commandline.from_flags(flags, RunConfig)
        commandline.load_tensorflow()
        from sd_tf.graphs import one_core_for_each_operation

        if not config.remat:
            one_core_for_each_operation()
        run = measured_run(config, flags.seconds)
        run.train()
    print(table(run.rates))


if __name__ == "__main__":
    commandline.run(main)

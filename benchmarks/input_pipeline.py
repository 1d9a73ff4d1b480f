"""Pictures a second of the input pipeline alone, beside what the training step takes of them.

    python -m benchmarks.input_pipeline --dataset pokemon [--seconds 20] [flags of sd_tf.train]

Begins a run in a folder that is removed afterwards, with networks as they begin, and measures each of
its stages: batches alone, steps on one batch that is there already, and steps on batches as training
gets them. The first decode of a data set of files, which later runs of the folder skip, has its own line.
"""

import itertools
import tempfile
import time
from pathlib import Path

from sd_tf import commandline, train
from sd_tf.families import commands_of
from sd_tf.training.options import OptimizerOptions, RunOptions

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


def measured_run(seconds, *arguments):
    """A `Run` that measures each stage in place of training it, into its dictionary `rates`."""
    from sd_tf.training.run import Run

    class MeasuredRun(Run):
        rates = {}

        def decode(self, dataset):
            began = time.perf_counter()
            super().decode(dataset)
            self.rates["decoding, once"] = {"pipeline": len(dataset) / (time.perf_counter() - began)}

        def _fit(self, stage, budget):
            trainer, number = self.trainer(stage, budget), stage.batch_size
            same = itertools.repeat(next(iter(stage.batches(0))))

            def steps(batches):  # `float` waits for the step
                return (float(trainer.step(batch)["loss"]) for batch in batches)

            self.rates[f"{stage.name}, batches of {number}"] = {
                "pipeline": per_second(iter(stage.batches(0)), number, seconds),
                "step": per_second(steps(same), number, seconds),
                "both": per_second(steps(iter(stage.batches(0))), number, seconds),
            }

    return MeasuredRun(*arguments)


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
    flags, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="sd_tf-") as folder:
        family = commands_of("latent")
        found = train.parse("latent", family, [*others, "--output", f"{folder}/run"])
        model, data = train.model_and_data(family, found)
        options = found[RunOptions]
        recipe = family.recipe(model, found[family.Options], Path(options.output))
        run = measured_run(flags.seconds, recipe, data, options, found[OptimizerOptions])
        run.train()
    print(table(run.rates))


if __name__ == "__main__":
    commandline.run(main)

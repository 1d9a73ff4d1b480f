"""Trains a model: `python -m sd_tf.train --dataset fashion_mnist --output runs/mine`.

Started again with the same flags, it resumes from the last checkpoint.
"""

import os
import sys

from sd_tf import commandline
from sd_tf.config import RunConfig
from sd_tf.training.launch import end_with_launcher, launch


def main(arguments=None):
    """Parses flags and trains; `arguments` are the words after the command, None for this process's own."""
    parser = commandline.Parser("python -m sd_tf.train", description=__doc__)
    commandline.add_flags(parser, RunConfig)
    config = commandline.from_flags(parser.parse_args(arguments), RunConfig)
    if config.workers and not config.dry_run and "TF_CONFIG" not in os.environ:
        again = ["-m", "sd_tf.train", *arguments] if arguments is not None else sys.orig_argv[1:]
        status = launch([sys.executable, *again, "--strategy", "multiworker"], config.workers)
        raise SystemExit(status)
    end_with_launcher()
    commandline.load_tensorflow()
    from sd_tf.graphs import one_core_for_each_operation
    from sd_tf.training.run import Run

    if not config.remat:  # parts of a batch that compute again go out of step, and each keeps its gradients
        one_core_for_each_operation()
    run = Run(config)
    if config.dry_run:
        from sd_tf.training.dry_run import describe

        print("\n".join(describe(run)))
    else:
        run.train()


if __name__ == "__main__":
    commandline.run(main)

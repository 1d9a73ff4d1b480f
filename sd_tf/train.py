"""Trains a model: `python -m sd_tf.train --dataset fashion_mnist --output runs/mine`.

Started again with the same flags, it resumes from the last checkpoint.
"""

import dataclasses
import os
import sys

from sd_tf import commandline
from sd_tf.data.open import open_data
from sd_tf.data.options import DataOptions
from sd_tf.families import FAMILIES, USUAL, commands_of
from sd_tf.training.launch import end_with_launcher, launch
from sd_tf.training.options import OptimizerOptions, RunOptions

KINDS = (DataOptions, RunOptions, OptimizerOptions)


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags and trains; `arguments` are the command line's, None for this process's own."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    name, flags = (words[0], words[1:]) if words and words[0] in FAMILIES else (USUAL, words)
    family = commands_of(name)
    found = parse(name, family, flags)
    options = found[RunOptions]
    if options.workers and not options.dry_run and "TF_CONFIG" not in os.environ:
        again = ["-m", "sd_tf.train", *words] if arguments is not None else sys.orig_argv[1:]
        status = launch([sys.executable, *again, "--strategy", "multiworker"], options.workers)
        if status:
            raise SystemExit(status)
        return
    end_with_launcher()
    _train(family, found)


def parse(name, family, flags):
    """Options class -> its instance, parsed from the flags.

    Args:
        name: name of the family.
        family: the family's module, from `families.commands_of`.
        flags: the arguments after the family's name.
    """
    kinds = (*KINDS, family.Options)
    parser = _parser(name, family, {})
    if {"-h", "--help"} & set(flags):  # shows the defaults of the preset that the other flags select
        others = [flag for flag in flags if flag not in ("-h", "--help")]
        given = parser.parse_args(others)
        dataset = commandline.from_flags(given, DataOptions).dataset
        parser = _parser(
            name, family, family.defaults(dataset, commandline.from_flags(given, family.Options))
        )
    arguments = parser.parse_args(flags)
    return {kind: commandline.from_flags(arguments, kind) for kind in kinds}


def _parser(name, family, defaults):
    program = f"python -m sd_tf.train{'' if name == USUAL else f' {name}'}"
    families = "|".join(FAMILIES)
    usage = f"python -m sd_tf.train [{families}] [flags]"
    parser = commandline.Parser(program, usage, description=__doc__)
    for kind in (DataOptions, RunOptions, family.Options, OptimizerOptions):
        commandline.add_flags(parser, kind, defaults)
    return parser


def model_and_data(family, found):
    """Sets TensorFlow up, and returns the model to train and its `Data`.

    What can be wrong with the flags is said before TensorFlow is imported, which takes seconds.

    Args:
        family: the family's module, from `families.commands_of`.
        found: the result of `parse`.
    """
    data_options, options, own = found[DataOptions], found[RunOptions], found[family.Options]
    others = {name: value for name, value in data_options.given.items() if name != "dataset"}
    data = open_data(data_options.dataset, **others)
    family.check(own)
    commandline.load_tensorflow()
    from sd_tf.graphs import one_core_for_each_operation, pays_to_divide

    configs = map(found[OptimizerOptions].applied_to, family.stage_configs(data.name, own))
    smallest = (options.overfit or min(config.batch_size for config in configs)) // options.accumulate
    # Slices that recompute get out of step, and each would keep its gradients.
    if pays_to_divide(smallest) and not options.remat:
        one_core_for_each_operation()
    if options.deterministic:
        commandline.make_deterministic()
    return family.model_for_training(own, data, options.precision, options.seed), data


def _train(family, found):
    options, own, optimizing = found[RunOptions], found[family.Options], found[OptimizerOptions]
    model, data = model_and_data(family, found)
    from sd_tf.training.fit import fit, run_folder

    folder = run_folder(options.output, data)
    if options.dry_run:
        from sd_tf.training.dry_run import describe
        from sd_tf.training.run import Run

        options, recipe = dataclasses.replace(options, output=str(folder)), family.recipe(model, own, folder)
        print("\n".join(describe(Run(recipe, data, options, optimizing))))
        return
    # This process is already a worker, and `fit` takes the folder as an argument of its own.
    here = dataclasses.replace(options, workers=None, output=RunOptions().output)
    with commandline.terminating_like_ctrl_c():
        fit(model, family.recipe, data, folder=folder, options=[here, own, optimizing])
    print(f"finished: {folder}")


if __name__ == "__main__":
    commandline.run(main)

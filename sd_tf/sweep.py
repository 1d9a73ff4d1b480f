"""What guidance does: `python -m sd_tf.sweep "a red dress" --run runs/mine`.

Draws one prompt at several guidance scales (columns) with the weights of several times of a run (rows), which
`sd_tf.train --snapshots` has kept, and writes one contact sheet. With several --steps, --sampler or
--thresholding the rows are these, drawn with the finished model. Every picture begins with the same noise.
"""

import json
from pathlib import Path

from sd_tf import commandline, families
from sd_tf.checkpoints.sources import refuse_links_out
from sd_tf.diffusion.thresholding import Thresholding
from sd_tf.errors import InputError
from sd_tf.generation.checks import check_whole
from sd_tf.generation.request import LARGEST_SEED, checked_prompts
from sd_tf.generation.settings import Settings
from sd_tf.training.own_folder import steps_in

SCALES = [0.1, 1.0, 3.0, 5.0, 7.5]
ROWS = ("steps", "sampler", "thresholding")  # settings of which several values are rows


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, draws and writes the sheet."""
    flags = _parser().parse_args(arguments)
    output = Path(flags.output)
    commandline.check_writable(output.parent)
    if output.suffix.lower() != ".png":
        raise InputError(f"--output is {flags.output}: name a .png file")
    commandline.check_no_folder(output)
    given = _given(flags)
    several = _several(given)
    families.check_draws_in_steps(flags.run, "a sheet of steps and guidance", flags.revision)
    snapshots = {} if several else _snapshots(flags.run)
    families.check(flags.run, from_text=True, **commandline.loading(flags))
    families.check_takes(families.class_of(flags.run, flags.revision), given)
    commandline.load_tensorflow()
    from sd_tf.images import contact_sheet, save_png

    rows = [f"{several} {value}" for value in given[several]] if several else _names(snapshots)
    sheet = contact_sheet(
        _drawn(flags, given, several, snapshots.values()),
        rows,
        [f"guidance {scale:g}" for scale in flags.guidance_scale],
        flags.prompt,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"prompt": flags.prompt, "run": flags.run, "seed": flags.seed}
    told = {name: values[0] if name != several else json.dumps(values) for name, values in given.items()}
    save_png(output, sheet, settings | told)
    print(output)


def _parser():
    parser = commandline.Parser("python -m sd_tf.sweep", description=__doc__)
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument(
        "--run",
        required=True,
        help="folder of a finished run with snapshots; or any model, if the rows are settings",
    )
    commandline.add_loading(parser)
    parser.add_argument(
        "--guidance-scale",
        type=float,
        nargs="+",
        default=SCALES,
        help=f"columns (default: {' '.join(f'{scale:g}' for scale in SCALES)})",
    )
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[20], help="sampling steps; several are rows (default: 20)"
    )
    parser.add_argument("--sampler", nargs="+", help="several are rows (default: the model's, or ddim)")
    parser.add_argument(
        "--thresholding",
        nargs="+",
        help="of a cascade: dynamic, static or none; several are rows (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of every picture (default: 0)")
    parser.add_argument("--output", default="sweep.png", help="file of the sheet (default: sweep.png)")
    return parser


def _given(flags):
    """Name -> values of the settings of rows, checked."""
    given = {name: getattr(flags, name) for name in ROWS if getattr(flags, name) is not None}
    checked_prompts(flags.prompt)
    check_whole("--seed", flags.seed, 0, LARGEST_SEED)
    for scale in flags.guidance_scale:
        Settings(guidance_scale=scale)
    for name in ("steps", "sampler"):
        for value in given.get(name, ()):
            Settings(**{name: value})
    for value in given.get("thresholding", ()):
        Thresholding().replaced(value)
    return given


def _several(given):
    """The setting whose values are the rows; None where the rows are snapshots."""
    several = [name for name, values in given.items() if len(values) > 1]
    if len(several) > 1:
        flags = " and ".join(f"--{name}" for name in several)
        raise InputError(f"{flags} have several values: the rows are those of one, give one of the others")
    return several[0] if several else None


def _snapshots(run):
    """Step -> folder of the snapshots of a run."""
    snapshots = steps_in(Path(run) / "snapshots")
    if not snapshots:
        raise InputError(
            f"{run} has no snapshots: train with --snapshots 8, or give several --steps, --sampler or "
            "--thresholding"
        )
    refuse_links_out(Path(run) / "snapshots")
    return snapshots


def _names(snapshots):
    return [f"step {step:,}" for step in snapshots]


def _drawn(flags, given, several, snapshots):
    """uint8 (rows, guidance scales, height, width, 3)."""
    import numpy as np

    finished = families.load(flags.run, **commandline.loading(flags))
    settings = {name: values[0] for name, values in given.items()} | {"seed": flags.seed}
    settings["engine"] = "tensorflow"

    def row(model, **own):
        columns = [{"guidance_scale": scale} | settings | own for scale in flags.guidance_scale]
        return [model.generate(flags.prompt, **column)[0] for column in columns]

    if several:
        return np.array([row(finished, **{several: value}) for value in given[several]])
    rows = []
    for snapshot in snapshots:
        model = families.with_snapshot(finished, flags.run, snapshot, flags.variant)
        rows.append(row(model))
    return np.array(rows)


if __name__ == "__main__":
    commandline.run(main)

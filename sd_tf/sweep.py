"""How guidance changes during training: `python -m sd_tf.sweep "a red dress" --run runs/mine`.

Draws one prompt at several guidance scales (columns) with the weights of several times of a run (rows), which
`sd_tf.train --snapshots` has kept, and writes one contact sheet. Every picture begins with the same noise.
"""

from pathlib import Path

from sd_tf import commandline, families
from sd_tf.checkpoints.sources import refuse_links_out
from sd_tf.errors import InputError
from sd_tf.training.own_folder import steps_in

SCALES = [0.1, 1.0, 3.0, 5.0, 7.5]


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, draws and writes the sheet."""
    flags = _parser().parse_args(arguments)
    output = Path(flags.output)
    commandline.check_writable(output.parent)
    if output.suffix.lower() != ".png":
        raise InputError(f"--output is {flags.output}: name a .png file")
    commandline.check_no_folder(output)
    snapshots = steps_in(Path(flags.run) / "snapshots")
    if not snapshots:
        raise InputError(f"{flags.run} has no snapshots: train with --snapshots 8")
    refuse_links_out(Path(flags.run) / "snapshots")
    families.check(flags.run, only=("latent",), **commandline.loading(flags))
    commandline.load_tensorflow()
    from sd_tf.images import contact_sheet, save_png

    sheet = contact_sheet(
        _drawn(flags, snapshots.values()),
        [f"step {step:,}" for step in snapshots],
        [f"guidance {scale:g}" for scale in flags.guidance_scale],
        flags.prompt,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"prompt": flags.prompt, "run": flags.run, "seed": flags.seed, "steps": flags.steps}
    save_png(output, sheet, settings)
    print(output)


def _parser():
    parser = commandline.Parser("python -m sd_tf.sweep", description=__doc__)
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("--run", required=True, help="folder of a finished run with snapshots")
    commandline.add_loading(parser)
    parser.add_argument(
        "--guidance-scale",
        type=float,
        nargs="+",
        default=SCALES,
        help=f"columns (default: {' '.join(f'{scale:g}' for scale in SCALES)})",
    )
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of every picture (default: 0)")
    parser.add_argument("--output", default="sweep.png", help="file of the sheet (default: sweep.png)")
    return parser


def _drawn(flags, snapshots):
    """uint8 (snapshots, guidance scales, height, width, 3)."""
    import numpy as np

    from sd_tf.latent.folder import load_unet
    from sd_tf.latent.loading import load
    from sd_tf.latent.model import LatentDiffusion

    finished, rows = load(flags.run, **commandline.loading(flags)), []
    settings = {"steps": flags.steps, "seed": flags.seed, "engine": "tensorflow"}
    for snapshot in snapshots:
        unet = load_unet(snapshot, variant=flags.variant)
        if unet.config != finished.unet.config:  # `load` has checked that its sizes fit into memory
            raise InputError(
                f"{snapshot / 'config.json'} is not that of {flags.run}: it is no snapshot of this run"
            )
        parts = finished.autoencoder, unet, finished.text_encoder
        model = LatentDiffusion(*parts, finished.tokenizer, finished.schedule)
        rows.append(
            [model.generate(flags.prompt, guidance_scale=s, **settings)[0] for s in flags.guidance_scale]
        )
    return np.array(rows)


if __name__ == "__main__":
    commandline.run(main)

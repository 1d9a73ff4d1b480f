"""A page to draw with a model: `python -m sd_tf.demo --model fashion-mnist`.

It listens on this machine alone unless --host says otherwise. Ctrl-C ends it.
"""

import importlib.util
import os
from pathlib import Path

from sd_tf import commandline, families
from sd_tf.demo.ending import PICTURES, Ending
from sd_tf.errors import InputError, install_extra


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, loads the model and serves the page until it is interrupted."""
    from sd_tf.demo.limits import Limits

    parser = commandline.Parser("python -m sd_tf.demo", description=__doc__)
    parser.add_argument(
        "--model", default="fashion-mnist", help="a bundled name, a folder, a file or a hub id"
    )
    commandline.add_loading(parser)
    parser.add_argument("--engine", default="auto", help="tensorflow, openvino or auto (default: auto)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may ask for it, beside this machine's own; may be repeated",
    )
    parser.add_argument("--port", type=int, default=7860, help="0 is any free one (default: 7860)")
    commandline.add_flags(parser, Limits)
    flags = parser.parse_args(arguments)
    limits = commandline.from_flags(flags, Limits)
    if importlib.util.find_spec("gradio") is None:
        raise InputError(f"the page needs Gradio: {install_extra('demo')}")
    families.check(flags.model, from_text=True, **commandline.loading(flags))
    families.check_draws_in_steps(flags.model, "the page", flags.revision)
    with Ending() as ending:
        # Gradio reads these when it is imported: nothing is told to anybody, all files are in one place, and
        # of how long requests took, only a few are remembered.
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_ANALYTICS_MAX_EVENTS": "100",
            "GRADIO_TEMP_DIR": str(ending.folder / PICTURES),
        }
        from sd_tf.demo.server import listening

        with listening(flags.host, flags.port) as found:
            _serve(flags, limits, ending, found)


def _serve(flags, limits, ending, found):
    from sd_tf.demo.actions import Actions
    from sd_tf.demo.drawing import BATCH, Drawings
    from sd_tf.demo.files import Files
    from sd_tf.demo.hosts import Hosts
    from sd_tf.demo.listeners import Listeners
    from sd_tf.demo.page import page
    from sd_tf.demo.server import application, serve

    commandline.load_tensorflow()
    from sd_tf.data.pipeline import pictures_at_once

    model = families.load(flags.model, **commandline.loading(flags))
    later = {"super_resolution": {"steps": 1}} if getattr(model, "later_settings", ()) else {}
    first = model.generate("a", steps=1, engine=flags.engine, progress=False, **later)
    if hasattr(model, "encode_images"):
        model.encode_images(first)  # compiled before somebody waits for it
    thresholding = getattr(model, "thresholding", None)  # of a model that draws pixels
    batch_size = BATCH if thresholding is None else pictures_at_once(BATCH, max(model.image_size))
    drawings = Drawings(model, limits.max_seconds, flags.engine, batch_size)
    size = first.shape[2], first.shape[1]
    name = Path(flags.model).resolve().name
    sent, drawn = Files(ending.folder / PICTURES), Files(ending.folder / PICTURES)
    listeners = Listeners()
    actions = Actions(name, drawings, limits, size, sent, drawn, listeners)
    most_steps = min(limits.max_steps, model.schedule.config.num_train_timesteps)
    blocks, style = page(actions, most_steps, model.recommended, thresholding and thresholding.kind)
    hosts = Hosts(flags.host, flags.allow_host)
    app = application(blocks, style, sent, drawn, listeners, hosts)
    host, port = found.getsockname()[:2]
    print(
        f"http://{f'[{host}]' if ':' in host else host}:{port} draws with {flags.model}; Ctrl-C ends it",
        flush=True,
    )

    def closing(received, _):
        ending.limit(128 + received)
        drawings.stop()
        blocks.app.stop_event.set()  # ends Gradio's streams, which would last as long as their browsers

    try:
        ending.begin_serving()
        serve(app, found, closing)
    finally:
        drawings.close(10)


if __name__ == "__main__":
    commandline.run(main)

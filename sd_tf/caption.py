"""Describes pictures that have no captions: `python -m sd_tf.caption --data-dir my-pictures`.

Captions go to metadata.jsonl in the folder; those that are there are kept. Started again, it goes on where it
was stopped. `--review` then shows the captions on a page to correct them, and
`python -m sd_tf.train --dataset folder --data-dir my-pictures` trains on them.
"""

import sys

from sd_tf import commandline
from sd_tf.captioning.describing import BLIP_BASE

MOST_NAMED = 20  # damaged pictures


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, and describes pictures or serves the page."""
    flags = _parser().parse_args(arguments)
    if flags.review:
        from sd_tf.captioning.review import serve

        serve(flags.data_dir, flags.port, _announce)
        return
    from sd_tf.captioning.folder import caption_folder

    found = caption_folder(flags.data_dir, flags.model, flags.prefix, flags.batch_size)
    for problem in found.problems[:MOST_NAMED]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(found.problems) > MOST_NAMED:
        print(f"left out: {len(found.problems) - MOST_NAMED} more", file=sys.stderr)
    print(f"{found.written} described, {found.kept} had a caption, {len(found.problems)} left out")


def _announce(address):
    print(f"{address} shows the captions; Ctrl-C ends it", flush=True)


def _parser():
    parser = commandline.Parser("python -m sd_tf.caption", description=__doc__)
    parser.add_argument("--data-dir", required=True, help="folder of pictures")
    parser.add_argument(
        "--model", default=BLIP_BASE, help=f"hub id or folder of a BLIP (default: {BLIP_BASE})"
    )
    parser.add_argument("--prefix", default="", help="what captions begin with, such as 'a photo of'")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at once (default: 8)")
    parser.add_argument("--review", action="store_true", help="correct the captions on a local page")
    parser.add_argument("--port", type=int, default=0, help="of the page; 0 is any free one (default: 0)")
    return parser


if __name__ == "__main__":
    commandline.run(main)

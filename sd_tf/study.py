"""Trains and scores several configurations alike: `python -m sd_tf.study gigagan-ladder --minutes 15`.

gigagan-ladder: what each part of a small GigaGAN is worth. Writes report.html, a page to look at, and
results.json. Started again with the same flags, it goes on where it was.
"""

import shlex
import sys

from sd_tf import commandline
from sd_tf.errors import InputError, unknown
from sd_tf.files import write_json, write_text
from sd_tf.studies import gigagan
from sd_tf.studies.ladder import PAGE, RESULTS, climb, to_json

STUDIES = {gigagan.NAME: gigagan}


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, makes the runs that are not made yet, and writes the page."""
    parser = commandline.Parser("python -m sd_tf.study", description=__doc__)
    parser.add_argument("study", help=f"what is studied: {', '.join(STUDIES)}")
    gigagan.add_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.study not in STUDIES:
        raise unknown("study", flags.study, STUDIES)
    words = sys.argv[1:] if arguments is None else arguments
    study, command = STUDIES[flags.study], shlex.join(["python", "-m", "sd_tf.study", *words])
    ladder = study.ladder_of(flags)
    for note in ladder.notes:
        print(note, file=sys.stderr)
    with commandline.terminating_like_ctrl_c():
        results = climb(ladder)
        _write(study, flags, ladder, results, command)
    failed = [result for result in results if result.failure]
    if len(failed) == len(results):
        raise InputError(f"all {len(results)} runs failed, the first of them since: {failed[0].failure}")


def _write(study, flags, ladder, results, command):
    """Writes and prints what was found; TensorFlow, which draws for the page, is imported only now."""
    folder = ladder.folder
    write_json(folder / RESULTS, to_json(ladder, results, command))
    commandline.load_tensorflow()
    from sd_tf.images import file_name, save_png
    from sd_tf.studies.report import as_text, page

    sheets = study.sheets(flags, results)
    (folder / "pictures").mkdir(exist_ok=True)
    for number, (prompt, sheet) in enumerate(sheets.items()):
        save_png(folder / "pictures" / file_name(prompt, number), sheet)
    write_text(folder / PAGE, page(ladder, results, sheets, command))
    print(as_text(ladder, results))
    print(f"written: {folder / RESULTS}, {folder / PAGE}")


if __name__ == "__main__":
    commandline.run(main)

"""Writes a model for places without this package: `python -m sd_tf.export --model M --output DIR`.

A SavedModel takes prompts and gives PNG files, tokenizer and sampler included. LiteRT and ONNX have a file
for each network, and draw.py, which draws with them. Each is then drawn with, beside the model.
"""

import time
from pathlib import Path

import numpy as np

from sd_tf import commandline, families
from sd_tf.errors import InputError, unknown
from sd_tf.files import read_json, write_json

FORMATS = ("savedmodel", "litert", "onnx")
MARK = "sd_tf.json"  # says that this command made the folder, which may be replaced then
MADE_BY = {"made_by": "sd_tf.export"}
OURS = {  # what such a folder holds, and no more
    MARK,
    *("saved_model.pb", "fingerprint.pb", "variables", "assets"),
    *("draw.py", "settings.json", "tokenizer.json", "float16", "int8", "onnx"),
}
PROMPTS = ("a red dress", "a photo of a blue bag", "green trousers", "a shirt", "a black sneaker")


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, writes, draws with what was written, and prints a table of both."""
    parser = commandline.Parser("python -m sd_tf.export", description=__doc__)
    parser.add_argument(
        "--model", default="fashion-mnist", help="a bundled name, a folder, a file or a hub id"
    )
    commandline.add_loading(parser)
    parser.add_argument(
        "--format", default="savedmodel", help="savedmodel, litert or onnx (default: savedmodel)"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=20, help="of the pictures in the table (default: 20)")
    parser.add_argument("--no-table", action="store_true", help="do not draw with it")
    flags = parser.parse_args(arguments)
    if flags.format not in FORMATS:
        raise unknown("--format", flags.format, FORMATS)
    output = Path(flags.output)
    commandline.check_writable(output)
    if flags.steps < 1:
        raise InputError(f"--steps is {flags.steps}: give 1 or more")
    if output.exists() and not _is_ours(output):
        raise InputError(f"--output {output} holds something else: name another folder")
    from sd_tf.checkpoints.replacing import check_replaceable, replacing

    check_replaceable(output)
    loading = commandline.loading(flags)
    families.check(flags.model, **loading)
    commandline.load_tensorflow()
    import sd_tf

    model = sd_tf.load(flags.model, **loading)
    with replacing(output) as folder:
        write_json(folder / MARK, MADE_BY | {"format": flags.format})
        _write(model, folder, flags.format)
    print(output)
    if flags.no_table:
        return

    def drawn(generate):
        """The pictures, and the median of the seconds each took; the first is not timed."""
        images, seconds = [], []
        generate(PROMPTS[0])
        for prompt in PROMPTS:
            start = time.perf_counter()
            images.append(generate(prompt))
            seconds.append(time.perf_counter() - start)
        return np.stack(images).astype(int), float(np.median(seconds))

    settings = {"steps": flags.steps, "engine": "tensorflow", "progress": False}
    expected, seconds = drawn(lambda prompt: model.generate(prompt, **settings)[0])
    size = sum(network.count_params() * 4 for network, _, _ in model.engines.networks.values())
    print(f"{'':12}{'MB':>8}{'seconds':>9}   difference of pixels, of 255: mean, most")
    print(f"{'the model':12}{size / 1e6:8.1f}{seconds:9.2f}")
    for name, generate in _generators(output, flags.format, flags.steps).items():
        images, seconds = drawn(generate)
        size = sum(file.stat().st_size for file in (output / name).rglob("*") if file.is_file())
        difference = np.abs(images - expected)
        said = f"{difference.mean():.3f} {difference.max()}"
        print(f"{flags.format if name == '.' else name:12}{size / 1e6:8.1f}{seconds:9.2f}   {said}")


def _is_ours(folder):
    """Whether nothing is lost where a folder is replaced: this command made it, and nothing else is in it."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names or names - OURS:
        return not names
    try:
        return read_json(folder / MARK, root=folder).items() >= MADE_BY.items()
    except InputError:
        return False


def _write(model, folder, kind):
    if kind == "savedmodel":
        from sd_tf.exporting.saved_model import GraphModel

        GraphModel(model).save(folder)
        return
    from sd_tf.exporting.networks import LITERT, write_litert, write_onnx, write_what_draws

    write_what_draws(model, folder)
    if kind == "onnx":
        write_onnx(model, folder / "onnx")
        return
    for precision in LITERT:
        write_litert(model, folder / precision, precision)


def _generators(folder, kind, steps):
    """Part of the folder -> what draws one picture with it, of a prompt."""
    if kind != "savedmodel":
        from sd_tf.exporting import draw
        from sd_tf.exporting.networks import LITERT

        models = {part: draw.Model(folder, part) for part in (LITERT if kind == "litert" else ("onnx",))}
        return {
            part: lambda prompt, model=model: model.generate(prompt, steps) for part, model in models.items()
        }
    from sd_tf.exporting.saved_model import served

    return {".": served(folder, steps)}


if __name__ == "__main__":
    commandline.run(main)

"""Writes a model for places without this package: `python -m sd_tf.export --model M --output DIR`.

A SavedModel takes prompts and gives PNG files, tokenizer and sampler included. LiteRT and ONNX have a file
for each network, and draw.py, which draws with them. Each is then drawn with, beside the model.
"""

import threading
import time
from pathlib import Path

import numpy as np

from sd_tf import commandline, families
from sd_tf.errors import InputError, naming, unknown
from sd_tf.files import read_json, write_json
from sd_tf.progress import tqdm

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
    parser.add_argument(
        "--sr-steps", type=int, default=10, help="likewise of a cascade's later stages (default: 10)"
    )
    parser.add_argument("--no-table", action="store_true", help="do not draw with it")
    flags = parser.parse_args(arguments)
    if flags.format not in FORMATS:
        raise unknown("--format", flags.format, FORMATS)
    output = Path(flags.output)
    commandline.check_writable(output)
    for name, steps in (("--steps", flags.steps), ("--sr-steps", flags.sr_steps)):
        if steps < 1:
            raise InputError(f"{name} is {steps}: give 1 or more")
    if output.exists() and not _is_ours(output):
        raise InputError(f"--output {output} holds something else: name another folder")
    from sd_tf.checkpoints.replacing import check_replaceable, replacing

    check_replaceable(output)
    loading = commandline.loading(flags)
    families.check(flags.model, from_text=True, **loading)
    families.check_draws_in_steps(flags.model, "an export", flags.revision)
    model = families.load_lazily(flags.model, **loading)
    if not getattr(model, "reads_by_clip", True):
        raise InputError(
            f"--model {flags.model} reads with a T5 or BERT: of latent models, only models that read with a "
            "CLIP are exported"
        )
    if not flags.no_table:
        _check_steps(model, flags)
    commandline.load_tensorflow()
    model = families.load(flags.model, **loading)
    with _Progress() as progress, replacing(output) as folder:
        write_json(folder / MARK, MADE_BY | {"format": flags.format})
        _write(model, folder, flags.format, progress)
    print(output)
    if flags.no_table:
        return
    with _Progress() as progress:
        for line in _table(model, output, flags, progress):
            progress.print(line)


def _check_steps(model, flags):
    """Raises `InputError` for steps that a stage of the model cannot draw the table's pictures by."""
    for number, stage in enumerate(getattr(model, "stages", (model,))):
        flag, steps = ("--sr-steps", flags.sr_steps) if number else ("--steps", flags.steps)
        with naming(flag):
            stage.schedule.inference_timesteps(steps)


class _Progress:
    """A line on a terminal that says what is being done, and for how long this has taken in all."""

    def __enter__(self):
        self.bar = tqdm(bar_format="{desc} [{elapsed}]", disable=None, leave=False)
        self._ended = threading.Event()
        if not self.bar.disable:
            threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def _go_on(self):
        while not self._ended.wait(1.0):
            self.bar.refresh()

    def __call__(self, text):
        self.bar.set_description_str(text)

    def print(self, line):
        """Prints a line above it."""
        self.bar.write(line)

    def __exit__(self, *_):
        self._ended.set()
        self.bar.close()


def _table(model, output, flags, progress):
    """Yields lines that hold what was written against the model: size, seconds, difference of pictures."""
    from sd_tf.exporting.parts import parts_of

    settings = {"steps": flags.steps, "sampler": "ddim", "guidance_scale": 3.0}  # as what was written draws
    settings |= {"engine": "tensorflow", "progress": False}
    later = {}
    if len(getattr(model, "stages", ())) > 1:
        settings["super_resolution"] = {"steps": flags.sr_steps, "sampler": "ddim", "guidance_scale": 1.0}
        later = {"sr_steps": flags.sr_steps, "sr_guidance_scale": 1.0}
    expected, seconds = _drawn("the model", lambda prompt: model.generate(prompt, **settings)[0], progress)
    size = sum(network.model.count_params() * 4 for network in parts_of(model).networks)
    yield f"{'':12}{'MB':>8}{'seconds':>9}   difference of pixels, of 255: mean, most"
    yield f"{'the model':12}{size / 1e6:8.1f}{seconds:9.2f}"
    progress("opening what was written")
    for part, generate in _generators(output, flags.format, flags.steps, later).items():
        name = flags.format if part == "." else part
        images, seconds = _drawn(name, generate, progress)
        size = sum(file.stat().st_size for file in (output / part).rglob("*") if file.is_file())
        difference = np.abs(images - expected)
        said = f"{difference.mean():.3f} {difference.max()}"
        yield f"{name:12}{size / 1e6:8.1f}{seconds:9.2f}   {said}"


def _drawn(name, generate, progress):
    """The pictures, and the median of the seconds each took; the first is not timed."""
    images, seconds = [], []
    progress(f"drawing with {name}: compiling")
    generate(PROMPTS[0])
    for number, prompt in enumerate(PROMPTS, 1):
        progress(f"drawing with {name}: picture {number} of {len(PROMPTS)}")
        start = time.perf_counter()
        images.append(generate(prompt))
        seconds.append(time.perf_counter() - start)
    return np.stack(images).astype(int), float(np.median(seconds))


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


def _write(model, folder, kind, progress):
    if kind == "savedmodel":
        from sd_tf.exporting.saved_model import GraphModel

        progress("writing the SavedModel")
        GraphModel(model).save(folder)
        return
    from sd_tf.exporting.networks import LITERT, write_litert, write_onnx, write_what_draws

    progress("writing draw.py")
    write_what_draws(model, folder)
    if kind == "onnx":
        write_onnx(model, folder / "onnx", progress)
        return
    for precision in LITERT:
        write_litert(model, folder / precision, precision, progress)


def _generators(folder, kind, steps, later):
    """Part of the folder -> what draws one picture with it, of a prompt; `later` are a cascade's settings."""
    if kind != "savedmodel":
        from sd_tf.exporting import draw
        from sd_tf.exporting.networks import LITERT

        models = {part: draw.Model(folder, part) for part in (LITERT if kind == "litert" else ("onnx",))}
        return {
            part: lambda prompt, model=model: model.generate(prompt, steps, **later)
            for part, model in models.items()
        }
    from sd_tf.exporting.saved_model import served

    return {".": served(folder, steps, **later)}


if __name__ == "__main__":
    commandline.run(main)

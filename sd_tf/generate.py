"""Draws pictures: `python -m sd_tf.generate "a red dress" --num-images 16 --output out/`.

With `--frames 8` those on the way from one prompt, or seed, to the next.
"""

from pathlib import Path

import numpy as np

from sd_tf import commandline
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.errors import InputError, unknown
from sd_tf.images import file_name, save_png, save_sheet

BLACK = (0, 0, 0)  # behind what is transparent in a mask: nothing is drawn there
OF_ALL = (  # ways to draw
    *("steps", "guidance_scale", "guidance_interval", "guidance_rescale", "sampler", "timestep_spacing"),
    *("karras", "eta"),
)
SHEET, STRIP = "grid.png", "strip.png"
NOT_OF_FRAMES = ("image", "clip_guidance", "initial_noise", "strip")


def main(arguments=None):
    """Parses flags, draws and writes PNG files and, for several pictures, a sheet of all."""
    flags = _parser().parse_args(arguments)
    output = Path(flags.output)
    commandline.check_writable(output)
    _check(flags)
    files = _files(output, flags)
    for file in (*files, output / SHEET, output / STRIP):
        commandline.check_no_folder(file)
    begin = _begin(flags)
    model = _load(flags)
    if flags.clip_guidance is not None:
        from sd_tf.latent.clip_guidance import CLIPGuidance

        scale = 1.0 if flags.clip_guidance_scale is None else flags.clip_guidance_scale
        begin["clip_guidance"] = CLIPGuidance(flags.clip_guidance, scale)
    if flags.initial_noise:
        from sd_tf.latent.initial_noise import InitialNoise

        begin["initial_noise"] = InitialNoise()

    settings = {name: getattr(flags, name) for name in OF_ALL}
    negative = flags.negative_prompt if len(flags.negative_prompt) > 1 else flags.negative_prompt[0]
    of_all = settings | {"batch_size": flags.batch_size, "engine": flags.engine, "negative_prompt": negative}
    said = _said(flags, settings | {"negative_prompt": negative})
    if flags.frames is not None:
        images = model.interpolate(flags.prompt, flags.frames, flags.seed, **of_all)
        output.mkdir(parents=True, exist_ok=True)
        _write_frames(files, images, said | {"prompt": flags.prompt, "seed": flags.seed})
        return
    guesses = {}

    def note(step, latents, prediction):
        guesses.setdefault(step, np.array(prediction.x0[0]))  # a copy: the batch's others can go

    callback = note if flags.strip else None
    [seed] = flags.seed
    images = model.generate(flags.prompt, flags.num_images, seed=seed, callback=callback, **of_all, **begin)
    output.mkdir(parents=True, exist_ok=True)
    _write(files, images, flags, said)
    if guesses:
        strip = model.decode_latents(np.stack(list(guesses.values())), flags.engine)
        _write_sheet(output / STRIP, strip, len(strip), said | {"prompt": flags.prompt[0], "seed": seed})


def _parser():
    parser = commandline.Parser("python -m sd_tf.generate", description=__doc__)
    parser.add_argument("prompt", nargs="+", help="what to draw; several prompts draw several rows")
    parser.add_argument("--model", default="fashion-mnist", help="a bundled name or a folder")
    parser.add_argument(
        "--lora", nargs="+", default=[], metavar="FILE", help="adaptations of the model, files or run folders"
    )
    parser.add_argument(
        "--lora-weight",
        type=float,
        nargs="+",
        metavar="WEIGHT",
        help="how much of them: one for all, or one for each (default: 1)",
    )
    parser.add_argument(
        "--textual-inversion", nargs="+", default=[], metavar="FILE", help="words for the model to know"
    )
    parser.add_argument("--num-images", type=int, default=1, help="for each prompt (default: 1)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="pull of the prompt (default: 3)")
    commandline.add_guidance_interval(parser)
    parser.add_argument(
        "--guidance-rescale", type=float, default=0.0, help="0 to 1, takes back contrast (default: 0)"
    )
    parser.add_argument(
        "--clip-guidance", metavar="CLIP", help="a CLIP that guides as well: clip-mini, a folder or a hub id"
    )
    parser.add_argument("--clip-guidance-scale", type=float, help="how much it does (default: 1)")
    parser.add_argument(
        "--initial-noise", action="store_true", help="begin with noise that every word is seen in (InitNO)"
    )
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="of the first picture; of --frames, several as well"
    )
    parser.add_argument(
        "--negative-prompt",
        nargs="+",
        default=[""],
        help="what to lean away from: one, or one for each prompt",
    )
    commandline.add_levels(parser)
    parser.add_argument("--sampler", default="ddim", help=f"{', '.join(SAMPLERS)} (default: ddim)")
    parser.add_argument("--eta", type=float, default=0.0, help="fresh noise in DDIM, 0 to 1 (default: 0)")
    parser.add_argument(
        "--image", metavar="FILE", help="a picture to begin with; its sides are multiples of 8, or as said"
    )
    parser.add_argument(
        "--strength", type=float, help="with --image: how much of it may change, 0 to 1 (default: 0.8)"
    )
    parser.add_argument("--mask", metavar="FILE", help="with --image: white where it may change")
    parser.add_argument(
        "--strip", action="store_true", help="also show what each step thought the first picture would be"
    )
    parser.add_argument(
        "--frames", type=int, help="pictures on the way from each prompt to the next, or each --seed"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="pictures drawn at once (default: 64)")
    parser.add_argument("--engine", default="auto", help="tensorflow, openvino or auto (default: auto)")
    parser.add_argument("--precision", default=None, help="a Keras policy (default: float32)")
    parser.add_argument("--output", default="out", help="folder for the pictures (default: out)")
    return parser


def _check(flags):
    """What the flags say together."""
    from sd_tf.generation.loop import MOST_PICTURES, check_whole
    from sd_tf.training.options import PRECISIONS

    if flags.precision is not None and flags.precision not in PRECISIONS:
        raise unknown("--precision", flags.precision, PRECISIONS)
    if flags.lora_weight and not flags.lora:
        raise InputError("--lora-weight is of --lora: name its file")
    if flags.lora_weight and len(flags.lora_weight) not in (1, len(flags.lora)):
        raise InputError(
            f"{len(flags.lora_weight)} weights for {len(flags.lora)} LoRAs: give --lora-weight one for all, "
            "or one for each"
        )
    if flags.clip_guidance_scale is not None and flags.clip_guidance is None:
        raise InputError("--clip-guidance-scale is of --clip-guidance: name a CLIP")
    if flags.frames is None and len(flags.seed) > 1:
        raise InputError(f"--seed has {len(flags.seed)} numbers: give one, or --frames to go between them")
    check_whole("num_images", flags.num_images, 1, MOST_PICTURES)
    if flags.frames is not None:
        check_whole("frames", flags.frames, 2, MOST_PICTURES)
        for name in NOT_OF_FRAMES:
            if getattr(flags, name):
                raise InputError(
                    f"--frames does not go with --{name.replace('_', '-')}: leave one of them out"
                )
        for name, usual in (("num_images", 1), ("negative_prompt", flags.negative_prompt[:1])):
            if getattr(flags, name) != usual:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} is one for all --frames: leave the others out")


def _begin(flags):
    """The picture that is drawn on, as `LatentDiffusion.generate` takes it."""
    from sd_tf.data.opening import WHITE, open_picture

    for name in ("strength", "mask"):
        if getattr(flags, name) is not None and flags.image is None:
            raise InputError(f"--{name} is of a picture: give --image as well")
    found = {} if flags.strength is None else {"strength": flags.strength}
    for name, mode, background in (("image", "RGB", WHITE), ("mask", "L", BLACK)):
        file = getattr(flags, name)
        if file is not None:
            try:
                found[name] = np.asarray(open_picture(file, background).convert(mode))
            except InputError as error:
                raise InputError(f"--{name} {file} {error}") from None
    return found


def _load(flags):
    """The model, with its words and LoRAs."""
    import sd_tf
    from sd_tf.latent.loading import needs_networks

    of_networks = (flags.lora, flags.textual_inversion, flags.image, flags.clip_guidance, flags.initial_noise)
    if any(of_networks) or flags.engine == "tensorflow" or needs_networks(flags.model, flags.precision):
        commandline.load_tensorflow()
    model = sd_tf.load(flags.model, dtype=flags.precision)
    for file in flags.textual_inversion:
        model.load_textual_inversion(file)
    for file, weight in _loras(flags):
        model.load_lora(file, weight, name=file)
    return model


def _loras(flags):
    """(file, weight) of each."""
    weights = flags.lora_weight or [1.0]
    return list(zip(flags.lora, weights * (len(flags.lora) // len(weights)), strict=True))


def _said(flags, settings):
    """What is written into every picture."""
    names = ("image", "strength", "mask", "clip_guidance", "clip_guidance_scale")
    said = settings | {name: getattr(flags, name) for name in names}
    said |= {name: getattr(flags, name) or None for name in ("initial_noise", "textual_inversion")}
    said |= {"model": flags.model, "lora": dict(_loras(flags)) or None}
    return {name: value for name, value in said.items() if value is not None}


def _files(output, flags):
    """Where the pictures go, one for each."""
    if flags.frames is not None:
        digits = len(str(flags.frames - 1))
        return [output / f"frame-{i:0{digits}}.png" for i in range(flags.frames)]
    files = {}  # a set that keeps its order
    for i in range(len(flags.prompt) * flags.num_images):
        prompt, seed = flags.prompt[i // flags.num_images], flags.seed[0] + i % flags.num_images
        file = output / file_name(prompt, seed)
        if file in files:  # two prompts alike in their letters, or in their first sixty
            file = file.with_stem(f"{file.stem}-{i}")
        files[file] = None
    return list(files)


def _write(files, images, flags, said):
    """A file for each picture, and a sheet."""
    for i, (file, image) in enumerate(zip(files, images, strict=True)):
        own = {"prompt": flags.prompt[i // flags.num_images], "seed": flags.seed[0] + i % flags.num_images}
        save_png(file, image, said | own)
        print(file)
    if len(images) > 1:
        columns = flags.num_images if len(flags.prompt) > 1 else round(len(images) ** 0.5)
        of_all = said | {"prompt": flags.prompt, "seed": flags.seed[0]}
        _write_sheet(files[0].with_name(SHEET), images, columns, of_all)


def _write_frames(files, images, said):
    """A file for each frame, numbered, and a sheet."""
    for i, (file, image) in enumerate(zip(files, images, strict=True)):
        save_png(file, image, said | {"frame": f"{i} of {len(images)}"})
        print(file)
    _write_sheet(files[0].with_name(SHEET), images, round(len(images) ** 0.5), said)


def _write_sheet(file, images, columns, said):
    save_sheet(file, images, columns, said)
    print(file)


if __name__ == "__main__":
    commandline.run(main)

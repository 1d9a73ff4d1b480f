"""Draws pictures: `python -m sd_tf.generate "a red dress" --num-images 16 --output out/`."""

from pathlib import Path

import numpy as np

from sd_tf import commandline
from sd_tf.errors import InputError


def main(arguments=None):
    """Parses flags, draws and writes PNG files and, for several pictures, a sheet of all."""
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
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    parser.add_argument("--negative-prompt", default="", help="what to lean away from")
    commandline.add_levels(parser)
    parser.add_argument("--sampler", default="ddim", help="ddim, euler, dpmpp_2m, unipc, … (default: ddim)")
    parser.add_argument("--eta", type=float, default=0.0, help="fresh noise in DDIM, 0 to 1 (default: 0)")
    parser.add_argument("--image", metavar="FILE", help="a picture to begin with, of the model's size")
    parser.add_argument(
        "--strength", type=float, help="with --image: how much of it may change, 0 to 1 (default: 0.8)"
    )
    parser.add_argument("--mask", metavar="FILE", help="with --image: white where it may change")
    parser.add_argument(
        "--strip", action="store_true", help="also show what each step thought the first picture would be"
    )
    parser.add_argument("--engine", default="auto", help="tensorflow, openvino or auto (default: auto)")
    parser.add_argument("--precision", default=None, help="a Keras policy (default: float32)")
    parser.add_argument("--output", default="out", help="folder for the pictures (default: out)")
    flags = parser.parse_args(arguments)

    output = Path(flags.output)
    commandline.check_writable(output)
    import sd_tf
    from sd_tf.checkpoints.loading import needs_networks
    from sd_tf.config import PRECISIONS
    from sd_tf.errors import unknown
    from sd_tf.pictures import file_name, save_png, save_sheet

    if flags.precision is not None and flags.precision not in PRECISIONS:
        raise unknown("--precision", flags.precision, PRECISIONS)
    settings = {
        name: getattr(flags, name)
        for name in (
            "steps",
            "guidance_scale",
            "guidance_interval",
            "guidance_rescale",
            "negative_prompt",
            "sampler",
            "timestep_spacing",
            "karras",
            "eta",
            "seed",
        )
    }
    if flags.lora_weight and not flags.lora:
        raise InputError("--lora-weight is of --lora: name its file")
    begin = _begin(flags)
    weights = flags.lora_weight or [1.0]
    if len(weights) not in (1, max(1, len(flags.lora))):
        raise InputError(
            f"{len(weights)} weights for {len(flags.lora)} LoRAs: give --lora-weight one for all, "
            "or one for each"
        )
    if flags.clip_guidance_scale is not None and flags.clip_guidance is None:
        raise InputError("--clip-guidance-scale is of --clip-guidance: name a CLIP")
    by_tensorflow = flags.lora or flags.image or flags.clip_guidance or flags.engine == "tensorflow"
    if by_tensorflow or needs_networks(flags.model, flags.precision):
        commandline.load_tensorflow()
    model = sd_tf.load(flags.model, dtype=flags.precision)
    loras = list(zip(flags.lora, weights * (len(flags.lora) // len(weights)), strict=True))
    for file, weight in loras:
        model.load_lora(file, weight, name=file)
    if flags.clip_guidance is not None:
        from sd_tf.latent.clip_guidance import CLIPGuidance

        scale = 1.0 if flags.clip_guidance_scale is None else flags.clip_guidance_scale
        begin["clip_guidance"] = CLIPGuidance(flags.clip_guidance, scale)
    guesses = {}

    def note(step, latents, prediction):
        guesses.setdefault(step, np.array(prediction.x0[0]))  # a copy: the batch's others can go

    images = model.generate(
        flags.prompt,
        num_images=flags.num_images,
        engine=flags.engine,
        callback=note if flags.strip else None,
        **settings,
        **begin,
    )

    settings |= {
        name: getattr(flags, name)
        for name in ("image", "strength", "mask", "clip_guidance", "clip_guidance_scale")
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    of_model = {"model": flags.model} | ({"lora": dict(loras)} if loras else {})
    output.mkdir(parents=True, exist_ok=True)
    written = set()
    for i, image in enumerate(images):
        prompt, seed = flags.prompt[i // flags.num_images], flags.seed + i % flags.num_images
        file = output / file_name(prompt, seed)
        if file in written:  # two prompts alike in their letters, or in their first sixty
            file = file.with_stem(f"{file.stem}-{i}")
        written.add(file)
        save_png(file, image, {**settings, **of_model, "prompt": prompt, "seed": seed})
        print(file)
    if len(images) > 1:
        columns = flags.num_images if len(flags.prompt) > 1 else round(len(images) ** 0.5)
        save_sheet(output / "grid.png", images, columns, {**settings, **of_model, "prompt": flags.prompt})
        print(output / "grid.png")
    if guesses:
        strip = model.decode_latents(np.stack(list(guesses.values())), flags.engine)
        said = {**settings, **of_model, "prompt": flags.prompt[0]}
        save_sheet(output / "strip.png", strip, len(strip), said)
        print(output / "strip.png")


def _begin(flags):
    """The picture that is drawn on, as `LatentDiffusion.generate` takes it."""
    from sd_tf.data.opening import open_picture

    for name in ("strength", "mask"):
        if getattr(flags, name) is not None and flags.image is None:
            raise InputError(f"--{name} is of a picture: give --image as well")
    found = {} if flags.strength is None else {"strength": flags.strength}
    for name, mode in (("image", "RGB"), ("mask", "L")):
        file = getattr(flags, name)
        if file is not None:
            try:
                found[name] = np.asarray(open_picture(file).convert(mode))
            except InputError as error:
                raise InputError(f"--{name} {file} {error}") from None
    return found


if __name__ == "__main__":
    commandline.run(main)

"""Draws pictures: `python -m sd_tf.generate "a red dress" --num-images 16 --output out/`."""

from pathlib import Path

from sd_tf import commandline


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
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    parser.add_argument("--negative-prompt", default="", help="what to lean away from")
    commandline.add_levels(parser)
    parser.add_argument("--sampler", default="ddim", help="ddim, euler, dpmpp_2m, unipc, … (default: ddim)")
    parser.add_argument("--eta", type=float, default=0.0, help="fresh noise in DDIM, 0 to 1 (default: 0)")
    parser.add_argument("--engine", default="auto", help="tensorflow, openvino or auto (default: auto)")
    parser.add_argument("--precision", default=None, help="a Keras policy (default: float32)")
    parser.add_argument("--output", default="out", help="folder for the pictures (default: out)")
    flags = parser.parse_args(arguments)

    output = Path(flags.output)
    commandline.check_writable(output)
    import sd_tf
    from sd_tf.checkpoints.loading import needs_networks
    from sd_tf.config import PRECISIONS
    from sd_tf.errors import InputError, unknown
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
        if getattr(flags, name) is not None
    }
    if flags.lora_weight and not flags.lora:
        raise InputError("--lora-weight is of --lora: name its file")
    weights = flags.lora_weight or [1.0]
    if len(weights) not in (1, max(1, len(flags.lora))):
        raise InputError(
            f"{len(weights)} weights for {len(flags.lora)} LoRAs: give --lora-weight one for all, "
            "or one for each"
        )
    if flags.lora or flags.engine == "tensorflow" or needs_networks(flags.model, flags.precision):
        commandline.load_tensorflow()
    model = sd_tf.load(flags.model, dtype=flags.precision)
    loras = dict(zip(flags.lora, weights * (len(flags.lora) // len(weights)), strict=True))
    for file, weight in loras.items():
        model.load_lora(file, weight, name=file)
    images = model.generate(flags.prompt, num_images=flags.num_images, engine=flags.engine, **settings)

    of_model = {"model": flags.model} | ({"lora": loras} if loras else {})
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


if __name__ == "__main__":
    commandline.run(main)

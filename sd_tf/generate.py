"""Draws pictures from text: `python -m sd_tf.generate "a red dress" --num-images 16 --output out/`.

With `--frames 8` it interpolates from one prompt, or seed, to the next.
"""

import argparse
import inspect
import os
from pathlib import Path

import numpy as np

from sd_tf import commandline, families
from sd_tf.checkpoints.sources import path_of
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.errors import InputError, naming, printable, unknown
from sd_tf.generation.parameters import KEY, parameters
from sd_tf.images import add_png, file_name, save_sheet
from sd_tf.text import nearest_captions
from sd_tf.text.prompt_syntax import prompt_of, text_of

BLACK = (0, 0, 0)  # the background of a transparent mask: nothing is drawn there
DRAWING_FLAGS = (  # of `sd_tf.generation.settings.Settings`, or `sd_tf.gan.settings.GanSettings`
    *("steps", "guidance_scale", "guidance_interval", "guidance_rescale", "sampler", "timestep_spacing"),
    *("karras", "eta", "resamples", "truncation"),
)
GRID, STRIP = "grid.png", "strip.png"
UPSCALED = "upscaled"  # the name of a file that is drawn without a prompt
NOT_WITH_UPSCALE = (
    *("image", "mask", "strength", "frames", "strip", "stages", "height", "width", "clip_skip"),
    *("clip_guidance", "initial_noise", "reword_to"),
)
ALSO_WITH_UPSCALE = ("truncation",)  # of `DRAWING_FLAGS`
NOT_WITH_FRAMES = ("image", "clip_guidance", "initial_noise", "strip", "clip_skip")


@commandline.naming_flags()
def main(arguments=None):
    """Parses flags, draws, and writes a PNG file for each picture and, for several, a grid of all.

    Pictures that are there already stay: new ones get the next free number. The grid is of this drawing.
    """
    flags = _parser().parse_args(arguments)
    output = Path(flags.output)
    commandline.check_writable(output)
    request = _check(flags)
    for name in (GRID, STRIP):
        commandline.check_no_folder(output / name)
    start = _start_picture(flags)
    captions = None if flags.reword_to is None else _captions(flags.reword_to)
    encoder = None if flags.reword_by is None else open_text_encoder(flags.reword_by)
    model = _load(flags)
    prompts = flags.prompt
    if captions is not None:
        reword = nearest_captions.NearestCaptions(encoder or model.text_reader(), captions)
        request, prompts = _reworded(reword, flags, request)
    given = {name: getattr(flags, name) for name in DRAWING_FLAGS if getattr(flags, name) is not None}
    families.check_takes(type(model), given)
    settings = model.recommended.replaced(**given).to_json()
    if any(flags.negative_prompt) or families.takes(type(model), "negative_prompt"):
        settings["negative_prompt"] = _negative(flags)
    if flags.mask is None:
        settings.pop("resamples", None)
    if flags.upscale is not None:  # those of the first stage, which is not run
        only_drawing = set(DRAWING_FLAGS) - set(ALSO_WITH_UPSCALE)
        settings = {name: value for name, value in settings.items() if name not in only_drawing}
    metadata = _metadata(flags, settings)
    settings |= {name: getattr(flags, name) for name in ("batch_size", "engine", "height", "width")}
    settings["prompt_syntax"] = flags.prompt_syntax
    settings = {name: value for name, value in settings.items() if value is not None}
    if flags.frames is not None:
        settings |= _of_pixels(flags)
        families.check_takes(type(model), settings, "interpolate")
        images = model.interpolate(prompts, flags.frames, flags.seed, **settings)
        output.mkdir(parents=True, exist_ok=True)
        _write_frames(output, images, metadata | {"prompt": flags.prompt, "seed": flags.seed})
        return
    guesses = {}  # step -> the first picture's x0

    def keep_guess(step, latents, prediction):
        guess = np.array(prediction.x0[0])  # a copy, so that the batch can be freed
        if not guesses or guess.shape == guesses[0].shape:  # a cascade's later stages draw larger ones
            guesses.setdefault(step, guess)

    settings |= start | _guides(flags) | _of_pixels(flags)
    if flags.clip_skip:
        settings["clip_skip"] = flags.clip_skip
    if flags.strip:
        settings["callback"] = keep_guess
    if flags.upscale is not None:
        images = _upscaled(model, flags, request, settings)
    else:
        families.check_takes(type(model), settings)
        images = model.generate(prompts, flags.num_images, seed=request.seeds, **settings)
    output.mkdir(parents=True, exist_ok=True)
    _write(output, images, flags, request, metadata)
    if guesses:
        batch_size = {} if flags.batch_size is None else {"batch_size": flags.batch_size}
        strip = model.decode_latents(np.stack(list(guesses.values())), flags.engine, **batch_size)
        _write_sheet(output / STRIP, strip, len(strip), metadata | _own(flags, request, 0))


def _parser():
    parser = commandline.Parser("python -m sd_tf.generate", description=__doc__)
    parser.add_argument("prompt", nargs="*", help="what to draw; several prompts draw several rows")
    parser.add_argument("--num-images", type=int, default=1, help="pictures for each prompt (default: 1)")
    parser.add_argument(
        "--seed",
        type=number_or_random,
        nargs="+",
        default=[0],
        help="seed of the first picture (default: 0), or random; several seeds: one for each prompt or "
        "picture; with --frames, those to interpolate between",
    )
    parser.add_argument("--output", default="out", help="folder for the pictures (default: out)")
    parser.add_argument(
        "--frames", type=int, help="interpolate: number of pictures from the first prompt or seed to the last"
    )
    parser.add_argument(
        "--strip",
        action="store_true",
        help="also write strip.png: the network's guess of the first picture after each step",
    )
    for side in ("height", "width"):
        parser.add_argument(f"--{side}", type=int, help="of the pictures, in pixels (default: the model's)")
    parser.add_argument(
        "--clip-skip",
        type=int,
        default=0,
        help='layers of the text encoder to leave out; 1 is "Clip skip: 2" of A1111 (default: 0)',
    )
    parser.add_argument(
        "--prompt-syntax",
        default="weights",
        help="what parentheses mean: weights, a1111 or comfyui (default: weights, of which (red:1.3) is one)",
    )
    parser.add_argument(
        "--reword-to",
        metavar="FILE",
        help="draw, in the place of each prompt, the line of this text file that means most nearly the same: "
        f"for a model that knows its captions alone; a model's name or folder is its {nearest_captions.FILE}",
    )
    parser.add_argument(
        "--reword-by",
        metavar="ENCODER",
        help="text encoder that says what means the same, such as sentence-transformers/all-MiniLM-L6-v2 "
        "(default: the model's)",
    )
    _add_model(parser.add_argument_group("model"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_guidance(parser.add_argument_group("guidance"))
    _add_start_picture(parser.add_argument_group("image-to-image and inpainting"))
    _add_cascade(parser.add_argument_group("cascades and super-resolution"))
    return parser


def number_or_random(text):
    """The type of --seed: None is a random one."""
    try:
        return None if text == "random" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number, or random") from None


def _add_model(group):
    group.add_argument(
        "--model",
        default="fashion-mnist",
        help="a bundled name, a folder, a file or a hub id (default: %(default)s)",
    )
    commandline.add_loading(group)
    group.add_argument(
        "--lora",
        nargs="+",
        default=[],
        metavar="FILE",
        help="LoRAs to load: files, folders of runs or hub ids",
    )
    group.add_argument(
        "--lora-weight",
        type=float,
        nargs="+",
        metavar="WEIGHT",
        help="weight of the LoRAs: one for all, or one for each (default: 1)",
    )
    group.add_argument(
        "--textual-inversion", nargs="+", default=[], metavar="FILE", help="learned words to load"
    )
    group.add_argument(
        "--batch-size",
        type=int,
        help="the most pictures at once, which bounds memory (default: 64; 16 for a cascade)",
    )
    group.add_argument("--engine", default="auto", help="tensorflow, openvino or auto (default: auto)")
    group.add_argument("--precision", default=None, help="a Keras dtype policy (default: float32)")


def _add_sampling(group):
    group.add_argument("--steps", type=int, help="sampling steps (default: the model's, or 20)")
    group.add_argument("--sampler", help=f"{', '.join(SAMPLERS)} (default: the model's, or ddim)")
    commandline.add_levels(group)
    group.add_argument(
        "--truncation",
        type=float,
        help="of a GAN, 0 to 1: less draws what is more usual, and less varied (default: the model's)",
    )
    group.add_argument("--eta", type=float, help="fresh noise in each step of DDIM, 0 to 1 (default: 0)")
    group.add_argument(
        "--initial-noise",
        action="store_true",
        help="optimise the initial noise until every word but articles and the like is attended to (InitNO)",
    )


def _add_guidance(group):
    group.add_argument(
        "--guidance-scale",
        type=float,
        help="how strongly pictures follow the prompt; 1 is without guidance (default: the model's, or 3)",
    )
    commandline.add_guidance_interval(group)
    group.add_argument(
        "--guidance-rescale",
        type=float,
        help="0 to 1, how far to undo the contrast that a high scale adds (default: 0)",
    )
    group.add_argument(
        "--negative-prompt",
        nargs="+",
        default=[""],
        help="what to avoid: one for all prompts, or one for each",
    )
    group.add_argument(
        "--clip-guidance",
        metavar="CLIP",
        help="a CLIP whose gradient guides too: clip-mini, a folder or a hub id",
    )
    group.add_argument("--clip-guidance-scale", type=float, help="scale of its gradient (default: 1)")


def _add_start_picture(group):
    group.add_argument(
        "--image",
        metavar="FILE",
        help="picture to start from; its sides are multiples of 8, or as a message says",
    )
    group.add_argument("--strength", type=float, help="how much of --image may change, 0 to 1 (default: 0.8)")
    group.add_argument(
        "--mask", metavar="FILE", help="where --image may change: white there, black elsewhere"
    )
    group.add_argument(
        "--resamples",
        type=int,
        help="how often each step is drawn with --mask, so that what is new fits in (default: the model's)",
    )


def _add_cascade(group):
    group.add_argument(
        "--upscale", metavar="FILE", help="picture to enlarge by a cascade or an upsampler; needs no prompt"
    )
    group.add_argument(
        "--followed-by",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="models that enlarge what --model draws, such as DeepFloyd/IF-II-M-v1.0 or a GAN of yours",
    )
    group.add_argument("--stages", type=int, help="stages to run (default: all)")
    group.add_argument("--sr-steps", type=int, help="steps of super-resolution (default: the model's)")
    group.add_argument(
        "--sr-guidance-scale", type=float, help="guidance scale of super-resolution (default: the model's)"
    )
    group.add_argument(
        "--augment-level",
        type=int,
        help="timestep whose noise is added to a picture before it is enlarged (default: the model's)",
    )
    group.add_argument(
        "--thresholding",
        help="how pixels are kept in range: dynamic, static or none (default: the model's)",
    )
    group.add_argument(
        "--percentile", type=float, help="0 to 1, of dynamic thresholding (default: the model's)"
    )


def _of_pixels(flags):
    """The arguments of `generate` that only cascades have."""
    names = ("stages", "augment_level", "thresholding", "percentile")
    found = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    later = {"steps": flags.sr_steps, "guidance_scale": flags.sr_guidance_scale}
    later = {name: value for name, value in later.items() if value is not None}
    return found | {"super_resolution": later} if later else found


def _reworded(reword, flags, request):
    """The captions in the place of the prompts: their `Request` or `Interpolation`, and as they are drawn.

    A caption is plain text, and `prompt_of` says it in the prompt syntax; LoRAs of the prompts stay. Files
    say the caption as it is.
    """
    captions = reword([text_of(prompt, flags.prompt_syntax) for prompt in request.prompts])
    for prompt, caption in zip(flags.prompt, captions, strict=True):
        if prompt != caption:
            print(printable(f"{prompt}: drawn as {caption}"))
    weights = {name: np.format_float_positional(weight) for name, weight in request.loras.items()}
    tags = "".join(f"<lora:{name}:{weight}>" for name, weight in weights.items())
    flags.prompt = [prompt_of(caption, flags.prompt_syntax) + tags for caption in captions]
    drawn, request = flags.prompt, _check(flags)
    flags.prompt = request.prompts = captions
    return request, drawn


def _captions(name):
    """Those of the file that `--reword-to` names, or of the model's folder, out of which no link leads."""
    path = path_of(name)
    folder = path if os.path.isdir(path) else None
    file = path if folder is None else folder / nearest_captions.FILE
    if not os.path.exists(file):
        raise InputError(
            f"--reword-to {name}: there is no file {file}: name one with a caption in each line, or a model "
            f"whose folder has {nearest_captions.FILE}"
        )
    with naming("--reword-to"):
        return nearest_captions.read_captions(file, folder)


def _check(flags):
    """The `Request` or `Interpolation`; refuses flags that do not go together, before a model is loaded."""
    from sd_tf.generation.request import Interpolation, Request
    from sd_tf.training.options import PRECISIONS

    if flags.precision is not None and flags.precision not in PRECISIONS:
        raise unknown("--precision", flags.precision, PRECISIONS)
    if not flags.prompt and flags.upscale is None:
        raise InputError("the prompt is missing: say what to draw, such as 'a red dress'")
    if flags.reword_by is not None and flags.reword_to is None:
        raise InputError("--reword-by is for --reword-to: name a file of captions")
    if flags.upscale is not None:
        return _check_upscale(flags)
    if flags.lora_weight and not flags.lora:
        raise InputError("--lora-weight is for --lora: name its file")
    if flags.lora_weight and len(flags.lora_weight) not in (1, len(flags.lora)):
        raise InputError(
            f"{len(flags.lora_weight)} weights for {len(flags.lora)} LoRAs: give --lora-weight one for all, "
            "or one for each"
        )
    if flags.clip_guidance_scale is not None and flags.clip_guidance is None:
        raise InputError("--clip-guidance-scale is for --clip-guidance: name a CLIP")
    for name in ("strength", "mask"):
        if getattr(flags, name) is not None and flags.image is None:
            raise InputError(f"--{name} is for a picture: give --image as well")
    if flags.resamples is not None and flags.mask is None:
        raise InputError("--resamples is for inpainting: give --mask as well")
    batch_size = 1 if flags.batch_size is None else flags.batch_size
    if flags.frames is not None:
        _check_frames(flags)
        return Interpolation(
            *(flags.prompt, flags.seed, flags.frames, flags.negative_prompt[0], batch_size),
            prompt_syntax=flags.prompt_syntax,
        )
    if len(flags.seed) > 1 and None in flags.seed:
        raise InputError("--seed has numbers beside random: give one of the two")
    seed = flags.seed[0] if len(flags.seed) == 1 else flags.seed
    return Request(flags.prompt, _negative(flags), flags.num_images, seed, batch_size, flags.prompt_syntax)


def _check_upscale(flags):
    """The `Request` of one picture; refuses flags of drawing."""
    from sd_tf.generation.request import Request

    for name in (*NOT_WITH_UPSCALE, *(name for name in DRAWING_FLAGS if name not in ALSO_WITH_UPSCALE)):
        value = getattr(flags, name)
        if value is not None and value is not False and (name, value) != ("clip_skip", 0):
            flag = name.replace("_", "-")
            way_out = f"take --sr-{flag}" if name in ("steps", "guidance_scale") else "leave it out"
            raise InputError(f"--{flag} does not go with --upscale: {way_out}")
    if flags.prompt_syntax != "weights":
        raise InputError("--prompt-syntax does not go with --upscale, whose prompt has weights: leave it out")
    if flags.num_images != 1 or len(flags.prompt) > 1 or len(flags.seed) > 1:
        raise InputError("--upscale is for one picture: give one prompt, or none, and one --seed")
    return Request(flags.prompt or [UPSCALED], seed=flags.seed[0])


def _upscaled(model, flags, request, settings):
    """The enlarged picture of --upscale, (1, height, width, 3)."""
    if not hasattr(model, "upscale"):
        raise InputError(
            f"--upscale needs a cascade with a super-resolution stage or a GAN that enlarges, {flags.model} "
            "is neither"
        )
    given = [*_of_pixels(flags), *(name for name in ("negative_prompt",) if any(flags.negative_prompt))]
    families.check_takes(type(model), given, "upscale")
    known = inspect.signature(model.upscale).parameters
    settings = {name: value for name, value in settings.items() if name in known}
    prompt = flags.prompt[0] if flags.prompt else ""
    return model.upscale(_opened("upscale", flags.upscale), prompt, seed=int(request.seeds[0]), **settings)


def _check_frames(flags):
    for name in NOT_WITH_FRAMES:
        if getattr(flags, name):
            raise InputError(f"--frames does not go with --{name.replace('_', '-')}: leave one of them out")
    for name, usual in (("num_images", 1), ("negative_prompt", flags.negative_prompt[:1])):
        if getattr(flags, name) != usual:
            raise InputError(f"--{name.replace('_', '-')} is one for all --frames: leave the others out")


def _negative(flags):
    """As `generate` takes it."""
    return flags.negative_prompt if len(flags.negative_prompt) > 1 else flags.negative_prompt[0]


def _start_picture(flags):
    """The arguments of `generate` for image-to-image and inpainting."""
    found = {} if flags.strength is None else {"strength": flags.strength}
    if flags.image is not None:
        found["image"] = _opened("image", flags.image)
    if flags.mask is not None:
        found["mask"] = _opened("mask", flags.mask, "L", BLACK)
    return found


def _opened(name, file, mode="RGB", background=(255, 255, 255)):
    """The pixels of a picture that a flag names."""
    from sd_tf.data.opening import open_picture

    try:
        return np.asarray(open_picture(file, background).convert(mode))
    except InputError as error:
        raise InputError(f"--{name} {file} {error}") from None


def _guides(flags):
    """The arguments of `generate` that steer it by the network's or another one's gradient."""
    found = {}
    if flags.clip_guidance is not None:
        from sd_tf.latent.clip_guidance import CLIPGuidance

        scale = 1.0 if flags.clip_guidance_scale is None else flags.clip_guidance_scale
        found["clip_guidance"] = CLIPGuidance(flags.clip_guidance, scale)
    if flags.initial_noise:
        from sd_tf.latent.initial_noise import InitialNoise

        found["initial_noise"] = InitialNoise()
    return found


def _load(flags):
    """The model, with learned words and LoRAs."""
    import sd_tf
    from sd_tf.lora.sources import find_lora, is_hub_id

    loading = commandline.loading(flags)
    if flags.followed_by:
        loading["followed_by"] = flags.followed_by
    families.check(flags.model, **loading)  # before TensorFlow is imported, which takes seconds
    commandline.check_there("--lora", [file for file in flags.lora if not is_hub_id(file)])
    commandline.check_there("--textual-inversion", flags.textual_inversion)
    sources = [find_lora(file) for file in flags.lora]
    of_networks = (flags.lora, flags.textual_inversion, flags.image, flags.clip_guidance, flags.initial_noise)
    if (
        any(of_networks)
        or flags.engine == "tensorflow"
        or families.needs_networks(flags.model, flags.precision, flags.variant, flags.revision)
    ):
        commandline.load_tensorflow()
    model = sd_tf.load(flags.model, dtype=flags.precision, **loading)
    for name, method in (("lora", "load_lora"), ("textual_inversion", "load_textual_inversion")):
        if getattr(flags, name) and not hasattr(model, method):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is not for this kind of model, {type(model).__name__}: leave it out")
    for file in flags.textual_inversion:
        model.load_textual_inversion(file)
    names = [source.name for source in sources]
    for source, (file, weight) in zip(sources, _loras(flags), strict=True):
        model.load_lora(source.path, weight, source.name if names.count(source.name) == 1 else file)
    return model


def _loras(flags):
    """(file, weight) of each LoRA."""
    weights = flags.lora_weight or [1.0]
    return list(zip(flags.lora, weights * (len(flags.lora) // len(weights)), strict=True))


def _metadata(flags, settings):
    """The settings that are written into every PNG file."""
    names = ("image", "strength", "mask", "clip_guidance", "clip_guidance_scale")
    found = settings | {name: getattr(flags, name) for name in names}
    others = "initial_noise", "textual_inversion", "clip_skip"
    found |= {name: getattr(flags, name) or None for name in others}
    found |= {"model": flags.model, "lora": dict(_loras(flags)) or None, "upscale": flags.upscale}
    found |= _of_pixels(flags)
    return {name: value for name, value in found.items() if value is not None}


def _own(flags, request, i):
    """Prompt and seed of picture i."""
    return {"prompt": request.prompts[i // flags.num_images], "seed": int(request.seeds[i])}


def _write(output, images, flags, request, metadata):
    """Writes a file for each picture, and a grid of all: of one picture only if there is an older grid."""
    for i, image in enumerate(images):
        own = _own(flags, request, i)
        negative = {"negative_prompt": request.negative_prompts[i // flags.num_images]}
        strength = metadata.get("strength", 0.8) if "image" in metadata else None
        content = metadata | own
        if flags.upscale is None:  # which web interfaces have no words for
            facts = metadata | own | negative
            if flags.reword_to is not None:  # a caption, in which they would see weights
                facts["prompt"] = prompt_of(own["prompt"], "a1111")
            content |= {KEY: parameters(facts, image.shape[:2], strength)}
        print(add_png(output / file_name(own["prompt"], own["seed"]), image, content))
    grid = output / GRID
    if len(images) > 1 or grid.exists():
        columns = flags.num_images if len(flags.prompt) > 1 else round(len(images) ** 0.5)
        of_all = metadata | {"prompt": flags.prompt, "seed": int(request.seeds[0])}
        _write_sheet(grid, images, columns, of_all)


def _write_frames(output, images, metadata):
    """Writes a numbered file for each frame, and a grid."""
    digits = len(str(len(images) - 1))
    for i, image in enumerate(images):
        file = output / f"frame-{i:0{digits}}.png"
        print(add_png(file, image, metadata | {"frame": f"{i} of {len(images)}"}))
    _write_sheet(output / GRID, images, round(len(images) ** 0.5), metadata)


def _write_sheet(file, images, columns, metadata):
    save_sheet(file, images, columns, metadata)
    print(file)


if __name__ == "__main__":
    commandline.run(main)

"""Drawing with a latent diffusion model: text-to-image, image-to-image, inpainting and interpolation."""

import warnings

import numpy as np

from sd_tf.diffusion.guidance import classifier_guidance
from sd_tf.errors import InputError, argument, shown
from sd_tf.generation.checks import check_whole
from sd_tf.generation.loop import Plan, batches, draw
from sd_tf.generation.start_picture import StartPicture
from sd_tf.generation.text_conditions import text_conditions
from sd_tf.text.encoder import TextEncoder, kind_of
from sd_tf.text.known_words import warnings_about
from sd_tf.text.prompt_syntax import prompt_of, text_of
from sd_tf.text.prompts import encode_prompts


def by_context(unet):
    """Adapts `unet(latents, timesteps, context)` to take a `Condition` as its third argument.

    As in diffusers, the UNet attends to all tokens of the context, padding included.
    """
    return lambda latents, timesteps, condition: unet(latents, timesteps, condition.context)


def draw_request(
    model,
    request,
    settings,
    size=(None, None),
    latents=None,
    image=None,
    strength=0.8,
    mask=None,
    clip_guidance=None,
    initial_noise=None,
    clip_skip=0,
    engine="auto",
    callback=None,
    progress=True,
) -> np.ndarray:
    """Draws the pictures of a `Request`, uint8 (number, height, width, 3).

    `size` is (height, width) in pixels, None for the model's. The other arguments and errors are those of
    `LatentDiffusion.generate`.
    """
    _check_guides(request, clip_guidance, initial_noise, image, mask)
    clip_skip = _checked_clip_skip(model, clip_skip)
    levels, picture = settings.levels(model.schedule), None
    if latents is not None:
        latents = request.checked_latents(latents, model.latent_shape)
    known = None if model.has_adaptations else model.known_words  # a LoRA may know more
    for warning in (*request.warnings, *warnings_about(request.prompts, model.tokenizer, known)):
        warnings.warn(warning, stacklevel=3)
    if image is not None:
        picture = StartPicture(
            request, image, mask, strength, model.encode_images, model.sides_multiple, model.most_pixels, size
        )
        levels = picture.levels(levels, settings.steps)
    shape = _shape_of_all(model, size, latents, picture)
    networks = model.engine_for(engine, shape)
    conditions = _conditions(model, request, networks, clip_skip)
    if initial_noise is not None:
        latents = _chosen_noise(model, request, initial_noise, conditions, latents, shape, levels[0])

    def start(places):
        noise = request.noise(places, 0, shape) if latents is None else latents[places]
        return noise if picture is None else picture.start(noise, places, levels)

    wrappers = []
    if clip_guidance is not None:
        wrappers.append(_clip_wrapper(model, request, clip_guidance))
    if mask is not None:
        wrappers.append(picture.inpaint)
    plan = Plan(
        conditions,
        start,
        lambda places, step: request.noise(places, step + 1, shape),
        levels,
        wrappers,
        None if mask is None else picture.keep,
        mask is not None,
    )
    drawn = _draw(model, networks, settings, plan, request.batch_size, callback, progress)
    return drawn if mask is None else picture.paste(drawn)


def draw_interpolation(model, interpolation, settings, shape, engine="auto", progress=True) -> np.ndarray:
    """Draws the frames of an `Interpolation`, uint8 (frames, height, width, 3); `shape` is of the latents."""
    levels = settings.levels(model.schedule)
    networks = model.engine_for(engine, shape)
    prompts = [interpolation.negative_prompt, *interpolation.prompts]
    encoder = text_encoder(model, networks)
    [condition] = encode_prompts([prompts], encoder, interpolation.batch_size, interpolation.syntax)
    plan = Plan(
        interpolation.conditions(condition),
        lambda places: interpolation.noise(places, 0, shape),
        lambda places, step: interpolation.noise(places, step + 1, shape),
        levels,
    )
    return _draw(model, networks, settings, plan, interpolation.batch_size, None, progress)


def text_encoder(model, networks, clip_skip=0) -> TextEncoder:
    """The model's text encoder, run by the engine `networks`, or without its last layers by TensorFlow."""
    return model.text_reader(model.encode_skipping(clip_skip) if clip_skip else networks.encode)


def _checked_clip_skip(model, clip_skip):
    if model.reads_by_clip:
        return check_whole("clip_skip", clip_skip, 0, model.text_config.num_hidden_layers - 1)
    if clip_skip != 0:
        raise InputError(
            f"{argument('clip_skip')} is {shown(clip_skip)}, but this model reads with a "
            f"{kind_of(model.text_config)}, whose layers all count: leave it out"
        )
    return 0


def _shape_of_all(model, size, latents, picture):
    """Shape (h, w, channels) of the latents, on which whatever was given must agree."""
    given = {} if size == (None, None) else {"height and width": model.latent_shape_of(*size)}
    if latents is not None:
        given["latents"] = latents.shape[1:]
    if picture is not None:
        given["image"] = picture.shape
    for name, shape in given.items():
        if latents is not None and shape != given["latents"]:
            raise InputError(
                f"latents are {given['latents'][:2]}, those of {name} {shape[:2]}: give only one of them"
            )
    return next(reversed(given.values()), model.latent_shape)


def _draw(model, networks, settings, plan, batch_size, callback, progress):
    return draw(
        by_context(networks.denoise),
        networks.decode,
        model.schedule,
        settings,
        plan,
        batch_size,
        callback,
        progress,
    )


def _conditions(model, request, networks, clip_skip):
    """For each picture (negative, positive) conditions, each a `Condition` of one row."""
    encoder = text_encoder(model, networks, clip_skip)
    if not clip_skip or request.syntax != "weights":
        return text_conditions(request, encoder)
    # diffusers skips no layers for negative prompts, web interfaces do
    return text_conditions(request, encoder, text_encoder(model, networks))


def _chosen_noise(model, request, initial_noise, conditions, latents, shape, level):
    """The initial noise of all pictures, chosen by an `InitialNoise`."""
    all_places, prompts = np.arange(request.number), _prompts_with_weights(request)
    latents = request.noise(all_places, 0, shape) if latents is None else latents
    tokens = [positive.context.shape[1] for _, positive in conditions]
    for places in batches(tokens, request.batch_size):
        latents[places] = initial_noise.chosen(
            model,
            [prompts[place] for place in places],
            np.concatenate([conditions[place][1].context for place in places]),
            request.seeds[places],
            latents[places],
            level,
        )
    return latents


def _clip_wrapper(model, request, clip_guidance):
    """A wrapper of denoisers that adds CLIP guidance."""
    gradients = clip_guidance.gradients(model, _prompts_with_weights(request))

    def wrap(denoise, places, condition):
        return classifier_guidance(denoise, gradients(places, condition.context), clip_guidance.scale)

    return wrap


def _prompts_with_weights(request):
    """The prompt of each picture in the syntax "weights", which guides read; of others, without weights."""
    prompts = request.prompts
    if request.syntax != "weights":
        prompts = [prompt_of(text_of(prompt, request.syntax)) for prompt in prompts]
    return [prompt for prompt in prompts for _ in range(request.num_images)]


def _check_guides(request, clip_guidance, initial_noise, image, mask):
    for name, value, method, kind in (
        ("clip_guidance", clip_guidance, "gradients", "CLIPGuidance"),
        ("initial_noise", initial_noise, "chosen", "InitialNoise"),
    ):
        if value is not None and not hasattr(value, method):
            raise InputError(f"{name} is {value!r}: give a `{kind}` of sd_tf.latent.{name}")
        if value is not None and request.prompt_embeds is not None:
            raise InputError(f"{name} reads the words of a prompt: give prompt instead of prompt_embeds")
    if mask is not None and image is None:
        raise InputError("mask is for a picture: give image as well")
    if initial_noise is not None and image is not None:
        raise InputError("initial_noise and image are both given: leave one out")

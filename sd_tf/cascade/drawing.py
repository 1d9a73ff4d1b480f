"""Drawing with a cascade: the base stage from text, each super-resolution stage from text and picture."""

import warnings

import numpy as np

from sd_tf.cascade.stage import CHANNELS, by_condition
from sd_tf.data.resizing import enlarged
from sd_tf.diffusion.editing import noised
from sd_tf.errors import InputError, argument
from sd_tf.generation.checks import check_whole
from sd_tf.generation.loop import Plan, draw
from sd_tf.generation.pictures import checked_image, checked_mask, latent_mask
from sd_tf.generation.start_picture import StartPicture
from sd_tf.generation.text_conditions import text_conditions
from sd_tf.images import to_unit
from sd_tf.text.known_words import words_beyond
from sd_tf.text.prompts import encode_prompts

DRAWS_OF_A_STAGE = 2**20  # numbers of the noises that a stage may draw (`Request.noise`)
AUGMENTATION = DRAWS_OF_A_STAGE - 1  # the number of the noise that is added to the smaller picture


def draw_request(
    model,
    request,
    settings,
    thresholdings,
    augment_level=None,
    size=(None, None),
    latents=None,
    image=None,
    strength=0.8,
    mask=None,
    engine="auto",
    callback=None,
    progress=True,
) -> np.ndarray:
    """Draws the pictures of a `Request`, uint8 (number, height, width, 3).

    Args:
        model: a `CascadedDiffusion`.
        request: the `Request`.
        settings, thresholdings: `Settings` and `Thresholding` of each stage that is run.
        augment_level, latents, image, strength, mask, engine, callback, progress: see
            `CascadedDiffusion.generate`.
        size: (height, width) in pixels of the last stage's pictures, None for the model's.
    """
    if mask is not None and image is None:
        raise InputError("mask is for a picture: give image as well")
    if image is not None and latents is not None:
        raise InputError("latents and image are both given: leave one out")
    _check_stages(model, model.stages[: len(settings)], settings, augment_level)
    _warn(model, request)
    if image is not None:
        image = checked_image(image, len(request.prompts), model.sides_multiple, model.most_pixels, size)
        size = image.shape[1:3]
        mask = None if mask is None else checked_mask(mask, image, len(request.prompts))
    sizes = model.sizes_of(*size)
    if latents is not None:
        latents = request.checked_latents(latents, (*sizes[0], CHANNELS))
        if latents.shape[1:3] != sizes[0]:
            raise InputError(
                f"latents are {latents.shape[1:3]}, and the first stage draws {sizes[0]}: give noise of that "
                "size, or other height and width"
            )
    chain = _chain(model, 0, settings, thresholdings, sizes, engine)

    def start(number):
        """What a stage draws on."""
        if image is None or (number and mask is None):
            return None
        return StartPicture(
            request,
            image,
            None if mask is None else _smaller_mask(mask, sizes[number]),
            1.0 if number else strength,
            lambda images, batch_size: to_unit(images),
            1,
            model.most_pixels,
            sizes[number],
        )

    conditions = text_conditions(request, model.text_encoder)
    shared = {"augment_level": augment_level, "callback": callback, "progress": progress}
    return _draw_stages(chain, request, conditions, start=start, latents=latents, **shared)


def _chain(model, first, settings, thresholdings, sizes, engine):
    """(number, stage, settings, thresholding, size, network) of the stages that are run.

    Args:
        model: a `CascadedDiffusion`.
        first: the number of the first one.
        settings, thresholdings: of each.
        sizes: (height, width) of what each draws; those behind the last one are left out.
        engine: see `CascadedDiffusion.generate`.
    """
    numbers = range(first, first + len(settings))
    stages, sizes = model.stages[first : numbers.stop], sizes[: len(settings)]
    networks = [stage.denoiser(engine, size) for stage, size in zip(stages, sizes, strict=True)]
    return list(zip(numbers, stages, settings, thresholdings, sizes, networks, strict=True))


def _draw_stages(
    chain, request, conditions, drawn=None, start=lambda number: None, latents=None, **shared
) -> np.ndarray:
    """Draws with one stage after another, uint8 (number, height, width, 3).

    Args:
        chain: of `_chain`.
        request, conditions: see `draw_stage`.
        drawn: pictures for the first of the stages to enlarge.
        start: number of a stage -> the `StartPicture` that it draws on, or None.
        latents: initial noise of the first of the stages.
        shared: other arguments of `draw_stage`.
    """
    for number, stage, settings, thresholding, size, network in chain:
        drawn = draw_stage(
            stage,
            number,
            request,
            conditions,
            settings,
            thresholding,
            size,
            smaller=drawn,
            latents=latents,
            picture=start(number),
            network=network,
            **shared,
        )
        latents = None
    return drawn


def _smaller_mask(mask, size):
    """A mask, bool (n, height, width, 1), for pictures of (h, w): True where any of its pixels is."""
    return latent_mask(mask, mask.shape[1] // size[0]).astype(bool)


def draw_interpolation(
    model,
    interpolation,
    settings,
    thresholdings,
    augment_level=None,
    size=(None, None),
    engine="auto",
    progress=True,
) -> np.ndarray:
    """Draws the frames of an `Interpolation`, uint8 (frames, height, width, 3); see `draw_request`."""
    _check_stages(model, model.stages[: len(settings)], settings, augment_level)
    chain = _chain(model, 0, settings, thresholdings, model.sizes_of(*size), engine)
    prompts = [interpolation.negative_prompt, *interpolation.prompts]
    [condition] = encode_prompts(
        [prompts], model.text_encoder, interpolation.batch_size, interpolation.syntax
    )
    conditions = interpolation.conditions(condition)
    return _draw_stages(chain, interpolation, conditions, augment_level=augment_level, progress=progress)


def enlarge_pictures(
    model,
    request,
    settings,
    thresholdings,
    images,
    augment_level=None,
    engine="auto",
    callback=None,
    progress=True,
) -> np.ndarray:
    """Enlarges pictures by the super-resolution stages, uint8 (number, height, width, 3).

    Args:
        images: uint8 (number, height, width, 3), one for each picture of the request.
        settings, thresholdings: those of the super-resolution stages.
        engine: see `CascadedDiffusion.generate`.
    """
    first = next(number for number, stage in enumerate(model.stages) if stage.is_super_resolution)
    _check_stages(model, model.stages[first:], settings, augment_level)
    sizes = [images.shape[1:3]]
    for factor in model.factors[first:]:
        sizes.append(tuple(side * factor for side in sizes[-1]))
    chain = _chain(model, first, settings, thresholdings, sizes[1:], engine)
    conditions = text_conditions(request, model.text_encoder)
    shared = {"augment_level": augment_level, "callback": callback, "progress": progress}
    return _draw_stages(chain, request, conditions, images, **shared)


def draw_stage(
    stage,
    number,
    request,
    conditions,
    settings,
    thresholding,
    size,
    *,
    smaller=None,
    augment_level=None,
    latents=None,
    picture=None,
    network=None,
    callback=None,
    progress=True,
) -> np.ndarray:
    """Draws one stage's pictures, uint8 (pictures, height, width, 3).

    Args:
        stage: a `PixelStage`.
        number: its place in the cascade, which its noise depends on.
        request: the `Request`, or an `Interpolation`.
        conditions: (negative, positive) of each picture, from the text.
        settings, thresholding: `Settings` and `Thresholding`.
        size: (height, width) of what is drawn.
        smaller: uint8 (pictures, h, w, 3) to enlarge; for a super-resolution stage.
        augment_level: the timestep whose noise is added to them; None for the stage's.
        latents: the initial noise, in place of the seeds'.
        picture: a `StartPicture`.
        network: what of `PixelStage.denoiser` runs the UNet; None for TensorFlow.
    """
    shape, first_draw = (*size, CHANNELS), number * DRAWS_OF_A_STAGE

    def noise(places, step):
        return request.noise(places, first_draw + step, shape)

    if smaller is not None:
        timestep = checked_level(stage, augment_level)
        larger = _enlarged(stage, smaller, size, timestep, lambda places: noise(places, AUGMENTATION))
        conditions = [
            tuple(each._replace(low_res=low_res, low_res_level=levels) for each in pair)
            for pair, (low_res, levels) in zip(conditions, larger, strict=True)
        ]
    levels = settings.levels(stage.schedule)
    if picture is not None:
        levels = picture.levels(levels, settings.steps)

    def start(places):
        initial = noise(places, 0) if latents is None else latents[places]
        return initial if picture is None else picture.start(initial, places, levels)

    is_inpainting = picture is not None and picture.has_mask
    wrappers = [lambda denoise, places, condition: thresholding.applied_to(denoise)]
    plan = Plan(
        conditions,
        start,
        lambda places, step: noise(places, step + 1),
        levels,
        [*wrappers, picture.inpaint] if is_inpainting else wrappers,
        picture.keep if is_inpainting else None,
        is_inpainting,
    )
    drawn = draw(
        by_condition(network or stage.denoiser("tensorflow", size)),
        lambda images: images,
        stage.schedule,
        settings,
        plan,
        request.batch_size,
        callback,
        progress,
    )
    return picture.paste(drawn) if is_inpainting else drawn


def _enlarged(stage, smaller, size, timestep, noise):
    """Yields for each picture (low_res (1, h, w, 3), its level (1,)), float32: enlarged, and with noise.

    Args:
        smaller: uint8 (pictures, h, w, 3).
        timestep: of the noise that is added.
        noise: `noise(places)` -> standard normal (n, *size, 3).
    """
    level = stage.noising.level(timestep)
    for i, picture in enumerate(smaller):
        clean = enlarged(to_unit(picture[np.newaxis]), size)
        low_res = noised(clean, noise(np.array([i])), level).astype(np.float32)
        yield low_res, np.full(1, timestep, np.float32)


def checked_level(stage, augment_level) -> int:
    """The timestep whose noise is added to the pictures that a stage enlarges; None for the stage's own."""
    if augment_level is None:
        return stage.augment_level
    last = stage.noising.config.num_train_timesteps - 1
    return check_whole(argument("augment_level"), augment_level, 0, last)


def _check_stages(model, stages, settings, augment_level):
    """Raises `InputError` for what a stage cannot be drawn with, before the first has taken its time.

    Args:
        model: the `CascadedDiffusion`.
        stages: those of its stages that are run.
        settings: `Settings` of each of them.
        augment_level: see `checked_level`.
    """
    for stage in model.stages:
        if stage.is_super_resolution:
            checked_level(stage, augment_level)
    for stage, own in zip(stages, settings, strict=True):
        own.levels(stage.schedule)


def _warn(model, request):
    prompts = request.prompts if request.prompt_embeds is None else ()
    known = None if model.has_adaptations else model.known_words  # a LoRA may know more
    for warning in (*request.warnings, *words_beyond(prompts, known)):
        warnings.warn(warning, stacklevel=4)

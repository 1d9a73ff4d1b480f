"""Drawing with a latent diffusion model: text-to-image, image-to-image, inpainting and interpolation."""

import warnings

import numpy as np

from sd_tf.diffusion.conditions import Condition
from sd_tf.diffusion.editing import inpainting, levels_for_strength, noised
from sd_tf.diffusion.guidance import classifier_guidance
from sd_tf.errors import InputError
from sd_tf.generation.checks import check_whole
from sd_tf.generation.loop import Plan, batches, draw
from sd_tf.generation.pictures import checked_image, checked_mask, latent_mask
from sd_tf.text.encoder import CLIPTextEncoder
from sd_tf.text.known_words import warnings_about
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
    clip_skip = check_whole("clip_skip", clip_skip, 0, model.text_config.num_hidden_layers - 1)
    levels, picture = settings.levels(model.schedule), None
    if latents is not None:
        latents = request.checked_latents(latents, model.latent_shape)
    known = None if model.has_adaptations else model.known_words  # a LoRA may know more
    for warning in (*request.warnings, *warnings_about(request.prompts, model.tokenizer, known)):
        warnings.warn(warning, stacklevel=3)
    if image is not None:
        picture = StartPicture(model, request, image, mask, strength, size)
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


def text_encoder(model, networks, clip_skip=0) -> CLIPTextEncoder:
    """The model's text encoder, run by the engine `networks`, or without its last layers by TensorFlow."""
    run = model.encode_skipping(clip_skip) if clip_skip else networks.encode
    return CLIPTextEncoder(model.tokenizer, model.text_config, lambda: model.text_encoder, run)


class StartPicture:
    """Image-to-image and inpainting: the picture to start from, and the mask.

    Args:
        model: a `LatentDiffusion`, which encodes the picture.
        request: the `Request`.
        image, mask, strength: see `LatentDiffusion.generate`.
        size: (height, width) that pictures are scaled to, None for their own.

    Attributes:
        shape: shape (h, w, channels) of its latents.

    Raises:
        InputError: the picture or the mask has the wrong size, type or range.
    """

    def __init__(self, model, request, image, mask, strength, size):
        number = len(request.prompts)
        self._images = checked_image(image, number, model.sides_multiple, model.most_pixels, size)
        self._mask = None if mask is None else checked_mask(mask, self._images, number)
        self._request, self._strength = request, strength
        latents = model.encode_images(self._images, request.batch_size)
        self.shape = latents.shape[1:]
        self._latents = request.for_each_picture(latents)  # (pictures, h, w, channels)
        if mask is not None:
            latents_mask = latent_mask(self._mask, self._images.shape[1] // self.shape[0])
            self._latent_mask = request.for_each_picture(latents_mask)

    def levels(self, levels, steps):
        """Those of all levels that `strength` leaves."""
        left = levels_for_strength(levels, self._strength)
        if self._strength > 0 and len(left) == 1:
            warnings.warn(
                f"strength {self._strength:g} of {steps} steps is less than one step: the picture is not "
                "changed",
                stacklevel=4,
            )
        return left

    def start(self, noise, places, levels):
        """The latents that sampling starts from: the picture's, with noise of the first level."""
        latents = self._latents[places]
        if len(levels) == 1:
            return latents
        starts = noised(latents, noise, levels[0])
        if self._mask is not None and self._strength == 1:  # keep nothing of the masked content
            return np.where(self._latent_mask[places], noise, starts)
        return starts

    def inpaint(self, denoise, places, condition):
        """Wraps a denoiser of the pictures at `places`, so that they change only inside the mask."""
        return inpainting(denoise, self._latents[places], self._latent_mask[places])

    def keep(self, latents, places):
        """Drawn latents inside the mask, the picture's outside: the last level may have some noise."""
        mask = self._latent_mask[places]
        return mask * latents + (1 - mask) * self._latents[places]

    def paste(self, drawn):
        """Drawn pixels inside the mask, exactly the picture's outside."""
        images, mask = (self._request.for_each_picture(each) for each in (self._images, self._mask))
        return np.where(mask, drawn, images)


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
    whole, encoder = (text_encoder(model, networks, layers) for layers in (0, clip_skip))
    if request.syntax != "weights":  # diffusers skips no layers for negative prompts, web interfaces do
        whole = encoder
    if request.prompt_embeds is None and request.negative_prompt_embeds is None:
        pairs = _encoded_pairs(request, encoder)
        if whole.run is not encoder.run:
            negatives = _encoded_pairs(request, whole)
            pairs = [(of_whole[0], pair[1]) for of_whole, pair in zip(negatives, pairs, strict=True)]
    else:
        negatives = _given_or_encoded(
            request.negative_prompt_embeds, request.negative_prompts, request, whole
        )
        positives = _given_or_encoded(request.prompt_embeds, request.prompts, request, encoder)
        _check_equal_lengths(negatives[0], positives[0])
        pairs = list(zip(negatives, positives, strict=True))
    return [tuple(pair) for pair in pairs for _ in range(request.num_images)]


def _encoded_pairs(request, encoder):
    """(negative, positive) for each prompt, with equally many tokens."""
    groups = list(zip(request.negative_prompts, request.prompts, strict=True))
    return [both.split(2) for both in encode_prompts(groups, encoder, request.batch_size, request.syntax)]


def _given_or_encoded(embeds, prompts, request, encoder):
    """A `Condition` of one row for each prompt, of its embeddings or else of its text."""
    if embeds is None:
        [found] = encode_prompts([prompts], encoder, request.batch_size, request.syntax)
    else:
        if embeds.shape[2] != encoder.width:
            raise InputError(
                f"prompt_embeds have the width {embeds.shape[2]}, this model's text encoder has "
                f"{encoder.width}: make them with it"
            )
        found = Condition(embeds, np.ones(embeds.shape[:2], bool))
    return found.split(len(prompts))


def _check_equal_lengths(negative, positive):
    tokens = [condition.context.shape[1] for condition in (negative, positive)]
    if tokens[0] != tokens[1]:
        raise InputError(
            f"negative prompts have {tokens[0]} tokens, prompts {tokens[1]}: give prompt_embeds and "
            "negative_prompt_embeds of equally many"
        )


def _chosen_noise(model, request, initial_noise, conditions, latents, shape, level):
    """The initial noise of all pictures, chosen by an `InitialNoise`."""
    all_places = np.arange(request.number)
    latents = request.noise(all_places, 0, shape) if latents is None else latents
    tokens = [positive.context.shape[1] for _, positive in conditions]
    for places in batches(tokens, request.batch_size):
        latents[places] = initial_noise.chosen(
            model,
            [request.prompts[place // request.num_images] for place in places],
            np.concatenate([conditions[place][1].context for place in places]),
            request.seeds[places],
            latents[places],
            level,
        )
    return latents


def _clip_wrapper(model, request, clip_guidance):
    """A wrapper of denoisers that adds CLIP guidance."""
    prompts = [prompt for prompt in request.prompts for _ in range(request.num_images)]
    gradients = clip_guidance.gradients(model, prompts)

    def wrap(denoise, places, condition):
        return classifier_guidance(denoise, gradients(places, condition.context), clip_guidance.scale)

    return wrap


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

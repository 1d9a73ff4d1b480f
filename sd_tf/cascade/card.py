"""What the card of a cascade says of its kind."""

from sd_tf.cascade.folder import BASE_PIPELINE, SUPER_RESOLUTION_PIPELINE
from sd_tf.cascade.stage import stage_name
from sd_tf.sharing.card import Traits, about_long_prompts

LIBRARY = "sd_tf"  # of the hub: diffusers opens the stages, but not the whole
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def traits_of(model, folder) -> Traits:
    """The `Traits` of a model that was saved in that folder."""
    height, width = model.image_size
    stages = model.stages
    sizes = ", then ".join(f"{rows} x {columns}" for rows, columns in (stage.image_size for stage in stages))
    read_by = "sd_tf opens it"
    if not any(stage.config.efficient for stage in stages):
        opened = {}
        for number, stage in enumerate(stages):
            pipeline = SUPER_RESOLUTION_PIPELINE if stage.is_super_resolution else BASE_PIPELINE
            opened.setdefault(pipeline, []).append(f"`{stage_name(number)}`")
        (first, names), *others = ((pipeline, " and ".join(names)) for pipeline, names in opened.items())
        enlarging = "".join(f", {pipeline} {names}" for pipeline, names in others)
        read_by = f"diffusers' {first} opens its folder {names}{enlarging}"
    enlarged = ""
    if model.upsampler is not None:
        enlarged = f" and a {type(model.upsampler).__name__} that enlarges in one pass"
    number = NUMBERS[len(stages) - 1]
    return Traits(
        height,
        width,
        f"cascade of {number} diffusion model{'s' * (len(stages) > 1)} on pixels (Imagen: {sizes}){enlarged}",
        read_by,
        ("imagen",),
        LIBRARY,
        about_long_prompts(model.text_encoder),
    )

"""What the card of a GAN says of its kind."""

from sd_tf.sharing.card import Traits, about_long_prompts

LIBRARY = "sd_tf"  # of the hub


def traits_of(model, folder) -> Traits:
    """The `Traits` of a model that was saved in that folder."""
    height, width = model.image_size
    encoder = model.text_encoder
    does = "a picture" if model.small_size is None else "enlarges a picture"
    return Traits(
        height,
        width,
        f"GAN (GigaGAN in small, {does} in one pass)",
        "sd_tf opens it",
        ("gan", "gigagan"),
        LIBRARY,
        "It reads no prompt." if encoder is None else about_long_prompts(encoder),
    )

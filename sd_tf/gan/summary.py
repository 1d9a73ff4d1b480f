"""A table of the networks of a GAN."""

from sd_tf.gan.discriminator import Discriminator
from sd_tf.gan.generator import Generator
from sd_tf.skeleton import skeleton


def summary_of(model) -> str:
    """The table that `GigaGAN.summary` prints; the networks need not be read."""
    draws, judges, encoder = model.generator_config, model.discriminator_config, model.text_encoder
    rows = []
    if encoder is not None:
        states = f"{encoder.length} tokens -> states {encoder.width} wide"
        rows.append(f"{'text encoder':<13} {'':>13}           {states}")
    side, kernels = draws.sample_size, ", ".join(map(str, draws.of_levels("num_kernels")))
    rows.append(
        _row(
            Generator,
            draws,
            f"{side} x {side} pixels, channels {draws.block_out_channels}, {kernels} kernels",
        )
    )
    if judges is not None:
        by = ["pixels"] * judges.judges_pixels + ["a frozen network's maps"] * bool(judges.vision_channels)
        rows.append(_row(Discriminator, judges, f"judges by {' and '.join(by)}"))
    return "\n".join([f"GigaGAN, {model.precision}", *rows])


def _row(kind, config, details):
    with skeleton():
        network = kind(config)
        network.build()
    return f"{network.name:<13} {network.count_params():>13,} weights   {details}"

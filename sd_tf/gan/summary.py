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
    small = draws.low_res_size
    of_small = "" if small is None else f" of {small} x {small}"
    details = f"{side} x {side} pixels{of_small}, channels {draws.block_out_channels}, {kernels} kernels"
    rows.append(_row(Generator, draws, details))
    if judges is not None:
        by = ["pixels"] * judges.judges_pixels + ["a frozen network's maps"] * bool(judges.vision_channels)
        rows.append(_row(Discriminator, judges, f"judges by {' and '.join(by)}"))
    return "\n".join([f"GigaGAN, {model.precision}", *rows])


def weights_of(kind, config) -> int:
    """The number of a network's weights, which are not made."""
    with skeleton():
        network = kind(config)
        network.build()
    return network.count_params()


def _row(kind, config, details):
    return f"{kind.__name__.lower():<13} {weights_of(kind, config):>13,} weights   {details}"

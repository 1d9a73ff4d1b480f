"""A table of the stages of a cascade."""

from sd_tf.cascade.stage import stage_name
from sd_tf.cascade.unet import PixelUNet
from sd_tf.skeleton import skeleton


def summary_of(model) -> str:
    """The table that `CascadedDiffusion.summary` prints; the UNets need not be read."""
    rows, total = [], 0
    for number, stage in enumerate(model.stages):
        with skeleton():
            network = PixelUNet(stage.config)
            network.build()
        weights = network.count_params()
        total += weights
        height, width = stage.image_size
        rows.append(
            f"{stage_name(number):<13} {weights:>13,} weights   {height} x {width} pixels, channels "
            f"{stage.config.block_out_channels}, predicts {stage.schedule.config.prediction_type}"
        )
    if model.upsampler is not None:
        upsampler = model.upsampler
        large, small = (f"{rows} x {columns}" for rows, columns in (model.image_size, upsampler.small_size))
        rows.append(
            f"{model.upsampler_name:<13} {upsampler.number_of_weights:>13,} weights   {large} pixels of "
            f"{small} in one pass, a {type(upsampler).__name__}"
        )
    encoder = model.text_encoder
    return "\n".join(
        [
            f"CascadedDiffusion, {model.precision}",
            f"{'text encoder':<13} {'':>13}           {encoder.length} tokens -> states {encoder.width} wide",
            *rows,
            f"{'all UNets':<13} {total:>13,} weights",
        ]
    )

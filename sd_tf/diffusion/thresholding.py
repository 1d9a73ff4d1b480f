"""Static and dynamic thresholding: keep predicted pixels in range at high guidance scales.

Each function wraps a denoiser. It changes x0 and makes the noise consistent with it, so that samplers need no
change. It is for diffusion on pixels: latents have no fixed range.
"""

from typing import NamedTuple

from sd_tf.diffusion.arrays import operations
from sd_tf.errors import InputError, argument, unknown

THRESHOLDINGS = ("dynamic", "static", "none")


class Thresholding(NamedTuple):
    """How predicted pixels are kept in range while they are drawn.

    Attributes:
        kind: "dynamic", "static" (clipped to [-1, 1]) or "none".
        percentile: of dynamic thresholding, see `dynamic_thresholding`.
        maximum: likewise.
    """

    kind: str = "dynamic"
    percentile: float = 0.995
    maximum: float | None = None

    def described(self) -> str:
        """In words, such as "dynamic 0.995" with the percentile."""
        if self.kind != "dynamic":
            return self.kind
        most = "" if self.maximum is None else f" to {self.maximum:g}"
        return f"dynamic {self.percentile:g}{most}"

    def applied_to(self, denoise):
        """The denoiser with it."""
        if self.kind == "dynamic":
            return dynamic_thresholding(denoise, self.percentile, self.maximum)
        return clip_x0(denoise) if self.kind == "static" else denoise

    def replaced(self, kind: str | None = None, percentile: float | None = None) -> "Thresholding":
        """With what a caller gave in its place; None is not given.

        Raises:
            InputError: there is no such kind, or the percentile is outside [0, 1] or of another kind.
        """
        if kind is not None and kind not in THRESHOLDINGS:
            raise unknown(argument("thresholding"), kind, THRESHOLDINGS)
        found = self if kind is None else self._replace(kind=kind)
        if percentile is None:
            return found
        if found.kind != "dynamic":
            raise InputError(
                f"{argument('percentile')} is {percentile}, but thresholding is {found.kind}: take dynamic"
            )
        if (
            isinstance(percentile, bool)
            or not isinstance(percentile, (int, float))
            or not 0 <= percentile <= 1
        ):
            raise InputError(
                f"{argument('percentile')} is {percentile!r}: give a number from 0 to 1, such as 0.995"
            )
        return found._replace(percentile=float(percentile))


def clip_x0(denoise, bound: float = 1.0):
    """A denoiser whose x0 is clipped to [-bound, bound] ("static thresholding"; diffusers' `clip_sample`).

    Args:
        denoise: `denoise(x, level) -> Prediction`.
        bound: `clip_sample_range` of diffusers' schedulers.

    Raises:
        InputError: `bound` is not above 0.
    """
    if not bound > 0:
        raise InputError(f"the bound for clipping x0 is {bound}: give a number above 0, 1 for pixels")
    return _with_x0(denoise, lambda x0: operations(x0).clip(x0, -bound, bound))


def dynamic_thresholding(denoise, percentile: float = 0.995, maximum: float | None = None):
    """A denoiser with Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3).

    s is a quantile of |x0| over all pixels and channels of a picture, and at least 1. x0 is clipped
    to [-s, s] and divided by s.

    Args:
        denoise: `denoise(x, level) -> Prediction`, x (batch, ..., channels).
        percentile: the quantile, 0 to 1. diffusers calls it `dynamic_thresholding_ratio`.
        maximum: the largest s, diffusers' `sample_max_value`, whose default of 1 makes this `clip_x0`; None
            for no limit, as in the paper.

    Raises:
        InputError: `percentile` is outside [0, 1], or `maximum` is below 1.

    Reference: `DDPMScheduler(thresholding=True)` of diffusers, and `DDIMScheduler` with
    `use_clipped_model_output=True`.
    """
    if not 0 <= percentile <= 1:
        raise InputError(f"percentile is {percentile}: give a number from 0 to 1, such as 0.995")
    if maximum is not None and not maximum >= 1:
        raise InputError(f"the maximum of dynamic thresholding is {maximum}: give 1 or more, or None")

    def thresholded(x0):
        ops = operations(x0)
        axes = tuple(range(1, len(x0.shape)))
        s = ops.quantile(ops.abs(x0), percentile, axis=axes, keepdims=True)  # (batch, 1, ..., 1)
        s = ops.cast(ops.clip(s, 1.0, float("inf") if maximum is None else maximum), x0.dtype)
        return ops.clip(x0, -s, s) / s

    return _with_x0(denoise, thresholded)


def _with_x0(denoise, change):
    def changed(x, level):
        prediction = denoise(x, level)
        x0 = change(prediction.x0)
        return prediction._replace(x0=x0, noise=(x - level.signal * x0) / level.noise)

    return changed

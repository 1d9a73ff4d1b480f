"""The losses of a GAN's two players, one value for each example.

Logits are float32 (batch, judgements), high for real pictures; `Discriminator` has one for each level and
scale, which count alike.
"""

from keras import ops

from sd_tf.errors import unknown
from sd_tf.gan.config import ADVERSARIAL
from sd_tf.gan.layers import halved_to
from sd_tf.text.clip import contrastive_loss


def discriminator_loss(real, fake, kind="relativistic"):
    """What the discriminator minimises.

    Args:
        real, fake: logits of pictures of the same texts; a row is a pair.
        kind: "non_saturating" (Goodfellow et al. 2014), or "relativistic" (R3GAN, Huang et al. 2024, equation
            2), in which real pictures have to look more real than drawn ones and no more.

    Returns:
        float32 (batch,).

    Raises:
        InputError: there is no such kind.
    """
    if kind == "relativistic":
        return _mean(ops.softplus(fake - real))
    if kind == "non_saturating":
        return _mean(ops.softplus(fake) + ops.softplus(-real))
    raise unknown("adversarial", kind, ADVERSARIAL)


def generator_loss(real, fake, kind="relativistic"):
    """What the generator minimises; as `discriminator_loss`, and non-saturating takes None for `real`."""
    if kind == "relativistic":
        return _mean(ops.softplus(real - fake))
    if kind == "non_saturating":
        return _mean(ops.softplus(-fake))
    raise unknown("adversarial", kind, ADVERSARIAL)


def matching_loss(mismatched, matching=None, kind="non_saturating"):
    """Pictures with another text are to be judged as drawn ones are (GigaGAN, equation 9; Reed et al. 2016).

    Args:
        mismatched: logits of pictures, real or drawn, with the text of another.
        matching: logits of the real pictures with their own texts; for "relativistic" only.
        kind: as of `discriminator_loss`.

    Returns:
        float32 (batch,).
    """
    if kind == "relativistic":
        return _mean(ops.softplus(mismatched - matching))
    return _mean(ops.softplus(mismatched))


def clip_loss(image_features, text_features, logit_scale, groups):
    """CLIP's contrastive loss of drawn pictures and their texts (GigaGAN, equation 10).

    Features are those of CLIP's common space, projected and of length 1. Token states, which are neither,
    have no bound: a loss of their products diverges.

    Args:
        image_features, text_features: float (batch, dimension), of length 1.
        logit_scale: logarithm of the factor on the cosines.
        groups: int (batch,), equal where texts say the same.

    Returns:
        float32 (batch,).
    """
    return contrastive_loss(text_features, image_features, logit_scale, groups)


def divergence(mean, log_variance):
    """Of normal distributions from the standard one, in nats (Kingma and Welling 2014, appendix B).

    Args:
        mean, log_variance: float32 (batch, dimensions).

    Returns:
        float32 (batch,).
    """
    return 0.5 * ops.sum(ops.square(mean) + ops.exp(log_variance) - log_variance - 1.0, axis=1)


def reconstruction_loss(drawn, pictures):
    """The mean absolute difference of pixels, float32 (batch,) (BicycleGAN, Zhu et al. 2017, equation 4)."""
    return ops.mean(ops.abs(ops.cast(drawn, "float32") - pictures), axis=(1, 2, 3))


def low_res_loss(pictures, low_res):
    """How far enlarged pictures, made small again, are from those that they were made of.

    Args:
        pictures: float (batch, side, side, 3).
        low_res: float (batch, smaller side, smaller side, 3), without noise.

    Returns:
        float32 (batch,), the mean squared difference.
    """
    small = halved_to(ops.cast(pictures, "float32"), low_res.shape[1])
    return ops.mean(ops.square(small - ops.cast(low_res, "float32")), axis=(1, 2, 3))


def _mean(values):
    return ops.mean(ops.cast(values, "float32"), axis=1)

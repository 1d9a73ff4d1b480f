"""Penalties on a discriminator's gradient, which keep a game of two players from running away."""

import math

import tensorflow as tf


def gradient_penalty(judge, pictures):
    """Squared norms of a discriminator's gradient with respect to pictures (Mescheder et al. 2018).

    Args:
        judge: `judge(pictures)` returns logits, (batch, judgements); rows behind those of the pictures, as
            of judgements with other texts, are not of the gradient.
        pictures: float (batch, height, width, channels), or a tuple of such of several sizes; or what a
            frozen network sees in them.

    Returns:
        The logits, and float32 (batch,), which can be differentiated again: R1 of real pictures, R2 of drawn
        ones, without the factor gamma / 2. The gradient is that of the sum of a picture's logits over the
        root of their number, as long for many independent ones as for one.
    """
    watched = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        logits = judge(tuple(watched) if isinstance(pictures, (list, tuple)) else watched[0])
        of_pictures = logits[: tf.shape(watched[0])[0]]
        total = tf.reduce_sum(of_pictures) / math.sqrt(logits.shape[1])
    gradients = tape.gradient(total, watched)
    squares = [tf.reduce_sum(tf.square(tf.cast(each, tf.float32)), axis=(1, 2, 3)) for each in gradients]
    return logits, tf.add_n(squares)

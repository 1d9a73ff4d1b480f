"""Projection: the styles of which a generator draws a given picture (Karras et al. 2020, section 5)."""

import numpy as np

from sd_tf.images import to_unit

CANDIDATES = 64  # seeds, of whose styles the nearest are begun with
LEARNING_RATE, BETAS = 0.05, (0.9, 0.999)


def nearest_styles(model, pictures, prompt, texts, seeds=CANDIDATES):
    """For each picture, the styles whose picture is nearest, float32 (n, levels, style dim).

    They are those of a seed, or of what the generator's encoder says, if it has one.

    Args:
        model: a `GigaGAN`.
        pictures: uint8 (n, side, side, 3).
        prompt: a string.
        texts: of each picture, its context and mask, or nothing.
        seeds: how many are tried.
    """
    styles = model.styles(prompt, seeds, truncation=1.0, engine="tensorflow")
    if model.generator.encoder is not None:
        z = np.asarray(model.generator.encoder(to_unit(pictures), model.generator.read(*texts)[1])[0])
        own = model.styles(prompt, len(z), z=z, truncation=1.0, engine="tensorflow")
        styles = np.concatenate([styles, own])
    drawn = model.generate(prompt, len(styles), styles=styles, engine="tensorflow", progress=False)
    drawn, pictures = (each.reshape(len(each), -1).astype(np.float32) for each in (drawn, pictures))
    return styles[[np.square(drawn - picture).mean(axis=1).argmin() for picture in pictures]]


def inverted(generator, pictures, texts, styles, steps, progress=None):
    """Styles whose pictures are as near as can be, by the mean squared difference at every size.

    Args:
        generator: a `Generator`.
        pictures: float32 (n, side, side, 3) in [-1, 1].
        texts: context and mask, or nothing.
        styles: float32 (n, levels, style dim) to begin with.
        steps: of Adam, whose learning rate falls as a cosine.
        progress: called with the number of each step and the least differences so far, their mean.

    Returns:
        float32 (n, levels, style dim).
    """
    import keras
    import tensorflow as tf

    from sd_tf.gan.layers import halved

    levels = styles.shape[1]
    variable, best = (tf.Variable(styles, dtype=tf.float32) for _ in range(2))
    least = tf.Variable(tf.fill([len(styles)], np.float32(np.inf)))
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.Adam(rate, *BETAS)
    tokens = generator.read(*texts)[0] if texts else None
    mask = texts[1] if texts else None
    wanted = [tf.convert_to_tensor(pictures)]
    while wanted[-1].shape[1] > 4:
        wanted.append(halved(wanted[-1]))

    @tf.function
    def step():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variable)
            drawn = generator.synthesize([variable[:, i] for i in range(levels)], tokens, mask)[-1]
            # What is drawn beyond black and white is cut off, so that only as much is to be reached there.
            reached = tf.abs(wanted[0]) >= 1.0
            drawn = tf.where(reached, tf.clip_by_value(drawn, -1.0, 1.0), drawn)
            total = 0.0
            for each in wanted:
                total += tf.reduce_mean(tf.square(drawn - each), axis=(1, 2, 3))
                if each.shape[1] > 4:
                    drawn = halved(drawn)
        is_better = total < least
        best.assign(tf.where(is_better[:, None, None], variable, best))
        least.assign(tf.where(is_better, total, least))
        optimizer.apply_gradients([(tape.gradient(total, variable), variable)])
        return tf.reduce_mean(least)

    optimizer.build([variable])
    for number in range(steps):
        loss = step()
        if progress is not None:
            progress(number, float(loss))
    return np.asarray(best)

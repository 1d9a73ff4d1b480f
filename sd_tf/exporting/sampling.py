"""What a drawing begins with, and where its steps are, as TensorFlow operations.

They give the numbers of `sd_tf.seeding` and `sd_tf.diffusion.schedules`, where numbers of steps and
seeds are known to Python.
"""

import math

import tensorflow as tf

from sd_tf.seeding import GOLDEN, MIXERS, state_of


def normals(key, indices, shape):
    """As `sd_tf.seeding.normals`, for integers `indices`, (n,): float32 (n, *shape)."""
    half = (math.prod(shape) + 1) // 2
    state, golden = (tf.constant(int(each), tf.uint64) for each in (state_of(key)[0], GOLDEN))
    rows = _mix(state + (tf.cast(indices, tf.uint64) + tf.constant(1, tf.uint64)) * golden)
    columns = tf.cast(tf.range(1, 2 * half + 1), tf.uint64) * golden
    bits = tf.bitwise.right_shift(_mix(rows[:, tf.newaxis] + columns), tf.constant(11, tf.uint64))
    uniform = tf.cast(bits, tf.float64) * 2.0**-53
    radius = tf.sqrt(-2.0 * tf.math.log1p(-uniform[:, :half]))
    angle = 2.0 * math.pi * uniform[:, half:]
    pairs = tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], 1)[:, : math.prod(shape)]
    return tf.cast(tf.reshape(pairs, [-1, *shape]), tf.float32)


def _mix(state):
    for shift, factor in MIXERS:
        shifted = tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64))
        state = tf.bitwise.bitwise_xor(state, shifted) * tf.constant(factor, tf.uint64)
    return state


def inference_timesteps(config, steps):
    """As `NoiseSchedule.inference_timesteps`, for a scalar int32 `steps`: int32 (steps,)."""
    total = config.num_train_timesteps
    place = tf.cast(tf.range(steps), tf.float64)
    number = tf.cast(steps, tf.float64)
    if config.timestep_spacing == "leading":
        found = tf.range(steps)[::-1] * (total // steps) + config.steps_offset
        message = f"with steps_offset {config.steps_offset}, so many steps start past the last timestep"
        with tf.control_dependencies([tf.debugging.assert_less(found, total, message)]):
            return tf.identity(found)
    if config.timestep_spacing == "trailing":
        strides = [(total - total / n) - total for n in range(1, total + 1)]  # numpy's arange rounds so
        stride = tf.gather(tf.constant(strides, tf.float64), steps - 1)
        return tf.cast(tf.round(total + place * stride), tf.int32) - 1
    stride = (total - 1) / tf.maximum(number - 1, 1)
    last = tf.where(steps > 1, tf.cast(total - 1, tf.float64), 0.0)  # numpy's linspace ends exactly there
    points = tf.where(place == number - 1, last, place * stride)
    return tf.cast(tf.round(points), tf.int32)[::-1]


def rates(schedule, timesteps):
    """Signal and noise rates at `timesteps`, int32 (steps,), and at the level where DDIM ends.

    Returns:
        Two of float32 (steps + 1,).
    """
    final = schedule.final_level
    alphas = tf.gather(tf.constant(schedule.alphas_cumprod, tf.float64), timesteps)
    signals = tf.concat([tf.sqrt(alphas), [final.signal]], 0)
    noises = tf.concat([tf.sqrt(1 - alphas), [final.noise]], 0)
    return tf.cast(signals, tf.float32), tf.cast(noises, tf.float32)

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from sd_tf.training.ema import ExponentialMovingAverage


def variable(value):
    return keras.Variable(np.array(value, np.float32))


def test_a_step_of_the_weights_is_followed_as_the_closed_form_says():
    weight = variable([0.0, 0.0])
    ema = ExponentialMovingAverage([weight], 0.9999)
    weight.assign([1.0, -2.0])
    for step in range(1, 21):
        ema.update(tf.constant(step, tf.int64))
    # The product of (1 + n) / (10 + n) over n = 1 ... 20 telescopes.
    left = math.factorial(21) * math.factorial(10) / math.factorial(30)
    np.testing.assert_allclose(ema.averages[0].numpy(), (1 - left) * np.array([1.0, -2.0]), rtol=1e-5)


def test_averages_are_those_of_tensorflow_1():
    rng = np.random.default_rng(0)
    weight, shadowed = variable(np.zeros((3, 2))), tf.Variable(np.zeros((3, 2), np.float32))
    step = tf.Variable(0, dtype=tf.int64)
    ema = ExponentialMovingAverage([weight], 0.6)
    reference = tf.train.ExponentialMovingAverage(0.6, num_updates=step)
    reference.apply([shadowed])
    for k in range(1, 31):
        value = rng.normal(size=(3, 2)).astype(np.float32)
        weight.assign(value)
        shadowed.assign(value)
        step.assign(k)
        ema.update(step)
        reference.apply([shadowed])
    np.testing.assert_allclose(ema.averages[0].numpy(), reference.average(shadowed).numpy(), rtol=1e-5)


def test_within_the_block_the_averages_are_in_place_and_after_it_the_weights():
    weight = variable([1.0])
    ema = ExponentialMovingAverage([weight], 0.5)
    weight.assign([3.0])
    with ema.in_place():
        assert weight.numpy() == [1.0]
    assert weight.numpy() == [3.0] and ema.averages[0].numpy() == [1.0]


def test_an_error_in_the_block_still_brings_the_weights_back():
    weight = variable([1.0])
    ema = ExponentialMovingAverage([weight], 0.5)
    weight.assign([3.0])
    with pytest.raises(KeyboardInterrupt), ema.in_place():
        raise KeyboardInterrupt
    assert weight.numpy() == [3.0]


def test_an_interrupt_while_the_averages_are_put_in_place_brings_the_weights_back(monkeypatch):
    weights = [variable([1.0]), variable([2.0])]
    ema = ExponentialMovingAverage(weights, 0.5)
    weights[0].assign([3.0])

    def half_way():
        weights[0].assign(ema.averages[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(ema, "copy_to_variables", half_way)
    with pytest.raises(KeyboardInterrupt), ema.in_place():
        pytest.fail("the averages were not in place")
    assert weights[0].numpy() == [3.0]


def test_copying_makes_the_weights_the_averages():
    weight = variable([1.0])
    ema = ExponentialMovingAverage([weight], 0.5)
    weight.assign([3.0])
    ema.copy_to_variables()
    assert weight.numpy() == [1.0]


def test_averages_are_restored_from_a_checkpoint(tmp_path):
    weight = variable([1.0])
    ema = ExponentialMovingAverage([weight], 0.5)
    weight.assign([3.0])
    ema.update(tf.constant(1, tf.int64))
    file = tf.train.Checkpoint(ema=ema).write(str(tmp_path / "ema"))
    other = ExponentialMovingAverage([weight], 0.5)
    assert other.averages[0].numpy() != ema.averages[0].numpy()
    tf.train.Checkpoint(ema=other).read(file).assert_existing_objects_matched()
    assert other.averages[0].numpy() == ema.averages[0].numpy()

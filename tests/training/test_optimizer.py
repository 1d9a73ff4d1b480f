import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from sd_tf.config import StageConfig
from sd_tf.training import optimizer as optimizers
from sd_tf.training.optimizer import AdamW

SHAPES = {"kernel": (3, 4), "bias": (4,), "table": (5, 2), "gamma": (2,)}


def config(**changes):
    settings = {"weight_decay": 0.1, "gradient_clip": 0.5, "ema_decay": 0.6} | changes
    return StageConfig(batch_size=1, learning_rate=1.0, share=1.0, max_steps=1, **settings)


def network(seed=0):
    rng = np.random.default_rng(seed)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name) for name, shape in SHAPES.items()
    ]


def values(tensors):
    return [np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in tensors]


def apply(optimizer, gradients, learning_rate=0.02):
    optimizer.learning_rate.assign(learning_rate)
    return float(optimizer.apply(optimizer.flat([tf.constant(gradient) for gradient in gradients])))


@pytest.mark.parametrize("bucket", [2**24, 12, 1], ids=["one bucket", "several", "one for each variable"])
def test_updates_are_those_of_torch(bucket, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(optimizers, "BUCKET", bucket)
    variables = network()
    ours = AdamW(variables, config())
    theirs = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values(variables)]
    decayed = [p for p, name in zip(theirs, SHAPES, strict=True) if name not in ("bias", "gamma")]
    others = [p for p, name in zip(theirs, SHAPES, strict=True) if name in ("bias", "gamma")]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.02
    )
    rng = np.random.default_rng(1)
    for step in range(20):
        size = 10.0 ** rng.uniform(-3, 2)  # some clipped, some not
        gradients = [size * rng.normal(size=shape).astype("float32") for shape in SHAPES.values()]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        reference.step()
        assert apply(ours, gradients) == pytest.approx(float(norm), rel=1e-5)
        for mine, other in zip(values(variables), theirs, strict=True):
            np.testing.assert_allclose(mine, other.detach().numpy(), atol=2e-6, err_msg=f"step {step}")


def test_a_step_of_the_weights_is_followed_as_the_closed_form_says():
    variables = network()
    before = values(variables)
    ours = AdamW(variables, config(weight_decay=0.0, ema_decay=0.9999))
    zeros = [np.zeros(shape, "float32") for shape in SHAPES.values()]
    for variable in variables:
        variable.assign(variable + 1.0)
    for _ in range(20):
        apply(ours, zeros)
    # The product of (1 + n) / (10 + n) over n = 1 ... 20 telescopes.
    left = math.factorial(21) * math.factorial(10) / math.factorial(30)
    for average, value in zip(values(ours.averages), before, strict=True):
        np.testing.assert_allclose(average, value + (1 - left), rtol=1e-5)


def test_averages_are_those_of_tensorflow_1():
    variables = network()
    shadowed = [tf.Variable(value) for value in values(variables)]
    count = tf.Variable(0, dtype=tf.int64)
    reference = tf.train.ExponentialMovingAverage(0.6, num_updates=count)
    reference.apply(shadowed)
    ours, rng = AdamW(variables, config()), np.random.default_rng(0)
    for step in range(1, 31):
        apply(ours, [rng.normal(size=shape).astype("float32") for shape in SHAPES.values()])
        count.assign(step)
        for shadow, value in zip(shadowed, values(variables), strict=True):
            shadow.assign(value)
        reference.apply(shadowed)
    for average, shadow in zip(values(ours.averages), shadowed, strict=True):
        np.testing.assert_allclose(average, reference.average(shadow).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    variables = network()
    ours = AdamW(variables, config())
    gradients = [np.ones(shape, "float32") for shape in SHAPES.values()]
    apply(ours, gradients)

    def everything():
        state = {name: variable for name, variable in ours.state.items() if name != "skipped"}
        return values([*variables, *tf.nest.flatten(state)])

    before = everything()
    gradients[1][2] = bad
    assert not math.isfinite(apply(ours, gradients))
    for now, then in zip(everything(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert int(ours.skipped) == 1
    gradients[1][2] = 1.0
    apply(ours, gradients)
    assert int(ours.skipped) == 0


def test_the_scale_of_the_loss_cancels_out_falls_at_an_overflow_and_grows_after_2000_steps():
    plain, scaled = network(), network()
    ours, reference = AdamW(scaled, config(), loss_scaling=True), AdamW(plain, config())
    scale = float(ours.scaled(tf.constant(1.0)))
    assert scale == 2.0**15
    gradients = [np.full(shape, 0.3, "float32") for shape in SHAPES.values()]
    norm = apply(ours, [scale * gradient for gradient in gradients])
    assert norm == pytest.approx(apply(reference, gradients), rel=1e-6)
    for mine, other in zip(values(scaled), values(plain), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)
    apply(ours, [np.full(shape, np.inf, "float32") for shape in SHAPES.values()])
    assert float(ours.loss_scale) == 2.0**14 and int(ours.good_steps) == 0
    ours.good_steps.assign(1999)
    apply(ours, gradients)
    assert float(ours.loss_scale) == 2.0**15 and int(ours.good_steps) == 0


def test_within_the_block_the_averages_are_in_place_and_after_it_the_weights():
    variables = network()
    averages = values(variables)
    ours = AdamW(variables, config())
    for variable in variables:
        variable.assign(variable + 2.0)
    weights = values(variables)
    with pytest.raises(KeyboardInterrupt), ours.averages_in_place():
        for variable, average in zip(values(variables), averages, strict=True):
            np.testing.assert_array_equal(variable, average)
        raise KeyboardInterrupt
    for variable, weight in zip(values(variables), weights, strict=True):
        np.testing.assert_array_equal(variable, weight)
    ours.copy_averages()
    for variable, average in zip(values(variables), averages, strict=True):
        np.testing.assert_array_equal(variable, average)


def test_an_interrupt_while_the_averages_are_put_in_place_brings_the_weights_back(monkeypatch):
    variables = network()
    ours = AdamW(variables, config())
    weights = values(variables)

    def half_way():
        variables[0].assign(variables[0] * 0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "copy_averages", half_way)
    with pytest.raises(KeyboardInterrupt), ours.averages_in_place():
        pytest.fail("the averages were not in place")
    for variable, weight in zip(values(variables), weights, strict=True):
        np.testing.assert_array_equal(variable, weight)

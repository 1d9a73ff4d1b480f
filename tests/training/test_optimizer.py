import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.training import optimizer as optimizers
from sd_tf.training.optimizer import Optimizer
from sd_tf.training.options import StageConfig

SHAPES = {"kernel": (3, 4), "bias": (4,), "table": (5, 2), "gamma": (2,)}


def config(**changes):
    settings = {"weight_decay": 0.1, "gradient_clip": 0.5, "ema_decay": 0.6} | changes
    return StageConfig(batch_size=1, learning_rate=1.0, **settings)


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
    ours = Optimizer(variables, config())
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
    ours = Optimizer(variables, config(weight_decay=0.0, ema_decay=0.9999))
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
    ours, rng = Optimizer(variables, config()), np.random.default_rng(0)
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
    ours = Optimizer(variables, config())
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
    ours, reference = Optimizer(scaled, config(), loss_scaling=True), Optimizer(plain, config())
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


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_without_decay_no_average_is_kept_and_the_weights_stand_for_it(kind):
    variables = network()
    ours = Optimizer(variables, config(ema_decay=0.0, optimizer=kind))
    apply(ours, [np.ones(shape, "float32") for shape in SHAPES.values()])
    assert ours.state["average"] == []
    for average, value in zip(values(ours.averages), values(variables), strict=True):
        np.testing.assert_array_equal(average, value)
    with tf.GradientTape() as tape:
        total = tf.add_n([tf.reduce_sum(average) for average in ours.averages])
    assert tape.gradient(total, [variable.value for variable in variables]) == [None] * len(variables)


def test_within_the_block_the_averages_are_in_place_and_after_it_the_weights():
    variables = network()
    averages = values(variables)
    ours = Optimizer(variables, config())
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
    ours = Optimizer(variables, config())
    weights = values(variables)

    def half_way():
        variables[0].assign(variables[0] * 0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "copy_averages", half_way)
    with pytest.raises(KeyboardInterrupt), ours.averages_in_place():
        pytest.fail("the averages were not in place")
    for variable, weight in zip(values(variables), weights, strict=True):
        np.testing.assert_array_equal(variable, weight)


# -- Muon -------------------------------------------------------------------------------------------

KERNELS = {
    "a/kernel": (6, 4),
    "b/kernel": (3, 3, 2, 8),
    "c/kernel": (6, 4),
    "d/weight": (2, 3, 3, 2, 8),  # a filter bank
    "conv_in/kernel": (3, 4),
}


class Layer(keras.layers.Layer):
    """Gives its variables a path."""

    def __init__(self, shape, rng, path):
        name, _, of_kernel = path.partition("/")
        super().__init__(name=name)
        self.kernel = self.add_weight(shape=shape, name=of_kernel)
        self.bias = self.add_weight(shape=shape[-1:], name="bias")
        for variable in self.weights:
            variable.assign(rng.normal(size=variable.shape))


def layers():
    rng = np.random.default_rng(0)
    found = [Layer(shape, rng, path) for path, shape in KERNELS.items()]
    return [variable for layer in found for variable in layer.weights]


@pytest.mark.parametrize("bucket", [2**24, 30])
def test_hidden_kernels_are_updated_as_by_torchs_muon_and_all_else_by_adamw(bucket, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(optimizers, "BUCKET", bucket)
    variables = layers()
    ours = Optimizer(variables, config(optimizer="muon", gradient_clip=1e9))
    matrices = [v for v in variables if v.name != "bias" and "conv_in" not in v.path]
    assert len(matrices) == 4

    def flat(value, variable):  # torch's takes matrices only: (output, whatever comes in)
        return value.reshape(-1, variable.shape[-1]).T.copy()

    theirs = {id(v): torch.nn.Parameter(torch.from_numpy(flat(values([v])[0], v))) for v in matrices}
    plain = {
        id(v): torch.nn.Parameter(torch.from_numpy(values([v])[0].copy()))
        for v in variables
        if id(v) not in theirs
    }
    muon = torch.optim.Muon(
        theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [plain[id(v)]], "weight_decay": 0.0 if v.name == "bias" else 0.1}
            for v in variables
            if id(v) in plain
        ],
        lr=0.02,
    )
    rng = np.random.default_rng(1)
    for _ in range(10):
        gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
        for variable, gradient in zip(variables, gradients, strict=True):
            if id(variable) in theirs:
                theirs[id(variable)].grad = torch.from_numpy(flat(gradient, variable))
            else:
                plain[id(variable)].grad = torch.from_numpy(gradient.copy())
        muon.step()
        adamw.step()
        apply(ours, gradients)
    for variable, value in zip(variables, values(variables), strict=True):
        if id(variable) in theirs:  # torch iterates in bfloat16: ten updates of 0.004, each to a hundredth
            expected, tolerance = theirs[id(variable)].detach().numpy(), 1e-3
            value = flat(value, variable)
        else:
            expected, tolerance = plain[id(variable)].detach().numpy(), 2e-6
        np.testing.assert_allclose(value, expected, atol=tolerance, err_msg=variable.path)


@pytest.mark.parametrize("shape", [(5, 8, 8), (2, 30, 10), (1, 4, 40)])
def test_directions_are_made_orthogonal(shape):
    """The same singular vectors, with values of 0.7 to 1.2 (Jordan et al. 2024)."""
    matrices = np.random.default_rng(0).normal(size=shape).astype("float32")
    found = np.asarray(optimizers.orthogonal(tf.constant(1e3 * matrices)))
    for before, after in zip(matrices, found, strict=True):
        left, singular, right = np.linalg.svd(before, full_matrices=False)
        inside = left.T @ after @ right.T
        spread = singular / np.linalg.norm(singular) > 0.02  # smaller ones need more iterations
        assert ((np.diag(inside) > 0.5) & (np.diag(inside) < 1.25))[spread].all()
        np.testing.assert_allclose(inside - np.diag(np.diag(inside)), 0, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 18, 9), (3, 288, 32), (1, 16, 512), (2, 2304, 256)])
def test_directions_of_long_matrices_are_those_of_the_iteration_on_the_matrix_itself(shape):
    """In float64 by numpy, as Jordan et al. 2024 have it; also where most directions are nearly empty."""
    rng = np.random.default_rng(1)
    number, rows, columns = shape
    rank = min(rows, columns, 8)
    matrices = rng.normal(size=(number, rows, rank)) @ rng.normal(size=(number, rank, columns))
    matrices += 1e-3 * rng.normal(size=shape)
    found = np.asarray(optimizers.orthogonal(tf.constant(matrices.astype("float32"))))
    for matrix, direction in zip(matrices, found, strict=True):
        x = matrix / np.linalg.norm(matrix)
        x = x.T if rows > columns else x
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        expected = x.T if rows > columns else x
        np.testing.assert_allclose(direction, expected, atol=2e-3 * expected.std())


def test_no_gradient_is_no_direction_and_what_is_not_finite_is_skipped():
    assert np.abs(optimizers.orthogonal(tf.zeros((2, 3, 4)))).max() == 0.0
    variables = layers()
    ours = Optimizer(variables, config(optimizer="muon"))
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
    apply(ours, gradients)
    before = values([*variables, *ours.averages, *(b.first for b in ours.buckets)])
    gradients[2][0] = np.nan
    apply(ours, gradients)
    assert int(ours.skipped.numpy()) == 1
    for one, other in zip(
        values([*variables, *ours.averages, *(b.first for b in ours.buckets)]), before, strict=True
    ):
        np.testing.assert_array_equal(one, other)


# -- constraints ------------------------------------------------------------------------------------


class AtMost(keras.constraints.Constraint):
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, value):
        return keras.ops.minimum(value, self.limit)


def check_that_a_limit_holds(strategy, precision):
    """Two steps of AdamW, each 0.02 upwards, from 0.5 to at most 0.51, beside a variable without a limit."""
    with strategy.scope():
        layer = keras.layers.Layer(dtype=precision)
        for name, constraint in (("logit_scale", AtMost(0.51)), ("bias", None)):
            layer.add_weight((), keras.initializers.Constant(0.5), constraint=constraint, name=name)
        variables = layer.trainable_variables
        ours = Optimizer(variables, config(gradient_clip=1e9), loss_scaling=precision == "mixed_float16")
        ours.learning_rate.assign(0.02)

    @tf.function
    def step():
        gradients = strategy.run(lambda: ours.flat([ours.scaled(tf.constant(-1.0))] * 2))
        with strategy.scope():
            ours.apply(gradients)

    # The average moves by 1 - 2/11 of the way, then by 1 - 3/12.
    expected = [(0.51, 0.52, 0.5 + 9 / 11 * 0.01), (0.51, 0.54, 0.51 - 0.01 * 2 / 11 * 1 / 4)]
    for limited, free, average in expected:
        step()
        for variable, value in zip(variables, (limited, free), strict=True):
            for copy in strategy.experimental_local_results(variable.value):
                assert copy.numpy() == pytest.approx(value, rel=1e-5)
        assert float(ours.averages[0]) == pytest.approx(average, rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_constraint_holds_for_new_weights_and_for_the_average_of_them(precision):
    check_that_a_limit_holds(tf.distribute.get_strategy(), precision)


def test_constraints_hold_on_every_replica():
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    subprocess.run([sys.executable, __file__], env=environment, check=True, timeout=300)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("constraint", "constrained"),
    [
        (keras.constraints.NonNeg(), lambda kernel: np.maximum(kernel, 0)),
        (keras.constraints.UnitNorm(axis=0), lambda kernel: kernel / np.linalg.norm(kernel, axis=0)),
    ],
    ids=["not negative", "unit norm"],
)
def test_a_kernels_constraint_is_applied_after_its_update(optimizer, constraint, constrained):
    def updated(constraint):
        rng = np.random.default_rng(0)
        layer = keras.layers.Dense(3, kernel_constraint=constraint)
        layer.build((None, 4))
        layer.kernel.assign(rng.normal(size=(4, 3)))
        ours = Optimizer(layer.trainable_variables, config(optimizer=optimizer))
        apply(ours, [rng.normal(size=(4, 3)).astype("float32"), np.ones(3, "float32")], 0.3)
        return values(layer.trainable_variables)

    kernel, bias = updated(constraint)
    free_kernel, free_bias = updated(None)
    assert np.abs(kernel - free_kernel).max() > 0.1
    np.testing.assert_allclose(kernel, constrained(free_kernel), atol=1e-6)
    np.testing.assert_array_equal(bias, free_bias)


def test_a_step_that_is_not_finite_leaves_constrained_weights_as_they_are():
    variable = keras.Variable(0.9, name="logit_scale")
    variable.constraint = AtMost(0.5)
    ours = Optimizer([variable], config())
    apply(ours, [np.float32(np.nan)])
    assert float(variable.value) == np.float32(0.9)
    apply(ours, [np.float32(1)])
    assert float(variable.value) == 0.5


def test_the_temperature_of_clip_stays_below_100():
    from sd_tf.text.clip import LogitScaleLimit

    variable = keras.Variable(math.log(99.9), name="logit_scale")
    variable.constraint = LogitScaleLimit()
    ours = Optimizer([variable], config())
    for _ in range(3):
        apply(ours, [np.float32(-1)])
        assert math.exp(float(variable.value)) <= 100.001
    assert math.exp(float(variable.value)) == pytest.approx(100)


if __name__ == "__main__":  # in a process of its own: virtual devices come before all else
    cpus = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    for each in ("float32", "mixed_bfloat16", "mixed_float16"):
        check_that_a_limit_holds(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), each)

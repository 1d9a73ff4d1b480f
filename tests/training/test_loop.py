"""The trainer on a network small enough that a plain loop beside it takes a second."""

import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.data.pipeline import stream
from sd_tf.errors import InputError
from sd_tf.training import strategy as strategies
from sd_tf.training.loop import Budget, Trainer
from sd_tf.training.observers import Log
from sd_tf.training.options import StageConfig
from sd_tf.training.stage import SinglePlayerStage

CONFIG = StageConfig(
    batch_size=8,
    learning_rate=0.02,
    warmup_steps=4,
    weight_decay=0.1,
    gradient_clip=0.5,
    ema_decay=0.5,
)
EXAMPLES, STEPS = 40, 10


class Network(keras.Model):
    """An embedding, whose gradient is sparse, beside dense layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(5, 4, dtype=self.dtype_policy)
        self.hidden = keras.layers.Dense(8, activation="tanh", dtype=self.dtype_policy)
        self.head = keras.layers.Dense(1, dtype=self.dtype_policy)

    def build(self, input_shape=None):
        self.embedding.build((None,))
        self.hidden.build((None, 7))
        self.head.build((None, 8))
        self.built = True

    def call(self, numbers, words):
        features = keras.ops.concatenate([numbers, self.embedding(words)], axis=-1)
        return keras.ops.cast(self.head(self.hidden(features))[:, 0], "float32")


class Stage(SinglePlayerStage):
    """Learns the sum of three numbers and a word."""

    name = "sums"

    def batches(self, first, part=(0, 1)):
        numbers = np.random.default_rng(0).normal(size=(EXAMPLES, 3)).astype(np.float32)

        def fetch(indices, epoch):
            words = (indices % 5).astype(np.int32)
            return {
                "numbers": numbers[indices],
                "words": words,
                "sums": numbers[indices].sum(axis=1) + words.astype(np.float32),
            }

        return stream(fetch, EXAMPLES, self.config.batch_size, 0, first, part)

    def loss(self, batch):
        error = self.network(batch["numbers"], batch["words"]) - batch["sums"]
        return {"loss": tf.square(error), "bias": error}


def trainer(folder, strategy="none", precision="float32", config=CONFIG, budget=None, **options):
    strategy = strategies.make(strategy, None)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = Network(dtype=precision)
        network.build()
    budget = budget or Budget(None, STEPS)
    options = {"checkpoint_seconds": 1e9} | options
    return Trainer(Stage(config, network), strategy, budget, folder, precision, **options)


def without_overflow(trainer):
    """Replicas sum fewer examples, so they overflow at another scale; with none, they must agree."""
    if optimizer(trainer).loss_scale is not None:
        optimizer(trainer).loss_scale.assign(256.0)
    return trainer


def optimizer(trainer):
    """That of the only player."""
    (learner,) = trainer.step.learners.values()
    return learner.optimizer


def weights(trainer):
    return [variable.numpy() for variable in trainer.step.variables]


def averages(trainer):
    return [average.numpy() for average in optimizer(trainer).averages]


def state(trainer):
    """Everything that training changes."""
    moments = [variable.numpy() for variable in tf.nest.flatten(optimizer(trainer).state)]
    return [*weights(trainer), *moments, trainer.steps_taken]


def plain_loop(config, clip=True):
    """Weights, their averages and the losses of `STEPS` steps, written down once more."""
    keras.utils.set_random_seed(0)
    stage = Stage(config, Network())
    stage.network.build()
    variables = stage.network.trainable_variables
    ema, losses = [v.numpy() for v in variables], []
    first, second = ([np.zeros(v.shape) for v in variables] for _ in range(2))
    for step, batch in enumerate(itertools.islice(stage.batches(0), STEPS)):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
        rate = config.learning_rate * cosine * min(1.0, (step + 1) / config.warmup_steps)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(stage.loss(batch)["loss"])
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        if clip:
            gradients, _ = tf.clip_by_global_norm(gradients, config.gradient_clip)
        for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
            weight, gradient = variable.numpy().astype(float), gradient.numpy().astype(float)
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            mean, square = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            decay = 0.0 if variable.name == "bias" else config.weight_decay
            variable.assign(weight - rate * (mean / (np.sqrt(square) + 1e-8) + decay * weight))
        decay = min(config.ema_decay, (2 + step) / (11 + step))
        ema = [decay * a + (1 - decay) * v.numpy() for a, v in zip(ema, variables, strict=True)]
        losses.append(float(loss))
    return [v.numpy() for v in variables], ema, losses


def largest_difference(ours, theirs):
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))


def test_ten_steps_agree_with_a_plain_loop(tmp_path):
    seen = []
    ours = trainer(tmp_path)
    ours.fit([lambda trainer, step, elapsed, means: seen.append((step, float(means["loss"])))])
    reference, reference_averages, losses = plain_loop(CONFIG)
    assert largest_difference(weights(ours), reference) < 1e-5
    assert largest_difference(averages(ours), reference_averages) < 1e-5
    assert [step for step, _ in seen] == list(range(1, 11))
    np.testing.assert_allclose([loss for _, loss in seen], losses, rtol=1e-4)


def test_the_plain_loop_tells_clipping_from_none():
    clipped, _, _ = plain_loop(CONFIG)
    free, _, _ = plain_loop(CONFIG, clip=False)
    assert largest_difference(clipped, free) > 1e-3


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_two_replicas_learn_what_one_does(tmp_path, precision):
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    command = [sys.executable, __file__, str(tmp_path), precision]
    subprocess.run(command, env=environment, check=True, timeout=300)
    one = without_overflow(trainer(tmp_path / "one", precision=precision))
    one.fit()
    tolerance = 1e-5 if precision == "float32" else 2e-3  # half precision rounds the sum of a half batch
    for name in ("mirrored", "in parts"):
        with np.load(tmp_path / f"{name}.npz") as file:
            two = [file[f"arr_{i}"] for i in range(len(file.files))]
        assert largest_difference(two, [*weights(one), *averages(one)]) < tolerance


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns(tmp_path, precision):
    config = StageConfig(batch_size=8, learning_rate=0.05, warmup_steps=4, ema_decay=0.9)
    losses = []
    ours = trainer(tmp_path, precision=precision, config=config, budget=Budget(None, 60))
    ours.fit([lambda trainer, step, elapsed, means: losses.append(float(means["loss"]))])
    assert np.mean(losses[-5:]) < 0.1 * np.mean(losses[:5])
    assert all(weight.dtype == np.float32 for weight in weights(ours))
    assert ("loss_scale" in optimizer(ours).state) == (precision == "mixed_float16")


def test_parts_on_a_core_each_learn_what_the_whole_batch_does(tmp_path, monkeypatch):
    monkeypatch.setattr("sd_tf.training.workers.batch_slices", lambda *examples: 3)  # of 2, 3 and 3
    losses = []
    ours = trainer(tmp_path)
    ours.fit([lambda trainer, step, elapsed, means: losses.append(float(means["loss"]))])
    reference, _, reference_losses = plain_loop(CONFIG)
    assert largest_difference(weights(ours), reference) < 1e-5
    np.testing.assert_allclose(losses, reference_losses, rtol=1e-4)


def test_the_learning_rate_warms_up_then_falls_as_a_cosine(tmp_path):
    rates = []
    config = StageConfig(batch_size=8, learning_rate=1e-3, warmup_steps=2)
    trainer(tmp_path, config=config, budget=Budget(None, 8)).fit(
        [lambda trainer, step, elapsed, means: rates.append(float(optimizer(trainer).learning_rate))]
    )
    cosine = [1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]  # (1 + cos(pi k/8)) / 2
    np.testing.assert_allclose(rates, 1e-3 * np.array([0.5, *cosine[1:]]), rtol=1e-5)


def test_a_budget_in_seconds_is_kept_to_one_step(tmp_path):
    times, rates = [0.0], []

    def observe(trainer, step, elapsed, means):
        times.append(elapsed)
        rates.append(float(optimizer(trainer).learning_rate))

    ours = trainer(tmp_path, budget=Budget(0.5, None))
    ours.fit([observe])
    assert times[-2] < 0.5 <= times[-1]
    assert float(ours.elapsed.numpy()) == times[-1]
    expected = CONFIG.learning_rate * 0.5 * (1 + math.cos(math.pi * times[-2] / 0.5))
    assert rates[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("number", "precision"),
    [(signal.SIGINT, "float32"), (signal.SIGTERM, "mixed_float16")],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, number, precision, request):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a run does
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    whole = trainer(tmp_path / "whole", precision=precision)
    whole.fit()

    def interrupt(trainer, step, elapsed, means):
        if step == 4:
            signal.raise_signal(number)

    first = trainer(tmp_path / "parts", precision=precision)
    with pytest.raises(KeyboardInterrupt):
        first.fit([interrupt])
    second = trainer(tmp_path / "parts", precision=precision)
    assert int(second.steps_taken) == 4 and float(second.elapsed.numpy()) > 0
    for ours, theirs in zip(state(second), state(first), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    steps = []
    second.fit([lambda trainer, step, elapsed, means: steps.append(step)])
    assert steps == [5, 6, 7, 8, 9, 10]
    for ours, theirs in zip(state(second), state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_second_ctrl_c_does_not_wait_and_leaves_the_last_checkpoint(tmp_path):
    def interrupt(trainer, step, elapsed, means):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    ours = trainer(tmp_path, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        ours.fit([interrupt])
    assert ours.checkpoints.steps[-1] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_end_is_saved_is_not_lost(tmp_path, monkeypatch):
    ours = trainer(tmp_path)
    save = ours.checkpoints.save
    monkeypatch.setattr(
        ours.checkpoints, "save", lambda step: (signal.raise_signal(signal.SIGINT), save(step))
    )
    with pytest.raises(KeyboardInterrupt):
        ours.fit()
    assert trainer(tmp_path).progress == 1.0


def test_a_stage_that_ended_is_neither_trained_nor_saved_again(tmp_path):
    first = trainer(tmp_path)
    first.fit()
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    second = trainer(tmp_path)
    assert second.progress == 1.0
    second.fit([lambda *_: pytest.fail("a step was taken")])
    for ours, theirs in zip(state(second), state(first), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == files


def test_a_diverged_run_says_so_and_leaves_the_last_checkpoint(tmp_path):
    def explode(trainer, step, elapsed, means):
        if step == 2:
            trainer.step.variables[0].assign(np.full(trainer.step.variables[0].shape, np.nan))

    ours = trainer(tmp_path, checkpoint_seconds=0)
    named = "sums stops at step 2.*: the weights .*embedding.* is not finite; .* step 1 is kept"
    with pytest.raises(InputError, match=f"{named}.*learning_rate below 0.02"):
        ours.fit([explode])
    assert ours.checkpoints.steps == [1]


def test_gradients_that_stay_infinite_end_the_run_and_leave_the_last_checkpoint(tmp_path):
    class Poisoned(Stage):
        def loss(self, batch):
            return {name: value / 0.0 for name, value in super().loss(batch).items()}

    ours = trainer(tmp_path, budget=Budget(None, 25), checkpoint_seconds=0)
    ours.step.stage = Poisoned(ours.stage.config, ours.stage.network)
    before = weights(ours)
    with pytest.raises(
        InputError, match="step 25, after 25 skipped steps in a row: the loss.* step 24 is kept"
    ):
        ours.fit()
    assert ours.checkpoints.steps == [23, 24]
    assert largest_difference(weights(ours), before) == 0


def test_an_error_in_an_observer_writes_no_checkpoint(tmp_path):
    def fail(trainer, step, elapsed, means):
        raise ZeroDivisionError

    ours = trainer(tmp_path)
    with pytest.raises(ZeroDivisionError):
        ours.fit([fail])
    assert ours.checkpoints.steps == []


@pytest.mark.parametrize(
    "poison, named",
    [
        ("batch", "numbers of example 3 in the batch"),
        ("layer", "the output of layer {hidden.path}"),
        ("gradient", "the gradient of {head.path}/bias"),
    ],
)
def test_what_is_not_finite_first_is_named(tmp_path, poison, named):
    ours = trainer(tmp_path, budget=Budget(None, 100))
    stage = ours.stage
    if poison == "batch":
        plain = stage.batches

        def batches(first, part=(0, 1)):
            def spoil(batch):
                numbers = tf.tensor_scatter_nd_update(batch["numbers"], [[3, 1]], [math.nan])
                return batch | {"numbers": numbers}

            return plain(first, part).map(spoil)

        stage.batches = batches
    elif poison == "layer":
        hidden = stage.network.hidden.call
        stage.network.hidden.call = lambda x: hidden(x) * math.inf
    else:
        head = stage.network.head.call
        stage.network.head.call = lambda x: tf.sqrt(tf.square(head(x)) * 0.0)  # its slope is infinite
    named = named.format_map({"hidden": stage.network.hidden, "head": stage.network.head})
    with pytest.raises(InputError, match=f"25 skipped steps in a row: {named} is not finite"):
        ours.fit()


def test_parts_of_a_batch_one_after_another_take_the_same_steps(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.fit()
    ours = trainer(tmp_path / "parts", accumulate=4)
    ours.fit()
    assert largest_difference(weights(ours), weights(whole)) < 1e-5


def test_checkpoints_come_every_so_many_steps(tmp_path):
    trainer(tmp_path, checkpoint_seconds=0, checkpoint_every=4, keep_checkpoints=3).fit()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{n:07d}" for n in (4, 8, 10)]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    trainer(tmp_path, checkpoint_seconds=0).fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000009", "step-0000010"]


def test_a_stage_that_skipped_all_its_steps_has_not_ended_well(tmp_path):
    ours = trainer(tmp_path, budget=Budget(None, 3))
    ours.stage.network.hidden.kernel.assign(ours.stage.network.hidden.kernel * math.nan)
    with pytest.raises(
        InputError, match="stops at step 3, after 3 skipped steps in a row: the weights .*kernel"
    ):
        ours.fit()
    assert ours.checkpoints.steps == []


def test_xla_where_replicas_need_each_other_is_refused(tmp_path):
    stage = Stage(CONFIG, Network())
    stage.divisible, strategy = False, SimpleNamespace(num_replicas_in_sync=2)
    with pytest.raises(InputError, match="xla cannot compile stage sums on 2 replicas.*leave xla out"):
        Trainer(stage, strategy, Budget(None, 1), tmp_path, "float32", 1e9, xla=True)


@pytest.mark.parametrize(
    ("schedule", "rates"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0, 1.0, 1.0, 1.0])]
)
def test_the_learning_rate_falls_as_the_schedule_says(tmp_path, schedule, rates):
    config = StageConfig(batch_size=8, learning_rate=1e-3, lr_schedule=schedule, warmup_steps=1)
    seen = []
    trainer(tmp_path, config=config, budget=Budget(None, 4)).fit(
        [lambda trainer, step, elapsed, means: seen.append(float(optimizer(trainer).learning_rate))]
    )
    np.testing.assert_allclose(seen, 1e-3 * np.array(rates), rtol=1e-5)


def test_a_batch_that_replicas_cannot_share_names_the_flag():
    strategies.check_batch_size(6, 2)
    with pytest.raises(InputError, match="batch_size 7 .* 2 replicas"):
        strategies.check_batch_size(7, 2)


def test_replicas_without_a_strategy_name_the_way_out():
    with pytest.raises(InputError, match="replicas is 2 .*strategy mirrored"):
        strategies.make("none", 2)


if __name__ == "__main__":  # in a process of its own: virtual devices come before all else
    folder, precision = Path(sys.argv[1]), sys.argv[2]
    mirrored = without_overflow(trainer(folder / "two", "mirrored", precision))
    assert mirrored.strategy.num_replicas_in_sync == 2
    mirrored.fit([Log(mirrored.stage, folder, 0)])  # whose learning rate is mirrored, too
    with mirrored.step.averages_in_place():
        for variable, average in zip(weights(mirrored), averages(mirrored), strict=True):
            np.testing.assert_array_equal(variable, average)
    for bucket in optimizer(mirrored).buckets:
        first, second = (part.numpy() for part in bucket.average.values)
        np.testing.assert_array_equal(first, second)
    np.savez(folder / "mirrored.npz", *weights(mirrored), *averages(mirrored))
    in_parts = without_overflow(trainer(folder / "in parts", "mirrored", precision, accumulate=4))
    in_parts.fit()
    np.savez(folder / "in parts.npz", *weights(in_parts), *averages(in_parts))

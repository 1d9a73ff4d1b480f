"""Stages with two players, on a game so small that a plain loop in numpy beside it says where it must end."""

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
from sd_tf.data.pipeline import stream
from sd_tf.training import strategy as strategies
from sd_tf.training.loop import Budget, Trainer
from sd_tf.training.observers import Log
from sd_tf.training.options import OptimizerConfig
from sd_tf.training.stage import Player, Stage

STEPS, BATCH, EXAMPLES = 20, 8, 24
CRITIC = OptimizerConfig(
    learning_rate=0.05, warmup_steps=3, weight_decay=0.02, gradient_clip=0.8, ema_decay=0.9
)
MAKER = OptimizerConfig(learning_rate=0.02, lr_schedule="linear", warmup_steps=1, ema_decay=0.5)
REAL = np.random.default_rng(0).normal(2.0, 0.5, EXAMPLES).astype("float32")
NOISE = np.random.default_rng(1).normal(0.0, 1.0, EXAMPLES).astype("float32")
R1 = 0.3
# Of the weights after 20 steps: rounding, and what bfloat16's 8 and float16's 11 digits allow.
TOLERANCES = {"float32": 2e-6, "mixed_bfloat16": 2e-2, "mixed_float16": 3e-3}


class Line(keras.Model):
    """slope * x + bias."""

    def __init__(self, slope, bias, **kwargs):
        super().__init__(**kwargs)
        self.slope = self.add_weight(shape=(), initializer=keras.initializers.Constant(slope), name="slope")
        self.bias = self.add_weight(shape=(), initializer=keras.initializers.Constant(bias), name="bias")
        self.built = True

    def call(self, x):
        return keras.ops.cast(self.slope * x + self.bias, "float32")


class Game(Stage):
    """A critic tells real numbers from made ones; the maker pleases the moving average of the critic."""

    name, batch_size, order = "game", BATCH, (("critic", 2), ("maker", 1))

    def __init__(self, precision):
        critic, maker = Line(0.3, -0.1, dtype=precision), Line(0.5, 0.2, dtype=precision)
        self.players = {"critic": Player(critic, CRITIC), "maker": Player(maker, MAKER)}

    def batches(self, first, part=(0, 1)):
        def fetch(indices, epoch):
            return {"real": REAL[indices], "noise": NOISE[indices]}

        return stream(fetch, EXAMPLES, BATCH, 0, first, part)

    def losses(self, batch, player, averages):
        critic, maker = (self.players[name].network for name in ("critic", "maker"))
        made = maker(batch["noise"])
        if player == "maker":
            return {"loss": tf.nn.softplus(-averages["critic"](made))}
        with tf.GradientTape() as tape:
            tape.watch(batch["real"])
            judged = critic(batch["real"])
        slope = tape.gradient(judged, batch["real"])
        penalty = 0.5 * R1 * tf.square(tf.cast(slope, tf.float32))  # Mescheder et al. 2018, equation 9
        return {"loss": tf.nn.softplus(-judged) + tf.nn.softplus(critic(made)) + penalty, "penalty": penalty}


def in_numpy():
    """(weights, averages) of critic and maker after 20 steps, written down once more in float64."""
    weights = {"critic": np.array([0.3, -0.1]), "maker": np.array([0.5, 0.2])}
    average = {name: values.copy() for name, values in weights.items()}
    first, second = ({name: np.zeros(2) for name in weights} for _ in range(2))
    updates = dict.fromkeys(weights, 0)
    batches = Game("float32").batches(0).as_numpy_iterator()

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def gradient(name, batch):
        real, noise = batch["real"].astype(float), batch["noise"].astype(float)
        made = weights["maker"][0] * noise + weights["maker"][1]
        if name == "maker":
            a, b = average["critic"]
            slope = -sigmoid(-(a * made + b)) * a
            return np.array([np.mean(slope * noise), np.mean(slope)])
        a, b = weights["critic"]
        of_real, of_made = -sigmoid(-(a * real + b)), sigmoid(a * made + b)
        return np.array([np.mean(of_real * real + of_made * made) + R1 * a, np.mean(of_real + of_made)])

    for step in range(STEPS):
        for name, config in (("critic", CRITIC), ("critic", CRITIC), ("maker", MAKER)):
            fall = step / STEPS
            fall = 1 - fall if config.lr_schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * fall)
            rate = config.learning_rate * fall * min(1, (step + 1) / config.warmup_steps)
            g = gradient(name, next(batches))
            g *= min(1, config.gradient_clip / np.linalg.norm(g))
            updates[name] += 1
            t = updates[name]
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            mean, square = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
            decay = np.array([config.weight_decay, 0.0])  # none of the bias
            weights[name] = weights[name] - rate * (mean / (np.sqrt(square) + 1e-8) + decay * weights[name])
            share = min(config.ema_decay, (1 + t) / (10 + t))
            average[name] = share * average[name] + (1 - share) * weights[name]
    return [np.concatenate([found["critic"], found["maker"]]) for found in (weights, average)]


def trainer(folder, precision="float32", strategy="none", **options):
    strategy = strategies.make(strategy, None)
    with strategy.scope():
        game = Game(precision)
    options = {"checkpoint_seconds": 1e9} | options
    return Trainer(game, strategy, Budget(None, STEPS), folder, precision, **options)


def results(trainer):
    """(weights, averages), as `in_numpy` has them."""
    learners = [trainer.step.learners[name] for name in ("critic", "maker")]
    return [
        np.concatenate([np.array([v.numpy() for v in learner.variables]) for learner in learners]),
        np.concatenate([np.array([v.numpy() for v in learner.optimizer.averages]) for learner in learners]),
    ]


def state(trainer):
    """All that training changes."""
    found = [*results(trainer), trainer.steps_taken]
    for learner in trainer.step.learners.values():
        found += [variable.numpy() for variable in tf.nest.flatten(learner.optimizer.state)]
    return found


def quiet(trainer):
    """A loss scale at which nothing overflows: a numpy loop skips no step."""
    for learner in trainer.step.learners.values():
        if learner.optimizer.loss_scale is not None:
            learner.optimizer.loss_scale.assign(64.0)
    return trainer


@pytest.mark.parametrize("precision", TOLERANCES)
def test_twenty_steps_of_two_players_end_where_a_numpy_loop_does(tmp_path, precision):
    ours = quiet(trainer(tmp_path, precision))
    ours.fit()
    for found, expected in zip(results(ours), in_numpy(), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCES[precision])
    assert ours.step.skipped_moves == 0


def test_the_numpy_loop_tells_the_average_of_the_critic_from_the_critic(monkeypatch, tmp_path):
    """Or the comparison above would not hold what the maker's loss reads."""
    plain = Game.losses

    def losses(self, batch, player, averages):
        return plain(self, batch, player, {"critic": self.players["critic"].network})

    monkeypatch.setattr(Game, "losses", losses)
    ours = trainer(tmp_path)
    ours.fit()
    assert np.abs(results(ours)[0] - in_numpy()[0]).max() > 100 * TOLERANCES["float32"]


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_killed_game_ends_to_the_bit_where_an_undisturbed_one_does(tmp_path, precision):
    whole = trainer(tmp_path / "whole", precision)
    whole.fit()

    def killed(trainer, step, elapsed, means):
        if step == 13:
            raise ZeroDivisionError  # nothing is saved: the checkpoint of step 10 is the last

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path / "parts", precision, checkpoint_every=5).fit([killed])
    second = trainer(tmp_path / "parts", precision)
    assert second.steps_taken == 10
    second.fit()
    for ours, theirs in zip(state(second), state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_log_names_each_players_losses(tmp_path):
    ours = trainer(tmp_path / "checkpoints")
    log = Log(ours.stage, tmp_path, 0)
    ours.fit([log])
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    for name in (
        "critic/loss",
        "critic/penalty",
        "maker/loss",
        "critic/learning_rate",
        "maker/learning_rate",
    ):
        assert f'"{name}": ' in line


def test_what_is_not_finite_names_the_player_whose_move_it_is(tmp_path):
    ours = trainer(tmp_path)
    ours.stage.players["maker"].network.slope.assign(math.nan)
    with pytest.raises(sd_tf.InputError, match="stage game stops at step 13, .*: the weights .*slope is not"):
        ours.fit()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_two_replicas_play_the_same_game(tmp_path, precision):
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    subprocess.run(
        [sys.executable, __file__, str(tmp_path), precision], env=environment, check=True, timeout=300
    )
    with np.load(tmp_path / "results.npz") as found:
        for name, expected in zip(("weights", "averages"), in_numpy(), strict=True):
            np.testing.assert_allclose(found[name], expected, atol=TOLERANCES[precision])
            np.testing.assert_array_equal(found[name], found[f"resumed {name}"])


if __name__ == "__main__":  # in a process of its own: virtual devices come before all else
    folder, precision = Path(sys.argv[1]), sys.argv[2]
    game = quiet(trainer(folder / "whole", precision, "mirrored"))
    assert game.strategy.num_replicas_in_sync == 2
    game.fit()

    def stop(trainer, step, elapsed, means):
        trainer.is_to_stop = step == 10

    first = quiet(trainer(folder / "parts", precision, "mirrored"))
    first.fit([stop])
    again = trainer(folder / "parts", precision, "mirrored")
    assert again.steps_taken == 10
    again.fit()
    found = dict(zip(("weights", "averages"), results(game), strict=True))
    found |= dict(zip(("resumed weights", "resumed averages"), results(again), strict=True))
    np.savez(folder / "results.npz", **found)

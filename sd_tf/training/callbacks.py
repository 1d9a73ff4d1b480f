"""Calls the Keras callbacks that `fit` is given."""

import contextlib
import math

import keras

from sd_tf.errors import InputError, shown
from sd_tf.training.options import FOLDER

REFUSED = {  # callbacks that repeat what a run does, or that its next step would overrule
    "BackupAndRestore": f"a run saves and resumes automatically: give {FOLDER}, and call fit again to resume",
    "ModelCheckpoint": f"a run writes checkpoints automatically: give {FOLDER}; snapshots=n also keeps n "
    "copies of the network",
    "LearningRateScheduler": "the option lr_schedule sets the learning rate of every step: use that",
    "ReduceLROnPlateau": "the option lr_schedule sets the learning rate of every step: use that",
    "SwapEMAWeights": "a run already averages the weights and saves the average: set ema_decay",
}


class KerasCallbacks:
    """Calls Keras' callbacks as `keras.Model.fit` would.

    An epoch is as many examples as the data set has. Epochs are numbered through all stages of a run; the
    last epoch of a stage may be shorter. A callback's `self.model` is the network that is trained, or the
    first of several.

    Args:
        callbacks: `keras.callbacks.Callback`s; None for none.

    Raises:
        InputError: one is not a callback, or is one of `REFUSED`.
    """

    def __init__(self, callbacks):
        try:
            self.callbacks = [] if callbacks is None else list(callbacks)
        except TypeError:
            raise InputError(f"callbacks is {shown(callbacks)}: give a list of keras.callbacks") from None
        for callback in self.callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                raise InputError(
                    f"callbacks has {shown(callback)}: give instances of keras.callbacks.Callback"
                )
            for kind in type(callback).__mro__:
                if kind.__name__ in REFUSED and kind.__module__.startswith("keras."):
                    raise InputError(f"the callback {kind.__name__} is not needed: {REFUSED[kind.__name__]}")
            if getattr(callback, "restore_best_weights", False):
                raise InputError(
                    f"the callback {type(callback).__name__} has restore_best_weights, which a run "
                    "undoes: it keeps the moving average. Leave it out"
                )
        self.epoch, self._began, self._model = 0, False, None

    @contextlib.contextmanager
    def training(self):
        """Around the whole run: calls `on_train_end` however the run ends."""
        try:
            yield
        finally:
            if self._began:
                self._began = False
                self._call("on_train_end", {})

    def observer(self, stage, examples: int):
        """An observer of the `Trainer` for one stage.

        Args:
            stage: a `Stage`.
            examples: examples in an epoch.
        """
        return _CallbackObserver(self, stage, max(1, math.ceil(examples / stage.batch_size)))

    def begin(self, stage, steps: int):
        """Gives the callbacks a stage's network, before its first step."""
        self._model = _Model(next(iter(stage.players.values())).network)
        for callback in self.callbacks:
            callback.set_params({"epochs": None, "steps": steps, "verbose": 0})
            callback.set_model(self._model)
            # EarlyStopping must forget its best value, which was another stage's loss.
            if not self._began or isinstance(callback, keras.callbacks.EarlyStopping):
                callback.on_train_begin({})
        self._began = True

    def _call(self, method, *arguments):
        for callback in self.callbacks:
            getattr(callback, method)(*arguments)

    def is_to_stop(self) -> bool:
        """Whether a callback has set `model.stop_training`."""
        return self._model is not None and self._model.stop_training

    def hears_steps(self) -> bool:
        """Whether a callback overrides a method that is called at each step."""
        names = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
        base = keras.callbacks.Callback
        return any(
            name in vars(callback)  # a LambdaCallback has it as an attribute
            or getattr(type(callback), name) is not getattr(base, name)
            for callback in self.callbacks
            for name in names
        )


class _CallbackObserver:
    """Calls callbacks after the steps and epochs of one stage."""

    def __init__(self, owner, stage, steps):
        self.owner, self.stage, self.steps = owner, stage, steps
        self.sums, self.count, self.begun, self.hears_steps = {}, 0, False, owner.hears_steps()

    def __call__(self, trainer, step, elapsed, means):
        owner = self.owner
        if not owner.callbacks:
            return
        if not self.begun:
            owner.begin(self.stage, self.steps)
            owner._call("on_epoch_begin", owner.epoch, {})
            self.begun = True
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if self.hears_steps:
            owner._call("on_train_batch_begin", step - 1, {})
            owner._call("on_train_batch_end", step - 1, quotients({n: float(v) for n, v in means.items()}))
        ends = trainer.budget.progress(step, elapsed) >= 1.0 or owner.is_to_stop()
        if step % self.steps == 0 or ends:
            averages = {name: float(total) / self.count for name, total in self.sums.items()}
            owner._call("on_epoch_end", owner.epoch, quotients(averages))
            owner.epoch += 1
            self.sums, self.count = {}, 0
            if not ends:
                owner._call("on_epoch_begin", owner.epoch, {})
        trainer.is_to_stop = owner.is_to_stop()


class _Model:
    """A network as callbacks see it: with `stop_training`, even if it is not compiled."""

    def __init__(self, network):
        self._network, self.stop_training, self.optimizer = network, False, None

    def __getattr__(self, name):
        return getattr(self._network, name)


def quotients(means):
    """Replaces each pair "name/sum", "name/count" by the quotient "name", or drops it if the count is 0."""
    values = {}
    for name, mean in means.items():
        metric, _, kind = name.rpartition("/")
        if kind not in ("sum", "count"):
            values[name] = mean
        elif kind == "sum" and means[f"{metric}/count"] > 0:
            values[metric] = mean / means[f"{metric}/count"]
    return values

"""Keras' callbacks in a run: what `fit` is given as `callbacks`."""

import contextlib
import math

import keras

from sd_tf.errors import InputError, shown
from sd_tf.training.options import FOLDER

REFUSED = {  # what a run does by itself, or would undo at its next step
    "BackupAndRestore": f"a run saves and resumes by itself: give {FOLDER}, and call fit again to resume",
    "ModelCheckpoint": f"a run keeps checkpoints by itself: give {FOLDER}; the option snapshots keeps copies "
    "of the network on the way",
    "LearningRateScheduler": "every step sets the learning rate by lr_schedule: give that option",
    "ReduceLROnPlateau": "every step sets the learning rate by lr_schedule: give that option",
    "SwapEMAWeights": "a run draws with and saves the moving average by itself: ema_decay sets its decay",
}


class KerasCallbacks:
    """Calls Keras' callbacks as `keras.Model.fit` would.

    An epoch is as many examples as the data set has. Epochs are counted through all stages of a run, each of
    which ends its last one early. What a callback sees as `self.model` is the network that learns, or the
    first of them.

    Args:
        callbacks: `keras.callbacks.Callback`s; None for none.

    Raises:
        InputError: one is no callback, or does what a run does by itself, or would undo.
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
        """The whole run; callbacks hear of its end however it ends."""
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
            examples: in an epoch.
        """
        return _Epochs(self, stage, max(1, math.ceil(examples / stage.batch_size)))

    def begin(self, stage, steps: int):
        """Tells callbacks of a stage's network, before its first step."""
        self._model = _Model(next(iter(stage.players.values())).network)
        for callback in self.callbacks:
            callback.set_params({"epochs": None, "steps": steps, "verbose": 0})
            callback.set_model(self._model)
            # The best value so far that it compares with was of another stage's loss.
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
        """Whether a callback wants to know of each step."""
        names = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
        plain = keras.callbacks.Callback
        return any(
            name in vars(callback)  # of a LambdaCallback
            or getattr(type(callback), name) is not getattr(plain, name)
            for callback in self.callbacks
            for name in names
        )


class _Epochs:
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
    """A network as callbacks see it: with `stop_training`, whether it is compiled or not."""

    def __init__(self, network):
        self._network, self.stop_training, self.optimizer = network, False, None

    def __getattr__(self, name):
        return getattr(self._network, name)


def quotients(means):
    """Those with a "name/sum" and its "name/count" in the place of the two, if any were counted."""
    values = {}
    for name, mean in means.items():
        of, _, kind = name.rpartition("/")
        if kind not in ("sum", "count"):
            values[name] = mean
        elif kind == "sum" and means[f"{of}/count"] > 0:
            values[of] = mean / means[f"{of}/count"]
    return values

"""Keras' callbacks as a run calls them, without a run."""

from types import SimpleNamespace

import keras

from sd_tf.training.callbacks import KerasCallbacks


def stage():
    return SimpleNamespace(
        batch_size=4, players={"unet": SimpleNamespace(network=SimpleNamespace(name="net"))}
    )


class OfItsOwn(keras.callbacks.Callback):
    """Keeps the model in a place of its own, as Keras allows."""

    def set_model(self, model):
        self.mine = model


def test_a_callback_need_not_keep_the_model_where_keras_does():
    callback = OfItsOwn()
    callbacks = KerasCallbacks([callback, keras.callbacks.TerminateOnNaN()])
    assert not callbacks.is_to_stop()
    callbacks.begin(stage(), 3)
    assert callback.mine.name == "net" and not callbacks.is_to_stop()
    callback.mine.stop_training = True
    assert callbacks.is_to_stop()
    callbacks.begin(stage(), 3)  # the next stage
    assert not callbacks.is_to_stop()


def test_no_callbacks_are_none():
    assert KerasCallbacks(None).callbacks == []

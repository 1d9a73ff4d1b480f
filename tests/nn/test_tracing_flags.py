"""`fusing`, `rematerialising` and `recorded_attention` act in their own block and thread alone."""

import threading
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.nn import attention
from sd_tf.nn.attention import Attention, recorded_attention
from sd_tf.nn.fused import fusing
from sd_tf.nn.norm import LayerNorm
from sd_tf.nn.remat import rematerialised, rematerialising


def in_another_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def is_fused():
    """Whether a layer norm that is traced here becomes a call of compiled functions."""
    layer = LayerNorm()
    layer.build((2, 4))
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((2, 4))).graph
    return "Rsqrt" not in {operation.type for operation in graph.get_operations()}


def is_rematerialised():
    """Whether a function that is traced here runs again for its gradient."""

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = rematerialised(tf.tanh, x)
        return tape.gradient(y, x)

    graph = gradient.get_concrete_function(tf.TensorSpec((4,))).graph
    return [operation.type for operation in graph.get_operations()].count("Tanh") == 2


def is_recorded():
    """Whether an attention layer that is called here adds its weights to a record."""
    original = attention.scaled_dot_product_attention
    with mock.patch.object(attention, "scaled_dot_product_attention", wraps=original) as called:
        Attention(2)(np.ones((1, 3, 4), "float32"))
    return called.call_args.kwargs["record"] is not None


def remat(enabled=True):
    return rematerialising([], enabled)


FLAGS = {"fused": (fusing, is_fused), "rematerialised": (remat, is_rematerialised)}
FLAGS["recorded"] = (recorded_attention, is_recorded)


@pytest.mark.parametrize("name", FLAGS)
class TestEachFlag:
    def test_is_off_in_another_thread(self, name):
        block, is_on = FLAGS[name]
        with block():
            assert is_on()
            assert not in_another_thread(is_on)
            assert is_on()

    def test_that_another_thread_turns_on_is_off_here(self, name):
        block, is_on = FLAGS[name]
        inside, leave, ended = threading.Event(), threading.Event(), []

        def other():
            with block():
                inside.set()
                leave.wait(60)
            ended.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(60)
        assert not is_on()
        with block():
            leave.set()
            thread.join()
            assert ended and is_on()  # that the other block ended changes nothing here
        assert not is_on()

    def test_is_off_after_an_exception(self, name):
        block, is_on = FLAGS[name]
        with pytest.raises(KeyboardInterrupt), block():
            raise KeyboardInterrupt
        assert not is_on()

    def test_is_what_it_was_after_a_nested_block(self, name):
        block, is_on = FLAGS[name]
        with block():
            with pytest.raises(ValueError), block():
                assert is_on()
                raise ValueError
            assert is_on()
            if name != "recorded":
                with block(False):
                    assert not is_on()
                assert is_on()
        assert not is_on()


def test_a_second_model_traced_in_another_thread_is_untouched_by_the_first_ones_training():
    layer, norm = Attention(2), LayerNorm()
    layer.build((None, 3, 4))
    norm.build((None, 3, 4))

    def operations():
        function = tf.function(lambda x: rematerialised(lambda x: layer(norm(x)), x))
        graph = function.get_concrete_function(tf.TensorSpec((1, 3, 4))).graph
        return [operation.type for operation in graph.get_operations()]

    alone = operations()
    with fusing(), rematerialising([]), recorded_attention() as recorded:
        assert in_another_thread(operations) == alone
        assert not recorded.self_attention
        assert operations() != alone
        assert recorded.self_attention


def test_of_nested_recorders_the_innermost_records():
    layer, x = Attention(2), np.ones((1, 3, 4), "float32")
    with recorded_attention() as outer:
        layer(x)
        with recorded_attention() as inner:
            layer(x)
            layer(x)
        layer(x)
    assert (len(outer.self_attention), len(inner.self_attention)) == (2, 2)

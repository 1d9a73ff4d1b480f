import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sd_tf import graphs as module
from sd_tf.graphs import batch_slices, compiled, sliced


@pytest.mark.parametrize(("size", "number", "sizes"), [(8, 2, [4, 4]), (7, 3, [2, 2, 3]), (2, 2, [1, 1])])
def test_slices_are_the_whole_in_order_and_of_even_sizes(size, number, sizes):
    whole = {"a": tf.range(size), "b": tf.ones((size, 3))}
    found = sliced(whole, number)
    assert [len(part["a"]) for part in found] == [len(part["b"]) for part in found] == sizes
    np.testing.assert_array_equal(np.concatenate([part["a"] for part in found]), np.arange(size))


@pytest.mark.parametrize(("size", "number", "sizes"), [(20, 2, [8, 12]), (12, 3, [4, 4, 4]), (4, 1, [4])])
def test_examples_that_belong_together_are_in_one_slice(size, number, sizes):
    assert [len(part) for part in sliced(tf.range(size), number, unit=4)] == sizes


def test_a_function_in_slices_gives_what_it_gives_whole(monkeypatch):
    def function(x, y):
        return {"sum": x + y, "square": x * x}

    x, y = np.arange(10.0, dtype="float32").reshape(5, 2), np.ones((5, 2), "float32")
    whole = compiled(function)(x, y)
    monkeypatch.setattr(module, "batch_slices", lambda number: min(number, 2))
    call = compiled(function)
    for name, value in call(x, y).items():
        np.testing.assert_array_equal(value, whole[name])
    assert call(x[:1], y[:1])["sum"].shape == (1, 2)  # too few to divide


def test_after_tensorflow_has_run_it_says_that_nothing_has_changed():
    tf.zeros(1).numpy()
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    assert batch_slices(8) == 1
    assert module.one_core_for_each_operation() is False
    assert batch_slices(8) == 1
    assert tf.config.threading.get_intra_op_parallelism_threads() == threads


@pytest.mark.parametrize(("examples", "pays"), [(1, False), (15, False), (16, True), (64, True)])
def test_a_batch_of_few_examples_is_not_divided(examples, pays, monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 4)
    assert module.pays_to_divide(examples) is pays


def test_there_are_no_more_slices_than_groups_of_examples(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(module, "_operations_use_one_core", lambda: True)
    assert (batch_slices(8), batch_slices(8, unit=4), batch_slices(4, unit=4)) == (4, 2, 1)


def test_before_tensorflow_runs_each_operation_gets_one_core_and_batches_are_divided():
    script = (
        "from sd_tf.graphs import *; assert one_core_for_each_operation() is True;"
        "assert batch_slices(1000) == cores() and batch_slices(1) == batch_slices(1000, replicas=1000) == 1;"
        "import tensorflow as tf; tf.zeros(1).numpy();"
        "assert one_core_for_each_operation() is True and batch_slices(1000) == cores()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
